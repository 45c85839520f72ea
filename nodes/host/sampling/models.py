"""What ComfyUI's objects are and how hosts differ: kinds of models, samplers and menus."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.conds
import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ....samplers.few_step import in_order
from ....samplers.noise import NoiseFamily, expand_like
from ....samplers.schedules import Levels
from . import kept_prompts
from .continuing import leave, samples_of
from .guidance import Conditioning as Conditioning
from .guidance import OnePromptGuider, one_forward

log = logging.getLogger("comfyui_fewstep")

_VARIANCE_EXPLODING = {"EPS": "eps", "V_PREDICTION": "v_prediction", "EDM": "edm", "X0": "x0", "_X0": "x0"}
_VARIANCE_EXPLODING |= {"COSMOS_RFLOW": "rflow"}  # a flow in t = sigma / (1 + sigma), its x divided by 1 - t
_VARIANCE_EXPLODING |= {"V_PREDICTION_DDPM": "v_prediction"}  # see reading
_FLOW = {"CONST": "flow"}
_NEITHER = {
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
    """How the host's model mixes sample and noise. ValueError for kinds that no formula here covers.

    Asked of the object itself, too: a class may derive from a known kind and mean something else (IMG_TO_IMG_FLOW).
    """
    family, prediction = _parameterisation(model_sampling)
    noise, latent = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    mixed = model_sampling.noise_scaling(torch.tensor([[0.5]]), noise.clone(), latent)
    if not torch.allclose(
        mixed, family.add_noise(latent, noise_scale(model_sampling) * noise, sigma=torch.tensor(0.5))
    ):
        names = [base.__name__ for base in type(model_sampling).__mro__ if base.__name__ != "ModelSampling"]
        raise ValueError(
            f"this model's sampling ({', '.join(names[:3])}) derives from {prediction} but mixes noise in otherwise, so that "
            "no few-step sampler is right for it. Use the host's own samplers."
        )
    return family


def noise_scale(model_sampling: Any) -> float:
    """What the model calls noise of 1: the deviation that a flow model is noised with, 1 but for HiDream-O1 and its kind."""
    is_flow = _parameterisation(model_sampling)[0] is NoiseFamily.FLOW
    return float(getattr(model_sampling, "noise_scale", 1.0)) if is_flow else 1.0


def prediction_type(model_sampling: Any) -> str:
    """What the network predicts: eps, v_prediction, edm, x0, rflow or flow."""
    return _parameterisation(model_sampling)[1]


def classes_of(model: Any) -> list[str]:
    """Names of the host's classes that the MODEL is of, the most derived first."""
    return [base.__name__ for base in type(model.model).__mro__]


def hosts_class(model: Any) -> str | None:
    """The host's own class of the MODEL's family; None for the one that all derive from, and for a pack's own beside it."""
    known = (base for base in type(model.model).__mro__ if base.__module__ == comfy.model_base.__name__)
    return next((base.__name__ for base in known if base is not comfy.model_base.BaseModel), None)


def takes_guidance(model: Any) -> bool:
    """Whether the network has a guidance scale among its inputs, as those distilled from guided ones do."""
    return bool(getattr(getattr(model.model.diffusion_model, "params", None), "guidance_embed", False))


def model_sampling_of(model: Any) -> Any:
    """The MODEL's own sampling object, patches included."""
    return model.get_model_object("model_sampling")


def noise_levels(model_sampling: Any) -> Tensor:
    """The ascending table (T,) of noise levels, on the CPU, as a tensor that autograd may see."""
    with torch.inference_mode(False):
        return model_sampling.sigmas.detach().cpu().float().clone()


