"""Models that draw clips with their sound: how long that is, and the two of a clip as one latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def draws_sound(model: Any) -> bool:
    """Whether a model draws clips with their sound. By the format's name, as hosts tell it."""
    return _format(model).endswith("AV")


def require_no_sound(model: Any) -> None:
    """ValueError for models that draw clips with their sound, which pictures do not have."""
    if draws_sound(model):
        raise ValueError(
            f"this model ({_format(model)}) draws clips with their sound, which pictures do not have. Take Training Clips "
            "(Folder), let it draw the clips from prompts, or connect latents of clips with their sound, and positive, as lists."
        )


def require_no_audio_vae(model: Any, audio_vae: Any) -> None:
    """ValueError for a VAE of sound beside a model that draws none."""
    if audio_vae is not None and not draws_sound(model):
        raise ValueError(
            f"audio_vae is connected, but this model ({_format(model)}) draws no sound with its clips; leave it unconnected."
        )


def require_rate(model: Any, frame_rate: float) -> None:
    """ValueError, naming the input, for frames a second at which nothing says how long a clip's sound is."""
    if _is_ltx(model) and frame_rate <= 0.0:
        raise ValueError(
            f"frame_rate is {frame_rate:g}, but how long a clip's sound is hangs on it; set it to {_LTX_FRAME_RATE:g}, for "
            "example."
        )
    if not _is_ltx(model) and frame_rate != _H3_FRAME_RATE:
        raise ValueError(
            f"frame_rate is {frame_rate:g}, but this model ({_format(model)}) draws {_H3_FRAME_RATE:g} frames a second with "
            f"their sound; set it to {_H3_FRAME_RATE:g}."
        )


def and_silence(model: Any, video: Tensor, *, frames: int, frame_rate: float | None = None) -> Any:
    """The host's nested tensor of a clip's latents (1, C, T, h, w) and of empty ones of its sound.

    frame_rate: None for that at which the model draws where it is told none. ValueError where nothing says how long it is.
    """
    if _is_ltx(model):
        from comfy.nested_tensor import NestedTensor

        network = model.get_model_object("diffusion_model")
        rate = network.a_patchifier
        in_a_second = rate.sample_rate / rate.hop_length / rate.audio_latent_downsample_factor
        long = round(frames / (frame_rate or _LTX_FRAME_RATE) * in_a_second)
        return NestedTensor([video, torch.zeros(1, network.num_audio_channels, long, network.audio_frequency_bins)])
    latent_format = model.get_model_object("latent_format")
    samples = latent_format.fix_empty_latent(video) if hasattr(latent_format, "fix_empty_latent") else video
    if not getattr(samples, "is_nested", False):
        raise ValueError(
            f"this ComfyUI does not say how long the sound of this model's clips is ({_format(model)}); connect latents of "
            "clips and positive in place of prompts."
        )
    return samples


def and_sound(model: Any, video: Tensor, sound: Tensor, *, frames: int, frame_rate: float) -> Any:
    """The host's nested tensor of a clip's latents and of as much of its sound's as it lasts: VAEs encode sound in blocks.

    ValueError, naming the input, for a sound of another model's latents.
    """
    nested = and_silence(model, video, frames=frames, frame_rate=frame_rate)
    silence = nested.unbind()[1]
    time = 2 if _is_ltx(model) else 3
    as_long = sound.narrow(time, 0, min(silence.shape[time], sound.shape[time])) if sound.ndim == 4 else sound
    if as_long.shape != silence.shape:
        raise ValueError(
            f"audio_vae makes latents of {list(sound.shape[1:])}, but the sound of this model ({_format(model)}) is "
            f"{list(silence.shape[1:])}; connect the VAE of sound that belongs to it."
        )
    return type(nested)([video, as_long])


def _format(model: Any) -> str:
    return type(model.get_model_object("latent_format")).__name__


def _is_ltx(model: Any) -> bool:
    """LTX-2, which is told how many frames a second are."""
    return hasattr(model.get_model_object("diffusion_model"), "a_patchifier")


_LTX_FRAME_RATE, _H3_FRAME_RATE = 25.0, 24.0
