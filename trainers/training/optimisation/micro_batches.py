"""Parts of a batch: pieces that go through the networks one after another, to need less memory, and shares of processes.

All random draws of an optimiser step are made for the whole batch, by the data and by the method, in every process; only
the networks see parts. Their number changes the gradient by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, cat

from ....samplers.noise import Denoiser
from ...objective.method import Target


def require_equal_parts(batch_size: int, *, accumulation: int, processes: int) -> None:
    """ValueError unless each piece of each process has as many rows, so that all rows count alike."""
    if batch_size % (accumulation * processes):
        raise ValueError(
            f"batch_size is {batch_size}, accumulation is {accumulation} and there are {processes} processes; batch_size, "
            f"which all processes share, must be a multiple of accumulation times processes: of {accumulation * processes}."
        )


def in_pieces(denoiser: Denoiser, pieces: int) -> Denoiser:
    """The same denoiser, which sees its batch in so many pieces. For passes without gradient: the graph is kept whole."""
    if pieces == 1:
        return denoiser

    def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        parts = zip(x.chunk(pieces), sigma.chunk(pieces), _conditions(condition, len(x), pieces), strict=True)
        return cat([denoiser(x_part, sigma_part, **part) for x_part, sigma_part, part in parts])

    return denoise


def on_share(denoiser: Denoiser, share: int, *, of: int) -> Denoiser:
    """A denoiser of which this process computes its own rows of every batch, and leaves 0 in those of the others.

    For passes without gradient, of methods that treat each row by itself: so a method need not know of processes.
    share: 0 for the first of `of` processes. ValueError for a batch that does not divide.
    """
    if of == 1:
        return denoiser

    def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        if len(x) % of:
            raise ValueError(f"a method gave a network {len(x)} rows, which do not divide over {of} processes.")
        own = _conditions(condition, len(x), of)[share]
        computed = denoiser(x.chunk(of)[share], sigma.chunk(of)[share], **own)
        rows = computed.new_zeros(len(x), *computed.shape[1:])
        rows.chunk(of)[share].copy_(computed)
        return rows

    return denoise


def split(target: Target, pieces: int) -> list[Target]:
    """Targets of B / pieces samples each, in order."""
    if pieces == 1:
        return [target]
    tensors: dict[str, Sequence[Any]] = {
        name: value.chunk(pieces) for name, value in target._asdict().items() if isinstance(value, Tensor)
    }
    for name in ("condition", "measures"):
        tensors[name] = _conditions(getattr(target, name), len(target.x_t), pieces)
    if target.beside is not None:
        tensors["beside"] = split(target.beside, pieces)
    return [target._replace(**dict(zip(tensors, part, strict=True))) for part in zip(*tensors.values(), strict=True)]


def _conditions(condition: Mapping[str, Tensor], count: int, pieces: int) -> list[dict[str, Tensor]]:
    """condition: (count, ...) or (1, ...) each; what all samples share goes to every piece."""
    size = -(-count // pieces)
    starts = range(0, count, size)
    return [{k: v if len(v) == 1 else v[start : start + size] for k, v in condition.items()} for start in starts]
