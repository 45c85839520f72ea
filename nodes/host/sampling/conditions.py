"""What the host gives a network of a prompt as a Condition, and a Condition back as a network's inputs.

A Condition holds tensors alone, (N, ...) each. What else the host gives a network stands in their names: the tensors of a list
as `name[0]`, `name[1]`, ...; a constant, which a whole forward has in common, as `name=<JSON>` with an empty tensor (N, 0). So
samples are drawn in one batch only where their constants are equal, and constants are in the data's files and hash. Tensors that
a constant holds stand by their places, as `name.refs[0].latent`, (1, ...) as of one sample, and null is where they were. Of a
network whose batch is the frames of a video tensors are (N, F or 1, ...), what its frames have each or in common.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ....trainers.data.conditions import Condition, chosen
from .videos import FRAMES

_ONE_SAMPLES = ("ref_pixel_values", "minimax_payload")
"""What a network takes for all of a batch, though it belongs to a sample: HiDream O1 the references, MiniMax H3 all it knows."""
_LISTED = re.compile(r"(.+)\[(\d+)\]")
_NAME_ENDS = re.compile(r"[\[=.]")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_MADE_ANEW = ("minimax_payload.layout",)
"""By the network itself, where it is not told: what the host counts once for a whole sampling."""


def is_picture(key: str) -> bool:
    """Whether a network's input of that name is what it is to edit, to go on from, to follow or to keep, and no text."""
    return key.partition("[")[0] in _PICTURES or key.startswith(_PICTURES_OF_CONSTANTS)


def with_pictures(own: Condition, other: Condition) -> Condition:
    """What a prompt gives a network, with the pictures of another one, and with how that one tells them, in place of its own.

    ValueError for a network that reads them within its texts.
    """
    if any(_named(key) in _WITHIN_TEXTS for key in other):
        raise ValueError(
            "previews is connected, but this model reads its references within the prompt that they came with, so it draws no "
            "other prompt with them. Disconnect it: the first training samples are drawn in its place."
        )
    taken = {*_PICTURES, *_BESIDE_PICTURES, *(_named(key) for key in other if key.startswith(_PICTURES_OF_CONSTANTS))}
    found = {key: value for key, value in other.items() if _named(key) in taken and key not in _OF_TEXTS}
    replaced = {_named(key) for key in found}
    return {key: value for key, value in own.items() if _named(key) not in replaced or key in _OF_TEXTS} | found


_PICTURES = (
    *("c_concat", "ref_latents", "ref_latent", "reference_latent", "image_cond", "clip_fea", "time_dim_concat"),
    *("vace_context", "context_latents", "reference_motion", "pose_latents", "control_video", "camera_conditions"),
    *("ref_patches", "ref_pixel_values"),
)
_PICTURES_OF_CONSTANTS = ("minimax_payload.keyframes[", "minimax_payload.refs[")
_BESIDE_PICTURES = (
    *("ref_latents_method", "ref_contexts", "siglip_feats", "ref_mask_latents", "ref_mask_flag", "sam_latents"),
    *("reference_strength", "vace_strength", "pose_strength", "clip_fea_pose", "clip_fea_ref", "face_pixel_values"),
    *("keyframe_idxs", "guide_attention_entries", "generated_keyframes", "guiding_frame_index", "time_dim_replace"),
    *("audio_embed", "effnet"),
)
"""What says how a picture is told, or is told with it alone."""
_OF_TEXTS = ("minimax_payload.text_token_tags",)
"""Of a prompt's own, in a constant that holds pictures too."""
_WITHIN_TEXTS = ("ref_pixel_values", "ref_patches")
"""HiDream O1's, whose places are among its tokens."""


def shape_of_inputs(condition: Condition) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What prompts have in common that may stand in one batch: the inputs' names, constants and shapes."""
    return tuple((key, tuple(condition[key].shape[1:])) for key in sorted(condition))


def joined_inputs(prompts: Sequence[Condition]) -> Condition:
    """Prompts of one shape as one batch: copies, which autograd may see even of what the host made under inference mode."""
    return {key: torch.cat([prompt[key] for prompt in prompts]) for key in prompts[0]}


