"""The host's objects as ours: the only files that import ComfyUI and know that hosts differ."""

from . import (
    backward,
    bypass,
    data,
    experts,
    folders,
    graph,
    guidance,
    inputs,
    limits,
    models,
    precision,
    signals,
    training,
)

__all__ = [
    "backward",
    "bypass",
    "data",
    "experts",
    "folders",
    "graph",
    "guidance",
    "inputs",
    "limits",
    "models",
    "precision",
    "signals",
    "training",
]
