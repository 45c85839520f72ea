"""Guidance inside the network: models that take their scale as an input, and cost one forward a step."""

from __future__ import annotations

from typing import Any

from ...samplers.few_step import sample_few_step
from .. import host
from ..host import folders


def _guidance_scale(default: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    limits = {"default": default, "min": 1.0, "max": 30.0, "step": 0.1}
    return ("FLOAT", {**limits, "tooltip": f"As the usual cfg. {tooltip}"})


class GuidanceEmbedding:
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the guidance scale inside; sample it at cfg 1, one forward a step.",)
    FUNCTION = "patch"
    CATEGORY = "few-step/model"
    SEARCH_ALIASES = ["cfg", "lcm guidance", "w embedding"]
    DESCRIPTION = (
        "Full LCM checkpoints (LCM_Dreamshaper_v7, lcm-sdxl) and students of this pack may take the guidance scale as an input, "
        "through a layer that ComfyUI drops when it loads them. This puts it back, from the same file, at a scale of your choice."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The UNet that was loaded from the same file."}),
                "file": (
                    folders.model_files(),
                    {"tooltip": "The full LCM checkpoint or UNet file that holds cond_proj."},
                ),
                "guidance_scale": _guidance_scale(
                    8.0, "LCMs were trained on about 3 to 15. w = scale - 1 goes into the network."
                ),
            }
        }

    def patch(self, model: Any, file: str, guidance_scale: float) -> tuple[Any]:
        cond_proj = folders.guidance_embedding_of(file)
        return (host.guidance.with_guidance_embedding(model, cond_proj, guidance_scale=guidance_scale),)


class GuidanceDistilledGuider:
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustomAdvanced.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["cfg", "flux guidance", "lcm guidance"]
    DESCRIPTION = (
        "For models that take the guidance scale as an input: full LCM checkpoints behind Guidance Embedding, Flux dev "
        "and its kind. The scale goes into the network, so every step costs one forward instead of two."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model with a guidance input, its own or from Guidance Embedding."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt. There is no negative: it is in the training."}),
                "guidance_scale": _guidance_scale(3.5, "Replaces the scale in the model and in the conditioning."),
            }
        }

    def make(self, model: Any, positive: Any, guidance_scale: float) -> tuple[Any]:
        return (host.guidance.guidance_distilled_guider(model, positive, guidance_scale=guidance_scale),)


class GuidanceDistilledSampler:
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustom, or to SamplerCustomAdvanced with CFGGuider.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["cfg", "flux guidance", "lcm guidance"]
    DESCRIPTION = (
        "For models that take the guidance scale as an input: the cfg of the node that samples goes into the network, "
        "the negative prompt is not evaluated, and every step costs one forward instead of two."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "gamma": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "0 is deterministic: Flux dev, guidance-distilled students. 1 is LCM's rule: full LCM "
                        "checkpoints.",
                    },
                )
            }
        }

    def make(self, gamma: float) -> tuple[Any]:
        return (host.models.sampler(sample_few_step, gamma=gamma, guidance_distilled=True),)
