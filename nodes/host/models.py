"""What ComfyUI's objects are and how hosts differ: kinds of models, samplers and menus."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.conds
import comfy.k_diffusion.sampling
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.few_step import NoiseSampler, seeded_noise_sampler
from ...samplers.noise import NoiseFamily
from .guidance import Conditioning as Conditioning
from .guidance import one_forward

log = logging.getLogger("comfyui_fewstep")

_VARIANCE_EXPLODING = {"EPS": "eps", "V_PREDICTION": "v_prediction", "EDM": "edm", "X0": "x0", "_X0": "x0"}
_VARIANCE_EXPLODING |= {"COSMOS_RFLOW": "rflow"}  # a flow in t = sigma / (1 + sigma), its x divided by 1 - t
_FLOW = {"CONST": "flow"}
_NEITHER = {
    "V_PREDICTION_DDPM": "the host adds noise as to variance-exploding models and reads the result as variance-preserving",
    "IMG_TO_IMG": "it starts from a picture and not from noise",
    "IMG_TO_IMG_FLOW": "it starts from a picture and not from noise",
}
"""Kinds of the host that mix sample and noise in no way that a formula here covers."""


# --- what a MODEL is -------------------------------------------------------------------------------------------------


def _parameterisation(model_sampling: Any) -> tuple[NoiseFamily, str]:
    """By the class that the host mixes in; the most derived known name decides (X0 derives from EPS)."""
    for base in type(model_sampling).__mro__:
        if base.__name__ in _NEITHER:
            raise ValueError(
                f"this model's sampling is {base.__name__}, which FewStep cannot follow: {_NEITHER[base.__name__]}."
            )
        if base.__name__ in _VARIANCE_EXPLODING:
            return NoiseFamily.VARIANCE_EXPLODING, _VARIANCE_EXPLODING[base.__name__]
        if base.__name__ in _FLOW:
            return NoiseFamily.FLOW, _FLOW[base.__name__]
    names = [base.__name__ for base in type(model_sampling).__mro__]
    raise ValueError(
        f"this model's sampling is of a kind that FewStep does not know ({', '.join(names[:4])}); known are "
        f"{', '.join(sorted({*_VARIANCE_EXPLODING.values(), *_FLOW.values()}))}."
    )


def noise_family(model_sampling: Any) -> NoiseFamily:
    """How the host's model mixes sample and noise. ValueError for kinds that no formula here covers."""
    return _parameterisation(model_sampling)[0]


def prediction_type(model_sampling: Any) -> str:
    """What the network predicts: eps, v_prediction, edm, x0 or flow."""
    return _parameterisation(model_sampling)[1]


def model_sampling_of(model: Any) -> Any:
    """The MODEL's own sampling object, patches included."""
    return model.get_model_object("model_sampling")


def noise_scale(model_sampling: Any) -> float:
    """The deviation of the noise that a flow model's samples are mixed with: 1 but for a few models of pixels."""
    flow = noise_family(model_sampling) is NoiseFamily.FLOW
    return float(getattr(model_sampling, "noise_scale", 1.0)) if flow else 1.0


def noise_levels(model_sampling: Any) -> Tensor:
    """The ascending table (T,) of noise levels, on the CPU, as a tensor that autograd may see."""
    with torch.inference_mode(False):
        return model_sampling.sigmas.detach().cpu().float().clone()


def example_sampling(*, flow_shift: float | None = None, consistency: bool = False) -> Any:
    """The host's sampling object of a kind of model, without a checkpoint: to show schedules before a model is loaded.

    The timesteps of Stable Diffusion by default; a flow model of that shift; or Song et al.'s consistency models.
    """
    if consistency:
        made = _of(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM)
        made.set_parameters(0.002, 80.0, 0.5)
        return made
    if flow_shift is None:
        return _of(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS)
    made = _of(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST)
    made.set_parameters(shift=flow_shift)
    return made


def _of(*kinds: type) -> Any:
    return type("ModelSampling", kinds, {})()


class _X0(comfy.model_sampling.EPS):
    """The network's output is the clean sample. Hosts of mid-2024 keep this class where no pack can import it."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


def with_model_sampling(model: Any, *, prediction: str | None = None, change: type | None = None) -> Any:
    """A clone whose output is read as `prediction` (None: as before), `change` mixed in ahead of that.

    The noise levels stay: schedule, zero terminal SNR, everything in the model's own sampling object.
    """
    patched = read_as(model_sampling_of(model), prediction=prediction, change=change)
    clone = model.clone()
    clone.add_object_patch("model_sampling", patched)
    return clone


def read_as(sampling: Any, *, prediction: str | None = None, change: type | None = None) -> Any:
    """A copy of the host's sampling object that reads the network's output so; see with_model_sampling."""
    _, own = _parameterisation(sampling)
    kinds = {"eps": comfy.model_sampling.EPS, "v_prediction": comfy.model_sampling.V_PREDICTION, "x0": _X0}
    if own not in kinds:
        raise ValueError(f"this is for eps-, v- and x0-models with a table of timesteps; the connected model is {own}.")
    levels = next(base for base in type(sampling).__mro__ if _holds_levels_only(base))
    patched = copy.deepcopy(sampling)
    patched.__class__ = type("ModelSampling", (*([change] if change else []), levels, kinds[prediction or own]), {})
    return patched


def _holds_levels_only(base: type) -> bool:
    return issubclass(base, torch.nn.Module) and not hasattr(base, "calculate_denoised")


def with_consistency_sampling(
    model: Any, *, change: type, sigma_min: float, sigma_max: float, sigma_data: float
) -> Any:
    """A clone on continuous EDM noise levels, `change` mixed in ahead of the host's EDM."""
    kinds = (change, comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM)
    patched = type("ModelSampling", kinds, {})(model.model.model_config)
    patched.set_parameters(sigma_min, sigma_max, sigma_data)
    clone = model.clone()
    clone.add_object_patch("model_sampling", patched)
    return clone


