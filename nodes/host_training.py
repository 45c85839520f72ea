"""The host's MODEL, LATENT and CONDITIONING as what training wants: networks of our own, tensors that autograd may see."""

from __future__ import annotations

import copy
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..samplers.noise import Denoiser
from ..trainers.data import Condition
from .host import Conditioning

Network = Any
"""The host's model object (its BaseModel): a torch module with apply_model, diffusion_model and model_sampling."""

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
    """Whether a backward pass fails because the host's blocks overwrite what autograd saved (2024's UNets, Flux)."""
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
