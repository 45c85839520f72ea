"""The host's VAE and CLIP as encoders: pictures to latents, texts to CONDITIONING, each made once for all runs.

Something is kept only of encoders that are known by their weights: nothing else could tell two of one class apart.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.encodings import Encoded, Encodings
from ....trainers.storage.files import tensors_sha256
from ..sampling.models import Conditioning
from . import identity

_PLAIN = (bool, int, float, str)
_OPTIONS = "options"


class LatentEncoder:
    """A VAE, with what is kept of it."""

    def __init__(self, vae: Any, kept: Encodings) -> None:
        self._vae, self._kept = vae, kept
        self._known = _known(vae, getattr(vae, "first_stage_model", None), getattr(vae, "vae_dtype", None))

    def latents(self, samples: Callable[[], Tensor], *, seed: int, of: Mapping[str, Any]) -> Tensor:
        """(1, ...) in the host's scale, on the CPU, of what the VAE takes as one: a picture (1, H, W, 3) in [0, 1], say.

        One at a time, since how many the host encodes at once depends on its free memory, and the result on that. seed: hosts
        of mid-2024 draw the latents from the VAE's posterior, with torch's global generator, which is put back afterwards.
        samples: makes them where they are not encoded yet. of: JSON values that decide them.
        """
        decided_by = None if self._known is None else {"vae": self._known, "seed": seed, **of}
        return self._kept.get(
            decided_by,
            lambda: encoded(self._vae, samples(), seed=seed),
            written=lambda latents: ({"latents": latents}, {}) if torch.isfinite(latents).all() else None,
            read=lambda file: file[0]["latents"],
        )


def encoded(vae: Any, samples: Tensor, *, seed: int) -> Tensor:
    """See LatentEncoder.latents."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        latents = vae.encode(samples)
    return plain(latents).float()