def rows_of(condition: Condition) -> list[Condition]:
    """Its prompts one by one, what all share with each."""
    count = max(len(value) for value in condition.values())
    return [chosen(condition, slice(i, i + 1)) for i in range(count)]


def as_tensors(encoded: dict[str, Any], *, name: str) -> Condition:
    """The host's conditioning objects as a Condition. ValueError, naming the inputs, for values that no name could hold."""
    tensors: Condition = {}
    odd = []
    for key, held in encoded.items():
        constant = isinstance(held, comfy.conds.CONDConstant)
        if isinstance(held.cond, Tensor) and not constant:
            tensors[key] = held.cond
        elif _is_list_of_tensors(held.cond) and not constant:
            tensors |= {f"{key}[{i}]": value for i, value in enumerate(held.cond)}
        elif (laid_out := _laid_out(key, held.cond)) is not None:
            tensors |= laid_out
        else:
            odd.append(key)
    if odd:
        raise ValueError(
            f"the {name} conditioning gives this model {', '.join(odd)}, which training does not support; it knows tensors, "
            "lists of them, and constants that are numbers or texts."
        )
    if FRAMES not in encoded:
        return tensors
    return {key: value if "=" in key else value.unsqueeze(0) for key, value in tensors.items()}


def one_for_all(condition: Condition) -> bool:
    """Whether a network takes what belongs to one sample for all of a batch."""
    return any(_named(key) in _ONE_SAMPLES for key in condition)


def host_inputs(condition: Condition) -> dict[str, Any]:
    """What the host's network takes by keyword, of a Condition: its tensors, and what stands in their names.

    Copies, whole where all samples share one: some networks write into their text (HunyuanDiT), or view it anew. What belongs
    to a video, of a network whose batch is its frames, each of them gets.
    """
    inputs: dict[str, Any] = {}
    frames = next((json.loads(key.partition("=")[2]) for key in condition if key.startswith(f"{FRAMES}=")), None)
    lists: dict[str, dict[int, Tensor]] = {}
    held: dict[str, Tensor] = {}
    for key, value in condition.items():
        name, constant, text = key.partition("=")
        listed = _LISTED.fullmatch(key)
        if constant:
            inputs[name] = json.loads(text)
        elif "." in key:
            held[key] = value[0].clone()
        elif listed:
            lists.setdefault(listed[1], {})[int(listed[2])] = value.clone()
        elif frames is None:
            inputs[key] = value.clone()
        else:
            inputs[key] = value.expand(-1, frames, *value.shape[2:]).flatten(0, 1).clone()
    for key, value in held.items():
        _put(inputs, key, value)
    return inputs | {name: [values[i] for i in sorted(values)] for name, values in lists.items()}


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(each, Tensor) for each in value)


def _laid_out(key: str, constant: Any) -> Condition | None:
    """None for what JSON would not give back as it is; tuples become lists. Of tensors one sample's dictionary may hold some."""
    tensors: Condition = {}
    may_hold_some = key in _ONE_SAMPLES and isinstance(constant, dict)

    def plain(value: Any, place: str) -> Any:
        if may_hold_some and isinstance(value, Tensor):
            tensors[place] = value.unsqueeze(0)
            return None
        if isinstance(value, (list, tuple)):
            return [plain(each, f"{place}[{i}]") for i, each in enumerate(value)]
        if isinstance(value, dict):
            if not all(isinstance(name, str) and name.isidentifier() for name in value):
                raise ValueError(f"{place} has names that are no words")
            places = {name: f"{place}.{name}" for name in value}
            return {name: plain(value[name], at) for name, at in places.items() if at not in _MADE_ANEW}
        return value

    try:
        return {f"{key}={json.dumps(plain(constant, key))}": torch.empty(1, 0), **tensors}
    except (TypeError, ValueError):
        return None


def _named(key: str) -> str:
    """The network's input of a key of a Condition."""
    return _NAME_ENDS.split(key, maxsplit=1)[0]


def _put(inputs: dict[str, Any], key: str, value: Tensor) -> None:
    """A tensor back in its constant."""
    *steps, last = [name or int(number) for name, number in _STEP.findall(key)]
    held = inputs[key.partition(".")[0]]
    for step in steps:
        held = held[step]
    held[last] = value
