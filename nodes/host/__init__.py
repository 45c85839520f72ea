"""The host's objects as ours: the only files that import ComfyUI and know that hosts differ."""

from . import (
    backward,
    bypass,
    checkpoints,
    data,
    encoding,
    experts,
    folders,
    graph,
    guidance,
    identity,
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
    "checkpoints",
    "data",
    "encoding",
    "experts",
    "folders",
    "graph",
    "guidance",
    "identity",
    "inputs",
    "limits",
    "models",
    "precision",
    "signals",
    "training",
]
