"""The host's objects as ours: the only files that import ComfyUI and know that hosts differ."""

from .editor import graph, latent_previews, limits, signals
from .files import checkpoints, folders, naming
from .memory import backward, bypass, precision
from .sampling import conditions, experts, guidance, inputs, models, videos
from .teachers import carried, data, editing, encoding, following, guiding, identity, training, with_sound

__all__ = [
    "backward",
    "bypass",
    "carried",
    "checkpoints",
    "conditions",
    "data",
    "editing",
    "encoding",
    "experts",
    "folders",
    "following",
    "graph",
    "guidance",
    "guiding",
    "identity",
    "inputs",
    "latent_previews",
    "limits",
    "models",
    "naming",
    "precision",
    "signals",
    "training",
    "videos",
    "with_sound",
]
