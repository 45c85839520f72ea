"""The only file that knows ComfyUI's insides and how hosts differ: from the host's objects to tensors and denoisers."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..samplers.noise import Denoiser, NoiseFamily
from ..trainers.data import Condition

log = logging.getLogger("comfyui_fewstep")

Network = Any
"""The host's model object (its BaseModel): a torch module with apply_model, diffusion_model and model_sampling."""

Conditioning = list[list[Any]]
"""The host's CONDITIONING: [[text embedding (B, tokens, width), {options}], ...]."""

_VARIANCE_EXPLODING = {"EPS": "eps", "V_PREDICTION": "v_prediction", "EDM": "edm", "X0": "x0", "_X0": "x0"}
_FLOW = {"CONST": "flow"}
_UNSUPPORTED_CONDITIONING = (
    "area",
    "mask",
    "control",
    "gligen",
    "hooks",
    "timestep_start",
    "timestep_end",
    "concat_mask",
)
_UNSUPPORTED_MODEL_OPTIONS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "denoise_mask_function",
)


# --- what a MODEL is -------------------------------------------------------------------------------------------------


def _parameterisation(model_sampling: Any) -> tuple[NoiseFamily, str]:
    """By the class that the host mixes in; the most derived known name decides (X0 derives from EPS)."""
    for base in type(model_sampling).__mro__:
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


def noise_levels(model_sampling: Any) -> Tensor:
    """The ascending table (T,) of noise levels, on the CPU, as a tensor that autograd may see."""
    with torch.inference_mode(False):
        return model_sampling.sigmas.detach().cpu().float().clone()


