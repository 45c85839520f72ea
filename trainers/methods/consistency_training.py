"""Consistency training without a teacher: CT (Song et al. 2023, Algorithm 3) and iCT (Song and Dhariwal 2023).

The step down to the next level is the data's own: the same picture with the same noise, less of it. What the student says
there is the target. The steps get smaller while it trains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..objective import choices
from ..objective.consistency_function import (
    ConsistencyFunction,
    LevelCount,
    counted_as_begun,
    level_count_of_old,
    spaced_levels,
    trained_levels,
)
from ..objective.distance import Distance
from ..objective.grid import Grid
from ..objective.method import Lesson, OnTeacher, Stage, Target, TeacherKind


class LevelChoice(Enum):
    """Which levels come up, and what a distance there counts.

    LOGNORMAL, of iCT (section 3.5): ln r is normal with mean -1.1 and deviation 2, r being the noise over the signal, sigma
    or, for flow models, sigma / (1 - sigma); and 1 / (sigma - sigma_next) (section 3.2). That mean is for the paper's
    pictures, of deviation 0.5. LOGNORMAL_LATENTS: the same for data of deviation 1, as latents are: what such data are to
    twice the noise, those are to the noise, so the mean is -1.1 + ln 2. UNIFORM, of CT: all alike, and 1.
    """

    LOGNORMAL = "lognormal"
    UNIFORM = "uniform"
    LOGNORMAL_LATENTS = "lognormal_latents"

    def likelihoods(self, levels: Tensor, *, family: NoiseFamily, unit: float = 1.0) -> Tensor:
        """(n,) of the levels that are taught, of (n + 1,) descending ones: each has the distribution's share down to the next.

        unit: see TeacherKind.
        """
        if self is LevelChoice.UNIFORM:
            return torch.ones(len(levels) - 1)
        sigma = levels.double()
        # infinite at the top of a flow, which hosts round to a little above 1 at one shift in a hundred, 1.58 say
        ratio = sigma / (1.0 - sigma).clamp(min=0.0) if family is NoiseFamily.FLOW else sigma
        mean = _MEAN + (math.log(2.0) if self is LevelChoice.LOGNORMAL_LATENTS else 0.0) + math.log(unit)
        below = torch.special.ndtr((ratio.log() - mean) / _DEVIATION)
        return (below[:-1] - below[1:]).float()

    def weight(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """(B,) from levels (B,)."""
        return torch.ones_like(sigma) if self is LevelChoice.UNIFORM else 1.0 / (sigma - sigma_next)


_MEAN, _DEVIATION = -1.1, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyTrainingOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    steps: in which the student is to be sampled, which its file says. first_levels, last_levels: the training begins with
    the first number and doubles it, in phases of equal length, until it is at the second. level_count: what they count, see
    LevelCount. reaches_last: whether there is a phase at last_levels where doubling does not meet it; there was none in runs
    that were begun before this was in run.json, which go on as they were begun. target_decay: of the moving average of the
    student that teaches it; 0 is the student itself, iCT's choice. target_growth: whether that grows with the levels, as CT's
    does.
    """

    steps: int
    iterations: int
    learning_rate: float
    first_levels: int = 10
    last_levels: int = 160
    level_choice: LevelChoice = LevelChoice.LOGNORMAL_LATENTS
    distance: Distance = Distance.PSEUDO_HUBER_LATENTS
    target_decay: float = 0.0
    grid: Grid = Grid.TRAILING
    level_count: LevelCount = LevelCount.INTERVALS
    reaches_last: bool = True
    target_growth: bool = False
    gamma: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        choices.require_at_least_one(self, "steps", "iterations")
        if not 2 <= self.first_levels <= self.last_levels or self.steps > self._taught(self.last_levels):
            raise ValueError(
                f"first_levels is {self.first_levels}, last_levels is {self.last_levels} and steps is {self.steps}; "
                "first_levels must be at least 2, and last_levels no less than it or than steps."
            )
        choices.require_learning_rate(self.learning_rate)
        choices.require_target_decay(self.target_decay)
        if self.target_growth and not self.target_decay:
            raise ValueError("target_growth is on, but target_decay is 0: there is no average that could grow.")

    @classmethod
    def as_begun(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        counts = [values.get(name, getattr(cls, name)) for name in ("first_levels", "last_levels")]
        if not all(isinstance(count, int) and count > 0 for count in counts):
            return values  # whoever reads them refuses it by name
        return counted_as_begun({**reaches_last_of_old(*counts), **values})

    def levels_at(self, iteration: int) -> int:
        """How many levels are trained along: first_levels doubled after each phase (iCT, section 3.4, table 1).

        The paper's number of phases is log2 of the whole part of last_levels / first_levels, plus 1. That is ours for powers
        of two; for others its last phase is cut short, and below twice first_levels it never comes to last_levels.
        """
        doublings = math.log2(self.last_levels / self.first_levels)
        phases = (math.ceil(doublings) if self.reaches_last else math.floor(doublings)) + 1
        length = max(self.iterations // phases, 1)
        return min(self.first_levels * 2 ** min(iteration // length, phases), self.last_levels)

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) of the levels that the training ends with. table: (T,) the model's noise levels, ascending."""
        return spaced_levels(trained_levels(self.grid, self._taught(self.last_levels), table=table), steps)

    def trained_levels(self, iteration: int, *, table: Tensor) -> Tensor:
        """(n + 1,) descending, each taught by the next, at an iteration; see trained_levels."""
        return trained_levels(self.grid, self._taught(self.levels_at(iteration)), table=table)

    def decay_at(self, iteration: int) -> float:
        """Of the average that teaches: exp(s_0 ln mu_0 / N(k)) with N points of levels (CT, appendix C)."""
        points, first = (self._taught(levels) + 1 for levels in (self.levels_at(iteration), self.first_levels))
        return float(self.target_decay ** (first / points))

    def _taught(self, levels: int) -> int:
        return self.level_count.taught(levels)

    def on(self, teacher: TeacherKind) -> ConsistencyTraining:
        """The method on a model; see ConsistencyTraining. Whatever the model predicts, so does the student."""
        return ConsistencyTraining(self, teacher)


def reaches_last_of_old(first_levels: int, last_levels: int) -> dict[str, bool]:
    """The option reaches_last of a run whose run.json is older than it, where that is not what it would be now."""
    return {} if math.log2(last_levels / first_levels).is_integer() else {"reaches_last": False}


class ConsistencyTraining(OnTeacher[ConsistencyTrainingOptions]):
    """The method on one model's noise levels; it asks nothing else of the teacher.

    ValueError for options that this model does not take.
    """

    name = "consistency_training"
    scale_input = None

    def __init__(self, options: ConsistencyTrainingOptions, teacher: TeacherKind) -> None:
        super().__init__(options, teacher)
        self._table = teacher.table
        self._sigmas = options.schedule(options.steps, table=teacher.table)
        self._function = ConsistencyFunction(family=teacher.family, table=teacher.table, unit=teacher.unit)

    @property
    def guided_by(self) -> str:
        """It learns from pictures, of no guidance."""
        return ""

    def options_of_old(self) -> dict[str, Any]:
        old = level_count_of_old(self._options.grid) | reaches_last_of_old(
            self._options.first_levels, self._options.last_levels
        )
        return super().options_of_old() | old

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name="consistency without a teacher",
                iterations=self._options.iterations,
                learning_rate=self._options.learning_rate,
                sigmas=self._sigmas,
                gamma=self._options.gamma,
                target_decay=self._options.decay_at if self._options.target_growth else self._options.target_decay,
            )
        ]

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        """The student's own word about the same picture with less of the same noise."""
        levels = self._options.trained_levels(lesson.iteration, table=self._table)
        likely = self._options.level_choice.likelihoods(levels, family=self.family, unit=self._unit)
        batch = lesson.batch
        k = torch.multinomial(likely, len(batch.x0), replacement=True, generator=lesson.generator)
        noise = lesson.noise()
        sigma, sigma_next = (levels[k + i].to(batch.x0) for i in range(2))
        x_t, x_s = (self.family.add_noise(batch.x0, noise, sigma=level) for level in (sigma, sigma_next))
        wanted = self._function.of(lesson.student)(x_s, sigma_next, **batch.condition)
        return self._function.target(
            x_t,
            wanted,
            sigma=sigma,
            condition=batch.condition,
            weight=self._options.level_choice.weight(sigma, sigma_next),
            distance=self._options.distance,
        )

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """For previews: the model that the training began with."""
        return teacher

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        """All noise fresh at each step, without guidance: none was in the data."""
        return self._sampled(self._sigmas, prediction_type=prediction_type)
