"""Training data as tensors: clean samples and, per sample, the model inputs that describe them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...samplers.noise import expand_like
from ..storage.files import Rows
from ..storage.stored import Inputs, Stored, Values
from .conditions import Condition, chosen, one_batch
from .held import OfRows, rows_of


@dataclasses.dataclass(frozen=True)
class Batch:
    """x0: (B, ...) clean samples in the model's own latent scale. condition: (B, ...) each.

    noise: (B, ...) the unit noise from which the teacher drew x0, of data that are such pairs. unconditional: the empty
    prompt's inputs for samples of this shape, (1, ...) or (B, ...) each.
    """

    x0: Tensor
    condition: Condition
    noise: Tensor | None = None
    unconditional: Condition | None = None

    def empty_prompt(self) -> Condition:
        """ValueError where the data have none; whoever needs it should have asked before the first batch."""
        if self.unconditional is None:
            raise ValueError("these data hold no empty prompt: connect the negative conditioning.")
        return self.unconditional


class Data(Protocol):
    """What the loop draws batches from."""

    @property
    def device(self) -> torch.device:
        """Where batches go; the samples themselves may lie in the CPU's memory."""

    @property
    def unconditional(self) -> Inputs | None:
        """The empty prompt's inputs, or None where there are none; with several shapes those of the first."""

    def batch(
        self, size: int, *, generator: torch.Generator, caption_dropout: float = 0.0, mixed: bool = False
    ) -> Batch:
        """`size` samples drawn with replacement, so that what is drawn depends on the generator (CPU) alone.

        caption_dropout: share of the samples whose whole condition becomes the empty prompt's. Where that is of another
        shape than theirs, all of a batch or none. mixed: conditions may be of several shapes in one batch, see conditions.py,
        the empty prompt's too.
        """

    def first(self, count: int) -> Batch:
        """The first samples, at most `count`, of one shape."""

    def varied(self, count: int) -> Batch:
        """As many of one size, the first of each prompt before any other: those that lie side by side may be of one prompt."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a stable name, each prompt as often as it has samples."""

    def sha256(self, *, heed: Callable[[], None] = lambda: None) -> str:
        """Of tensors(), which are not put together for it. heed: called again and again meanwhile, which it stops by raising."""

    def require_droppable(self) -> None:
        """ValueError, naming the input, where captions cannot be dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorData(OfRows):
    """Samples of one shape. x0: (N, ...), condition and unconditional: (N, ...) or (1, ...) each; the latter may be None.

    noise: (N, ...) of pairs, see Batch. batch_device: where batches go, None for where x0 is. repeats: (N,) whole numbers, as
    how many samples each is drawn; None for once each. prompts: (N,) the row of condition (P, ...) that describes each, where
    several have one prompt, which is then held once. Values of several rows may lie in files, from which they are read as they
    are drawn, see storage/stored.py. ValueError, naming the input, when counts do not match or a value is not finite; of those
    in files whoever wrote and read them made sure.
    """

    x0: Values
    condition: Inputs
    unconditional: Inputs | None = None
    noise: Values | None = None
    batch_device: torch.device | None = None
    repeats: Tensor | None = None
    prompts: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.x0) == 0:
            raise ValueError("the training latents are empty; give at least one.")
        _require_finite(self.x0, name="training latents")
        for name, value in self.condition.items():
            if self.prompts is None and len(value) not in (1, len(self.x0)):
                raise ValueError(
                    f"the conditioning holds {len(value)} entries ({name}) but there are {len(self.x0)} latents; give "
                    "one entry for each latent in the same order, or a single one for all."
                )
            _require_finite(value, name=f"conditioning ({name})")
        for name, value in (self.unconditional or {}).items():
            if len(value) not in (1, len(self.x0)):
                raise ValueError(
                    f"the negative conditioning holds {len(value)} entries ({name}) but there are {len(self.x0)} latents; give "
                    "a single one for all, or one for each latent in the same order."
                )
            _require_finite(value, name=f"negative conditioning ({name})")
        if self.noise is not None:
            if self.noise.shape != self.x0.shape:
                raise ValueError(
                    f"the noise is {tuple(self.noise.shape)} but the latents are {tuple(self.x0.shape)}; a pair is a "
                    "latent and the noise of its own shape that it was drawn from."
                )
            _require_finite(self.noise, name="noise")
        if self.repeats is not None and (self.repeats.shape != self.x0.shape[:1] or self.repeats.min() < 1):
            raise ValueError("repeats must be a whole number from 1 for each of the latents.")
        self._require_prompts()

    def _require_prompts(self) -> None:
        counts = {len(value) for value in self.condition.values()}
        if self.prompts is None or (len(self.prompts) == len(self.x0) and counts == {int(self.prompts.max()) + 1}):
            return
        raise ValueError(
            f"the training data say of {len(self.prompts)} latents which of the prompts describes each, but hold {len(self.x0)} "
            f"latents and {sorted(counts)} prompts."
        )

    @property
    def size(self) -> int:
        """Samples that are drawn, each of the same share."""
        return len(self.x0) if self.repeats is None else int(self.repeats.sum())

    @property
    def device(self) -> torch.device:
        return self.batch_device or self.x0.device

    def batch(
        self, size: int, *, generator: torch.Generator, caption_dropout: float = 0.0, mixed: bool = False
    ) -> Batch:
        drawn = self.drawn(torch.randint(self.size, (size,), generator=generator))
        if not caption_dropout:
            return drawn
        if self._one_shape():
            dropped = torch.rand(size, generator=generator) < caption_dropout
            return _without_captions(drawn, dropped.to(self.device))
        if mixed:
            return _in_one([drawn], dropped=torch.rand(size, generator=generator) < caption_dropout)
        return _without_caption(drawn) if torch.rand((), generator=generator) < caption_dropout else drawn

    def drawn(self, numbers: Tensor) -> Batch:
        """The samples of these numbers (B,), below size."""
        if self.repeats is None:
            return self.take(numbers)
        return self.take(torch.searchsorted(self.repeats.cumsum(0), numbers, right=True))

    def _one_shape(self) -> bool:
        """Of the prompts' inputs and the empty prompt's, so that both may stand in one batch."""
        prompt, empty = (
            {name: value.shape[1:] for name, value in (inputs or {}).items()}
            for inputs in (self.condition, self.unconditional)
        )
        return prompt == empty

    def first(self, count: int) -> Batch:
        return self.take(torch.arange(min(count, len(self.x0))))

    def varied(self, count: int) -> Batch:
        return self.take(torch.tensor(self.in_variety(count)))

    def in_variety(self, count: int) -> list[int]:
        """At most so many samples by number, the first of each prompt before any other."""
        if self.prompts is None:
            return list(range(len(self.x0)))[:count]
        seen: dict[int, int] = {}
        for i, prompt in enumerate(self.prompts.tolist()):
            seen.setdefault(prompt, i)
        firsts = list(seen.values())[:count]
        others = [i for i in range(len(self.x0)) if i not in firsts] if len(firsts) < count else []
        return [*firsts, *others][:count]

    def take(self, index: Tensor) -> Batch:
        """The samples at index (B,), each with its own condition or the one that all share."""
        rows = index if self.prompts is None else self.prompts[index]
        condition = {
            name: value.to(self.device).expand(len(rows), *value.shape[1:])
            for name, value in chosen(self.condition, rows).items()
        }
        noise = None if self.noise is None else self.noise[index].to(self.device)
        unconditional: Condition | None = None
        if self.unconditional is not None:
            unconditional = {name: value.to(self.device) for name, value in chosen(self.unconditional, index).items()}
        return Batch(self.x0[index].to(self.device), condition, noise, unconditional)

    def rows(self) -> dict[str, Tensor | Rows]:
        named: dict[str, Values] = {"x0": self.x0}
        named |= {f"unconditional.{k}": v for k, v in (self.unconditional or {}).items()}
        also = {"noise": self.noise, "repeats": self.repeats}
        named |= {name: value for name, value in also.items() if value is not None}
        told = {f"condition.{k}": rows_of(v, self.prompts) for k, v in self.condition.items()}
        return {name: rows_of(value) for name, value in named.items()} | told

    def require_droppable(self) -> None:
        if self.unconditional is None:
            raise ValueError(
                "caption_dropout is above 0, which needs the empty prompt: connect the negative conditioning, or set "
                "caption_dropout to 0."
            )


@dataclasses.dataclass(frozen=True)
class Buckets(OfRows):
    """Samples of several shapes, of latents or of conditions. A batch is drawn from one bucket, so it has one shape; a mixed one
    from all whose latents are of that bucket's.

    A bucket comes up as often as its share of the samples, so that every sample is as likely as every other one.
    ValueError when there is none, when two have one shape, or when only some are pairs or have an empty prompt.
    """

    buckets: Sequence[TensorData]

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("there are no buckets of training data; give at least one.")
        if len({shape_of(bucket) for bucket in self.buckets}) < len(self.buckets):
            raise ValueError("two buckets hold samples of the same shape; make them one.")
        for name in ("noise", "unconditional"):
            if len({getattr(bucket, name) is None for bucket in self.buckets}) > 1:
                raise ValueError(f"some buckets have {name} and some have none; give it to all or to none.")

    @property
    def device(self) -> torch.device:
        return self.buckets[0].device

    @property
    def unconditional(self) -> Inputs | None:
        return self.buckets[0].unconditional

    def batch(
        self, size: int, *, generator: torch.Generator, caption_dropout: float = 0.0, mixed: bool = False
    ) -> Batch:
        drawn = self._drawn_bucket(generator) if len(self.buckets) > 1 else self.buckets[0]
        alike = self._together[_kind_of(drawn)] if mixed else [drawn]
        if len(alike) == 1:
            return drawn.batch(size, generator=generator, caption_dropout=caption_dropout, mixed=mixed)
        ends = torch.tensor([bucket.size for bucket in alike]).cumsum(0)
        # in order: pieces of a batch, which pass a network one after another, are then of few shapes each
        numbers = torch.randint(int(ends[-1]), (size,), generator=generator).sort().values
        dropped = torch.rand(size, generator=generator) < caption_dropout if caption_dropout else None
        own = torch.searchsorted(ends, numbers, right=True)
        parts = [alike[k].drawn(numbers[own == k] - (ends[k] - alike[k].size)) for k in own.unique().tolist()]
        return _in_one(parts, dropped=dropped)

    @functools.cached_property
    def _together(self) -> dict[Hashable, list[TensorData]]:
        """By what they have in common, those whose samples may be in one mixed batch."""
        groups: dict[Hashable, list[TensorData]] = {}
        for bucket in self.buckets:
            groups.setdefault(_kind_of(bucket), []).append(bucket)
        return groups

    def _drawn_bucket(self, generator: torch.Generator) -> TensorData:
        ends = torch.tensor([bucket.size for bucket in self.buckets]).cumsum(0)
        sample = torch.randint(int(ends[-1]), (1,), generator=generator)
        return self.buckets[int(torch.searchsorted(ends, sample, right=True))]

    def distinct(self, size: int, *, mixed: bool = False) -> float:
        """How many different samples a batch of that size holds on average; repeats left aside. mixed: see batch."""
        groups = self._together.values() if mixed else [[bucket] for bucket in self.buckets]
        counts = [sum(len(bucket.x0) for bucket in group) for group in groups]
        return sum(n / sum(counts) * n * (1 - (1 - 1 / n) ** size) for n in counts)

    def first(self, count: int) -> Batch:
        return self.buckets[0].first(count)

    def varied(self, count: int) -> Batch:
        """Of those that may stand in one batch with the first, in turn."""
        alike = self._together[_kind_of(self.buckets[0])]
        if len(alike) == 1:
            return alike[0].varied(count)
        orders = [bucket.in_variety(count) for bucket in alike]
        turns = [(turn, number) for number, order in enumerate(orders) for turn in range(len(order))]
        taken = collections.Counter(number for _, number in sorted(turns)[:count])
        parts = [alike[number].take(torch.tensor(orders[number][:many])) for number, many in sorted(taken.items())]
        return _in_one(parts, dropped=None)

    def rows(self) -> dict[str, Tensor | Rows]:
        return _numbered(bucket.rows() for bucket in self.buckets)

    def require_droppable(self) -> None:
        for bucket in self.buckets:
            bucket.require_droppable()


_Value = TypeVar("_Value")


def _numbered(several: Iterable[Mapping[str, _Value]]) -> dict[str, _Value]:
    """Buckets' values by their names, the bucket's number before them."""
    return {f"{i:04d}.{name}": value for i, named in enumerate(several) for name, value in named.items()}


Shape = tuple[tuple[str, torch.dtype, torch.Size], ...]


def shape_of(data: TensorData) -> Shape:
    """What samples must have in common to be drawn in one batch: names, types and shapes, without the count."""
    named = {"x0": data.x0} | {f"condition.{name}": value for name, value in data.condition.items()}
    named |= {} if data.noise is None else {"noise": data.noise}
    return tuple((name, value.dtype, value.shape[1:]) for name, value in sorted(named.items()))


def _kind_of(data: TensorData) -> Hashable:
    """What samples of one mixed batch have in common: latents and the kinds of their inputs, of whatever shapes these are."""
    latents = tuple((value.dtype, value.shape[1:]) for value in (data.x0, data.noise) if value is not None)
    return latents, frozenset((name, value.dtype) for name, value in data.condition.items() if value.numel())


def _in_one(parts: Sequence[Batch], *, dropped: Tensor | None) -> Batch:
    """Batches of one shape each as one, of whatever shapes. dropped: (B,) whose condition becomes the empty prompt's."""
    rows, empty = (_row_by_row(parts, told) for told in ("condition", "unconditional"))
    if dropped is not None:
        rows = [without if drop else row for row, without, drop in zip(rows, empty, dropped.tolist(), strict=True)]
    return Batch(
        torch.cat([part.x0 for part in parts]),
        one_batch(rows),
        None if parts[0].noise is None else torch.cat([part.noise for part in parts if part.noise is not None]),
        None if parts[0].unconditional is None else one_batch(empty),
    )