class _X0(comfy.model_sampling.EPS):
    """The network's output is the clean sample. Hosts of mid-2024 keep this class where no pack can import it."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


def with_model_sampling(model: Any, *, prediction: str | None = None, change: type | None = None) -> Any:
    """A clone whose output is read as `prediction` (None: as before), `change` mixed in ahead of that.

    The noise levels stay: schedule, zero terminal SNR, everything in the model's own sampling object.
    """
    sampling = model_sampling_of(model)
    family, own = _parameterisation(sampling)
    if family is NoiseFamily.FLOW or own == "edm":
        raise ValueError(f"this is for eps-, v- and x0-models with a table of timesteps; the connected model is {own}.")
    kinds = {"eps": comfy.model_sampling.EPS, "v_prediction": comfy.model_sampling.V_PREDICTION, "x0": _X0}
    levels = next(base for base in type(sampling).__mro__ if _holds_levels_only(base))
    patched = copy.deepcopy(sampling)
    patched.__class__ = type("ModelSampling", (*([change] if change else []), levels, kinds[prediction or own]), {})
    clone = model.clone()
    clone.add_object_patch("model_sampling", patched)
    return clone


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


def sampler_function(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """A function as the host calls its samplers, from one of ours, which also wants what only the running model knows.

    family= is always given, table= (the model's noise levels) where function takes it. unit_variance_start=True undoes
    that the host scales the first noise by sigma alone below sigma_max (Hyper-SD from 800, DMD2 from 399).
    """
    wants_table = "table" in inspect.signature(function).parameters
    unit_variance_start = options.pop("unit_variance_start", False)

    def host_function(model: Any, x: Tensor, sigmas: Tensor, *rest: Any, **named: Any) -> Tensor:
        sampling = model.inner_model.inner_model.model_sampling
        family = noise_family(sampling)
        if unit_variance_start and family is NoiseFamily.VARIANCE_EXPLODING and sigmas[0] < 0.9999 * sampling.sigma_max:
            x = family.initial(x / sigmas[0], sigma=sigmas[0])
        known = {"family": family} | ({"table": noise_levels(sampling)} if wants_table else {})
        return function(model, x, sigmas, *rest, **known, **options, **named)

    return host_function


def sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER from one of our sampler functions and its options."""
    return comfy.samplers.KSAMPLER(sampler_function(function, **options))


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


# --- training --------------------------------------------------------------------------------------------------------


def latents_for_training(model: Any, latent: dict[str, Tensor]) -> Tensor:
    """The samples of a LATENT in the model's own scale, on its device, as tensors that autograd may see."""
    if "noise_mask" in latent:
        raise ValueError("the latents carry a noise mask; training uses whole pictures. Remove Set Latent Noise Mask.")
    channels = model.get_model_object("latent_format").latent_channels
    if latent["samples"].shape[1] != channels:
        raise ValueError(
            f"the latents have {latent['samples'].shape[1]} channels but this model works on {channels}; encode the "
            "pictures with the model's own VAE."
        )
    with torch.inference_mode(False):
        samples = latent["samples"].clone().float()
        return model.model.process_latent_in(samples).to(model.load_device)


def condition_for_training(model: Any, conditioning: Conditioning, *, latents: Tensor, name: str) -> Condition:
    """The model inputs of a CONDITIONING, (N, ...) each, encoded by the host's model as its samplers encode them.

    conditioning: N entries, or one entry of batch N or 1. ValueError for options that a training step cannot honour.
    """
    if not conditioning:
        raise ValueError(f"the {name} conditioning is empty; connect a prompt.")
    encoded = [_encode(model, entry, latents=latents, name=name) for entry in conditioning]
    if any(e.keys() != encoded[0].keys() for e in encoded):
        raise ValueError(f"the {name} conditioning mixes entries of different kinds; encode all with one text encoder.")
    condition = {}
    for key in encoded[0]:
        shapes = {tuple(e[key].shape[1:]) for e in encoded}
        if len(shapes) > 1:
            raise ValueError(
                f"the {name} conditioning mixes prompts of different lengths or sizes ({key}: {sorted(shapes)}); "
                "give prompts that encode to one shape."
            )
        condition[key] = torch.cat([e[key] for e in encoded])
    return condition


def _encode(model: Any, entry: list[Any], *, latents: Tensor, name: str) -> Condition:
    embedding, options = entry
    refused = [key for key in _UNSUPPORTED_CONDITIONING if options.get(key) is not None]
    if refused:
        raise ValueError(
            f"the {name} conditioning carries {', '.join(refused)}, which training does not support; remove it."
        )
    with torch.inference_mode(False):
        inputs = {key: value.clone() if isinstance(value, Tensor) else value for key, value in options.items()}
        inputs["cross_attn"] = embedding.clone() if embedding is not None else None
        height, width = latents.shape[-2] * 8, latents.shape[-1] * 8
        encoded = model.model.extra_conds(
            **{"width": width, "height": height, "prompt_type": name, **inputs},
            device=model.load_device,
            noise=latents[:1],
            latent_image=latents[:1],
        )
        if inputs["cross_attn"] is not None:
            encoded.setdefault("c_crossattn", comfy.conds.CONDCrossAttn(inputs["cross_attn"]))
        plain = {key: value.cond for key, value in encoded.items()}
    odd = [key for key, value in plain.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(
            f"the {name} conditioning gives this model {', '.join(odd)}, which training does not support yet."
        )
    return {key: value.to(model.load_device) for key, value in plain.items()}


def trainable_copy(model: Any) -> Network:
    """A copy of the MODEL's network as wired, its LoRAs and patches applied, that nobody else holds.

    Its weights are ordinary float32 tensors, though the host made its own under inference mode.
    """
    refused = [key for key in _UNSUPPORTED_MODEL_OPTIONS if model.model_options.get(key)]
    if refused:
        raise ValueError(f"the MODEL carries {', '.join(refused)}, which training does not support; remove that node.")
    comfy.model_management.load_models_gpu([model])
    base = model.model
    shared = {id(base.latent_format): base.latent_format, id(base.model_config): base.model_config}
    if getattr(base, "current_patcher", None) is not None:
        shared[id(base.current_patcher)] = None
    with torch.inference_mode(False):
        network = copy.deepcopy(base, shared).float()
    network.diffusion_model.dtype = torch.float32  # the host casts inputs to what this says
    network.manual_cast_dtype = None
    return network


def model_from(network: Network, *, like: Any) -> Any:
    """A MODEL around a network of ours, with the device policy of another MODEL."""
    network = network.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(network, like.load_device, like.offload_device)


def as_denoiser(network: Network) -> Denoiser:
    """The host's model as D(x, sigma, **condition) -> x0, scalings and prediction type included."""

    def denoiser(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        return network.apply_model(x, sigma, transformer_options={}, **condition)

    return denoiser


def writes_in_place(network: Network, *, latents: Tensor, condition: Condition) -> bool:
    """Whether a backward pass fails because the host's blocks overwrite what autograd saved (hosts of mid-2024)."""
    x, sigma = latents[:1], latents.new_ones(1)
    one = {key: value[:1] for key, value in condition.items()}
    try:
        as_denoiser(network)(x, sigma, **one).sum().backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return True
    finally:
        network.zero_grad(set_to_none=True)
    return False


def network_state_dict(network: Network) -> dict[str, Tensor]:
    """The diffusion model's own weights, under its own names."""
    return dict(network.diffusion_model.state_dict())


# --- nodes -----------------------------------------------------------------------------------------------------------


def error_of(make: Callable[[], object]) -> bool | str:
    """True, or the message of the ValueError that make raises: the shape that ComfyUI's VALIDATE_INPUTS wants."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return True


# --- the running host ------------------------------------------------------------------------------------------------


def check_cancelled() -> None:
    """Raises the host's own exception when the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> Any:
    """The bar on the running node: update_absolute(value, total, ("JPEG", picture, largest side))."""
    return comfy.utils.ProgressBar(total)


def send(event: str, data: dict[str, Any]) -> None:
    """A message to every open browser tab; nothing where no server runs."""
    try:
        from server import PromptServer
    except ImportError:
        return
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data)
