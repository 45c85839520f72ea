"""Method nodes: how to distil."""

from __future__ import annotations

import functools
from typing import Any

from ....trainers.methods.consistency import ConsistencyOptions, Solver
from ....trainers.methods.consistency_training import ConsistencyTrainingOptions, LevelChoice
from ....trainers.methods.guidance import GuidanceOptions
from ....trainers.methods.progressive import ProgressiveOptions, StudentPrediction
from ....trainers.objective.distance import Distance
from ....trainers.objective.grid import Grid
from ....trainers.objective.weighting import Weighting
from . import option_inputs as inputs

STUDENT_PREDICTIONS = [kind.value for kind in StudentPrediction if kind is not StudentPrediction.X0_AND_EPS]
"""What a student in the host may predict: none of its loaders builds a network with twice the output channels."""


class ProgressiveDistillation:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["train", "halve steps", "fewer steps", "few step", "lightning"]
    DESCRIPTION = (
        "Progressive distillation (Salimans and Ho 2022): the student learns to do in one step what its teacher does in "
        "two (a halving), then becomes the teacher, until the target step count is reached. 64 to 4 steps takes four halvings."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "start_steps": (
                    "INT",
                    {"default": 32, "min": 2, "max": 1000, "tooltip": "Steps at which the teacher still samples well."},
                ),
                "target_steps": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 500,
                        "tooltip": "Steps of the final student: start_steps divided by two, once for each halving.",
                    },
                ),
                "iterations": (
                    "INT",
                    {"default": 1000, "min": 1, "max": 1000000, "tooltip": "Optimiser steps in each halving."},
                ),
                "weighting": (
                    [weighting.value for weighting in Weighting],
                    {
                        "tooltip": "Weight of the squared error over noise levels. truncated_snr = max(SNR, 1) is the "
                        "paper's choice for distillation; snr_plus_one is the v-error; snr is the eps-error, which "
                        "vanishes where few-step students live; constant is the x0-error."
                    },
                ),
                "learning_rate": (
                    "FLOAT",
                    {
                        "default": 1e-4,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.000001,
                        "round": False,
                        "tooltip": "At the start of each halving; it falls linearly to 0 within the halving. 1e-4 for a LoRA.",
                    },
                ),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": 5.0,
                        "min": 1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Classifier-free guidance baked in during the first halving, the cfg at which you draw. The "
                        "student is then sampled at cfg 1, at half the cost of a step. 1 bakes in none.",
                    },
                ),
            },
            "optional": {
                "student_prediction": (
                    STUDENT_PREDICTIONS,
                    {
                        "default": StudentPrediction.AS_TEACHER.value,
                        "tooltip": "What the student's network predicts. v_prediction or x0 make an eps-model fit for one "
                        "or two steps; a stage that only converts then comes first. Not for flow and EDM models. The "
                        "paper's x0 and eps at once needs twice the output channels, which ComfyUI loads in no model.",
                    },
                ),
                "conversion_iterations": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1000000,
                        "display_name": "iterations of the conversion",
                        "tooltip": "Optimiser steps of the converting stage, if there is one. 0: as many as iterations.",
                    },
                ),
                "distance": (
                    [distance.value for distance in Distance],
                    {
                        "default": Distance.SQUARED.value,
                        "tooltip": "squared is the paper's. pseudo_huber is near the plain size of the error, so that "
                        f"outliers pull less. {inputs.ABOUT_LPIPS}",
                    },
                ),
                "last_stages_iterations": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1000000,
                        "display_name": "iterations of the last halvings",
                        "tooltip": "Optimiser steps of the halvings to 2 and to 1 steps, of which the paper takes twice as "
                        "many. 0: as many as iterations.",
                    },
                ),
                "grid": (
                    [grid.value for grid in Grid],
                    {
                        "default": Grid.TRAILING.value,
                        "tooltip": "Noise levels of the start_steps. trailing: the model's own, even in time. cosine: the "
                        "paper's. edm: Karras, rho 7. The student keeps every second level after each halving, and its "
                        "file says which. Flow models: trailing only.",
                    },
                ),
                "merged_steps": (
                    "INT",
                    {
                        "default": 2,
                        "min": 2,
                        "max": 64,
                        "display_name": "steps merged into one",
                        "tooltip": "Steps of the teacher that one step of the student learns. 2 halves, as the paper does; "
                        "4 quarters, in half as many stages, each with twice as many passes of the teacher.",
                    },
                ),
                "guidance_scale_max": inputs.guidance_scale(0.0, f"Above 0: {inputs.ABOUT_SCALE_INPUT}", least=0.0),
            },
        }
        return inputs.options_folded(declared)

    @classmethod
    def VALIDATE_INPUTS(cls, start_steps: Any = None, target_steps: Any = None, merged_steps: Any = 2) -> bool | str:
        """Before anything runs, what these say together; all else has limits of its own, which hosts report on the one input."""
        given = {"start_steps": start_steps, "target_steps": target_steps, "merged_steps": merged_steps}
        chosen = functools.partial(
            ProgressiveOptions, weighting=Weighting.CONSTANT, learning_rate=1e-3, guidance_scale=1.0
        )
        return inputs.checked(lambda: chosen(**given, iterations=1), *given.values())

    def make(self, **options: Any) -> tuple[ProgressiveOptions]:
        return (ProgressiveOptions.read(options),)


