"""Models that edit: how each of them is told the picture that it is to change."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.conditions import Condition
from ..sampling.models import Conditioning
from .encoding import plain, plain_entry, shown

_BY_LATENTS = ("Flux", "Flux2", "Omnigen2")
_BY_TEXT_ENCODER_TOO = ("QwenImage",)
_NODE = "TextEncodeQwenImageEditPlus"


def require_edits(model: Any) -> None:
    """ValueError, naming the input, for models that are not known to change a picture that they are given."""
    name = type(model.model).__name__
    if name not in (*_BY_LATENTS, *_BY_TEXT_ENCODER_TOO):
        raise ValueError(
            f"references is given, but of this model ({name}) it is not known how it is told a picture to change; those of "
            "FLUX.1 Kontext, FLUX.2, OmniGen 2 and Qwen-Image-Edit are. Leave it empty, or connect latents, positive and "
            "negative as lists."
        )


def looks_by_text_encoder(model: Any) -> bool:
    """Whether its text encoder looks at the picture, too, as Qwen-Image-Edit's."""
    return type(model.model).__name__ in _BY_TEXT_ENCODER_TOO


def told(reference: Tensor) -> dict[str, Any]:
    """What a model is told with a prompt, by the host's name. reference: latents (1, ...) in the host's scale."""
    return {"reference_latents": [reference]}


def looked_at(model: Any, vae: Any, condition: Condition) -> Tensor | None:
    """What the text encoder looks at with a prompt (1, H, W, 3): the first reference, as its latents show it. None for models
    whose text encoder does not, and where there is none.

    vae: of the latents. condition: of one sample.
    """
    reference = condition.get("ref_latents[0]")
    if reference is None or not looks_by_text_encoder(model):
        return None
    with torch.inference_mode():
        return plain(shown(vae, model.model.process_latent_out(reference)))


def conditioning(clip: Any, text: str, *, picture: Tensor) -> Conditioning:
    """A text of a picture (1, H, W, 3) in [0, 1], as the host's own node makes it, on the CPU. ValueError for hosts without."""
    try:
        node = getattr(importlib.import_module("comfy_extras.nodes_qwen"), _NODE)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"this ComfyUI has no {_NODE}, by which such a model's texts are encoded; update it."
        ) from error
    with torch.inference_mode():
        (made,) = node.execute(clip, text, image1=picture).args
    return plain_entry(made)
