"""Gradient accumulation: a batch goes through the networks in pieces, one after another, to need less memory.

All random draws of an optimiser step are made for the whole batch, by the data and by the method; only the networks see
pieces. Their number changes the gradient by rounding alone.
"""

from __future__ import annotations

from torch import Tensor, cat

from ..samplers.noise import Denoiser
from .method import Target


def in_pieces(denoiser: Denoiser, pieces: int) -> Denoiser:
    """The same denoiser, which sees its batch in so many pieces. For passes without gradient: the graph is kept whole."""
    if pieces == 1:
        return denoiser

    def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        parts = zip(x.chunk(pieces), sigma.chunk(pieces), _conditions(condition, len(x), pieces), strict=True)
        return cat([denoiser(x_part, sigma_part, **part) for x_part, sigma_part, part in parts])

    return denoise


def split(target: Target, pieces: int) -> list[Target]:
    """Targets of B / pieces samples each, in order."""
    if pieces == 1:
        return [target]
    tensors = (target.x_t, target.sigma, target.x0, target.weight)
    conditions = _conditions(target.condition, len(target.x_t), pieces)
    parts = zip(*(tensor.chunk(pieces) for tensor in tensors), conditions, strict=True)
    return [Target(x_t, sigma, condition, x0, weight) for x_t, sigma, x0, weight, condition in parts]


def _conditions(condition: dict[str, Tensor], count: int, pieces: int) -> list[dict[str, Tensor]]:
    """condition: (count, ...) or (1, ...) each; what all samples share goes to every piece."""
    size = -(-count // pieces)
    starts = range(0, count, size)
    return [{k: v if len(v) == 1 else v[start : start + size] for k, v in condition.items()} for start in starts]
