"""Nodes that say how a model's output is read: its prediction type, and the boundary of consistency models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...samplers.boundary import consistency_scalings, lcm_scalings
from ...samplers.noise import NoiseFamily, expand_like
from .. import host

PREDICTIONS = ["eps", "v_prediction", "x0"]


class LCMBoundary:
    """Mixed into the host's model sampling, before its prediction type, whose x0 it scales."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)  # type: ignore[misc]
        c_skip, c_out = lcm_scalings(self.timestep(sigma))  # type: ignore[attr-defined]
        x_vp = model_input / expand_like((1.0 + sigma**2).sqrt(), model_input)
        return expand_like(c_out, x0) * x0 + expand_like(c_skip, x0) * x_vp


def takes_lcm_boundary(sampling: Any) -> bool:
    """Whether a model's time is the training timestep, of which the boundary is made: not a level, nor a share of 1."""
    return host.models.levels_of(sampling).has_timesteps and float(sampling.timestep(sampling.sigma_max)) > 1.0


class ConsistencyBoundary:
    """Mixed into the host's continuous EDM sampling; reads the raw network and its time as Song et al. trained them."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        scalings = consistency_scalings(sigma, sigma_data=self.sigma_data, sigma_min=float(self.sigma_min))  # type: ignore[attr-defined]
        c_skip, c_out = (expand_like(scaling, model_input) for scaling in scalings)
        return c_skip * model_input + c_out * model_output

    def timestep(self, sigma: Tensor) -> Tensor:
        """A thousand times what the host's EDM gives."""
        return 1000.0 * 0.25 * torch.log(sigma + 1e-44)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Back, by which the host's normal and sgm_uniform schedules make their lists."""
        return (timestep / 250.0).exp()


class LCMModel:
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with LCM's boundary; sample it with the LCM Sampler and the lcm schedule.",)
    FUNCTION = "patch"
    CATEGORY = "few-step/model"
    SEARCH_ALIASES = ["lcm lora", "few step", "model sampling"]
    DESCRIPTION = (
        "Reads the model as a latent consistency model: LCM's boundary on top of the model's own prediction type. The "
        "stock ModelSamplingDiscrete (lcm) reads every model as eps, so that v-prediction LCMs come out wrong."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {"tooltip": "An LCM checkpoint, or a model with an LCM-LoRA."})}}

    def patch(self, model: Any) -> tuple[Any]:
        """ValueError for a model without training timesteps, of which the boundary is made."""
        sampling = host.models.model_sampling_of(model)
        made = host.models.with_model_sampling(model, change=LCMBoundary)
        if not takes_lcm_boundary(sampling):
            raise ValueError(
                "LCM's boundary is made of training timesteps, 0 to 999, and this model has none: its noise levels are "
                f"continuous ({type(sampling).__mro__[1].__name__}). Leave this node out."
            )
        return (made,)


class PredictionType:
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model, its output read as chosen.",)
    FUNCTION = "patch"
    CATEGORY = "few-step/model"
    SEARCH_ALIASES = ["x0", "eps", "v prediction", "model sampling", "lightning 1 step"]
    DESCRIPTION = (
        "Says what the network predicts, on the noise levels that the model has: x0 for one-step checkpoints such as "
        "SDXL-Lightning 1-step, eps or v_prediction where the host took the wrong one."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "An eps-, v- or x0-model."}),
                "prediction": (PREDICTIONS, {"default": "x0", "tooltip": "What the network's output is."}),
            }
        }

    def patch(self, model: Any, prediction: str) -> tuple[Any]:
        return (host.models.with_model_sampling(model, prediction=prediction),)


class ConsistencyModel:
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model; sample it with the Consistency Sampler at gamma 1 and the consistency schedule.",)
    FUNCTION = "patch"
    CATEGORY = "few-step/model"
    SEARCH_ALIASES = ["cm", "edm", "model sampling"]
    DESCRIPTION = (
        "Reads the network as a consistency model of Song et al.: their boundary, their time input (a thousand times "
        "ComfyUI's EDM), and their range of noise levels."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(default: float, most: float, tooltip: str) -> tuple[str, dict[str, Any]]:
            limits = {"default": default, "min": 0.0001, "max": most, "step": 0.001, "round": False}
            return ("FLOAT", {**limits, "tooltip": tooltip})

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model whose network is a consistency model."}),
                "sigma_data": number(0.5, 100.0, "Deviation of the data; 0.5 for pixels in [-1, 1]."),
                "sigma_min": number(0.002, 1.0, "Smallest trained level; also the Consistency Sampler's sigma_min."),
                "sigma_max": number(80.0, 1000.0, "Largest trained level."),
            }
        }

    def patch(self, model: Any, **levels: float) -> tuple[Any]:
        """ValueError for levels in the wrong order, and for a flow model."""
        if levels["sigma_min"] >= levels["sigma_max"]:
            raise ValueError(
                f"sigma_min is {levels['sigma_min']} and sigma_max is {levels['sigma_max']}; sigma_min must be below it."
            )
        if host.models.noise_family(host.models.model_sampling_of(model)) is NoiseFamily.FLOW:
            raise ValueError(
                "the connected model is a flow model, whose network is asked at another time and answers otherwise than a "
                "consistency model of Song et al. Leave this node out."
            )
        return (host.models.with_consistency_sampling(model, change=ConsistencyBoundary, **levels),)
