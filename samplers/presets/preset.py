"""What a recipe of a known family says."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ..noise import NoiseFamily

OURS = ("lightning", "lcm", "tcd", "consistency", "ancestral")
"""Samplers of this pack. Any other that a preset names is the host's: what ComfyUI's templates take for some families."""
TEMPLATES = "ComfyUI's workflow templates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """sampler: one of OURS, as the nodes are called, or one of the host's. eta: of tcd and ancestral.

    schedule, steps, values, absolute_shift: of Few-Step Schedule. prediction: when the network's output is not what the
    base model's is. lcm_boundary: LCM's scalings on top of it. cfg: of the guider; 1 is one forward a step.
    guidance_scale: for a model with a guidance input, what goes in there. audio_shift: the model is patched to it, and to
    absolute_shift for its pictures. noise_scale: the model is patched to it. noise_clip: of the Consistency Sampler. models:
    the host's classes of the family, where it is told from others by them. files: how the names of its files are known, see
    is_named_by. lora_strength: of the speed LoRA, where its authors ask for another than 1. boundary: two experts share the
    steps, the one for high noise takes the levels from it up. then: the recipe of the second stage. note: what else there is to
    do, a sentence.
    """

    sampler: str
    schedule: str
    steps: int
    source: str
    family: NoiseFamily = NoiseFamily.VARIANCE_EXPLODING
    values: str = ""
    eta: float = 0.3
    prediction: str | None = None
    lcm_boundary: bool = False
    unit_variance_start: bool = False
    cfg: float = 1.0
    guidance_scale: float | None = None
    absolute_shift: float = 0.0
    audio_shift: float | None = None
    noise_scale: float | None = None
    noise_clip: float = 0.0
    models: tuple[str, ...] = ()
    files: str = ""
    lora_strength: float = 1.0
    boundary: float | None = None
    then: str | None = None
    note: str = ""

    def is_named_by(self, name: str) -> bool:
        """Whether files, a regular expression, is found in a name that is `plain`."""
        return bool(self.files) and re.search(self.files, name) is not None

    def told(self) -> list[str]:
        """What a user must know beside the levels, a sentence each."""
        said = []
        if self.lora_strength != 1.0:
            said.append(f"Load the speed LoRA at strength {self.lora_strength:g}.")
        if self.boundary is not None:
            said.append(f"Two experts: high noise from {self.boundary:g} up, low noise below; see Two Experts.")
        if self.then is not None:
            said.append(f"Then enlarge the latent and go on with {self.then!r}.")
        if self.sampler not in OURS:
            said.append(f"Sampled by ComfyUI's {self.sampler}.")
        return [*said, self.note] if self.note else said


def plain(file: str) -> str:
    """A file's name without folders and ending, in lower case, every run of other signs than letters and digits a hyphen."""
    stem = re.sub(r"\.(safetensors|gguf|ckpt|pt|pth|bin|sft)$", "", re.split(r"[/\\]", file)[-1].lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")


def in_steps(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def flow(steps: int, *models: str, source: str, schedule: str = "trailing", **named: Any) -> Preset:
    """Even steps from 1 on the model's own shift, Euler, where nothing else is named."""
    named = {"sampler": "lightning", "models": models, **named}
    return Preset(schedule=schedule, steps=steps, family=NoiseFamily.FLOW, source=source, **named)


def listed(values: str, *models: str, source: str, **named: Any) -> Preset:
    """The authors' own noise levels."""
    return flow(len(values.split(",")), *models, source=source, schedule="sigmas", values=values, **named)


def without_penultimate(steps: int, *models: str, source: str, **named: Any) -> Preset:
    """Even steps as the stock KSampler takes them with uni_pc: of one more, all but the last."""
    values = ", ".join(f"{(steps + 1 - k) / (steps + 1):.9g}" for k in range(steps))
    return listed(values, *models, source=source, sampler="uni_pc", **named)
