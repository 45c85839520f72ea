"""The host's LATENT and CONDITIONING as training wants them, tensors that autograd may see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.clip_vision
import comfy.conds
import comfy.sampler_helpers
import torch
from torch import Tensor

from ....trainers.data.conditions import Condition
from . import conditions
from .models import Conditioning, model_sampling_of, noise_scale, read_by
from .videos import batch_is_frames, in_batch, of_batch, require_video

Shapes = list[list[int]]
"""Of the streams of a nested latent (video and sound), (1, ...) each."""

_UNSUPPORTED_CONDITIONING = ("area", "mask", "control", "gligen", "hooks", "timestep_start", "timestep_end", "default")
_BEGINS, _ENDS = ("start_percent", "clip_start_percent"), ("end_percent", "clip_end_percent")
"""What a prompt says of the part of a sampling that it is for; of its whole, 0 to 1, as nodes give it by default, nothing."""
_MOST_REPEATS = 4
"""Of a text, to make another's length: the host's CONDCrossAttn repeats no more often."""


# --- latents ---------------------------------------------------------------------------------------------------------


def latents_for_training(model: Any, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT in the model's own scale, on its device, as a tensor that autograd may see.

    Still pictures (N, C, h, w) of a model of video become (N, C, 1, h, w), as in the host's samplers; frames (F, C, h, w) of a
    model whose batch is one video become a sample, (1, F, C, h, w). The streams of a nested latent are packed into one
    (N, 1, length), see stream_shapes. Where the model's noise has another deviation than 1, all is
    divided by it, so that training mixes with unit noise; see as_denoiser. ValueError for latents of another model.
    """
    if "noise_mask" in latent:
        raise ValueError("the latents carry a noise mask; training uses whole pictures. Remove Set Latent Noise Mask.")
    with torch.inference_mode(False):
        streams = [stream.clone().float() for stream in _streams(latent)]
        samples = _packed(streams) if len(streams) > 1 else _in_rank(model, streams[0])
        with _as_sampled(model, stream_shapes(latent)):
            scaled = model.model.process_latent_in(samples).to(model.load_device)
        scale = noise_scale(model_sampling_of(model))
        return scaled if scale == 1.0 else scaled / scale


def latents_for_host(model: Any, latents: Tensor, *, shapes: Shapes | None = None) -> Tensor:
    """The inverse of latents_for_training, without a device: what a VAE decodes. shapes: from stream_shapes."""
    with _as_sampled(model, shapes):
        out: Tensor = model.model.process_latent_out(noise_scale(model_sampling_of(model)) * latents)
    return in_batch(model.model, out)


@contextmanager
def _as_sampled(model: Any, shapes: Shapes | None) -> Iterator[None]:
    """Inside, the host's network knows what its latents are packed from, and its noise levels, as while it is sampled.

    MiniMax H3's samplers carry the sound in units of its own noise levels' beside those of the pictures.
    """
    network = model.model
    if not hasattr(network, "latent_shapes"):  # no network of such a host asks
        yield
        return
    before = network.latent_shapes
    try:
        network.latent_shapes = shapes
        with read_by(network, model_sampling_of(model)):
            yield
    finally:
        network.latent_shapes = before


def mask_for_training(model: Any, mask: Tensor, *, like: Tensor) -> Tensor:
    """A MASK or a latent's noise_mask as latents `like` (B, C, ..., h, w), read as the host's samplers read it."""
    sampled = in_batch(model.model, like)
    found = comfy.sampler_helpers.prepare_mask(mask.clone().to(like), sampled.shape, like.device)
    return of_batch(model.model, found, like=like)


def as_given(found: Tensor, latent: dict[str, Any]) -> Any:
    """Latents (N, ...) in the form of latent's samples: those that were packed are nested again."""
    streams = _streams(latent)
    if len(streams) == 1:
        return found
    parts = found.flatten(1).split([stream[0].numel() for stream in streams], dim=1)
    return type(latent["samples"])([part.unflatten(1, one.shape[1:]) for part, one in zip(parts, streams, strict=True)])


def first_stream(latents: Tensor, shapes: Shapes | None) -> Tensor:
    """Of latents that are packed from streams of these shapes the pictures."""
    if shapes is None:
        return latents
    first = shapes[0][1:]
    return latents.flatten(1)[:, : math.prod(first)].unflatten(1, first)