class GuidanceDistillation:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["train", "bake cfg", "cfg 1", "twice as fast"]
    DESCRIPTION = (
        "Guidance distillation (Meng et al. 2023), at one scale or as a slider: the student says in one forward what its "
        "teacher says in two, negative prompt included. Sampled at cfg 1 it costs half as much at any number of steps, with any "
        "sampler."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "guidance_scale": inputs.guidance_scale(
                    7.5,
                    "The cfg that is baked in, the one at which you draw, with the negative prompt of Distill Model. Above 1; "
                    "for flow models usually 2.5 to 4.5.",
                ),
                "iterations": inputs.count(1000, "Optimiser steps.", least=1),
                "learning_rate": inputs.learning_rate(
                    1e-4, "At the start; it falls linearly to 0, or as Distill Model's schedule says."
                ),
                "steps": inputs.count(
                    20, "Of the recipe that the student's file carries. Any other number works too.", least=1, most=1000
                ),
            },
            "optional": {
                "gamma": inputs.number(
                    0.0,
                    "Of the recipe's sampler: 0 is deterministic (Lightning, Euler), 1 draws all noise fresh (LCM).",
                ),
                "grid": inputs.grid(
                    "Of the recipe's schedule. trailing: even in the model's own time. Flow models: trailing only."
                ),
                "weighting": inputs.weighting(
                    Weighting.TRUNCATED_SNR,
                    "Weight of the squared error over noise levels; truncated_snr = max(SNR, 1) is the paper's choice.",
                ),
                "distance": inputs.distance(
                    Distance.SQUARED, "squared is the paper's. pseudo_huber lets outliers pull less."
                ),
                "guidance_scale_max": inputs.guidance_scale(0.0, f"Above 0: {inputs.ABOUT_SCALE_INPUT}", least=0.0),
            },
        }
        return inputs.options_folded(declared)

    @classmethod
    def VALIDATE_INPUTS(cls, guidance_scale: Any = None, guidance_scale_max: Any = 0.0) -> bool | str:
        """Before anything runs, what these say together."""
        given = {"guidance_scale": guidance_scale, "guidance_scale_max": guidance_scale_max}
        return inputs.checked(
            lambda: GuidanceOptions(**given, iterations=1, steps=4, learning_rate=1e-4), *given.values()
        )

    def make(self, **options: Any) -> tuple[GuidanceOptions]:
        return (GuidanceOptions.read(options),)


