"""The host's sampling as what makes training data, and what pictures a model draws."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from ..sampling import conditions, inputs, models, videos
from ..sampling.inputs import Shapes
from ..sampling.models import Conditioning
from . import refusals
from .encoding import plain
from .with_sound import and_silence, draws_sound

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
    noise: Any,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
) -> Any:
    """The teacher's latents (B, ...) in the host's scale, on the CPU, from unit noise of that shape; nested as the noise is."""
    with torch.inference_mode(), refusals.of_prompts():
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
    return inputs.for_each_stream(latents, lambda stream: plain(stream).float())


def noise_like(model: Any, samples: Any, *, seed: int) -> Any:
    """One sample's unit noise of a LATENT's samples, of several streams too, as KSampler draws it at the seed."""
    generator = torch.Generator().manual_seed(seed)
    rows = slice(None) if videos.batch_is_frames(model.model) else slice(1)
    return inputs.for_each_stream(samples, lambda stream: torch.randn(stream[rows].shape, generator=generator))


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
    return getattr(latent_format, "latent_dimensions", 2) in (2, 3) and "Audio" not in name and not draws_sound(model)


def shows_pictures(model: Any) -> bool:
    """Whether there is something to see in what the model draws: of video with sound, too."""
    return makes_pictures(model) or draws_sound(model)


def has_frames(model: Any) -> bool:
    """Whether the model's latents are of video, or of pictures in a video's form."""
    return getattr(model.get_model_object("latent_format"), "latent_dimensions", 2) == 3


def wants_a_picture(model: Any) -> bool:
    """Whether the model draws video that goes on from a picture, or follows another video, which no prompt has.

    Wan 2.2's of 5 billion weights need not. Wan 2.2's two experts of image to video the host takes for those of text to video:
    they are told apart by what their first layer reads.
    """
    network, name = model.model, type(model.model).__name__
    from_a_picture = getattr(network, "image_to_video", False) or name.endswith("I2V") or _channels_beside(network) > 0
    return (from_a_picture and name not in _FROM_TEXT_TOO) or videos.batch_is_frames(network)


_FROM_TEXT_TOO = ("WAN22",)
_OF_A_MASK = 4
"""Channels of Wan's mask: the frames of one latent."""


def _channels_beside(network: Any) -> int:
    """How many channels beside the latents' own the first layer of a network of Wan's kind reads."""
    kind: Any = getattr(comfy.model_base, "WAN21", ())  # which hosts of mid-2024 lack
    first = getattr(getattr(network, "diffusion_model", None), "patch_embedding", None)
    if first is None or not isinstance(network, kind):
        return 0
    return int(first.weight.shape[1]) - int(network.latent_format.latent_channels)


def takes_first_frame(model: Any) -> bool:
    """Whether the picture that a model goes on from is a clip's first frame, as the host's WanImageToVideo tells it."""
    network = model.model
    told = getattr(network, "image_to_video", False) or _reads_a_picture(network)
    return told and type(network).__name__ == "WAN21"


def _reads_a_picture(network: Any) -> bool:
    """A latent and its mask, no more: Wan's models that follow another video read two latents."""
    return _channels_beside(network) == int(network.latent_format.latent_channels) + _OF_A_MASK


def looks_by_clip_vision(model: Any) -> bool:
    """Whether a model goes on from a clip's first frame and has layers for what CLIP vision sees in that, as Wan 2.1's."""
    network = model.get_model_object("diffusion_model")
    return takes_first_frame(model) and getattr(network, "img_emb", None) is not None


def require_no_clip_vision(model: Any, clip_vision: Any) -> None:
    """ValueError for a CLIP vision model beside one that does not look at a picture by it."""
    if clip_vision is not None and not looks_by_clip_vision(model):
        raise ValueError(
            f"clip_vision is connected, but this model ({type(model.model).__name__}) does not look at a clip's first frame by "
            "it, as Wan 2.1's of image to video does; leave it unconnected."
        )


