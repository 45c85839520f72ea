"""Guidance as an input of the network: the w-embedding of latent consistency models."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM = 256
"""Of the w-embedding of the published LCMs."""


def w_embedding(guidance_scale: Tensor, *, dim: int) -> Tensor:
    """(B,) guidance scales to (B, dim): Fourier features of w = scale - 1 (Luo et al. 2023, section 4.2).

    sin, then cos, of 1000 w over frequencies from 1 to 1e-4, as diffusers' get_guidance_scale_embedding has it.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float32))
    angles = 1000.0 * (guidance_scale.float() - 1.0)[:, None] * frequencies.to(guidance_scale.device)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


class GuidedTimeEmbedding(nn.Sequential):
    """The UNet's own time embedding, its layers shared, with cond_proj(w) added to what goes into the first of them.

    cond_proj: (channels, dim), no bias. It is no parameter of the module, so that the UNet's state dict, by which LoRAs
    find their layers, stays as it is. guidance_scale may be set anew at any time.
    """

    def __init__(self, time_embedding: nn.Sequential, cond_proj: Tensor, *, guidance_scale: float) -> None:
        super().__init__(*time_embedding)
        self.cond_proj = cond_proj.float()
        self.guidance_scale = guidance_scale

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        if not 1.0 <= scale < math.inf:
            raise ValueError(f"guidance_scale is {scale}; a guidance embedding takes 1 (no guidance) and above.")
        self._guidance_scale = scale
        self._projected = w_embedding(torch.tensor([scale]), dim=self.cond_proj.shape[1]) @ self.cond_proj.T

    def forward(self, embedding: Tensor) -> Tensor:
        self._projected = self._projected.to(embedding.device)  # kept there: a copy in every step would wait for it
        embedding = embedding + self._projected.to(embedding.dtype)
        for layer in self:
            embedding = layer(embedding)
        return embedding

    def fixed(self) -> nn.Sequential:
        """Layers of its own without an input, which say what this one says at its scale: the first takes it into its bias."""
        layers = copy.deepcopy(nn.Sequential(*self))
        first = cast(nn.Linear, layers[0])
        with torch.no_grad():
            first.bias.add_(F.linear(self._projected.to(first.weight), first.weight)[0])
        return layers


class LearntGuidance(nn.Sequential):
    """The same with cond_proj as a layer that learns, and a scale for each sample: Meng et al. 2023, section 3.1, for training.

    cond_proj: (channels, dim) to begin with; None for zeros of dim 256, which change nothing yet. guidance_scale: (B,), or (1,)
    for all samples.
    """

    def __init__(self, time_embedding: nn.Sequential, cond_proj: Tensor | None, *, guidance_scale: float) -> None:
        super().__init__(*time_embedding)
        first = cast(nn.Linear, time_embedding[0])
        start = first.weight.new_zeros(first.in_features, DIM) if cond_proj is None else cond_proj
        self.cond_proj = nn.Linear(start.shape[1], len(start), bias=False, device=first.weight.device)
        self.guidance_scale = torch.tensor([guidance_scale])
        with torch.no_grad():
            self.cond_proj.weight.copy_(start)

    def forward(self, embedding: Tensor) -> Tensor:
        weight = self.cond_proj.weight
        projected = self.cond_proj(w_embedding(self.guidance_scale.to(weight.device), dim=weight.shape[1]).to(weight))
        embedding = embedding + projected.to(embedding.dtype)
        for layer in list(self)[:-1]:
            embedding = layer(embedding)
        return embedding


@contextmanager
def at_scale(embedding: GuidedTimeEmbedding | LearntGuidance, guidance_scale: Any) -> Iterator[None]:
    """Forward passes inside are at this scale: a number, or (B,) where it learns."""
    before, embedding.guidance_scale = embedding.guidance_scale, guidance_scale
    try:
        yield
    finally:
        embedding.guidance_scale = before
