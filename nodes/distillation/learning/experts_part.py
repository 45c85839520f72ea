"""One of two experts: a method on its own part of the noise levels."""

from __future__ import annotations

import dataclasses
from typing import Any

from ....trainers.methods.guidance import GuidanceOptions
from ....trainers.methods.progressive import ProgressiveOptions
from ....trainers.objective.level_range import LevelRange
from . import option_inputs as inputs


class ExpertsPart:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["wan 2.2", "high noise", "low noise", "moe", "boundary"]
    DESCRIPTION = (
        "For models that come as two (Wan 2.2): the student learns only the noise levels that its expert is for. Distil each "
        "expert in a run of its own, with the same method, and sample the two students with Two Experts."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "method": ("FEWSTEP_METHOD", {"tooltip": "Progressive Distillation or Guidance Distillation."}),
                "level_from": inputs.number(
                    0.875,
                    "Levels from here up: the boundary for the expert for high noise, 0 for the other.",
                    step=0.001,
                ),
                "level_to": inputs.number(
                    1.0, "Levels below here: 1 for the expert for high noise, the boundary for the other.", step=0.001
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, level_from: Any = None, level_to: Any = None) -> bool | str:
        """Before anything runs."""
        return inputs.checked(lambda: LevelRange(level_from, level_to), level_from, level_to)

    def make(self, method: Any, level_from: float, level_to: float) -> tuple[Any]:
        if not isinstance(method, ProgressiveOptions | GuidanceOptions):
            raise ValueError(
                f"method is {type(method).__name__.removesuffix('Options')}, whose students learn from all levels "
                "below, or draw through all, so that one expert alone cannot teach them; use Progressive Distillation or "
                "Guidance Distillation."
            )
        return (dataclasses.replace(method, level_from=level_from, level_to=level_to),)
