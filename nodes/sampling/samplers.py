"""Sampler and schedule nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import sample_few_step, sample_tcd
from ...samplers.noise import NoiseFamily
from ...samplers.schedules import (
    consistency_sigmas,
    dmd2_timesteps,
    lcm_timesteps,
    parse_numbers,
    shifted_sigmas,
    timesteps_to_sigmas,
    trailing_sigmas,
    turbo_timesteps,
)
from .. import host

MAX_STEPS = 1000


class LCMSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["few step", "fast", "lcm lora"]
    DESCRIPTION = (
        "Latent consistency sampling: at every step the model's clean picture is taken and noised afresh to the next "
        "level. For LCM and LCM-LoRA models, with the lcm schedule. Works for flow models too."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return (host.models.sampler(sample_few_step, gamma=1.0),)


class LightningSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["few step", "fast", "hyper sd", "ddim", "euler"]
    DESCRIPTION = (
        "Deterministic few-step sampling (Euler, DDIM): for SDXL-Lightning and progressively distilled students, with "
        "the trailing schedule at exactly the step count that the file was made for."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return (host.models.sampler(sample_few_step, gamma=0.0),)


class ConsistencySampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["gamma", "few step", "ctm"]
    DESCRIPTION = (
        "Multistep consistency sampling with gamma: 1 noises every step afresh (consistency models, LCM, DMD2), 0 is "
        "deterministic (Lightning), between keeps a part of the old noise (consistency trajectory models)."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "gamma": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Share of fresh noise at each step: 0 deterministic, 1 all fresh.",
                    },
                ),
                "s_noise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.01,
                        "tooltip": "Scale of the fresh noise; 1 is exact.",
                    },
                ),
                "sigma_min": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "round": False,
                        "tooltip": "Smallest level that a consistency model was trained on, 0.002 for Song et al.; 0 for "
                        "latent models. Counts at gamma 1.",
                    },
                ),
                "unit_variance_start": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "For models that start below the largest noise level from pure noise of unit variance: "
                        "Hyper-SD's 1-step UNet (timestep 800), DMD2 in 1 step (399). Not for image-to-image.",
                    },
                ),
            }
        }

    def make(self, **options: Any) -> tuple[Any]:
        return (host.models.sampler(sample_few_step, **options),)


class TCDSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["hyper sd", "few step", "fast"]
    DESCRIPTION = (
        "Trajectory consistency sampling (TCD), for TCD-LoRA and Hyper-SD's unified LoRAs, with the tcd schedule. Each "
        "step goes down past the next level and is noised up to it; eta says how far."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "eta": (
                    "FLOAT",
                    {
                        "default": 0.3,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "0 is deterministic, 1 is all fresh noise. Raise it for more detail at more steps; "
                        "Hyper-SD's 1-step LoRA wants 1.",
                    },
                )
            }
        }

    def make(self, eta: float) -> tuple[Any]:
        return (host.models.sampler(sample_tcd, eta=eta),)


class Schedule:
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Noise levels for SamplerCustom, from the largest down to 0.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["sigmas", "timesteps", "scheduler", "lcm", "turbo", "lightning", "trailing", "noise levels"]
    DESCRIPTION = (
        "The exact noise levels that few-step models were trained on, which the stock schedulers miss. trailing: "
        "SDXL-Lightning, Hyper-SD N-step, progressive students (4 steps: timesteps 999, 749, 499, 249). lcm: LCM and "
        "LCM-LoRA (999, 759, 499, 259). tcd: the same, ending at the smallest level as TCD does. turbo: SD- and "
        "SDXL-Turbo. dmd2: 1 or 4 steps. consistency: consistency models. timesteps, sigmas: typed into values."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that will be sampled; its table of noise levels is used."}),
                "schedule": (list(_SCHEDULES), {"tooltip": "Which grid of timesteps the model was distilled on."}),
                "steps": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": MAX_STEPS,
                        "tooltip": "Sampling steps; lcm and tcd allow at most original_steps, turbo 10, dmd2 1 or 4. "
                        "Typed timesteps and sigmas have their own number.",
                    },
                ),
            },
            "optional": {
                "original_steps": (
                    "INT",
                    {
                        "default": 50,
                        "min": 1,
                        "max": 1000,
                        "tooltip": "lcm and tcd: levels that the model was distilled on.",
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "lcm and tcd: share of the levels that is used, for image-to-image; 1 starts from noise.",
                    },
                ),
                "shift": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 100.0,
                        "step": 0.01,
                        "tooltip": "Flow models: bends the schedule towards noise, on top of the model's own shift; 1 leaves it.",
                    },
                ),
                "values": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "timesteps or sigmas: the list, falling, commas between: 999, 749, 499, 249. A final 0 "
                        "is added to sigmas that do not end in it.",
                    },
                ),
            },
        }

    def make(self, model: Any, schedule: str, steps: int, **options: Any) -> tuple[Tensor]:
        return (levels(host.models.model_sampling_of(model), schedule, steps, **options),)


def levels(
    model_sampling: Any,
    schedule: str,
    steps: int,
    original_steps: int = 50,
    strength: float = 1.0,
    shift: float = 1.0,
    values: str = "",
) -> Tensor:
    """(steps + 1,) of a schedule on the levels of the host's sampling object. ValueError for what does not go together."""
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed are {', '.join(_SCHEDULES)}.")
    if shift != 1.0 and host.models.noise_family(model_sampling) is not NoiseFamily.FLOW:
        raise ValueError(f"shift is {shift}, but only flow models have one; set it to 1.")
    options = {"original_steps": original_steps, "strength": strength, "values": values}
    sigmas = _sigmas(model_sampling, schedule, steps, **options)
    return sigmas if shift == 1.0 else shifted_sigmas(sigmas, shift=shift)


