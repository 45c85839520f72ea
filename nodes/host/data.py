"""The host's VAE, CLIP and sampling as what makes training data: pictures to latents, texts to CONDITIONING."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from . import identity, models
from .models import Conditioning

SAMPLERS = ("euler", "ddim", "heun", "dpmpp_2m")
"""Those of the host that add no noise of their own: a picture is then a function of its first noise."""


def encode_picture(vae: Any, picture: Tensor, *, seed: int) -> Tensor:
    """Latents (1, C, h, w) in the host's scale, on the CPU, of a picture (H, W, 3) in [0, 1].

    One at a time, since how many the host encodes at once depends on its free memory, and the result on that. seed: hosts
    of mid-2024 draw the latents from the VAE's posterior, with torch's global generator, which is put back afterwards.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        latents = vae.encode(picture[None])
    return _plain(latents).float()


def encode_text(clip: Any, text: str) -> Conditioning:
    """What the host's CLIP Text Encode gives, on the CPU."""
    with torch.inference_mode():
        tokens = clip.tokenize(text)
        if hasattr(clip, "encode_from_tokens_scheduled"):
            encoded = clip.encode_from_tokens_scheduled(tokens)
        else:
            embedding, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
            encoded = [[embedding, {"pooled_output": pooled}]]
    if len(encoded) != 1:
        raise ValueError("the CLIP carries hooks with a schedule, which training does not support; remove them.")
    ((embedding, options),) = encoded
    return [[_plain(embedding), {key: _plain(value) for key, value in options.items() if value is not None}]]


def kind_of(prompt: Conditioning) -> Hashable:
    """What prompts must have in common to be sampled in one batch."""
    ((embedding, options),) = prompt
    shapes = {key: tuple(value.shape) if isinstance(value, Tensor) else repr(value) for key, value in options.items()}
    return tuple(embedding.shape), tuple(sorted(shapes.items()))


def batched(prompts: Sequence[Conditioning]) -> Conditioning:
    """One entry of batch N from N prompts of one kind and of batch 1 each."""
    embeddings, options = zip(*(prompt[0] for prompt in prompts), strict=True)
    joined = {
        key: torch.cat([each[key] for each in options]) if isinstance(value, Tensor) else value
        for key, value in options[0].items()
    }
    return [[torch.cat(embeddings), joined]]


def draw(
    model: Any,
    sampler: str,
    sigmas: Tensor,
    *,
    noise: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
) -> Tensor:
    """The teacher's latents (B, C, h, w) in the host's scale, on the CPU, from unit noise of that shape."""
    with torch.inference_mode():
        made = comfy.samplers.sampler_object(sampler)
        latents = models.sample(model, made, sigmas, noise=noise, positive=positive, negative=negative, cfg=cfg)
    return _plain(latents).float()


def makes_pictures(model: Any) -> bool:
    """Whether the model's latents are still pictures or frames. Hosts tell sound apart by nothing but the format's name."""
    latent_format = model.get_model_object("latent_format")
    name = type(latent_format).__name__
    return getattr(latent_format, "latent_dimensions", 2) in (2, 3) and "Audio" not in name and not name.endswith("AV")


def has_frames(model: Any) -> bool:
    """Whether the model's latents are of video, or of pictures in a video's form."""
    return getattr(model.get_model_object("latent_format"), "latent_dimensions", 2) == 3


def latent_shape(model: Any, *, width: int, height: int) -> tuple[int, ...]:
    """(C, h, w) of the model's latents for a picture of so many pixels, (C, 1, h, w) where it works on frames.

    ValueError for models of sound.
    """
    latent_format = model.get_model_object("latent_format")
    if not makes_pictures(model):
        raise ValueError(
            f"this model's latents ({type(latent_format).__name__}) are no pictures; the teacher's pictures are for models of "
            "pictures, and of video with one frame."
        )
    factor = getattr(latent_format, "spacial_downscale_ratio", 8)
    if width % factor or height % factor:
        raise ValueError(f"width is {width} and height is {height}; this model wants multiples of {factor}.")
    frames = (1,) if has_frames(model) else ()
    return (latent_format.latent_channels, *frames, height // factor, width // factor)


def weights_sha256(holder: Any) -> str:
    """Identifies a VAE or CLIP by its weights, or by its class where it has none that the host would know."""
    if getattr(holder, "cond_stage_model", None) is not None:
        holder.load_model()  # with its patches, as it encodes
        said = f"{_of_network(holder, holder.cond_stage_model)} {getattr(holder, 'layer_idx', None)}"
        patches = getattr(holder.patcher, "patches", {})
        beside = set(patches) - set(holder.patcher.backup)  # where the host does not hold all of it
        return f"{said} {identity.patches_sha256(holder.patcher)}" if beside else said
    if getattr(holder, "first_stage_model", None) is not None:
        return _of_network(holder, holder.first_stage_model)
    return f"{type(holder).__module__.rpartition('.')[-1]}.{type(holder).__qualname__}"


def _of_network(holder: Any, network: Any) -> str:
    return identity.weights_sha256(
        network.state_dict(), owner=network, file=identity.file_of(getattr(holder, "patcher", None))
    )


def _plain(value: Any) -> Any:
    """A tensor that autograd may see, on the CPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(False):
        return value.clone().cpu()
