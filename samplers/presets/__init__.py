"""How well-known few-step models want to be sampled. Every row names where its convention is published.

A cfg of 1 is no guidance in ComfyUI; the sources call it guidance_scale 0 or cfg 0. PCM's, Hyper-SD's and Hyper-SD3's CFG
LoRAs keep ordinary guidance, two forwards a step.
"""

from __future__ import annotations

from collections.abc import Iterable

from .hashes import LARGEST as LARGEST
from .hashes import PUBLISHED as PUBLISHED
from .pictures import PICTURES
from .preset import OURS as OURS
from .preset import Preset as Preset
from .preset import plain
from .timesteps import TIMESTEPS
from .videos import VIDEOS

PRESETS: dict[str, Preset] = TIMESTEPS | PICTURES | VIDEOS


def family_named_by(classes: Iterable[str]) -> str | None:
    """Of a model's classes, the most derived first, the one that a recipe is told by; None where no recipe knows it."""
    known = {name for preset in PRESETS.values() for name in preset.models}
    return next((name for name in classes if name in known), None)


def named_by(file: str) -> list[str]:
    """The recipes of the family that a file's name tells, in the order of the table."""
    name = plain(file)
    return [recipe for recipe, preset in PRESETS.items() if preset.is_named_by(name)]
