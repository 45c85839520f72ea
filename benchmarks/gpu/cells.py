"""Cells of the GPU book in one process: the host as its server starts it, then one cell after the other.

Nothing here imports torch before the host has set its allocator up, as it does before it imports torch itself.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

MARK = "CELL "
"""Before a line that tells a cell's figures, among what the host prints."""


def start_host(options: list[str]) -> None:
    """The one at COMFYUI_PATH as its own main.py sets it up, the server aside; the embedded one as the pack does."""
    options = ["--use-pytorch-cross-attention", *options]
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        from ...commands.embedded import import_host

        import_host(*options)
        return
    arguments, sys.argv = sys.argv, [sys.argv[0], *options]
    try:
        sys.path.insert(0, path)
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("cuda_malloc")
        importlib.import_module("main")
    finally:
        sys.argv = arguments


def main() -> None:
    asked = json.loads(sys.argv[1])
    start_host(asked["options"])
    from .bench import Bench
    from .parts import PARTS

    with Bench(asked["folder"], PARTS) as bench:
        for cell in asked["cells"]:
            figures = bench.measured(*cell)
            if bench.is_first:
                print(MARK + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
