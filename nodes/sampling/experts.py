"""Two MODELs in one sampling: an expert for high noise and one for low."""

from __future__ import annotations

from typing import Any

import torch

from ...samplers.noise import NoiseFamily
from .. import host


class TwoExperts:
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("Connect to SamplerCustomAdvanced, with the sampler and the whole schedule.",)
    FUNCTION = "make"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = ["wan 2.2", "high noise", "low noise", "moe", "lightx2v", "boundary", "split", "few step"]
    DESCRIPTION = (
        "Samples two models as one, in one sampler: the first takes the high noise levels, the second the low ones, as Wan "
        "2.2 wants it. Noise is added once, and each model is loaded for its own steps."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "high": ("MODEL", {"tooltip": "The expert for high noise, with its own speed LoRA. It begins."}),
                "low": ("MODEL", {"tooltip": "The expert for low noise, with its own speed LoRA. It ends."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt, for both."}),
                "boundary": (
                    "FLOAT",
                    {
                        "default": 0.875,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "tooltip": "Levels from here up belong to high, as a share of the model's time (of a flow model that is "
                        "the noise level itself): 0.875 for Wan 2.2 from text, 0.9 from a picture. Apply Recipe's boundary can "
                        "be linked here.",
                    },
                ),
                "cfg": _cfg(1.0, "Guidance of high; 1 is none, as few-step models want it.", least=1.0),
            },
            "optional": {
                "negative": ("CONDITIONING", {"tooltip": "Needed where a cfg is not 1."}),
                "low_cfg": _cfg(0.0, "Guidance of low; 0 is that of high.", least=0.0),
            },
        }

    def make(
        self,
        high: Any,
        low: Any,
        positive: Any,
        boundary: float,
        cfg: float,
        negative: Any = None,
        low_cfg: float = 0.0,
    ) -> tuple[Any]:
        level = _level(high, boundary)
        _require_alike(high, low)
        low_cfg = low_cfg or cfg
        if {cfg, low_cfg} != {1.0} and negative is None:
            raise ValueError(
                f"cfg is {cfg:g} and low_cfg {low_cfg:g}: guidance needs a negative prompt; connect negative."
            )
        prompts = {"positive": positive} | ({} if negative is None else {"negative": negative})
        guiders = [host.models.guider(model, prompts, cfg=scale) for model, scale in ((high, cfg), (low, low_cfg))]
        return (host.experts.TwoExperts(*guiders, boundary=level),)


def _cfg(default: float, tooltip: str, *, least: float) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": least, "max": 100.0, "step": 0.1, "tooltip": tooltip})


def _level(high: Any, boundary: float) -> float:
    """The noise level of a boundary. Wan compares its time with it, which of a flow model is the level, shift and all."""
    if boundary == 0.0:
        raise ValueError(
            "boundary is 0, so low would never be sampled; give the share of the model's time from which on high does: "
            "0.875 or 0.9 for Wan 2.2. Recipes of one model have none."
        )
    levels = host.models.levels_of(host.models.model_sampling_of(high))
    if levels.flow is not None:
        return boundary
    if not levels.has_timesteps:
        raise ValueError(
            f"boundary is {boundary:g}, a share of the model's time, but the noise levels of high are continuous and have no "
            "timesteps; connect two experts of a flow model, such as Wan 2.2's."
        )
    return float(levels.at(torch.tensor([boundary]))[0])


def _require_alike(high: Any, low: Any) -> None:
    kinds = [_kind(model) for model in (high, low)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"high is a model of {kinds[0][0].value} noise and {kinds[0][1]} latents, low of {kinds[1][0].value} noise and "
            f"{kinds[1][1]} latents; two experts share the latent, so connect two of one family."
        )


def _kind(model: Any) -> tuple[NoiseFamily, str]:
    family = host.models.noise_family(host.models.model_sampling_of(model))
    return family, type(model.model.latent_format).__name__