def levels_of(model_sampling: Any) -> Levels:
    """What the model can be sampled at: its table, and the host's own formula of a flow model's levels."""
    continuous = isinstance(model_sampling, comfy.model_sampling.ModelSamplingContinuousEDM)
    table = noise_levels(model_sampling)
    if noise_family(model_sampling) is not NoiseFamily.FLOW:
        return Levels(table=table, has_timesteps=not continuous)
    top = float(model_sampling.timestep(torch.tensor(1.0)))  # what this kind calls its largest level: 1000, or 1
    return Levels(table=table, flow=lambda shares: model_sampling.sigma(top * shares))


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


def with_audio_shift(model: Any, *, shift: float, audio_shift: float) -> Any:
    """A clone of a model of pictures and sound at these shifts of the two, as the host's ModelSamplingMiniMaxH3 makes it."""
    sampling = copy.deepcopy(model_sampling_of(model))
    if not hasattr(sampling, "audio_shift"):
        raise ValueError(
            "this recipe sets the shift of pictures and sound, but the connected model has none for sound."
        )
    sampling.set_parameters(shift=shift, audio_shift=audio_shift)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    told = {"minimax_h3_sigma_shift_video": shift, "minimax_h3_sigma_shift_audio": audio_shift}
    clone.model_options["transformer_options"] = {**clone.model_options.get("transformer_options", {}), **told}
    return clone


def with_noise_scale(model: Any, noise_scale: float) -> Any:
    """A clone of a flow model that calls noise of this deviation noise of 1, as the host's ModelNoiseScale makes it."""
    sampling = copy.deepcopy(model_sampling_of(model))
    if not hasattr(sampling, "set_noise_scale"):
        raise ValueError(
            "this recipe sets the scale of the model's noise, which this ComfyUI's models do not have; update it."
        )
    sampling.set_noise_scale(noise_scale)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def reading(sampling: Any, *, prediction: str | None = None) -> Any | None:
    """What stands in for a model's sampling object while a sampler or a training step asks its network; None: its own does.

    prediction: what the output is taken for, if not for what the object says. One kind of the host's (V_PREDICTION_DDPM:
    CogVideoX) adds noise as to variance-exploding models and reads the network as a variance-preserving one, without scaling
    x between the two. That is right only in samplers that keep x / sqrt(1 + sigma^2), as the host's VOIDSampler does; with x
    scaled it is the host's V_PREDICTION.
    """
    own = prediction in (None, prediction_type(sampling))
    unscaled = any(base.__name__ == "V_PREDICTION_DDPM" for base in type(sampling).__mro__)
    return None if own and not unscaled else read_as(sampling, prediction=prediction)