def first_frame_told(model: Any, latents: Tensor, *, seen: Any = None) -> dict[str, Any]:
    """What such a model is told with a prompt. latents (1, C, T, h, w): of the first frame and then of grey, 0.5.

    seen: the CLIP_VISION_OUTPUT of that frame, for a model that looks by it. ValueError, naming the input, where it looks by
    another kind of CLIP vision.
    """
    if seen is not None:
        _require_seen(model, seen.penultimate_hidden_states.shape[-1])
    mask = torch.ones(1, 1, *latents.shape[2:])
    mask[:, :, :1] = 0.0  # which is given
    return {_PICTURE: latents, "concat_mask": mask} | ({} if seen is None else {"clip_vision_output": seen})


def _require_seen(model: Any, width: int) -> None:
    read = getattr(model.get_model_object("diffusion_model").img_emb, "proj", [None])[0]
    wanted = width if read is None else read.normalized_shape[-1]
    if width != wanted:
        raise ValueError(
            f"clip_vision sees pictures in {width} values a patch, but this model ({type(model.model).__name__}) reads {wanted}; "
            "connect the CLIP vision model that belongs to it, clip_vision_h of Wan 2.1."
        )


def require_no_picture(model: Any) -> None:
    """ValueError for models that want a picture beside the prompt, where there is none."""
    videos.require_video(model.model, frames=1)
    if not wants_a_picture(model):
        return
    if _channels_beside(model.model) > 0 and not takes_first_frame(model):
        raise ValueError(
            f"this model ({type(model.model).__name__}, whose network reads {_channels_beside(model.model)} channels beside the "
            "latents') follows another video or a picture, which prompts alone and folders do not give it. Connect latents of "
            "clips, and positive and negative of what they follow, as lists."
        )
    raise ValueError(
        "this model goes on from a picture, which prompts alone and folders do not give it. Connect latents of clips, and "
        "positive and negative of their pictures, as lists; Wan learns from Training Clips (Folder), too."
    )


_PICTURE = "concat_latent_image"
"""Of a prompt, by the host's name: the latents of what it goes on from."""


def require_picture(model: Any, conditioning: Conditioning, *, latents: Tensor, name: str) -> None:
    """ValueError, naming the input, for prompts without a picture where the model goes on from one, or of another size or length.

    The host gives a grey one in its place, and stretches those of another size, as in its samplers: a student would learn just
    that. Negative prompts may have none. latents: from latents_for_training. name: of the input. Of models whose nodes all give
    the picture by one name: Wan and Stable Video Diffusion.
    """
    if not (takes_first_frame(model) or videos.batch_is_frames(model.model)):
        return
    for _, options in conditioning:
        picture = options.get(_PICTURE)
        if picture is not None:
            _require_like(model, picture, latents, name=name)
        elif name == "positive":
            raise ValueError(
                f"positive has no picture, and this model goes on from one. Connect positive and negative of {_node(model)}, "
                "with the picture connected to that."
            )


def _require_like(model: Any, picture: Tensor, latents: Tensor, *, name: str) -> None:
    side = require_sides(model)
    given, wanted = ([n * side for n in (found.shape[-1], found.shape[-2])] for found in (picture, latents))
    if given != wanted:
        raise ValueError(
            f"{name} goes on from a picture of {given[0]} x {given[1]} pixels, but the latents are of {wanted[0]} x "
            f"{wanted[1]}; set width and height of {_node(model)} to those."
        )
    if picture.ndim == 5 and picture.shape[2] != latents.shape[2]:
        long, longer = (_frames(model, found.shape[2]) for found in (latents, picture))
        raise ValueError(
            f"{name} is for a clip of {longer} frames, but the latents are of {long}; set length of {_node(model)} to {long}."
        )


