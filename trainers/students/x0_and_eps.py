"""A network that predicts x0 and eps at once, each in channels of its own (Salimans and Ho 2022, section 4).

Of z = alpha x0 + s eps with alpha^2 + s^2 = 1 the two predictions become one x0 = s^2 x0~ + alpha (z - s eps~): where there is
little noise eps~ decides, where there is little signal x0~ does, and no error is ever made larger. Such a network has twice
the output channels of its teacher. No loader of ComfyUI's builds one, so students of the nodes predict x0, eps or v.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...samplers.noise import Denoiser, expand_like


def combined_x0(x: Tensor, output: Tensor, *, sigma: Tensor) -> Tensor:
    """The x0 (B, C, ...) of variance-exploding x = x0 + sigma eps, which is z / alpha with sigma = s / alpha.

    output: (B, 2 C, ...), x0~ before eps~. sigma: (B,).
    """
    x0, eps = output.chunk(2, dim=1)
    sigma = expand_like(sigma, x)
    return (sigma**2 * x0 + x - sigma * eps) / (1.0 + sigma**2)


def combining(network: Denoiser) -> Denoiser:
    """D(x, sigma, **condition) -> x0 of a network that answers (B, 2 C, ...)."""
    return lambda x, sigma, **condition: combined_x0(x, network(x, sigma, **condition), sigma=sigma)


def doubled(layer: nn.Conv2d) -> nn.Conv2d:
    """The last layer of a network that predicts v, for one that predicts x0 and eps.

    v = alpha eps - s x0 is -x0 where there is noise alone and eps where there is none: so the layer becomes both.
    """
    twice = copy.deepcopy(layer)
    twice.out_channels = 2 * layer.out_channels
    for name, value in layer.named_parameters():
        setattr(twice, name, nn.Parameter(torch.cat([-value.detach(), value.detach()]), value.requires_grad))
    return twice


def as_before(network: Denoiser) -> Denoiser:
    """D(x, sigma, **condition) -> x0 of a network with a doubled last layer before it learns: v, from the eps channels."""

    def denoiser(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        _, v = network(x, sigma, **condition).chunk(2, dim=1)
        level = expand_like(sigma, x)
        return (x - level * (1.0 + level**2).sqrt() * v) / (1.0 + level**2)

    return denoiser