@contextmanager
def read_by(network: Any, sampling: Any | None) -> Iterator[None]:
    """Inside, the host's network is read by another sampling object; None for its own."""
    if sampling is None:
        yield
        return
    own = network.model_sampling
    try:
        network.model_sampling = sampling
        yield
    finally:
        network.model_sampling = own


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
    with models_sigma_min, noise_scale= where the model's is not 1. unit_variance_start undoes that the host scales the first
    noise by sigma alone below sigma_max (Hyper-SD from 800, DMD2 from 399); a picture to start from has its share of the
    variance already. guidance_distilled: the cfg goes into the network, one forward a step.
    """
    wants_table = "table" in inspect.signature(function).parameters

    def host_function(model: Any, x: Tensor, sigmas: Tensor, *rest: Any, **named: Any) -> Tensor:
        network = model.inner_model.inner_model
        kept_prompts.forget(network.diffusion_model)
        sampling = network.model_sampling
        family, scale = noise_family(sampling), noise_scale(sampling)
        starts = unit_variance_start and not getattr(model, "is_under_way", False)  # see experts
        if starts and family is NoiseFamily.VARIANCE_EXPLODING and sigmas[0] < 0.9999 * sampling.sigma_max:
            x = _at_unit_variance(x, sigma=sigmas[0], latent=getattr(model, "latent_image", None))
        known: dict[str, Any] = {"family": family} | ({"table": noise_levels(sampling)} if wants_table else {})
        if models_sigma_min and prediction_type(sampling) == "edm":
            known["sigma_min"] = float(sampling.sigma_min)
        if scale != 1.0:
            known["noise_scale"] = scale
        seed = ((rest[0] if rest else named.get("extra_args")) or {}).get("seed")
        samples = samples_of(
            x,
            level=float(sigmas[0]),
            seed=seed,
            noise=getattr(model, "noise", None),
            drawn_as=_drawn_as(network, x),
        )
        if samples != in_order(len(x), seed=seed):
            known["samples"] = samples
        with_guidance = one_forward(model.inner_model) if guidance_distilled else nullcontext()
        with read_by(network, reading(sampling)), with_guidance:
            x = function(model, x, sigmas, *rest, **known, **options, **named)
        leave(x, level=float(sigmas[-1]), samples=samples)
        return x

    host_function.draws_by_level = True  # type: ignore[attr-defined] # see experts
    return host_function


def _drawn_as(network: Any, x: Tensor) -> torch.Size:
    """(B, ...) in which the host draws the noise of x (B, ...): of video with sound, packed in one, first that of the video."""
    shapes = [torch.Size(shape) for shape in getattr(network, "latent_shapes", None) or [x.shape]]
    return shapes[0] if sum(shape.numel() for shape in shapes) == x.numel() else x.shape


def _at_unit_variance(x: Tensor, *, sigma: Tensor, latent: Tensor | None) -> Tensor:
    """The samples of x (B, ...), latent + sigma * noise, that begin from noise alone, at unit variance instead."""
    started = NoiseFamily.VARIANCE_EXPLODING.initial(x / sigma, sigma=sigma)
    if latent is None:
        return started
    has_picture = latent.flatten(1).any(dim=1)
    return torch.where(expand_like(has_picture, x), x, started)


def sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER from one of our sampler functions and its options."""
    return comfy.samplers.KSAMPLER(sampler_function(function, **options))


def hosts_sampler(name: str) -> Any:
    """A SAMPLER of the host's own by its name in the menu. ValueError where this host has none."""
    if name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(f"this ComfyUI has no sampler {name!r}, with which the recipe is sampled; update ComfyUI.")
    return comfy.samplers.sampler_object(name)


def guider(model: Any, conditioning: dict[str, Conditioning], *, cfg: float) -> Any:
    """A GUIDER. conditioning: positive, and negative where cfg is not 1."""
    made = (comfy.samplers.CFGGuider if "negative" in conditioning else OnePromptGuider)(model)
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
    """Puts samplers into the stock menus, where the host looks them up by name; overwrites nothing."""
    for name, function in functions.items():
        if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
    _show_in([comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES], functions)


def add_to_scheduler_menu(functions: dict[str, Callable[[Any, int], Tensor]]) -> None:
    """Puts schedules (model_sampling, steps) -> sigmas into the stock menus, on hosts that let packs do so (2025 on)."""
    handlers = getattr(comfy.samplers, "SCHEDULER_HANDLERS", None)
    if handlers is None:
        return
    for name, function in functions.items():
        handlers.setdefault(name, comfy.samplers.SchedulerHandler(function))
    _show_in([comfy.samplers.KSampler.SCHEDULERS, comfy.samplers.SCHEDULER_NAMES], functions)


def _show_in(menus: list[list[str]], names: Iterable[str]) -> None:
    """The host's menus are one list until another pack puts its own in the place of one."""
    for menu in menus:
        menu.extend(name for name in names if name not in menu)


def sample(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    *,
    noise: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
    seed: int,
) -> Tensor:
    """Latents (B, ...) from unit noise (B, ...) through the host's own sampling, as SamplerCustom does it.

    seed: that the noise is of, and with it all that the sampler draws.
    """
    empty = noise * 0.0  # of several streams too
    kept_prompts.forget(model.model.diffusion_model)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, empty, disable_pbar=True, seed=seed
    )
