"""One node that sets everything as a known few-step model wants it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..samplers.few_step import sample_few_step, sample_tcd
from ..samplers.presets import PRESETS, Preset
from . import host
from .model_sampling import LCMBoundary
from .sampling import Schedule


class ApplyRecipe:
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS", "FLOAT")
    RETURN_NAMES = ("model", "sampler", "sigmas", "cfg")
    OUTPUT_TOOLTIPS = (
        "The model, its output read as the recipe says.",
        "The sampler of the recipe.",
        "The exact noise levels of the recipe.",
        "The guidance scale to sample with: 1, no guidance, for all of these.",
    )
    FUNCTION = "apply"
    CATEGORY = "few-step/sampling"
    DESCRIPTION = (
        "Sets model, sampler and schedule as the authors of a well-known few-step model mean it. Load the checkpoint or "
        "LoRA with the host's own loaders first. For students that FewStep made, use Load Distilled Student."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The few-step checkpoint, or the base model with its speed LoRA."}),
                "recipe": (
                    list(PRESETS),
                    {"tooltip": "Which family the file is of, and for how many steps it was made."},
                ),
            }
        }

    def apply(self, model: Any, recipe: str) -> tuple[Any, Any, Tensor, float]:
        if recipe not in PRESETS:
            raise ValueError(f"there is no recipe {recipe!r}; known are: {', '.join(PRESETS)}.")
        preset = PRESETS[recipe]
        if preset.prediction or preset.lcm_boundary:
            change = LCMBoundary if preset.lcm_boundary else None
            model = host.with_model_sampling(model, prediction=preset.prediction, change=change)
        (sigmas,) = Schedule().make(model, preset.schedule, preset.steps, values=preset.values)
        return model, _sampler(preset), sigmas, preset.cfg


def _sampler(preset: Preset) -> Any:
    if preset.sampler == "tcd":
        return host.sampler(sample_tcd, eta=preset.eta)
    gamma = 0.0 if preset.sampler == "lightning" else 1.0
    return host.sampler(sample_few_step, gamma=gamma, unit_variance_start=preset.unit_variance_start)
