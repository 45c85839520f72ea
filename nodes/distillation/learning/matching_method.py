"""The method node of distribution matching: one node, whose options are the whole family of methods."""

from __future__ import annotations

from enum import Enum
from typing import Any

from ....trainers.methods.distribution_matching import DistributionMatchingOptions, Guidance
from ....trainers.methods.rollout import Rollout
from ....trainers.objective.score import Strength
from . import option_inputs as inputs


class DistributionMatching:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = [
        "train",
        "dmd2",
        "decoupled dmd",
        "tdm",
        "vsd",
        "swiftbrush",
        "diff-instruct",
        "rcm",
        "gan",
        "adversarial",
        "ladd",
        "few step",
        "from prompts",
    ]
    DESCRIPTION = (
        "Distribution matching (DMD2: Yin et al. 2024), the method behind most of today's fast models: the student's own "
        "samples are pulled to where its teacher would draw them, guidance included. Prompts alone are enough. A companion, a "
        "second LoRA on the same weights, learns what the student draws; it is kept in the run and in no file that comes out. "
        "With pictures, a critic can pull beside it."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "steps": inputs.count(
                    4, "In which the student is trained and sampled: 1 to 8 are usual.", least=1, most=1000
                ),
                "iterations": inputs.count(
                    2000,
                    "Updates of the student. Pictures are best after some 1000 to 3000; contrast may grow from there on.",
                    least=1,
                ),
                "learning_rate": inputs.learning_rate(
                    1e-5, "Of the student, at the start; it falls as Distill Model's schedule says. 1e-5 for a LoRA."
                ),
                "guidance_scale": inputs.guidance_scale(
                    5.0,
                    "Classifier-free guidance of the teacher, baked in; the student is sampled at cfg 1. 1 bakes in none. Less "
                    "than you would draw with, where contrast grows: 3.5 to 4 for flow models.",
                ),
            },
            "optional": {
                "guidance": _one_of(
                    Guidance,
                    Guidance.TEACHER,
                    "teacher: the guided teacher is matched (DMD2). decoupled: it is matched without guidance, and what guidance "
                    "adds pulls at cleaner levels; one more forward (Decoupled DMD).",
                ),
                "rollout": _one_of(
                    Rollout,
                    Rollout.FRESH_NOISE,
                    "How the student draws. fresh_noise: as LCM, gamma 1 (DMD2). deterministic: gamma 0. segments: gamma 0, each "
                    "step matched on the levels that it spans (TDM). landings: the same on all levels above, which is steadier.",
                ),
                "strength": _one_of(
                    Strength,
                    Strength.NORMALISED,
                    "Of the pull. normalised: each sample by itself (DMD). plain (Diff-Instruct). score: as in score "
                    "distillation (SwiftBrush, VSD).",
                ),
                "companion_learning_rate": inputs.learning_rate(
                    3e-5, "It must keep up with the student: two to five times the student's."
                ),
                "companion_updates": inputs.count(
                    4,
                    "For each of the student's: more where gap in the panel grows. TDM and SwiftBrush have 1.",
                    least=1,
                    most=100,
                ),
                "companion_first": inputs.count(
                    100, "Iterations before the student's first update in which the companion learns alone."
                ),
                "companion_rank": inputs.count(
                    0, "Width of the companion's LoRA; 0: the student's. Full weights: 32. No less than the student's."
                ),
                "share_samples": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "The companion learns from the samples of the student's own update, which costs far less. "
                        "Off: it draws new ones for each of its updates.",
                    },
                ),
                "renoise_from": inputs.number(
                    0.02, "Samples are noised to levels from this share of the model's time on."
                ),
                "renoise_to": inputs.number(0.98, "And up to this one."),
                "fewest_steps": inputs.count(
                    0,
                    "Above 0: each iteration draws in a number of steps from this to steps, so that one student does for all. "
                    "0: steps alone.",
                ),
                "anchor_steps": inputs.count(
                    0,
                    "Above 0: the first step also learns where the teacher gets in so many steps, half of its way. "
                    "Keeps seeds apart (DP-DMD: 6).",
                    most=500,
                ),
                "anchor_weight": inputs.number(0.05, "Of that, beside the matching.", most=100.0),
                "consistency_levels": inputs.count(
                    0,
                    "Above 0: consistency along so many levels is learnt beside, from pictures, with a small matching_weight "
                    "(discrete rCM: 50). Keeps what matching alone would lose.",
                ),
                "matching_weight": inputs.number(
                    1.0, "Of the matching; 0.01 to 0.1 beside consistency.", most=100.0, step=0.001
                ),
                "grid": inputs.grid(
                    "Spacing of the student's levels. trailing: even in the model's own time. Flow models: trailing only."
                ),
                "adversarial_weight": inputs.number(
                    0.0,
                    "Above 0: a critic learns to tell what the student draws from your pictures, and what would make them look "
                    "real pulls as well. Needs pictures.",
                    most=100.0,
                ),
                "adversarial_from": inputs.count(
                    0, "Updates of the student after which the critic pulls; it learns from the beginning on."
                ),
                "critic_learning_rate": inputs.learning_rate(1e-4, "Of the critic."),
            },
        }
        return inputs.options_folded(declared, but=("guidance",))

    @classmethod
    def VALIDATE_INPUTS(cls, steps: Any = None, fewest_steps: Any = 0) -> bool | str:
        """Before anything runs."""
        given = {"steps": steps, "fewest_steps": fewest_steps}
        return inputs.checked(
            lambda: DistributionMatchingOptions(**given, iterations=1, learning_rate=1e-5, guidance_scale=1.0),
            *given.values(),
        )

    def make(self, **options: Any) -> tuple[DistributionMatchingOptions]:
        return (DistributionMatchingOptions.read(options),)


def _one_of(kind: type[Enum], default: Enum, tooltip: str) -> inputs.Input:
    return ([choice.value for choice in kind], {"default": default.value, "tooltip": tooltip})
