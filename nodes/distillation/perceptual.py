"""The distance lpips in the host: what it needs is here before any work, and the VAE is a function that gradients pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...trainers.data.batches import Batch
from ...trainers.objective.distance import Distance
from ...trainers.objective.method import Method
from ...trainers.objective.perceptual import Perceptual, Pictures, lpips_distance, require_lpips
from .. import host

_PROBE = 8
"""Latents on each side of the picture that the VAE is tried with."""


def require(options: Mapping[str, Any], *, vae: Any) -> None:
    """ValueError, naming what is missing, where the method's options choose lpips and this process could not compute it."""
    require_vae(options, vae=vae)
    if _wanted(options):
        require_lpips()


def require_vae(options: Mapping[str, Any], *, vae: Any) -> None:
    """The same of the VAE alone, where another process will train."""
    if _wanted(options) and vae is None:
        raise ValueError(
            "distance is 'lpips', which compares pictures, but vae is not connected; connect the model's VAE, or choose "
            "another distance: squared or pseudo_huber."
        )


def _wanted(options: Mapping[str, Any]) -> bool:
    return options.get("distance") == Distance.LPIPS.value


def perceptual_of(method: Method, sample: Batch, *, model: Any, vae: Any) -> Perceptual | None:
    """What measures a run's loss; None where its distance is not lpips. ValueError for a VAE that cannot be used.

    sample: one of the run's.
    """
    options = method.options()
    if not _wanted(options):
        return None
    require(options, vae=vae)
    if host.videos.batch_is_frames(model.model):
        raise ValueError(
            "distance is 'lpips', which compares pictures, but this model's samples are videos; choose another distance: squared "
            "or pseudo_huber."
        )
    pictures = pictures_of(vae, model=model)
    _require_gradient(pictures, sample.x0, vae=vae)
    return lpips_distance(pictures, device=sample.x0.device)


def pictures_of(vae: Any, *, model: Any) -> Pictures:
    """What the VAE decodes the MODEL's latents to, (B, 3, H, W) in [0, 1].

    By copies of its network and of the latent format, tensors that autograd may see. The VAE itself stays the host's, which
    may put it away or draw previews with it meanwhile; on a GPU this copy is then the only one.
    """
    with torch.inference_mode(False):
        latent_format = copy.deepcopy(model.get_model_object("latent_format"))
        scale = host.models.noise_scale(host.models.model_sampling_of(model))
        decode = _decoder(vae)
    return lambda latents: decode(latent_format.process_out(scale * latents))


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) from latents in the VAE's scale. A VAE that is not the host's own has only its decode."""
    network = getattr(vae, "first_stage_model", None)
    if network is None:
        return lambda latents: vae.decode(latents).movedim(-1, 1)
    own = copy.deepcopy(network).to(vae.device).eval().requires_grad_(False)
    return lambda latents: vae.process_output(own.decode(latents.to(vae.device, vae.vae_dtype)).float())


def _require_gradient(pictures: Pictures, latents: Tensor, *, vae: Any) -> None:
    """By trying, on a small part of latents (1, ...)."""
    part = torch.zeros_like(latents[..., :_PROBE, :_PROBE]).requires_grad_()
    with torch.enable_grad():
        seen = pictures(part)
    if seen.ndim != 4 or seen.shape[1] != 3 or not seen.requires_grad:
        raise ValueError(
            f"distance is 'lpips', but the VAE ({type(vae).__name__}) decodes to {tuple(seen.shape)}"
            f"{'' if seen.requires_grad else ' without gradient'}; it must decode to pictures of 3 channels, with gradient. "
            "Connect the model's own VAE, or choose another distance: squared or pseudo_huber."
        )
