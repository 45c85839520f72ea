"""The ComfyUI that a process of ours runs: the embedded one from PyPI, or the user's at COMFYUI_PATH."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from ..launch import HOME


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


def import_host(*options: str, base: Path | None = None, output: Path | None = None) -> None:
    """Makes `comfy` and `folder_paths` importable here, as they are inside a running host, on the CPU when there is no GPU.

    base: the folder with models, input and output; None for ComfyUI's own, which for the embedded one is .fewstep/host.
    output: the folder of what is made, where it may be another than the one there. options: others of ComfyUI's command line.
    It reads them from sys.argv on import, so ours are hidden from it.
    """
    path = os.environ.get("COMFYUI_PATH")
    if base or not path:
        options = ("--base-directory" if path else "--cwd", str(base or HOME / "host"), *options)
    arguments, sys.argv = sys.argv, [sys.argv[0], *cpu_options(), *options]
    try:
        if path:
            sys.path.insert(0, path)
        else:
            mend_torchvision()
        import comfy.options

        comfy.options.enable_args_parsing()
        sys.modules["folder_paths"] = importlib.import_module("folder_paths" if path else "comfy.cmd.folder_paths")
        if output:
            sys.modules["folder_paths"].set_output_directory(str(output))
        _read_extra_model_paths(path)
        import comfy.samplers
    finally:
        sys.argv = arguments


def node_classes(*, custom: bool = False) -> dict[str, Any]:
    """The host's node classes by name, after import_host. custom: those in its custom_nodes folder too."""
    if not os.environ.get("COMFYUI_PATH"):
        from comfy.nodes.package import import_all_nodes_in_workspace

        return dict(import_all_nodes_in_workspace(vanilla_custom_nodes=custom).NODE_CLASS_MAPPINGS)
    nodes = importlib.import_module("nodes")  # the host's, not the room of ours
    _have_a_server()
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=custom, init_api_nodes=False))
    return dict(nodes.NODE_CLASS_MAPPINGS)


def _have_a_server() -> None:
    """Nodes of current hosts and many packs want one to add their routes to, and warn without; it serves nobody."""
    import server

    if getattr(server.PromptServer, "instance", None) is None:
        server.PromptServer(asyncio.new_event_loop(), *_without_assets(server.PromptServer))


def _without_assets(kind: type) -> list[Any]:
    """What hosts from 0.36 on give their server besides: who keeps books on files, here nobody."""
    if "asset_manager" not in inspect.signature(kind).parameters:
        return []
    from app.assets.manager import NoAssets
    from comfy.cli_args import args

    return [NoAssets(args)]


@functools.cache
def _read_extra_model_paths(path: str | None) -> None:
    """What ComfyUI's main.py does before it starts: model folders elsewhere. path: as in COMFYUI_PATH.

    Also as early as there: some hosts' `nodes`, which this pack imports, put a module before the package `utils`.
    """
    from comfy.cli_args import args

    reading = importlib.import_module("utils.extra_config" if path else "comfy.cmd.extra_model_paths")
    usual = [Path(path) / "extra_model_paths.yaml"] if path else []
    given = [Path(file) for files in args.extra_model_paths_config or [] for file in files]
    for file in [*(file for file in usual if file.is_file()), *given]:
        reading.load_extra_path_config(str(file))


def serve() -> None:
    """Starts the embedded server with the options on the command line; it runs until it is stopped."""
    mend_torchvision()
    from comfy.cmd.main import entrypoint

    entrypoint()


if __name__ == "__main__":
    serve()