def shown(vae: Any, latents: Tensor) -> Tensor:
    """(N, H, W, 3) in [0, 1] that a VAE makes of latents (N, ...) in the host's scale; of each video the frame in the middle."""
    pictures: Tensor = vae.decode(latents)[..., :3].clamp(0.0, 1.0)
    return pictures[:, pictures.shape[1] // 2] if pictures.ndim == 5 else pictures


def seen_in(clip_vision: Any, picture: Tensor) -> Any:
    """The host's CLIP_VISION_OUTPUT of a picture (1, H, W, 3), all of it, as ComfyUI's templates for Wan take it."""
    with torch.inference_mode():
        seen = clip_vision.encode_image(picture, crop=False)
    made = type(seen)()
    vars(made).update({name: plain(value) for name, value in vars(seen).items()})
    return made


def require_frames(vae: Any, *, frames: int, bucket_step: int) -> None:
    """ValueError, naming the input, where a VAE does not take so many frames, or sides of such multiples, whole."""
    if _of_sounds(vae):
        raise ValueError("the VAE encodes sounds, no clips; connect the VAE of a model of video.")
    in_time = isinstance(getattr(vae, "downscale_ratio", None), tuple)
    if getattr(vae, "latent_dim", 2) != 3 or not in_time or getattr(vae, "not_video", False):
        raise ValueError("the VAE encodes single pictures, no clips; connect the VAE of a model of video.")
    shorter, longer = vae.downscale_ratio[0], vae.upscale_ratio[0]
    allowed = [n for n in range(1, 2 * frames + 64) if longer(shorter(n)) == n]
    if frames not in allowed:
        near = sorted(sorted(allowed, key=lambda n: abs(n - frames))[:2])
        raise ValueError(f"frames is {frames}; this VAE takes {' or '.join(map(str, near))}, for example.")
    require_sides(vae, bucket_step=bucket_step)


def require_sides(vae: Any, *, bucket_step: int) -> None:
    """ValueError, naming the input, for multiples of which the host would cut some off, and for a VAE of sounds."""
    if _of_sounds(vae):
        raise ValueError("the VAE encodes sounds, no pictures; connect the VAE of a model of pictures.")
    ratio = getattr(vae, "downscale_ratio", 1)
    side = ratio[-1] if isinstance(ratio, tuple) else ratio
    if bucket_step % side:
        raise ValueError(f"bucket_step is {bucket_step}; this VAE wants multiples of {side}.")


def samples_of(vae: Any, *, seconds: float) -> tuple[int, int]:
    """(samples, samples a second) of a sound of about so many seconds that a VAE encodes whole. ValueError for others' VAEs."""
    if not _of_sounds(vae):
        raise ValueError("the VAE encodes pictures, no sounds; connect the VAE of a model of sound.")
    rate, piece = _rate_and_piece(vae)
    samples = int(seconds * rate) // piece * piece
    if not samples:
        raise ValueError(f"seconds is {seconds}; this VAE encodes {piece / rate:.3f} seconds at least.")
    return samples, rate


def samples_over(audio_vae: Any, *, seconds: float) -> tuple[int, int]:
    """(samples, samples a second) of the shortest sound that a VAE encodes whole and that lasts so long. ValueError else."""
    if not _of_sounds(audio_vae):
        raise ValueError("audio_vae is a VAE of pictures; connect that of the model's sound.")
    rate, piece = _rate_and_piece(audio_vae)
    return math.ceil(round(seconds * rate, 3) / piece) * piece, rate


def _rate_and_piece(vae: Any) -> tuple[int, int]:
    """Samples a second, and how many of them are one, at least, of its latents."""
    return int(getattr(vae, "audio_sample_rate", 44100)), max(1, round(vae.downscale_ratio))


def _of_sounds(vae: Any) -> bool:
    """By the ways in which hosts say so; what has two channels is no picture."""
    one_dimension = getattr(vae, "latent_dim", 2) == 1 or getattr(vae, "extra_1d_channel", None) is not None
    return one_dimension or getattr(vae, "output_channels", 3) == 2


class TextEncoder:
    """A CLIP, with what is kept of it."""

    def __init__(self, clip: Any, kept: Encodings) -> None:
        self._clip, self._kept = clip, kept
        hooked = getattr(getattr(clip, "patcher", None), "forced_hooks", None) is not None
        layer = getattr(clip, "layer_idx", None)
        self._known = None if hooked else _known(clip, _of_texts(clip), layer)

    def conditioning(self, text: str, *, literal: bool = False) -> Conditioning:
        """What the host's CLIP Text Encode gives, on the CPU. literal: parentheses are letters, not emphasis."""
        with torch.inference_mode():
            tokens = _literal_tokens(self._clip, text) if literal else self._clip.tokenize(text)
        said = None if self._known is None else _said(tokens)
        decided_by = None if said is None else {"clip": self._known, "tokens": said}
        return self._kept.get(
            decided_by, lambda: _conditioning_of(self._clip, tokens), written=_written, read=_conditioning_read
        )


def weights_sha256(holder: Any) -> str:
    """Identifies a VAE, CLIP or CLIP vision model by its weights, or by its class where it has none that the host would know."""
    of_texts = _of_texts(holder)
    if of_texts is not None:
        holder.load_model()  # with its patches, as it encodes
        said = f"{_of_network(holder, of_texts)} {getattr(holder, 'layer_idx', None)}"
        patches = getattr(holder.patcher, "patches", {})
        beside = set(patches) - set(holder.patcher.backup)  # where the host does not hold all of it
        return f"{said} {identity.patches_sha256(holder.patcher)}" if beside else said
    for network in ("first_stage_model", "model"):  # a VAE's, and that of CLIP vision
        if getattr(holder, network, None) is not None:
            return _of_network(holder, getattr(holder, network))
    return f"{type(holder).__module__.rpartition('.')[-1]}.{type(holder).__qualname__}"


def dtype_of(holder: Any) -> str:
    """What a VAE computes in, or most of a CLIP's values are of: "bfloat16". Empty for one without weights."""
    chosen = getattr(holder, "vae_dtype", None)
    network = _of_texts(holder)
    counts: collections.Counter[torch.dtype | None] = collections.Counter([chosen])
    for value in () if network is None else network.state_dict().values():
        counts[value.dtype] += value.numel()
    ((dtype, _),) = counts.most_common(1)
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _of_texts(holder: Any) -> Any:
    """A CLIP's network; None for one without weights, as the demo's, and for what is no CLIP."""
    network = getattr(holder, "cond_stage_model", None)
    return network if network is not None and network.state_dict() else None


def _of_network(holder: Any, network: Any) -> str:
    return identity.weights_sha256(
        network.state_dict(), owner=network, file=identity.file_of(getattr(holder, "patcher", None))
    )


def _known(holder: Any, network: Any, option: Any) -> str | None:
    """What its encodings depend on: weights, the network's class, and one option. None for one without weights."""
    return None if network is None else f"{type(network).__qualname__} {weights_sha256(holder)} {option}"


# --- texts -----------------------------------------------------------------------------------------------------------


def _literal_tokens(clip: Any, text: str) -> Any:
    """Of a text whose parentheses are no emphasis: behind a backslash, for the tokenizers that read them so."""
    as_it_is = clip.tokenize(text)
    if not set(text) & set("()"):
        return as_it_is
    escaped = clip.tokenize(text.replace("(", "\\(").replace(")", "\\)"))
    if not isinstance(as_it_is, Mapping):
        return escaped if _takes_backslash(clip, None) else as_it_is
    return {key: escaped[key] if _takes_backslash(clip, key) else as_it_is[key] for key in as_it_is}


def _takes_backslash(clip: Any, key: str | None) -> bool:
    """Whether a tokenizer, of the several that a CLIP may hold, reads a backslash and a parenthesis as the parenthesis alone.

    A single closing one is no emphasis anywhere, so it is what the two must be read as.
    """
    alone, behind = (clip.tokenize(text) if key is None else clip.tokenize(text)[key] for text in (")", "\\)"))
    return _said(alone) == _said(behind) is not None


def _conditioning_of(clip: Any, tokens: Any) -> Conditioning:
    with torch.inference_mode():
        if hasattr(clip, "encode_from_tokens_scheduled"):
            made = clip.encode_from_tokens_scheduled(tokens)
        else:
            embedding, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
            made = [[embedding, {"pooled_output": pooled}]]
    return plain_entry(made)


def plain_entry(made: Conditioning) -> Conditioning:
    """What a CLIP gave for one text, as tensors that autograd may see, on the CPU. ValueError where that hangs on the step."""
    if len(made) != 1:
        raise ValueError("the CLIP carries hooks with a schedule, which training does not support; remove them.")
    ((embedding, options),) = made
    return [[plain(embedding), {key: plain(value) for key, value in options.items() if value is not None}]]


def _said(tokens: Any) -> str | None:
    """A hash of what a tokenizer gave: numbers, words, weights and embeddings. None where it holds anything else."""
    digest = hashlib.sha256()
    for line in _lines(tokens):
        if line is None:
            return None
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _lines(value: Any) -> Iterator[str | None]:
    if isinstance(value, Tensor):
        yield tensors_sha256({"": value})
    elif value is None or isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}:"
        for each in value:
            yield from _lines(each)
    elif isinstance(value, Mapping):
        yield f"{len(value)} named:"
        for key in sorted(value, key=repr):
            yield repr(key)
            yield from _lines(value[key])
    else:
        yield None


def _written(conditioning: Conditioning) -> Encoded | None:
    """None for values that a file of tensors cannot hold."""
    ((embedding, options),) = conditioning
    tensors = {f"{_OPTIONS}.{key}": value for key, value in options.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in options.items() if not isinstance(value, Tensor)}
    if not isinstance(embedding, Tensor) or not all(type(value) in _PLAIN for value in others.values()):
        return None
    return tensors | {"embedding": embedding}, {_OPTIONS: json.dumps(others)}


def _conditioning_read(file: Encoded) -> Conditioning:
    tensors, said = file
    options = {key.partition(".")[2]: value for key, value in tensors.items() if key != "embedding"}
    return [[tensors["embedding"], options | json.loads(said[_OPTIONS])]]


def plain(value: Any) -> Any:
    """A tensor that autograd may see, on the CPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(False):
        return value.clone().cpu()