def _row_by_row(parts: Sequence[Batch], told: str) -> list[Condition]:
    """Of each sample, (1, ...) each. told: the field of a batch."""
    return [chosen(getattr(part, told) or {}, slice(i, i + 1)) for part in parts for i in range(len(part.x0))]


def _without_captions(batch: Batch, dropped: Tensor) -> Batch:
    """dropped: (B,) whose whole condition becomes the empty prompt's; both of one shape."""
    empty = batch.empty_prompt()
    condition = {
        name: torch.where(expand_like(dropped, value), empty[name].to(value.dtype), value)
        for name, value in batch.condition.items()
    }
    return dataclasses.replace(batch, condition=condition)


def _without_caption(batch: Batch) -> Batch:
    """The empty prompt for every sample."""
    count = len(batch.x0)
    empty = {name: value.expand(count, *value.shape[1:]) for name, value in batch.empty_prompt().items()}
    return dataclasses.replace(batch, condition=empty)


_ROWS_LOOKED_AT = 64
"""At once: what says of each value whether it is finite is twice as large as the values themselves."""


def _require_finite(values: Values, *, name: str) -> None:
    if isinstance(values, Stored) or _is_finite(values):
        return
    pieces = values.split(_ROWS_LOOKED_AT) if values.ndim else (values,)
    bad = sum(int((~torch.isfinite(piece)).sum()) for piece in pieces)
    if bad:
        raise ValueError(
            f"the {name} hold {bad} values that are NaN or infinite, of {values.numel()}; all must be finite."
        )


def _is_finite(values: Tensor) -> bool:
    """By the least and the largest, which NaN would be: five times as fast as a look at each, of gigabytes at every start."""
    if not values.numel() or not values.is_floating_point():
        return not values.is_complex()
    return all(map(math.isfinite, torch.stack(values.aminmax()).tolist()))
