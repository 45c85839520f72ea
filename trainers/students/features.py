"""What blocks of a network say on the way through it: the eyes of a critic, which needs no network of its own then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...samplers.noise import Denoiser
from ..data.batches import Batch
from ..data.conditions import chosen
from .gradient_checkpointing import blocks_of

DEPTHS = (0.25, 0.5, 0.75)
"""Of the blocks in the order in which they run: early ones see texture, the middle sees what the picture is of. The last quarter
only turns that into a picture again, and is not run at all."""


class Tap(NamedTuple):
    """One tensor of what a block says: its path, which of its tensors, the axes of samples and channels, how many channels.

    samples: None where each sample passes the block by itself, which then has no such axis, or one of a single row.
    """

    path: str
    which: int
    samples: int | None
    axis: int
    channels: int


class Features:
    """(x (B, ...), sigma (B,), **condition) to what the taps see, (B, places, channels) each, in float32.

    network: whose blocks these are. denoise: the same as D(x, sigma, **condition), of which only that it runs is used. bare:
    entered around each pass, and the way back through it, so that the network is nobody's student. sample: one, for two trial
    passes, which find the taps. ValueError where the network has no blocks that could be seen through. Where denoise asks the
    network for one sample after the other, so does this.
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
        self._one_by_one = any(tap.samples is None for tap in self.taps)

    def _found(self, blocks: dict[str, nn.Module], sample: Batch) -> tuple[list[Tap], dict[str, nn.Module]]:
        """Of the blocks that ran and say something of each sample, those at DEPTHS; and these blocks by path."""
        (one, once), (two, twice) = (self._said(blocks, sample, rows=rows) for rows in (1, 2))
        alone = twice == {path: 2 * times for path, times in once.items()}
        order = [_taps(path, blocks[path], zip(one[path], two[path], strict=True), alone=alone) for path in one]
        found = [taps for taps in order if taps]
        if not found:
            raise ValueError(
                "adversarial_weight is above 0, but this model has no blocks that a critic could see a picture through; set it "
                "to 0."
            )
        taps = [tap for index in sorted({int(depth * len(found)) for depth in DEPTHS}) for tap in found[index]]
        return taps, {tap.path: blocks[tap.path] for tap in taps}

    def _said(
        self, blocks: dict[str, nn.Module], sample: Batch, *, rows: int
    ) -> tuple[dict[str, list[_Shape]], dict[str, int]]:
        """By path, in the order in which they run: the shape of each tensor of a block's; and how often it ran.

        Of one sample None for what does not hang on x, which its graph tells; that of two would take twice the memory.
        """
        order: dict[str, list[_Shape]] = {}
        times: dict[str, int] = {}

        def seen(path: str, said: list[Tensor]) -> None:
            times[path] = times.get(path, 0) + 1
            order.setdefault(path, [value.shape if value.requires_grad == graph else None for value in said])

        graph = rows == 1
        x = torch.cat([sample.x0] * rows).detach().requires_grad_(graph)
        condition = {name: value.expand(rows, *value.shape[1:]) for name, value in sample.condition.items()}
        with torch.set_grad_enabled(graph):
            self._run(blocks, seen, x, x.new_ones(rows), condition)
        return order, times

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> list[Tensor]:
        if self._one_by_one and len(x) > 1:
            rows = [slice(i, i + 1) for i in range(len(x))]
            each = [self(x[row], sigma[row], **chosen(condition, row)) for row in rows]
            return [torch.cat(said) for said in zip(*each, strict=True)]
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


def _taps(path: str, block: nn.Module, shapes: Iterable[tuple[_Shape, _Shape]], *, alone: bool) -> list[Tap]:
    """shapes: of each tensor of the block's, for one sample and for two. alone: these two pass one after the other."""
    channels = {size for layer in block.modules() for size in _sizes(layer)}
    axes = [_axes(one, None if alone else two, channels) if one and two else None for one, two in shapes]
    return [Tap(path, which, *found) for which, found in enumerate(axes) if found]


def _axes(one: torch.Size, two: _Shape, channels: set[Any]) -> tuple[int | None, int, int] | None:
    """Of a tap. None for what does not grow with the samples along one axis, or has no channels that a layer knows.

    two: None where samples pass alone, and nothing grows.
    """
    if len(one) < 2 or (two is not None and len(one) != len(two)):
        return None
    samples = None
    if two is not None:
        grown = [axis for axis, (size, other) in enumerate(zip(one, two, strict=True)) if size != other]
        if len(grown) != 1 or two[grown[0]] != 2 * one[grown[0]]:  # video blocks may have a row for each frame
            return None
        (samples,) = grown
    last, maps = len(one) - 1, len(one) > 3 and samples in (0, None)
    for axis in (1, last) if maps else (last, 1):  # tokens have their channels last, maps their places
        if axis != samples and one[axis] in channels:
            return samples, axis, one[axis]
    return None


def _sizes(layer: nn.Module) -> list[Any]:
    names = ("in_features", "out_features", "in_channels", "out_channels")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def _by_place(value: Tensor, tap: Tap, *, rows: int) -> Tensor:
    """(rows, places, channels)."""
    axes = (tap.axis,) if tap.samples is None else (tap.samples, tap.axis)
    return value.float().movedim(axes, (0, -1)[-len(axes) :]).reshape(rows, -1, tap.channels)