def _frames(model: Any, count: int) -> int:
    """That so many of a latent hold, as Wan's do."""
    return (count - 1) * (getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", None) or 4) + 1


def _node(model: Any) -> str:
    return videos.node_of(model.model) if videos.batch_is_frames(model.model) else "WanImageToVideo"


def picture_unseen(positive: Conditioning, inputs: Mapping[str, Any]) -> bool:
    """Whether prompts carry a picture of which nothing is among the network's inputs, by their names."""
    return any(_PICTURE in options for _, options in positive) and not any(map(conditions.is_picture, inputs))


def require_sides(model: Any, **sides: int) -> int:
    """How many pixels in a row the model's latents hold in one. ValueError, naming the input, for a side that they cannot."""
    factor: int = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    _require_multiples(factor, sides, example=64 * factor)
    require_patches(model, **sides)
    return factor


def require_patches(model: Any, **sides: int) -> None:
    """ValueError, naming the input, for sides in pixels that the network cuts into patches and does not pad: HiDream-O1's."""
    patch: int = getattr(model.model, "PATCH_SIZE", 1)
    _require_multiples(patch, sides, example=32 * patch)


def _require_multiples(of: int, sides: Mapping[str, int], *, example: int) -> None:
    for name, side in sides.items():
        if side < of or side % of:
            raise ValueError(f"{name} is {side}; this model wants multiples of {of}: {example}, for example.")


def latent_shape(model: Any, *, width: int, height: int) -> tuple[int, ...]:
    """(C, h, w) of the model's latents for a picture of so many pixels, (C, 1, h, w) where it works on frames.

    ValueError for models of sound, and those whose pictures are all frames of a video.
    """
    videos.require_video(model.model, frames=1)
    latent_format = model.get_model_object("latent_format")
    if not makes_pictures(model):
        raise ValueError(
            f"this model's latents ({type(latent_format).__name__}) are no pictures; data from prompts are for models of "
            "pictures and of video. Give Distill Model data from Training Sounds (Folder), or connect latents and positive."
        )
    factor = require_sides(model, width=width, height=height)
    frames = (1,) if has_frames(model) else ()
    return (latent_format.latent_channels, *frames, height // factor, width // factor)


class Empty(NamedTuple):
    """A sample with nothing in it. latent: the host's LATENT of it, nested where there is sound. x0: zeros, as training has it.

    streams: what x0 (1, ...) is packed from, see inputs.stream_shapes.
    """

    latent: dict[str, Any]
    x0: Tensor
    streams: Shapes | None

    def for_host(self, packed: Tensor) -> Any:
        """Noise (B, ...) like x0 in the form of the LATENT's samples."""
        return inputs.as_given(packed, self.latent)


def empty(model: Any, *, width: int, height: int, frames: int = 1) -> Empty:
    """Of a picture, or of a clip of so many frames with its sound. ValueError, naming the input, for what cannot be drawn."""
    videos.require_video(model.model, frames=1)  # whatever frames are: no prompt has the picture
    latent_format = model.get_model_object("latent_format")
    with_sound = draws_sound(model)
    if not with_sound and (frames == 1 or not makes_pictures(model)):
        samples = torch.zeros(1, *latent_shape(model, width=width, height=height))
    else:
        long = _latent_frames(model, frames)
        factor = require_sides(model, width=width, height=height)
        samples = torch.zeros(1, latent_format.latent_channels, long, height // factor, width // factor)
    latent = {"samples": and_silence(model, samples, frames=frames) if with_sound else samples}
    return Empty(latent, torch.zeros_like(inputs.latents_for_training(model, latent)), inputs.stream_shapes(latent))


def _latent_frames(model: Any, frames: int) -> int:
    """How many of a latent a clip of so many frames has, by the rule of the host's own nodes. ValueError for other numbers."""
    latent_format = model.get_model_object("latent_format")
    if not has_frames(model):
        raise ValueError(f"frames is {frames}, but this model draws still pictures; set it to 1.")
    if type(latent_format).__name__.startswith("MiniMaxH3"):  # one frame, then four, four, four and four, and so on
        fives, rest = divmod(frames - _H3_FEWEST, _H3_EVERY)
        if fives < 0 or rest:
            raise ValueError(
                f"frames is {frames}; this model wants {_H3_FEWEST}, or multiples of {_H3_EVERY} more: 124, for example."
            )
        return 5 * fives + 2
    ratio = getattr(latent_format, "temporal_downscale_ratio", None)
    if ratio is None:
        raise ValueError(
            f"frames is {frames}, but this ComfyUI does not say how many of them a latent of this model holds; update it."
        )
    if (frames - 1) % ratio:
        raise ValueError(
            f"frames is {frames}; this model wants 1 more than a multiple of {ratio}: {10 * ratio + 1}, for example."
        )
    return (frames - 1) // ratio + 1


_H3_FEWEST, _H3_EVERY = 5, 17
