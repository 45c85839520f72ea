"""A network that predicts x0 and eps at once, each in channels of its own (Salimans and Ho 2022, section 4).

Of z = alpha x0 + s eps with alpha^2 + s^2 = 1 the two predictions become one x0 = s^2 x0~ + alpha (z - s eps~): where there is
little noise eps~ decides, where there is little signal x0~ does, and no error is ever made larger. Such a network has twice
the output channels of its teacher. No loader of ComfyUI's builds one, so students of the nodes predict x0, eps or v.
"""

from __future__ import annotations

from torch import Tensor

from ...samplers.noise import expand_like


def combined_x0(x: Tensor, output: Tensor, *, sigma: Tensor) -> Tensor:
    """The x0 (B, C, ...) of variance-exploding x = x0 + sigma eps, which is z / alpha with sigma = s / alpha.

    output: (B, 2 C, ...), x0~ before eps~. sigma: (B,).
    """
    x0, eps = output.chunk(2, dim=1)
    sigma = expand_like(sigma, x)
    return (sigma**2 * x0 + x - sigma * eps) / (1.0 + sigma**2)
