"""Sampler and schedule nodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..samplers.noise import NoiseFamily
from ..samplers.schedules import lcm_timesteps, timesteps_to_sigmas, trailing_timesteps
from . import host

MAX_STEPS = 1000


class LCMSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    DESCRIPTION = (
        "Latent consistency sampling: at every step the model's clean picture is taken and noised afresh to the next "
        "level. For LCM and LCM-LoRA models, with the lcm schedule. Works for flow models too."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return (host.sampler(sample_few_step, gamma=1.0),)


class LightningSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    DESCRIPTION = (
        "Deterministic few-step sampling (Euler, DDIM): for SDXL-Lightning and progressively distilled students, with "
        "the trailing schedule at exactly the step count that the file was made for."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return (host.sampler(sample_few_step, gamma=0.0),)


class Schedule:
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Noise levels for SamplerCustom, from the largest down to 0.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    DESCRIPTION = (
        "The exact noise levels that few-step models were trained on, which the stock schedulers miss. trailing: "
        "SDXL-Lightning, Hyper-SD and progressively distilled students (4 steps: timesteps 999, 749, 499, 249). lcm: "
        "LCM and LCM-LoRA (4 steps: 999, 759, 499, 259)."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that will be sampled; its table of noise levels is used."}),
                "schedule": (["trailing", "lcm"], {"tooltip": "Which grid of timesteps the model was distilled on."}),
                "steps": (
                    "INT",
                    {"default": 4, "min": 1, "max": MAX_STEPS, "tooltip": "Sampling steps; lcm allows at most 50."},
                ),
            }
        }

    def make(self, model: Any, schedule: str, steps: int) -> tuple[Tensor]:
        sampling = host.model_sampling_of(model)
        table = host.noise_levels(sampling)
        if schedule == "trailing":
            return (timesteps_to_sigmas(trailing_timesteps(steps, train_timesteps=len(table)), table=table),)
        if schedule != "lcm":
            raise ValueError(f"schedule is {schedule!r}; allowed are trailing and lcm.")
        if host.noise_family(sampling) is NoiseFamily.FLOW:
            raise ValueError("the lcm schedule is for eps-, v- and x0-models; this is a flow model. Use trailing.")
        return (timesteps_to_sigmas(_lcm(steps, levels=len(table)), table=table),)


def _lcm(steps: int, *, levels: int) -> list[int]:
    """The lcm timesteps as indices into the table.

    The host's own LCM model patch shrinks the table to the 50 distilled levels, timesteps 19, 39 .. 999, in order.
    """
    timesteps = lcm_timesteps(steps)
    if levels == 50:
        return [(t + 1) // 20 - 1 for t in timesteps]
    return timesteps
