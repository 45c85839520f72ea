"""What blocks of a network say on the way through it: the eyes of a critic, which needs no network of its own then."""

from __future__ import annotations

from collections.abc import Callable
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
    """One tensor of what a block says: its path, which of its tensors, the axis of its channels and how many they are."""

    path: str
    which: int
    axis: int
    channels: int


class Features:
    """(x (B, ...), sigma (B,), **condition) to what the taps see, (B, places, channels) each, in float32.

    network: whose blocks these are. denoise: the same as D(x, sigma, **condition), of which only that it runs is used. bare:
    entered around each pass, and the way back through it, so that the network is nobody's student. sample: for a trial pass,
    which finds the taps; of two samples, if there are so many, it tells what is said of each from what is said of all.
    ValueError where the network has no blocks that could be seen through.
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

    @torch.no_grad()
    def _found(self, blocks: dict[str, nn.Module], sample: Batch) -> tuple[list[Tap], dict[str, nn.Module]]:
        """Of the blocks that ran and say something of each sample, those at DEPTHS; and these blocks by path."""
        order: dict[str, list[Tap]] = {}
        rows = len(sample.x0)

        def seen(path: str, said: list[Tensor]) -> None:
            taps = [_tap(path, which, value, blocks[path], rows=rows) for which, value in enumerate(said)]
            order.setdefault(path, [tap for tap in taps if tap])

        self._run(blocks, seen, sample.x0, sample.x0.new_ones(rows), sample.condition)
        found = [taps for taps in order.values() if taps]
        if not found:
            raise ValueError(
                "adversarial_weight is above 0, but this model has no blocks that a critic could see a picture through; set it "
                "to 0."
            )
        taps = [tap for index in sorted({int(depth * len(found)) for depth in DEPTHS}) for tap in found[index]]
        return taps, {tap.path: blocks[tap.path] for tap in taps}

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


def _tap(path: str, which: int, value: Tensor, block: nn.Module, *, rows: int) -> Tap | None:
    """None for what is not of floating point, or not of each sample. Video blocks may have a row for each frame."""
    if not value.is_floating_point() or value.ndim < 2 or not len(value) or len(value) % rows:
        return None
    known = {size for layer in block.modules() for size in _sizes(layer)}
    for axis in (1, -1) if value.ndim > 3 else (-1, 1):  # tokens have their channels last, maps their places
        if value.shape[axis] in known:
            return Tap(path, which, axis, value.shape[axis])
    return None


def _sizes(layer: nn.Module) -> list[Any]:
    names = ("in_features", "out_features", "in_channels", "out_channels")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def _by_place(value: Tensor, tap: Tap, *, rows: int) -> Tensor:
    """(rows, places, channels). RuntimeError where it is not of each sample, as a trial with one sample cannot know."""
    if len(value) % rows:
        raise RuntimeError(
            f"{tap.path} says {tuple(value.shape)} of {rows} samples, through which no critic can see; set adversarial_weight "
            "to 0, or give the data at least two samples."
        )
    return value.float().movedim(tap.axis, -1).reshape(rows, -1, tap.channels)