def stream_shapes(latent: dict[str, Any]) -> Shapes | None:
    """What the streams of a nested latent are packed from; None for a latent of one."""
    streams = _streams(latent)
    return [[1, *stream.shape[1:]] for stream in streams] if len(streams) > 1 else None


def shapes_told(condition: Condition) -> Shapes | None:
    """What a network is told that its latents are packed from, see stream_shapes."""
    shapes: Shapes | None = conditions.host_inputs({k: v for k, v in condition.items() if "=" in k}).get(
        "latent_shapes"
    )
    return shapes


def is_empty(latent: dict[str, Any]) -> bool:
    """Whether it says no more than a size: the host's empty latents hold one number."""
    return all(bool((stream == stream.flatten()[:1]).all()) for stream in _streams(latent))


def _streams(latent: dict[str, Any]) -> list[Tensor]:
    return streams_of(latent["samples"])


def streams_of(samples: Any) -> list[Tensor]:
    """Of a LATENT's samples: the pictures first, where there are several."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def for_each_stream(samples: Any, made: Callable[[Tensor], Tensor]) -> Any:
    """A LATENT's samples with what is made of each of its streams, in their order, nested as they are."""
    found = [made(stream) for stream in streams_of(samples)]
    return found[0] if len(found) == 1 else type(samples)(found)


def _packed(streams: Sequence[Tensor]) -> Tensor:
    """(N, 1, length), in the order in which the host takes them apart again."""
    return torch.cat([stream.reshape(len(stream), 1, -1) for stream in streams], dim=-1)


def _in_rank(model: Any, samples: Tensor) -> Tensor:
    """With as many dimensions as the model's latents have. ValueError for other ranks and channels."""
    latent_format = model.get_model_object("latent_format")
    dimensions = getattr(latent_format, "latent_dimensions", samples.ndim - 2)  # which hosts of mid-2024 do not say
    if dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != dimensions + 2:
        raise ValueError(
            f"the latents have the shape {tuple(samples.shape)}, of {samples.ndim} dimensions, but this model's have "
            f"{dimensions + 2}{' (or 4: still pictures)' if dimensions == 3 else ''}; encode with the model's own VAE."
        )
    if samples.shape[1] != latent_format.latent_channels:
        raise ValueError(
            f"the latents have {samples.shape[1]} channels but this model works on {latent_format.latent_channels}; encode "
            "the pictures with the model's own VAE."
        )
    require_video(model.model, frames=len(samples))
    return samples.unsqueeze(0) if batch_is_frames(model.model) else samples


# --- conditioning ----------------------------------------------------------------------------------------------------


def condition_for_training(
    model: Any, conditioning: Conditioning, *, latents: Tensor, name: str, shapes: Shapes | None = None
) -> Condition:
    """The model inputs of a CONDITIONING whose prompts are of one shape, (N, ...) each; see conditions_for_training."""
    prompts = conditions_for_training(model, conditioning, latents=latents, name=name, shapes=shapes)
    shapes_found = [dict(conditions.shape_of_inputs(prompt)) for prompt in prompts]
    keys = {key for found in shapes_found for key in found}
    differing = sorted(key for key in keys if len({found.get(key) for found in shapes_found}) > 1)
    if differing:
        raise ValueError(
            f"the {name} conditioning mixes prompts of different lengths, sizes or constants ({', '.join(differing)}); give "
            "prompts that encode to one shape."
        )
    return conditions.joined_inputs(prompts)


def conditions_for_training(
    model: Any, conditioning: Conditioning, *, latents: Tensor, name: str, shapes: Shapes | None = None
) -> list[Condition]:
    """The model inputs of each entry of a CONDITIONING, encoded by the host's model as its samplers encode them.

    conditioning: N entries, or one entry of batch N or 1. latents: from latents_for_training; shapes: from stream_shapes.
    ValueError for options that a training step cannot honour, and for inputs that it cannot give a network.
    """
    if not conditioning:
        raise ValueError(f"the {name} conditioning is empty; connect a prompt.")
    return [
        condition
        for entry in conditioning
        for condition in _encode(model, entry, latents=latents, name=name, shapes=shapes)
    ]


def prompts_of(conditioning: Conditioning) -> Conditioning:
    """Its prompts one by one: an entry of batch 1 for each row of its entries."""
    return [row for entry in conditioning for row in _rows(entry, _count(entry))]


