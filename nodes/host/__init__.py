"""The host's objects as ours: the only files that import ComfyUI and know that hosts differ."""

from . import data, folders, graph, guidance, limits, models, precision, signals, training

__all__ = ["data", "folders", "graph", "guidance", "limits", "models", "precision", "signals", "training"]
