"""Guidance inside the network: full LCM checkpoints take their scale as an input."""

from __future__ import annotations

from typing import Any

from ..samplers.guidance_embedding import GuidedTimeEmbedding
from . import folders


class GuidanceEmbedding:
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the guidance scale inside; sample it at cfg 1, one forward a step.",)
    FUNCTION = "patch"
    CATEGORY = "few-step/model"
    DESCRIPTION = (
        "Full LCM checkpoints (LCM_Dreamshaper_v7, lcm-sdxl) take the guidance scale as an input through a layer that "
        "ComfyUI drops when it loads them. This puts the layer back, from the same file, with a scale of your choice."
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
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": 8.0,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "As the usual cfg; LCMs were trained on about 3 to 15. w = scale - 1 goes into the network.",
                    },
                ),
            }
        }

    def patch(self, model: Any, file: str, guidance_scale: float) -> tuple[Any]:
        cond_proj = folders.read_tensor(file, ending="cond_proj.weight", what="guidance embedding (cond_proj)")
        original = model.get_model_object("diffusion_model.time_embed")
        channels = original[0].in_features
        if cond_proj.ndim != 2 or cond_proj.shape[0] != channels:
            raise ValueError(
                f"{file} holds a guidance embedding of shape {tuple(cond_proj.shape)}, but the connected model's time "
                f"embedding has {channels} channels. Connect the model that was loaded from this file."
            )
        clone = model.clone()
        embedding = GuidedTimeEmbedding(original, cond_proj, guidance_scale=guidance_scale)
        clone.add_object_patch("diffusion_model.time_embed", embedding)
        return (clone,)