def in_one_length(
    model: Any, positive: Conditioning, condition: Condition, unconditional: Condition, *, latents: Tensor
) -> tuple[Condition, Condition]:
    """(condition, unconditional) with texts repeated to one length, where the host's samplers do so for this model.

    Repeating changes nothing for cross-attention: the softmax spreads each weight over the copies. Elsewhere, or beyond
    the host's own limit, both stay as they are. positive: what condition was encoded from.
    """
    condition, unconditional = dict(condition), dict(unconditional)
    for key, value in _encoded(model, positive[0], latents=latents, name="positive").items():
        if not isinstance(value, comfy.conds.CONDCrossAttn) or key not in unconditional:
            continue
        lengths = condition[key].shape[-2], unconditional[key].shape[-2]
        common = math.lcm(*lengths)
        if common // min(lengths) <= _MOST_REPEATS:
            for prompt, length in ((condition, lengths[0]), (unconditional, lengths[1])):
                prompt[key] = torch.cat([prompt[key]] * (common // length), dim=-2)
    return condition, unconditional


def told(model: Any, conditioning: Conditioning, options: Mapping[str, float]) -> Conditioning:
    """A prompt with what the host's nodes would add to it: guidance (FluxGuidance), frame_rate, seconds_start and _total.

    An option of 0 is left the model's own, but for a start; one that the model does not know, it ignores. ValueError for
    guidance told to a model that takes none.
    """
    given = {name: value for name, value in options.items() if value or name == "seconds_start"}
    if not given:
        return conditioning
    made = [[embedding, {**own, **given}] for embedding, own in conditioning]
    if "guidance" in given and not _takes_guidance(model, made):
        raise ValueError(
            f"guidance is {given['guidance']}, but this model ({type(model.model).__name__}) takes none as an input; set it "
            "to 0."
        )
    return made


def _takes_guidance(model: Any, conditioning: Conditioning) -> bool:
    latent_format = model.get_model_object("latent_format")
    sides = [1, 64, 64][-getattr(latent_format, "latent_dimensions", 2) :]
    x = torch.zeros(1, latent_format.latent_channels, *sides, device=model.load_device)
    x = x.unsqueeze(0) if batch_is_frames(model.model) else x
    return "guidance" in _encoded(model, conditioning[0], latents=x, name="positive")


def encoded_together(
    model: Any,
    prompts: Sequence[Conditioning],
    together: Conditioning,
    *,
    latents: Tensor,
    shapes: Shapes | None = None,
) -> bool:
    """Whether the host encodes prompts in one entry as it does each alone: some constants count over the whole batch.

    Networks that take one sample at a time it samples so, too, and those whose batch is a video.
    """

    def inputs(prompt: Conditioning, samples: int = 1) -> Condition:
        encoded = _encoded(model, prompt[0], latents=latents, name="positive", shapes=shapes, samples=samples)
        return conditions.as_tensors(encoded, name="positive")

    def constants(prompt: Conditioning, samples: int = 1) -> set[str]:
        return {key for key in inputs(prompt, samples) if "=" in key}

    if len(prompts) > 1 and (batch_is_frames(model.model) or conditions.one_for_all(inputs(prompts[0]))):
        return False
    of_all = constants(together, len(prompts))
    return all(constants(prompt) == of_all for prompt in prompts)


def _encode(model: Any, entry: list[Any], *, latents: Tensor, name: str, shapes: Shapes | None) -> Iterator[Condition]:
    """A batch of prompts at once; one by one where constants are counted over the batch, and pictures taken for one latent."""

    def made(one: list[Any]) -> dict[str, Any]:
        return _encoded(model, one, latents=latents, name=name, shapes=shapes)

    # pictures of a video, where that is a batch, are of its frames in turn
    rows = _rows(entry, len(entry[0]) if batch_is_frames(model.model) else _count(entry))
    first = made(rows[0])
    alone = "c_concat" in first or any(isinstance(value, comfy.conds.CONDConstant) for value in first.values())
    for encoded in [first, *map(made, rows[1:])] if alone or len(rows) == 1 else [made(entry)]:
        yield {key: value.to(model.load_device) for key, value in conditions.as_tensors(encoded, name=name).items()}


def _count(entry: list[Any]) -> int:
    """Of an entry's prompts: one text may go with several pictures."""
    batches = entry[0], entry[1].get("concat_latent_image")
    return max((len(batch) for batch in batches if isinstance(batch, Tensor)), default=1)


def _rows(entry: list[Any], count: int) -> list[list[Any]]:
    embedding, options = entry

    def row(value: Any, i: int) -> Any:
        if type(value) in (list, tuple):
            return type(value)(row(each, i) for each in value)
        if isinstance(value, comfy.clip_vision.Output):
            seen = type(value)()
            vars(seen).update({name: row(each, i) for name, each in vars(value).items()})
            return seen
        return value[i : i + 1] if isinstance(value, Tensor) and value.ndim and len(value) == count else value

    return [[row(embedding, i), {key: row(value, i) for key, value in options.items()}] for i in range(count)]


def _encoded(
    model: Any, entry: list[Any], *, latents: Tensor, name: str, shapes: Shapes | None = None, samples: int = 1
) -> dict[str, Any]:
    """What the host's samplers make of an entry: its own conditioning objects by the name of the model's input.

    samples: of noise beside it, which HiDream-O1 joins with the prompts, row by row.
    """
    embedding, options = entry
    refused = [key for key in _UNSUPPORTED_CONDITIONING if options.get(key) is not None]
    refused += [key for key in _BEGINS if options.get(key, 0.0) > 0.0]
    refused += [key for key in _ENDS if options.get(key, 1.0) < 1.0]
    if refused:
        raise ValueError(
            f"the {name} conditioning carries {', '.join(refused)}, which training does not support; remove it."
        )
    size = {"width": latents.shape[-1] * 8, "height": latents.shape[-2] * 8, "prompt_type": name}
    streams = {} if shapes is None else {"latent_shapes": shapes}
    with torch.inference_mode(False), torch.no_grad():  # some networks take their text through layers here
        inputs = {key: _plain(value) for key, value in options.items()}
        inputs["cross_attn"] = _plain(embedding)
        # a sampler that begins with noise goes on from an empty latent; of the samples' own nothing may be seen
        noise = in_batch(model.model, latents[:1].expand(samples, *latents.shape[1:]))
        sampled = {"noise": noise, "latent_image": torch.zeros_like(noise)}
        with _as_sampled(model, shapes):
            encoded = model.model.extra_conds(**{**size, **streams, **inputs}, device=model.load_device, **sampled)
        if inputs["cross_attn"] is not None:
            encoded.setdefault("c_crossattn", comfy.conds.CONDCrossAttn(inputs["cross_attn"]))
    _require_one_time(model, encoded)
    _require_whole_samples(model)
    _require_one_head(model)
    _require_free_of_weights(encoded)
    return encoded


def _require_one_time(model: Any, encoded: dict[str, Any]) -> None:
    """ValueError for networks of mean flow, which are told beside a step's noise level the next one's."""
    told = getattr(model.model.diffusion_model, "time_r_in", None) is not None
    if told and not ("disable_time_r" in encoded and encoded["disable_time_r"].cond):
        raise ValueError(
            "this model is of mean flow: its network takes the noise level of the next step as an input too, which training "
            "does not support. Connect a model that was not distilled so."
        )


def _require_whole_samples(model: Any) -> None:
    """ValueError for networks that are to draw a video in blocks of frames (Causal Forcing)."""
    if hasattr(model.model.diffusion_model, "init_kv_caches"):
        raise ValueError(
            "this model is autoregressive: it draws a video in blocks of frames, each with what it remembers of those before, "
            "but training would show it whole videos at once. Connect the model that it was made from."
        )


def _require_one_head(model: Any) -> None:
    """ValueError for networks with a bank of output heads (PDD, of MiniMax H3), of which a step takes those that it spans."""
    head = getattr(getattr(model.model.diffusion_model, "final_layer", None), "video_out", None)
    if head is not None and head.weight.shape[0] > head.out_features:
        raise ValueError(
            f"this model has {head.weight.shape[0] // head.out_features} output heads for parts of the way (a PDD LoRA), of "
            "which a step takes those up to the next noise level; in training there is none. Connect the model without that LoRA."
        )


def _require_free_of_weights(encoded: dict[str, Any]) -> None:
    """ValueError for networks whose layers look back at what earlier weights made of a prompt (SenseNova U1.5)."""
    if "prefix_keys" in encoded:
        raise ValueError(
            "this model makes keys and values of a prompt with its own weights before it is sampled (prefix_keys), which would "
            "stay the teacher's while they learn; training does not support it."
        )


def _plain(value: Any) -> Any:
    """Copies of tensors, in lists and dictionaries too, that autograd may see; some networks' extra_conds write into them."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(_plain(each) for each in value)
    return {key: _plain(each) for key, each in value.items()} if type(value) is dict else value
