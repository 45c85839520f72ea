"""The schedule node."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import host
from .lists import NAMES, levels

MAX_STEPS = 1000


class Schedule:
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Noise levels for SamplerCustom, from the largest down to 0.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = [
        "sigmas",
        "timesteps",
        "scheduler",
        "lcm",
        "turbo",
        "lightning",
        "trailing",
        "noise levels",
        "flux 2",
        "qwen image 2.1",
    ]
    DESCRIPTION = (
        "The exact noise levels that few-step models were trained on, which the stock schedulers miss. trailing: "
        "SDXL-Lightning, Hyper-SD N-step, progressive students (4 steps: timesteps 999, 749, 499, 249), and even steps of "
        "flow models. lcm: LCM and LCM-LoRA (999, 759, 499, 259). tcd: the same, ending at the smallest level as TCD does. "
        "turbo: SD- and SDXL-Turbo. dmd2: 1 or 4 steps. consistency: consistency models. timesteps, sigmas: typed into "
        "values. Flow models also: flux2, qwen_image_21 (Qwen-Image 2.1's LoRAs), twice_shifted (SD3.5-Large-Turbo, HiDream-I1), "
        "log_snr (Stable Audio 3)."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that will be sampled; its range of noise levels is used."}),
                "schedule": (list(NAMES), {"tooltip": "Which grid of noise levels the model was distilled on."}),
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
                        "tooltip": "Image-to-image: where to begin; 1 starts from noise. All steps are taken, as with the "
                        "stock denoise; of turbo no more than its ten levels leave; of dmd2 and typed lists, that share of the "
                        "list.",
                    },
                ),
                "shift": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 100.0,
                        "step": 0.01,
                        "display_name": "relative_shift",
                        "tooltip": "Flow models: times the model's own shift; 1 leaves it. Typed sigmas have none of their "
                        "own. For a shift whatever the model's own is, use absolute_shift.",
                    },
                ),
                "values": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "timesteps or sigmas: the list, falling, commas between: 999, 749, 499, 249, or 1000, 750, "
                        "500, 250, both the same. A final 0 is added to sigmas that do not end in it. qwen_image_21: the list "
                        "before its shift; empty is even steps.",
                    },
                ),
                "absolute_shift": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.01,
                        "tooltip": "Flow models: the whole shift, in place of the model's own (5 for Wan's 4-step LoRAs, 3 for "
                        "Qwen-Image-Lightning). 0 keeps the model's own.",
                    },
                ),
                "width": pixels("width", what="flux2, qwen_image_21"),
                "height": pixels("height", what="flux2, qwen_image_21"),
                "latent": (
                    "LATENT",
                    {
                        "tooltip": "flux2, qwen_image_21: the latent that is sampled; its size counts, not width and height."
                    },
                ),
            },
        }

    def make(self, model: Any, schedule: str, steps: int, **options: Any) -> tuple[Tensor]:
        return (levels(host.models.model_sampling_of(model), schedule, steps, **options),)


def pixels(side: str, *, what: str) -> tuple[str, dict[str, Any]]:
    """The input of a picture's width or height. what: reads it."""
    limits = {"default": 1024, "min": 16, "max": 16384, "step": 8}
    return ("INT", {**limits, "tooltip": f"{what}: {side} of the picture in pixels, where no latent is connected."})
