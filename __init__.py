"""ComfyUI-FewStep: few-step sampling and in-graph distillation for ComfyUI.

ComfyUI reads the names below when it loads the pack; they are made on first use, so that `samplers` and `trainers`
can be imported, on a worker or in a test, where there is no ComfyUI.
"""

from typing import Any

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> Any:
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