# --- sampling --------------------------------------------------------------------------------------------------------


def sampler_function(
    function: Callable[..., Tensor],
    *,
    unit_variance_start: bool = False,
    guidance_distilled: bool = False,
    models_sigma_min: bool = False,
    **options: Any,
) -> Callable[..., Tensor]:
    """A function as the host calls its samplers, from one of ours, which also wants what only the running model knows.

    family= is always given, table= (the model's noise levels) where function takes it, sigma_min= of a consistency model
    with models_sigma_min. unit_variance_start undoes that the host scales the first noise by sigma alone below sigma_max
    (Hyper-SD from 800, DMD2 from 399). guidance_distilled: the cfg goes into the network, one forward a step. Fresh noise has
    the deviation of the model's own.
    """
    wants_table = "table" in inspect.signature(function).parameters

    def host_function(model: Any, x: Tensor, sigmas: Tensor, *rest: Any, **named: Any) -> Tensor:
        sampling = model.inner_model.inner_model.model_sampling
        family, prediction = _parameterisation(sampling)
        if unit_variance_start and family is NoiseFamily.VARIANCE_EXPLODING and sigmas[0] < 0.9999 * sampling.sigma_max:
            x = family.initial(x / sigmas[0], sigma=sigmas[0])
        known: dict[str, Any] = {"family": family} | ({"table": noise_levels(sampling)} if wants_table else {})
        if models_sigma_min and prediction == "edm":
            known["sigma_min"] = float(sampling.sigma_min)
        if noise_scale(sampling) != 1.0:
            known["noise_sampler"] = _scaled_noise(x, noise_scale(sampling), named)
        with one_forward(model.inner_model) if guidance_distilled else nullcontext(model.inner_model) as guider:
            model.inner_model = guider  # of KSamplerX0Inpaint, which the host makes anew for every sampling
            return function(model, x, sigmas, *rest, **known, **options, **named)

    return host_function


def _scaled_noise(x: Tensor, scale: float, named: dict[str, Any]) -> NoiseSampler:
    """In place of what a host's call gives by name, or of a few-step sampler's own."""
    unit = named.pop("noise_sampler", None) or seeded_noise_sampler(x, seed=(named.get("extra_args") or {}).get("seed"))
    return lambda sigma, sigma_next: scale * unit(sigma, sigma_next)


def sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER from one of our sampler functions and its options."""
    return comfy.samplers.KSAMPLER(sampler_function(function, **options))


def guider(model: Any, conditioning: dict[str, Conditioning], *, cfg: float) -> Any:
    """A GUIDER. conditioning: positive, and negative where cfg is not 1."""
    made = comfy.samplers.CFGGuider(model)
    made.inner_set_conds(conditioning)
    made.set_cfg(cfg)
    return made


class _NoGuider:
    """Stands where no guider could be made; whoever uses it is told why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @property
    def model_patcher(self) -> Any:
        """The first thing that the host asks a guider for."""
        raise ValueError(self._reason)


def no_guider(reason: str) -> Any:
    """For a GUIDER output that may stay unconnected: a ValueError with the reason as soon as something samples with it."""
    return _NoGuider(reason)


def add_to_sampler_menu(functions: dict[str, Callable[..., Tensor]]) -> None:
    """Puts samplers into the stock KSampler's menu, where the host looks them up by name; overwrites nothing."""
    for name, function in functions.items():
        if name not in comfy.samplers.KSampler.SAMPLERS and not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
            comfy.samplers.KSampler.SAMPLERS.append(name)


def add_to_scheduler_menu(functions: dict[str, Callable[[Any, int], Tensor]]) -> None:
    """Puts schedules (model_sampling, steps) -> sigmas into the stock menus, on hosts that let packs do so (2025 on)."""
    handlers = getattr(comfy.samplers, "SCHEDULER_HANDLERS", None)
    if handlers is None:
        return
    for name, function in functions.items():
        if name not in handlers:
            handlers[name] = comfy.samplers.SchedulerHandler(function)
            comfy.samplers.KSampler.SCHEDULERS.append(name)


def sample(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    *,
    noise: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
) -> Tensor:
    """Latents (B, ...) from unit noise (B, ...) through the host's own sampling, as SamplerCustom does it."""
    empty = torch.zeros_like(noise)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, empty, disable_pbar=True, seed=0
    )
