"""The host's sampling as what makes training data, and what pictures a model draws."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..sampling import models
from ..sampling.models import Conditioning
from .encoding import plain

SAMPLERS = ("euler", "ddim", "heun", "dpmpp_2m")
"""Those of the host that add no noise of their own: a picture is then a function of its first noise."""


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
        latents = models.sample(
            model,
            made,
            sigmas,
            noise=noise,
            positive=positive,
            negative=negative,
            cfg=cfg,
            seed=0,  # of which none of the SAMPLERS makes use
        )
    return plain(latents).float()


def counting(model: Any) -> tuple[Any, list[int]]:
    """(a clone of the MODEL, a list that gets the samples of each forward of its network: two for one picture with guidance)."""
    clone, rows = model.clone(), list[int]()
    before = clone.model_options.get("model_function_wrapper")

    def counted(apply: Any, arguments: dict[str, Any]) -> Any:
        rows.append(len(arguments["input"]))
        if before is not None:
            return before(apply, arguments)
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    clone.set_model_unet_function_wrapper(counted)
    return clone, rows


def makes_pictures(model: Any) -> bool:
    """Whether the model's latents are still pictures or frames. Hosts tell sound apart by nothing but the format's name."""
    latent_format = model.get_model_object("latent_format")
    name = type(latent_format).__name__
    return getattr(latent_format, "latent_dimensions", 2) in (2, 3) and "Audio" not in name and not name.endswith("AV")


def has_frames(model: Any) -> bool:
    """Whether the model's latents are of video, or of pictures in a video's form."""
    return getattr(model.get_model_object("latent_format"), "latent_dimensions", 2) == 3


def require_sides(model: Any, **sides: int) -> int:
    """How many pixels in a row the model's latents hold in one. ValueError, naming the input, for a side that they cannot."""
    factor: int = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    for name, side in sides.items():
        if side < factor or side % factor:
            raise ValueError(f"{name} is {side}; this model wants multiples of {factor}: {64 * factor}, for example.")
    return factor


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
    factor = require_sides(model, width=width, height=height)
    frames = (1,) if has_frames(model) else ()
    return (latent_format.latent_channels, *frames, height // factor, width // factor)
