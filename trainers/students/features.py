"""What blocks of a network say on the way through it: the eyes of a critic, which needs no network of its own then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...samplers.noise import Denoiser
from ..data.batches import Batch
from .gradient_checkpointing import blocks_of

DEPTHS = (0.25, 0.5, 0.75)
"""Of the blocks in the order in which they run: early ones see texture, the middle sees what the picture is of. The last quarter
only turns that into a picture again, and is not run at all."""


class Tap(NamedTuple):
    """One tensor of what a block says: its path, which of its tensors, the axes of samples and channels, how many channels."""

    path: str
    which: int
    samples: int
    axis: int
    channels: int


class Features:
    """(x (B, ...), sigma (B,), **condition) to what the taps see, (B, places, channels) each, in float32.

    network: whose blocks these are. denoise: the same as D(x, sigma, **condition), of which only that it runs is used. bare:
    entered around each pass, and the way back through it, so that the network is nobody's student. sample: one, for two trial
    passes, which find the taps. ValueError where the network has no blocks that could be seen through.
    """

    def __init__(
        self,
        network: nn.Module,
        denoise: Denoiser,
        *,
        bare: Callable[[], AbstractContextManager[object]],
        sample: Batch,
    ) -> None:
        self._denoise, self.bare = denoise, bare
        self.taps, self._blocks = self._found(blocks_of(network), sample)

    def _found(self, blocks: dict[str, nn.Module], sample: Batch) -> tuple[list[Tap], dict[str, nn.Module]]:
        """Of the blocks that ran and say something of each sample, those at DEPTHS; and these blocks by path."""
        one, two = (self._said(blocks, sample, rows=rows) for rows in (1, 2))
        order = [_taps(path, blocks[path], zip(one[path], two[path], strict=True)) for path in one]
        found = [taps for taps in order if taps]
        if not found:
            raise ValueError(
                "adversarial_weight is above 0, but this model has no blocks that a critic could see a picture through; set it "
                "to 0."
            )
        taps = [tap for index in sorted({int(depth * len(found)) for depth in DEPTHS}) for tap in found[index]]
        return taps, {tap.path: blocks[tap.path] for tap in taps}

    def _said(self, blocks: dict[str, nn.Module], sample: Batch, *, rows: int) -> dict[str, list[_Shape]]:
        """By path, in the order in which they run: the shape of each tensor of a block's.

        Of one sample None for what does not hang on x, which its graph tells; that of two would take twice the memory.
        """
        order: dict[str, list[_Shape]] = {}

        def seen(path: str, said: list[Tensor]) -> None:
            order.setdefault(path, [value.shape if value.requires_grad == graph else None for value in said])

        graph = rows == 1
        x = torch.cat([sample.x0] * rows).detach().requires_grad_(graph)
        condition = {name: value.expand(rows, *value.shape[1:]) for name, value in sample.condition.items()}
        with torch.set_grad_enabled(graph):
            self._run(blocks, seen, x, x.new_ones(rows), condition)
        return order

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> list[Tensor]:
        found: dict[str, list[Tensor]] = {}

        def seen(path: str, said: list[Tensor]) -> None:
            found.setdefault(path, said)
            if len(found) == len(self._blocks):
                raise _Enough

        self._run(self._blocks, seen, x, sigma, condition)
        return [_by_place(found[tap.path][tap.which], tap, rows=len(x)) for tap in self.taps]

    def _run(
        self,
        blocks: dict[str, nn.Module],
        seen: Callable[[str, list[Tensor]], None],
        x: Tensor,
        sigma: Tensor,
        condition: dict[str, Tensor],
    ) -> None:
        def hook(path: str) -> Any:
            # a copy: hosts go on writing into what a block said
            return lambda block, args, output: seen(path, [value.clone() for value in _tensors(output)])

        with ExitStack() as hooks, self.bare(), suppress(_Enough):
            for path, block in blocks.items():
                hooks.callback(block.register_forward_hook(hook(path)).remove)
            self._denoise(x, sigma, **condition)


class _Enough(Exception):
    """Ends a pass: the blocks behind are for a picture that nobody wants."""


def _tensors(output: Any) -> list[Tensor]:
    """Blocks of two streams, picture and text, say a tuple."""
    values = output if isinstance(output, list | tuple) else [output]
    return [value for value in values if isinstance(value, Tensor)]


_Shape = torch.Size | None


def _taps(path: str, block: nn.Module, shapes: Iterable[tuple[_Shape, _Shape]]) -> list[Tap]:
    """shapes: of each tensor of the block's, for one sample and for two."""
    channels = {size for layer in block.modules() for size in _sizes(layer)}
    axes = [_axes(one, two, channels) if one and two else None for one, two in shapes]
    return [Tap(path, which, *found) for which, found in enumerate(axes) if found]


def _axes(one: torch.Size, two: torch.Size, channels: set[Any]) -> tuple[int, int, int] | None:
    """Of a tap. None for what does not grow with the samples along one axis, or has no channels that a layer knows."""
    if len(one) < 2 or len(one) != len(two):
        return None
    grown = [axis for axis, (size, other) in enumerate(zip(one, two, strict=True)) if size != other]
    if len(grown) != 1 or two[grown[0]] != 2 * one[grown[0]]:  # video blocks may have a row for each frame
        return None
    last, maps = len(one) - 1, len(one) > 3 and grown == [0]
    for axis in (1, last) if maps else (last, 1):  # tokens have their channels last, maps their places
        if axis != grown[0] and one[axis] in channels:
            return grown[0], axis, one[axis]
    return None


def _sizes(layer: nn.Module) -> list[Any]:
    names = ("in_features", "out_features", "in_channels", "out_channels")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def _by_place(value: Tensor, tap: Tap, *, rows: int) -> Tensor:
    """(rows, places, channels)."""
    return value.float().movedim((tap.samples, tap.axis), (0, -1)).reshape(rows, -1, tap.channels)