class ConsistencyDistillation:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["train lcm", "lcm lora", "few step"]
    DESCRIPTION = (
        "Makes your own LCM-LoRA. Latent consistency distillation (Luo et al. 2023): the student learns to say at every level "
        "what it says itself one step of its teacher further down, guidance included. With the heun solver and more levels it "
        "is the consistency distillation of Song et al. 2023."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "steps": inputs.count(
                    4,
                    "Of the recipe that the student's file carries; 1 to 8 work with the same student.",
                    least=1,
                    most=1000,
                ),
                "iterations": inputs.count(2000, "Optimiser steps.", least=1),
                "learning_rate": inputs.learning_rate(
                    1e-4, "At the start; it falls linearly to 0, or as Distill Model's schedule says. 1e-4 for a LoRA."
                ),
                "guidance_scale": inputs.guidance_scale(
                    7.5,
                    "Classifier-free guidance of the teacher, baked in: the cfg at which you draw, for flow models usually "
                    "2.5 to 4.5. The student is sampled at cfg 1. 1 bakes in none.",
                ),
            },
            "optional": {
                "levels": inputs.count(
                    50,
                    "Levels that the student is made to agree along: 50 are LCM's skipping step of 20 timesteps. More are truer "
                    "to the teacher's path and take longer.",
                    least=2,
                    most=1000,
                ),
                "solver": (
                    [solver.value for solver in Solver],
                    {
                        "default": Solver.DDIM.value,
                        "tooltip": "The teacher's step: ddim is LCM's, one evaluation; heun is Song et al.'s, two.",
                    },
                ),
                "guidance_scale_max": inputs.guidance_scale(
                    0.0,
                    "Above 0: for each sample a scale between guidance_scale and this is drawn, as LCM-LoRA was trained. 0: one "
                    "scale for all.",
                    least=0.0,
                ),
                "target_decay": inputs.number(
                    0.0,
                    "What the student learns from: 0 is itself, usual for a LoRA; 0.95 its moving average, for full weights.",
                    most=0.9999,
                    step=0.0001,
                ),
                "distance": inputs.distance(
                    Distance.PSEUDO_HUBER,
                    "pseudo_huber is LCM's choice: outliers pull less. squared is the first paper's.",
                ),
                "weighting": inputs.weighting(
                    Weighting.CONSTANT, "Weight of the distance over noise levels; constant is both papers' choice."
                ),
                "grid": inputs.grid(
                    "Spacing of the levels. trailing with 50 levels: LCM's. edm: Song et al.'s. Flow models: trailing only."
                ),
                "scale_input": (
                    "BOOLEAN",
                    {"default": False, "tooltip": f"With guidance_scale_max: {inputs.ABOUT_SCALE_INPUT} As in LCM."},
                ),
            },
        }
        return inputs.options_folded(declared)

    @classmethod
    def VALIDATE_INPUTS(cls, steps: Any = None, levels: Any = 50) -> bool | str:
        """Before anything runs, what these say together."""
        given = {"steps": steps, "levels": levels}
        return inputs.checked(
            lambda: ConsistencyOptions(**given, iterations=1, learning_rate=1e-4, guidance_scale=1.0), *given.values()
        )

    def make(self, **options: Any) -> tuple[ConsistencyOptions]:
        return (ConsistencyOptions.read(options),)


class ConsistencyTraining:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["ict", "few step", "without teacher"]
    DESCRIPTION = (
        "Consistency training (iCT: Song and Dhariwal 2023): no teacher is asked. The student learns from real pictures to say "
        "the same about a picture with more and with less of one noise. It begins at the connected model and bakes in no "
        "guidance."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "steps": inputs.count(
                    2,
                    "Of the recipe that the student's file carries; others work with the same student.",
                    least=1,
                    most=1000,
                ),
                "iterations": inputs.count(5000, "Optimiser steps, in phases of equal length.", least=1),
                "learning_rate": inputs.learning_rate(
                    1e-4, "At the start; it falls linearly to 0, or as Distill Model's schedule says."
                ),
            },
            "optional": {
                "first_levels": inputs.count(
                    10,
                    "Levels that the student is made to agree along at first; each phase doubles them, up to last_levels.",
                    least=2,
                    most=1000,
                ),
                "last_levels": inputs.count(
                    160, "Levels at the end. The paper goes to 1280, in 400000 iterations.", least=2, most=10000
                ),
                "level_choice": (
                    [choice.value for choice in LevelChoice],
                    {
                        "default": LevelChoice.LOGNORMAL_LATENTS.value,
                        "tooltip": "lognormal_latents: middle levels come up more often, and small steps count more (iCT), for "
                        "latents. lognormal: with the paper's number, for pictures without a VAE. uniform: all alike (CT, the "
                        "first paper).",
                    },
                ),
                "distance": inputs.distance(
                    Distance.PSEUDO_HUBER_LATENTS,
                    "pseudo_huber_latents is iCT's choice: outliers pull less; pseudo_huber has the paper's number, for pictures "
                    "without a VAE. squared is CT's.",
                ),
                "target_decay": inputs.number(
                    0.0,
                    "What the student learns from: 0 is itself, iCT's choice; 0.9 its moving average, CT's.",
                    most=0.9999,
                    step=0.0001,
                ),
                "grid": inputs.grid(
                    "Spacing of the levels. trailing: even in the model's own time. edm: the papers'. Flow models: trailing only."
                ),
                "target_growth": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "With target_decay: the average changes the more slowly the more levels there are, as CT's.",
                    },
                ),
            },
        }
        return inputs.options_folded(declared)

    @classmethod
    def VALIDATE_INPUTS(cls, first_levels: Any = 10, last_levels: Any = 160, steps: Any = 1) -> bool | str:
        """Before anything runs, what these say together."""
        given = {"first_levels": first_levels, "last_levels": last_levels, "steps": steps}
        return inputs.checked(
            lambda: ConsistencyTrainingOptions(**given, iterations=1, learning_rate=1e-4), *given.values()
        )

    def make(self, **options: Any) -> tuple[ConsistencyTrainingOptions]:
        return (ConsistencyTrainingOptions.read(options),)