def _sigmas(model_sampling: Any, schedule: str, steps: int, **options: Any) -> Tensor:
    if host.models.noise_family(model_sampling) is NoiseFamily.FLOW and schedule in _NOT_FOR_FLOW:
        raise ValueError(
            f"the {schedule} schedule is for eps-, v- and x0-models; this is a flow model. Use trailing or sigmas."
        )
    return _SCHEDULES[schedule](table=host.models.noise_levels(model_sampling), steps=steps, **options)


def _trailing(*, table: Tensor, steps: int, **_: Any) -> Tensor:
    return trailing_sigmas(steps, table=table)


def _lcm(*, table: Tensor, steps: int, original_steps: int = 50, strength: float = 1.0, **_: Any) -> Tensor:
    """The host's own LCM model patch shrinks the table to its 50 distilled levels, timesteps 19, 39 .. 999, in order."""
    timesteps = lcm_timesteps(steps, original_steps=original_steps, strength=strength)
    if len(table) == 50:
        timesteps = [(t + 1) // 20 - 1 for t in timesteps]
    return timesteps_to_sigmas(timesteps, table=table)


def _tcd(*, table: Tensor, **options: Any) -> Tensor:
    sigmas = _lcm(table=table, **options)
    sigmas[-1] = table[0]
    return sigmas


def _turbo(*, table: Tensor, steps: int, **_: Any) -> Tensor:
    return timesteps_to_sigmas(turbo_timesteps(steps), table=table)


def _dmd2(*, table: Tensor, steps: int, **_: Any) -> Tensor:
    return timesteps_to_sigmas(dmd2_timesteps(steps), table=table)


def _consistency(*, table: Tensor, steps: int, **_: Any) -> Tensor:
    return consistency_sigmas(steps, sigma_min=float(table[0]), sigma_max=float(table[-1]))


def _typed_timesteps(*, table: Tensor, values: str = "", **_: Any) -> Tensor:
    numbers = parse_numbers(values, name="values")
    if any(number != int(number) for number in numbers):
        raise ValueError(
            f"values is {values!r}; timesteps are whole numbers. For noise levels choose the sigmas schedule."
        )
    return timesteps_to_sigmas([int(number) for number in numbers], table=table)


def _typed_sigmas(*, values: str = "", **_: Any) -> Tensor:
    numbers = parse_numbers(values, name="values")
    if numbers == [0.0]:
        raise ValueError("values is 0 alone, which leaves no step to take; give at least one level above it.")
    return torch.tensor(numbers if numbers[-1] == 0.0 else [*numbers, 0.0])


_SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "trailing": _trailing,
    "lcm": _lcm,
    "tcd": _tcd,
    "turbo": _turbo,
    "dmd2": _dmd2,
    "consistency": _consistency,
    "timesteps": _typed_timesteps,
    "sigmas": _typed_sigmas,
}
_NOT_FOR_FLOW = ("lcm", "tcd", "turbo", "dmd2", "consistency")


def add_to_menus() -> None:
    """The samplers, and the schedules where the host allows it, for the stock KSampler."""
    host.models.add_to_sampler_menu(
        {
            "fewstep_lcm": host.models.sampler_function(sample_few_step, gamma=1.0),
            "fewstep_lightning": host.models.sampler_function(sample_few_step, gamma=0.0),
            "fewstep_tcd": host.models.sampler_function(sample_tcd, eta=0.3),
            "fewstep_consistency": host.models.sampler_function(sample_few_step, gamma=1.0, models_sigma_min=True),
            "fewstep_guidance_distilled": host.models.sampler_function(
                sample_few_step, gamma=0.0, guidance_distilled=True
            ),
            "fewstep_guidance_distilled_lcm": host.models.sampler_function(
                sample_few_step, gamma=1.0, guidance_distilled=True
            ),
        }
    )
    in_menu = ("trailing", "lcm", "tcd", "turbo", "consistency")
    host.models.add_to_scheduler_menu({f"fewstep_{name}": _from_menu(name) for name in in_menu})


def _from_menu(name: str) -> Callable[[Any, int], Tensor]:
    return lambda model_sampling, steps: _sigmas(model_sampling, name, steps)
