"""What is encoded of a file as one, and how a picture file is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....trainers.data.files import hashed_content
from ....trainers.data.listing import Captioned
from ....trainers.data.pictures import PIXELS, Size, pixels


class Piece(NamedTuple):
    """What the VAE encodes as one. samples: makes it. of: JSON values that decide it. seed: see LatentEncoder.

    sound: what is heard with it (1, n, 2), where that is wanted.
    """

    samples: Callable[[], Tensor]
    of: Mapping[str, Any]
    seed: int
    sound: Tensor | None = None


def of_picture(file: Captioned, size: Size, *, mirrored: bool) -> dict[str, Any]:
    """What decides a picture as it is encoded, as JSON values."""
    return {"picture": file.sha256, "size": size, "mirrored": mirrored, "pixels": PIXELS}


def upright(file: Captioned, size: Size, *, mirrored: bool) -> Tensor:
    """(1, H, W, 3)"""
    picture = pixels(file.path, size, read=functools.partial(hashed_content, hashed=file.hashed))
    return (picture.flip(1) if mirrored else picture)[None]


def seed_of(file: Captioned) -> int:
    """Of what is drawn while it is encoded, whatever other files there are."""
    return int(file.sha256[:15], 16)


def require_finite(latents: Tensor, *, name: str) -> None:
    """ValueError, naming the file, where a VAE made something else of it."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            f"the VAE makes NaN or infinite values of {name}; SDXL's own VAE does so in half precision: "
            "start ComfyUI with --fp32-vae, or take a VAE made for half precision."
        )
