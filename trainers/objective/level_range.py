"""The noise levels that a student is for: all, or the part of one of two experts (Wan 2.2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...samplers.noise import NoiseFamily
from ...samplers.schedules import Levels


@dataclasses.dataclass(frozen=True)
class LevelRange:
    """From `low` up to below `high`, shares of the model's time; a high of 1 is the top itself. ValueError for no such range.

    Of a flow model the time is the noise level, shift and all, as Wan 2.2 has its boundary; of others the timestep, where
    share (t + 1) / T is timestep t.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"level_from is {self.low} and level_to is {self.high}; the first must be below the second, both from 0 to 1: "
                "0.875 and 1 for Wan 2.2's expert for high noise, 0 and 0.875 for the other."
            )

    @property
    def is_whole(self) -> bool:
        return self == LevelRange()

    def holds(self, sigmas: Tensor, *, family: NoiseFamily, table: Tensor) -> Tensor:
        """(n,) whether the range has these noise levels (n,), all above 0. table: (T,) the model's, ascending."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        low, high = ends if family is NoiseFamily.FLOW else Levels(table=table).at(ends).double()
        levels = sigmas.cpu().double() * (
            1.0 + 1e-6
        )  # a level that is the boundary is above it, however it was rounded
        return (levels >= low) & ((levels < high) | (self.high == 1.0))

    def steps_in(self, sigmas: Tensor, *, family: NoiseFamily, table: Tensor) -> range:
        """Which steps of a schedule (n + 1,) begin inside. ValueError where none does."""
        inside = self.holds(sigmas[:-1], family=family, table=table).nonzero().flatten().tolist()
        if not inside:
            raise ValueError(
                f"level_from is {self.low} and level_to is {self.high}, but none of the student's {len(sigmas) - 1} steps begins "
                "there; widen the range or give it more steps."
            )
        return range(inside[0], inside[-1] + 1)
