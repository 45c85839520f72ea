"""What a run will take: forwards, time and memory, from a trial of it, and whether that fits."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from .optimisation.options import TrainOptions
from .trial import StageCost


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes that a run holds beyond the MODEL, by how many samples pass the networks at a time; infinite where there is no room.

    tried: of one, two and whichever more were tried. Between and beyond them it is a line through the nearest two, which is too
    little beyond: what passes hold grows with the samples, what an optimiser holds does not, and the larger of the two counts.
    """

    tried: Mapping[int, float]

    def at(self, rows: int) -> float:
        if rows in self.tried:
            return self.tried[rows]
        known = sorted(self.tried)
        upper = min(max(bisect.bisect(known, rows), 1), len(known) - 1)
        (a, b), (c, d) = ((count, self.tried[count]) for count in known[upper - 1 : upper + 1])
        return b + (rows - a) * max(0.0, d - b) / (c - a)

    def most_rows(self, room: float, *, batch_size: int) -> int:
        """The largest part of a batch, of equal ones, that fits into so many bytes; 0 where one sample does not."""
        return max((rows for rows in _divisors(batch_size) if self.at(rows) <= room), default=0)

    def with_tried(self, rows: int, held: float) -> Needs:
        return Needs({**self.tried, rows: held})


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """costs: of each stage, with whole batches. needs: of the stage that holds most. room: bytes for it.

    preparing: (what, seconds) of all that comes before the training. done: iterations, counted over all stages, of a run that
    goes on.
    """

    costs: Sequence[StageCost]
    options: TrainOptions
    needs: Needs
    room: float
    preparing: Sequence[tuple[str, float]] = ()
    done: int = 0

    @property
    def rows(self) -> int:
        """Of a batch that pass the networks together."""
        return self.options.batch_size // self.options.accumulation

    @property
    def fits(self) -> bool:
        return self.held <= self.room

    @property
    def held(self) -> float:
        return self.needs.at(self.rows)

    @property
    def forwards(self) -> int:
        """Of the networks in all iterations, each for one sample; one with a backward pass costs about three."""
        return round(sum(cost.forwards * self.options.batch_size for cost in self.costs))

    @property
    def training(self) -> float:
        """Seconds."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def seconds(self) -> float:
        return self.training + sum(seconds for _, seconds in self.preparing)

    @property
    def left(self) -> float:
        """Seconds, of what is not done yet."""
        before = itertools.accumulate((cost.stage.iterations for cost in self.costs), initial=0)
        training = sum(
            cost.left(after=max(0, self.done - first)) for cost, first in zip(self.costs, before, strict=False)
        )
        return training + sum(seconds for _, seconds in self.preparing)

    def told(self) -> list[str]:
        """For the one who is to decide, a line each."""
        lines = [f"{what}: {duration(seconds)}" for what, seconds in self.preparing]
        for cost in self.costs:
            each = cost.iteration.seconds
            lines.append(
                f"{cost.stage.name}: {cost.stage.iterations} iterations of {each:.2g} s, {duration(cost.seconds)}"
            )
        lines.append(f"in all: {duration(self.seconds)}, {self.forwards:,} forwards of the network in training")
        if self.done:
            lines.append(f"of these {self.done} iterations are done: {duration(self.left)} are left")
        lines.append(
            f"memory beside the model: {size(self.held)} of {size(self.room)} that are free, with "
            f"{self.rows} of {self.options.batch_size} pictures at a time"
        )
        return lines


def duration(seconds: float) -> str:
    """As people say it, to two figures."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def size(held: float) -> str:
    """Bytes, as people say them; below 0 is nothing."""
    held = max(held, 0.0)
    return f"{held / 1e9:.2f} GB" if held >= 1e8 else f"{held / 1e6:.1f} MB"
