"""Sampler nodes, and the samplers of the stock KSampler's menu."""

from __future__ import annotations

from typing import Any

from ...samplers.few_step import sample_ancestral, sample_few_step, sample_tcd
from .. import host


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
                        "Hyper-SD's 1-step UNet (timestep 800), DMD2 in 1 step (399). A latent that holds a picture is left "
                        "as the host noises it.",
                    },
                ),
            },
            "optional": {
                "s_noise_end": (
                    "FLOAT",
                    {
                        "default": -1.0,
                        "min": -1.0,
                        "max": 2.0,
                        "step": 0.01,
                        "tooltip": "s_noise at the last step, reached evenly from the first; below 0 it does not change.",
                    },
                ),
                "noise_clip": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.1,
                        "tooltip": "Fresh noise is clipped at so many deviations: 2.5 for HiDream-O1 dev; 0 leaves it.",
                    },
                ),
            },
        }

    def make(self, s_noise_end: float = -1.0, **options: Any) -> tuple[Any]:
        end = None if s_noise_end < 0.0 else s_noise_end
        return (host.models.sampler(sample_few_step, s_noise_end=end, **options),)


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


class AncestralSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["euler ancestral", "turbo", "ltx", "few step", "fast"]
    DESCRIPTION = (
        "Ancestral Euler, for eps-, v-, x0- and flow models: each step goes down past the next level and is noised up to it, "
        "the less the nearer the two are. SD- and SDXL-Turbo in more than one step, the first stage of LTX-2.5."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(most: float, tooltip: str) -> tuple[str, dict[str, Any]]:
            return ("FLOAT", {"default": 1.0, "min": 0.0, "max": most, "step": 0.01, "tooltip": tooltip})

        return {
            "required": {
                "eta": number(1.0, "1 is ancestral sampling, 0 is Euler, deterministic."),
                "s_noise": number(2.0, "Scale of the fresh noise; 1 is exact."),
            }
        }

    def make(self, eta: float, s_noise: float) -> tuple[Any]:
        return (host.models.sampler(sample_ancestral, eta=eta, s_noise=s_noise),)


def add_to_menu() -> None:
    """For the stock KSampler."""
    host.models.add_to_sampler_menu(
        {
            "fewstep_lcm": host.models.sampler_function(sample_few_step, gamma=1.0),
            "fewstep_lightning": host.models.sampler_function(sample_few_step, gamma=0.0),
            "fewstep_tcd": host.models.sampler_function(sample_tcd, eta=0.3),
            "fewstep_ancestral": host.models.sampler_function(sample_ancestral),
            "fewstep_consistency": host.models.sampler_function(sample_few_step, gamma=1.0, models_sigma_min=True),
            "fewstep_guidance_distilled": host.models.sampler_function(
                sample_few_step, gamma=0.0, guidance_distilled=True
            ),
            "fewstep_guidance_distilled_lcm": host.models.sampler_function(
                sample_few_step, gamma=1.0, guidance_distilled=True
            ),
        }
    )
