"""CLIP score (Hessel et al. 2021, arXiv 2104.08718, equation 1 with w = 100, as torchmetrics has it): how well pictures show what
texts say. The weights are looked for on this machine, and never downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .report import Agreement, Missing

MODEL = "openai/clip-vit-base-patch16"


def clip_score(folder: Path, *, device: torch.device, heed: Callable[[], None] = lambda: None) -> Agreement | Missing:
    """By a CLIP in a folder, as transformers saves it, or where there is none by MODEL in its cache.

    heed: called before each pass of the network, which it stops by raising.
    """
    if importlib.util.find_spec("transformers") is None:
        return Missing("the Python package transformers is not installed")
    try:
        from transformers import CLIPModel, CLIPProcessor
    except (
        Exception
    ) as error:  # of many kinds: beside another torchvision, say, or by a Python without docstrings (-OO)
        return Missing(f"the Python package transformers cannot be used ({type(error).__name__}: {str(error).strip()})")
    place = str(folder) if folder.is_dir() else MODEL
    try:
        model = CLIPModel.from_pretrained(place, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(place, local_files_only=True)
    except Exception as error:  # of many kinds
        if not folder.is_dir() and isinstance(error, OSError):
            return Missing(f"no weights: there is no folder {folder}, nor {MODEL} in the cache of transformers")
        return Missing(f"the weights of {place} cannot be read ({type(error).__name__}: {error})")
    return _Scorer(model.eval().requires_grad_(False).to(device), processor, heed)


_AT_ONCE = 16
"""Pictures that pass the network together."""


class _Scorer:
    def __init__(self, model: Any, processor: Any, heed: Callable[[], None]) -> None:
        self._model, self._processor, self._heed = model, processor, heed

    def __call__(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        starts = range(0, len(pictures), _AT_ONCE)
        return torch.cat([self._of(pictures[i : i + _AT_ONCE], texts[i : i + _AT_ONCE]) for i in starts])

    @torch.no_grad()
    def _of(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        self._heed()
        given = self._processor(
            text=list(texts),
            images=[picture.mul(255).round().byte().cpu().numpy() for picture in pictures],
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self._model.device)
        found = self._model(**given)
        return 100.0 * (found.image_embeds * found.text_embeds).sum(dim=1).clamp(min=0.0)
