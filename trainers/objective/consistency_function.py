"""Consistency functions: f(x, sigma) = c_skip x + c_out D(x, sigma), which is the identity at the model's smallest level.

D is a denoiser, whatever its network predicts, and x is in the scale of unit variance at all levels: x / sqrt(1 + sigma^2) for
variance-exploding models, itself for flow models. The scalings are LCM's (`lcm_scalings`), as the LCM sampler of every host
and LCMScheduler have them, at the level's timestep of 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ...samplers.boundary import lcm_scalings
from ...samplers.noise import Denoiser, NoiseFamily, expand_like
from ..data.conditions import Condition
from .distance import Distance
from .grid import Grid
from .method import Target


class LevelCount(Enum):
    """What a number of levels counts. INTERVALS: the levels that are taught, each by the next, on every grid.

    POINTS: the model's smallest too, which nothing teaches. So counted, on the edm grid alone, runs that were begun before
    this was in run.json; they go on as they were begun.
    """

    INTERVALS = "intervals"
    POINTS = "points"

    def taught(self, count: int) -> int:
        return count - 1 if self is LevelCount.POINTS else count


def level_count_of_old(grid: Grid) -> dict[str, str]:
    """The option level_count of a run whose run.json is older than it, where that is not what it would be now."""
    return {"level_count": LevelCount.POINTS.value} if grid is Grid.EDM else {}


def counted_as_begun(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A consistency run's options (JSON values), which may be older than level_count, with what its levels count."""
    grid = options.get("grid", Grid.TRAILING.value)
    if grid not in [known.value for known in Grid]:
        return options  # whoever reads them refuses it by name
    return {**level_count_of_old(Grid(grid)), **options}


def trained_levels(grid: Grid, count: int, *, table: Tensor) -> Tensor:
    """(count + 1,) descending: `count` levels of the grid, of which each is taught by the next, down to the model's smallest.

    Of the trailing grid with 50 levels and 1000 timesteps these are LCM's: 999, 979, .., 19, 0. Of the edm grid with 17 they
    are the 18 points of Song et al. 2023, section 3. Only where the table has no more than count levels are there as many as
    it has. table: (T,) ascending.
    """
    points = count + 1 if grid is Grid.EDM else count  # of which the last is the model's smallest
    levels = grid.sigmas(points, table=table, name="levels")[:-1]
    return levels if levels[-1] <= table[0] else torch.cat([levels, table[:1]])


def spaced_levels(levels: Tensor, steps: int) -> Tensor:
    """(steps + 1,) of the levels that teach (n + 1,), evenly spaced from the largest, and a final 0.

    The indices are LCM's (`lcm_timesteps`): 999, 759, 499, 259 of its 50. ValueError for more steps than levels.
    """
    count = len(levels) - 1
    if not 1 <= steps <= count:
        raise ValueError(f"steps is {steps}; a student of {count} trained levels allows 1 to {count}.")
    chosen = levels[[i * count // steps for i in range(steps)]]
    return torch.cat([chosen, chosen.new_zeros(1)])


def timestep(sigma: Tensor, *, table: Tensor) -> Tensor:
    """(B,) where noise levels (B,) stand in the table (T,), counted to 1000, between entries by their logarithm.

    Where entries are alike, as the first of Stable Cascade's clamped ones, at the first of them.
    """
    table = table.to(sigma)
    above = torch.searchsorted(table, sigma).clamp(1, len(table) - 1)
    low, high = table[above - 1].log(), table[above].log()
    part = torch.where(high > low, (sigma.log() - low) / (high - low), 0.0).clamp(0.0, 1.0)
    return (above - 1 + part) * (1000.0 / len(table))


class ConsistencyFunction:
    """What the student's denoiser means, on one model's noise levels. table: (T,) ascending. unit: see TeacherKind."""

    def __init__(self, *, family: NoiseFamily, table: Tensor, unit: float = 1.0) -> None:
        self._family, self._table, self._unit = family, table, unit

    def of(self, denoiser: Denoiser) -> Denoiser:
        """f(x (B, ...), sigma (B,), **condition), in float32 or better."""

        def consistency(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
            skipped, c_out = self._scaled(x, sigma)
            return skipped + c_out * denoiser(x, sigma, **condition).float()

        return consistency

    def target(
        self, x_t: Tensor, wanted: Tensor, *, sigma: Tensor, condition: Condition, weight: Tensor, distance: Distance
    ) -> Target:
        """The target of the denoiser with which f is `wanted` (B, ...) at x_t; weight (B,) is that of f's distance.

        An error e of the denoiser is one of c_out e in f, so c_out^2 |e|^2 is the squared distance in f. The pseudo-Huber
        one is c_out times that of e, but for its constant, which counts 1 / c_out times: at timestep 1 of 1000 a
        thousandth more, and less above. LPIPS is measured on f itself.
        """
        skipped, c_out = self._scaled(x_t, sigma)
        x0, flat = (wanted - skipped) / c_out, c_out.flatten()
        if distance is Distance.LPIPS:
            return Target(x_t, sigma, condition, x0, weight, distance, skipped, c_out)
        scale = flat**2 if distance is Distance.SQUARED else flat
        return Target(x_t, sigma, condition, x0, weight * scale, distance, unit=self._unit)

    def _scaled(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip x, c_out), the second (B, 1, ...)."""
        c_skip, c_out = (expand_like(c, x) for c in lcm_scalings(timestep(sigma, table=self._table)))
        if self._family is NoiseFamily.VARIANCE_EXPLODING:
            c_skip = c_skip / expand_like((1.0 + sigma**2).sqrt(), x)
        return c_skip * x, c_out
