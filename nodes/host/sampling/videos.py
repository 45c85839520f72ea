"""Networks whose batch is the frames of a video (Stable Video Diffusion, SV3D): a training's sample is one, (1, F, C, h, w)."""

from __future__ import annotations

from typing import Any

import comfy.model_base
from torch import Tensor

FRAMES = "num_video_frames"
"""The constant by which the host tells such a network how many rows of its batch are one video."""


def batch_is_frames(network: Any) -> bool:
    """Whether the host's network takes a video for a batch."""
    return isinstance(network, comfy.model_base.SVD_img2vid)


def in_batch(network: Any, samples: Tensor) -> Tensor:
    """Samples (B, F, C, h, w) of such a network as the host has them, (B F, C, h, w); of others as they are."""
    return samples.flatten(0, 1) if batch_is_frames(network) else samples


def of_batch(network: Any, found: Tensor, *, like: Tensor) -> Tensor:
    """The inverse of in_batch. like: (B, F, ...)."""
    return found.unflatten(0, like.shape[:2]) if batch_is_frames(network) else found


def for_each_frame(network: Any, of_samples: Tensor, *, like: Tensor) -> Tensor:
    """What (B,) samples have one of each, a noise level say, as the rows of in_batch have it. like: (B, F, ...)."""
    return of_samples.repeat_interleave(like.shape[1]) if batch_is_frames(network) else of_samples


def node_of(network: Any) -> str:
    """The host's node that gives such a network the picture that its video goes on from."""
    return "SV3D_Conditioning" if type(network).__name__.startswith("SV3D") else "SVD_img2vid_Conditioning"


def require_video(network: Any, *, frames: int) -> None:
    """ValueError where so many frames are no video for such a network: all that a folder or a prompt gives is one."""
    if batch_is_frames(network) and frames == 1:
        raise ValueError(
            "this model (Stable Video Diffusion) draws videos that go on from a picture, which prompts alone and single "
            "pictures do not give it. Connect latents, each video's with its frames as the batch, and positive and negative of "
            f"its picture ({node_of(network)} makes them), several videos in lists."
        )
