"""Guidance as an input of the network: the w-embedding of latent consistency models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
