"""Models that edit: how each of them is told the pictures that it is to change."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....trainers.data.conditions import Condition
from ..sampling.conditions import host_inputs
from ..sampling.models import Conditioning
from .encoding import plain, plain_entry, shown

USUAL = "usual"
METHODS = (USUAL, "offset", "index", "uxo/uno", "index_timestep_zero")
"""Where a network takes its references to lie: as its checkpoint says, or by the host's names of Edit Model Reference Method."""
_NAMES = {"uxo/uno": "uxo"}
"""Of methods, to the network."""


class TextNode(NamedTuple):
    """The host's node that encodes a text with the pictures that it is about. given: its inputs for those. most: how many.

    negative: whether the text that is led away from looks at them, too. empty: that text, where it is empty.
    """

    module: str
    name: str
    most: int
    given: Callable[[Sequence[Tensor]], dict[str, Any]]
    negative: bool = True
    empty: str = ""

    def conditioning(self, clip: Any, text: str, *, pictures: Sequence[Tensor]) -> Conditioning:
        """Of pictures (1, H, W, 3) in [0, 1], as the node makes it, on the CPU. ValueError for hosts without it."""
        try:
            node = getattr(importlib.import_module(f"comfy_extras.{self.module}"), self.name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"this ComfyUI has no {self.name}, by which such a model's texts are encoded; update it."
            ) from error
        with torch.inference_mode():
            made, *_ = node.execute(clip, text, **self.given(pictures)).args
        return plain_entry(made)


class _Edits(NamedTuple):
    """methods: by which its references may be told, where there are several. usual: that which is told where none is chosen.

    texts: None where its text encoder looks at no pictures. one_size: whether references have to be of the edited picture's size.
    """

    methods: tuple[str, ...] = ()
    usual: str = ""
    texts: TextNode | None = None
    one_size: bool = False


def _numbered(name: str, *, start: int) -> Callable[[Sequence[Tensor]], dict[str, Any]]:
    return lambda pictures: {f"{name}{number}": picture for number, picture in enumerate(pictures, start)}


def _one_input(name: str, *, start: int, **beside: Any) -> Callable[[Sequence[Tensor]], dict[str, Any]]:
    return lambda pictures: {"images": _numbered(name, start=start)(pictures), **beside}


_PLUS = TextNode("nodes_qwen", "TextEncodeQwenImageEditPlus", 3, _numbered("image", start=1))
_FIRST_ONE = TextNode("nodes_qwen", "TextEncodeQwenImageEdit", 1, lambda pictures: {"image": pictures[0]})
_BOOGU = TextNode(
    "nodes_boogu", "TextEncodeBooguEdit", 16, _one_input("image_", start=1, negative_prompt=""), negative=False
)
_JOY = TextNode("nodes_joyimage", "TextEncodeJoyImageEdit", 6, _one_input("image", start=0))
_MAGE = TextNode("nodes_mage", "TextEncodeMageFlowEdit", 16, _one_input("image_", start=1), empty=" ")
_FLUX = METHODS[1:]
_KNOWN = {
    "Flux": _Edits(_FLUX),
    "Flux2": _Edits(_FLUX),
    # as ComfyUI's template for it has them: its network, one of Flux's, knows no usual one of its own
    "LongCatImage": _Edits(_FLUX, usual="index", texts=_FIRST_ONE),
    "QwenImage": _Edits(("offset", "index", "index_timestep_zero"), texts=_PLUS),
    "Omnigen2": _Edits(),
    "Boogu": _Edits(texts=_BOOGU),
    "JoyImage": _Edits(texts=_JOY),
    "MageFlow": _Edits(texts=_MAGE, one_size=True),
}
FAMILIES = "FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit, LongCat-Image-Edit, JoyImage, Mage-Flow-Edit, OmniGen 2 and Boogu"
"""For the user, those of _KNOWN."""


def require_method(method: str) -> None:
    """ValueError, naming the input, for one that is none."""
    if method not in METHODS:
        raise ValueError(f"reference_method is {method!r}; allowed are {', '.join(METHODS)}.")


def require_edits(model: Any, *, method: str = USUAL) -> None:
    """ValueError, naming the input, for models that are not known to change a picture that they are given, and for a method
    that such a one does not know.
    """
    name = type(model.model).__name__
    if name not in _KNOWN:
        raise ValueError(
            f"references is given, but of this model ({name}) it is not known how it is told a picture to change; those of "
            f"{FAMILIES} are. Leave it empty, or connect latents, positive and negative as lists."
        )
    allowed = (USUAL, *_KNOWN[name].methods)
    if method not in allowed:
        raise ValueError(f"reference_method is {method!r}; of this model ({name}) allowed are {', '.join(allowed)}.")


def require_so_many(model: Any, count: int, *, of: str) -> None:
    """ValueError, naming the picture, for more references than are encoded with a text. of: the picture that has so many."""
    node = text_node(model)
    if node is not None and count > node.most:
        raise ValueError(
            f"references holds {count} pictures for {of}; this model's texts are encoded with {node.most} at most "
            f"({node.name}). Leave {'one' if node.most == 1 else f'no more than {node.most}'} of them."
        )


def told(model: Any, references: Sequence[Tensor], *, method: str = USUAL) -> dict[str, Any]:
    """What a model is told with a prompt, by the host's names. references: latents (1, ...) each, in the host's scale."""
    chosen = _KNOWN[type(model.model).__name__].usual if method == USUAL else method
    placed = {"reference_latents_method": _NAMES.get(chosen, chosen)} if chosen else {}
    return {"reference_latents": list(references), **placed}


def text_node(model: Any) -> TextNode | None:
    """None for models whose text encoder looks at no pictures."""
    known = _KNOWN.get(type(model.model).__name__)
    return None if known is None else known.texts


def of_one_size(model: Any) -> bool:
    """Whether a model compares references with what it draws place by place, which wants them of one size (Mage-Flow-Edit)."""
    return _KNOWN[type(model.model).__name__].one_size


def looked_at(model: Any, vae: Any, condition: Condition) -> list[Tensor]:
    """What the text encoder looks at with a prompt, (1, H, W, 3) each: the references, as their latents show them. None for
    models whose text encoder does not, and where there are none.

    vae: of the latents. condition: of one sample.
    """
    if text_node(model) is None:
        return []
    references = host_inputs(condition).get("ref_latents", [])
    with torch.inference_mode():
        return [plain(shown(vae, model.model.process_latent_out(each))) for each in references]
