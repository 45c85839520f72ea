"""The ComfyUI that a process of ours runs: the embedded one from PyPI, or the user's at COMFYUI_PATH."""

from __future__ import annotations

import os
import sys


def mend_torchvision() -> None:
    """Declares the two operators without which torchvision's CUDA wheel does not import beside a CPU torch.

    Only where that import fails. ComfyUI needs torchvision's picture transforms, never these operators.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        mend_torchvision.library = library  # type: ignore[attr-defined]  # dropped, it would undo the declaration


def cpu_options() -> list[str]:
    """["--cpu"] for ComfyUI where torch sees no accelerator: CUDA, ROCm, Apple's or Intel's."""
    import torch

    found = (torch.cuda.is_available(), torch.backends.mps.is_available(), torch.xpu.is_available())
    return [] if any(found) else ["--cpu"]


def import_host() -> None:
    """Makes `comfy` and `folder_paths` importable here, as they are inside a running host, on the CPU when there is no GPU.

    ComfyUI reads its options from sys.argv on import, so ours are hidden from it.
    """
    arguments, sys.argv = sys.argv, [sys.argv[0], *cpu_options()]
    path = os.environ.get("COMFYUI_PATH")
    try:
        if path:
            sys.path.insert(0, path)
            import comfy.options

            comfy.options.enable_args_parsing()
            import folder_paths  # noqa: F401
        else:
            mend_torchvision()
            import comfy.cmd.folder_paths

            sys.modules["folder_paths"] = comfy.cmd.folder_paths
        import comfy.samplers
    finally:
        sys.argv = arguments


def serve() -> None:
    """Starts the embedded server with the options on the command line; it runs until it is stopped."""
    mend_torchvision()
    from comfy.cmd.main import entrypoint

    entrypoint()


if __name__ == "__main__":
    serve()
