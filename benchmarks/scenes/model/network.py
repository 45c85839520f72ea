"""The teacher's network: a UNet on latents of 8 x 8, conditioned on the noise level and the caption; and how it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....samplers.noise import Denoiser, expand_like
from ....trainers.students.x0_and_eps import combined_x0
from ..engine.machine import computing_in
from .world import CHANNELS, KINDS

WIDTH = 64
"""Channels at 8 x 8; at 4 x 4 there are twice as many."""
LEVELS, SIGMA_MIN, SIGMA_MAX = 1000, 0.02, 80.0


def noise_levels() -> Tensor:
    """(1000,) ascending: even in the angle atan(sigma), the cosine schedule of Salimans and Ho 2022, section 2."""
    ends = math.atan(SIGMA_MIN), math.atan(SIGMA_MAX)
    return torch.linspace(*ends, LEVELS, dtype=torch.float64).tan().float()


class Block(nn.Module):
    """Two convolutions around a scale and shift by the embedding, beside a skip; at first it does nothing."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.skip = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)
        _zero(self.conv_out)
        _zero(self.modulation)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        h = F.silu(h * (1.0 + scale) + shift)
        return self.skip(x) + self.conv_out(h)


class Attention(nn.Module):
    """Every place sees every other; at first it does nothing."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.take, self.give = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        _zero(self.give)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        q, k, v = self.take(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, -1).transpose(-1, -2).unbind(dim=1)
        seen = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(
            dim=-1
        ) @ v  # torch's fused one is slow at 16 places
        return x + self.give(seen.transpose(-1, -2).reshape(b, c, height, width))


class SceneNetwork(nn.Module):
    """(x (B, 12, 8, 8) at unit variance, place of its noise level (B,) in [0, 1], captions y (B, 30)) to v (B, 12, 8, 8).

    channels: of what it says, where that is not v.
    """

    def __init__(self, width: int = WIDTH, deep: int = 3, channels: int = CHANNELS) -> None:
        super().__init__()
        embedding, wide = 4 * width, 2 * width
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Sequential(nn.Linear(KINDS, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.enter = nn.Conv2d(CHANNELS, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, embedding) for _ in range(2)])
        self.shrink = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList([Block(wide, wide, embedding) for _ in range(deep)])
        self.attention = nn.ModuleList([Attention(wide, wide // 32) for _ in range(deep)])
        self.grow = nn.Conv2d(wide, width, 1)
        self.up = nn.ModuleList([Block(2 * width, width, embedding) for _ in range(2)])
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))
        _zero(self.leave[-1])

    def forward(self, x: Tensor, place: Tensor, y: Tensor) -> Tensor:
        e = F.silu(self.time(_waves(place)) + self.label(y))
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        kept = []
        for block in self.down:
            h = block(h, e)
            kept.append(h)
        h = self.shrink(h)
        for block, attention in zip(self.middle, self.attention, strict=True):
            h = attention(block(h, e))
        h = F.interpolate(self.grow(h), scale_factor=2.0)
        for block, earlier in zip(self.up, reversed(kept), strict=True):
            h = block(torch.cat([h, earlier], dim=1), e)
        return self.leave(h)


def _zero(layer: nn.Module) -> None:
    for value in layer.parameters():
        nn.init.zeros_(value)


def _waves(place: Tensor) -> Tensor:
    """(B, 64) cosines and sines of places (B,) in [0, 1]."""
    angles = place[:, None] * torch.exp(torch.linspace(0.0, math.log(1000.0), 32)).to(place)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _x0_of_v(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    alpha = expand_like((1.0 + sigma**2).rsqrt(), x)
    return alpha * (alpha * x - expand_like(sigma, x) * v)


PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x0_and_eps": lambda x, both, sigma: combined_x0(x, both, sigma=sigma),
    "x0": lambda x, x0, sigma: x0,
    "eps": lambda x, eps, sigma: x - expand_like(sigma, x) * eps,
    "v_prediction": _x0_of_v,
}
"""(x, what a network says, sigma) to x0, by what it says. The first takes twice the channels, see `x0_and_eps`."""


def as_denoiser(
    network: nn.Module, *, prediction: str = "v_prediction", precision: torch.dtype = torch.float32
) -> Denoiser:
    """D(x (B, 12, 8, 8), sigma (B,), y (B, 30)) -> x0.

    prediction: of the network, v (Salimans and Ho 2022, appendix D) or one of PREDICTIONS. precision: of its convolutions and
    products; the weights, and all around it, are float32.
    """
    low, high = math.atan(SIGMA_MIN), math.atan(SIGMA_MAX)

    def denoise(x: Tensor, sigma: Tensor, *, y: Tensor) -> Tensor:
        place = (sigma.atan() - low) / (high - low)
        alpha = expand_like((1.0 + sigma**2).rsqrt(), x)
        with computing_in(precision, on=x.device):
            found = network(x * alpha, place, y)
        return PREDICTIONS[prediction](x, found.float(), sigma)

    return denoise
