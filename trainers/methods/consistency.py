"""Consistency distillation (Song et al. 2023, Algorithm 2) and its latent form (Luo et al. 2023), for every noise family.

The student says at a level what it says itself one step of the teacher further down, and so the same along the whole path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily, expand_like
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..data.conditions import Condition
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
from ..objective.guidance_range import GuidanceRange, with_scale
from ..objective.method import Lesson, OnTeacher, Stage, Target, TeacherKind
from ..objective.weighting import Weighting


class Solver(Enum):
    """The teacher's step from a level to the next. DDIM: one evaluation, LCM's choice. HEUN: two, Song et al.'s."""

    DDIM = "ddim"
    HEUN = "heun"

    def step(
        self,
        teacher: Denoiser,
        x: Tensor,
        *,
        sigma: Tensor,
        sigma_next: Tensor,
        condition: Condition,
        family: NoiseFamily,
    ) -> Tensor:
        """x (B, ...) at sigma_next (B,), above 0. HEUN: Karras et al. 2022, Algorithm 1, lines 4 to 8."""
        x0 = teacher(x, sigma, **condition).float()
        euler = family.jump(x, x0, sigma=sigma, sigma_next=sigma_next)
        if self is Solver.DDIM:
            return euler
        after = teacher(euler, sigma_next, **condition).float()
        slopes = (x - x0) / expand_like(sigma, x) + (euler - after) / expand_like(sigma_next, x)
        return x + expand_like(sigma_next - sigma, x) * slopes / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    steps: in which the student is to be sampled, which its file says; training does not depend on it. levels: of the grid
    that the student is taught at, each by the next; 50 are LCM's skipping step of 20 timesteps. level_count: what they
    count, see LevelCount. guidance_scale: of the teacher, baked in; drawn anew for each sample between it and
    guidance_scale_max, where that is not 0. scale_input: whether the student is told that scale, as an input (LCM), or not
    (LCM-LoRA). target_decay: of the moving average of the student that teaches it; 0 is the student itself, without gradient.
    """

    steps: int
    iterations: int
    learning_rate: float
    guidance_scale: float
    levels: int = 50
    solver: Solver = Solver.DDIM
    guidance_scale_max: float = 0.0
    target_decay: float = 0.0
    distance: Distance = Distance.PSEUDO_HUBER
    weighting: Weighting = Weighting.CONSTANT
    grid: Grid = Grid.TRAILING
    scale_input: bool = False
    level_count: LevelCount = LevelCount.INTERVALS
    gamma: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        choices.require_at_least_one(self, "steps", "iterations")
        if self.levels < 2 or self.steps > self.level_count.taught(self.levels):
            raise ValueError(
                f"levels is {self.levels} and steps is {self.steps}; levels must be at least 2, and as many as steps."
            )
        choices.require_learning_rate(self.learning_rate)
        scales = self.scales
        if self.scale_input and scales.low == scales.high:
            raise ValueError(
                f"scale_input is on, but guidance_scale is {self.guidance_scale} and guidance_scale_max is "
                f"{self.guidance_scale_max}; a student that takes its scale as an input needs a range to learn."
            )
        choices.require_target_decay(self.target_decay)

    @classmethod
    def as_begun(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return counted_as_begun(values)

    @property
    def scales(self) -> GuidanceRange:
        return GuidanceRange.of(self.guidance_scale, self.guidance_scale_max)

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) of the levels that the student was trained on. table: (T,) the model's noise levels, ascending."""
        return spaced_levels(self.trained_levels(table=table), steps)

    def trained_levels(self, *, table: Tensor) -> Tensor:
        """(n + 1,) descending, each taught by the next; see trained_levels."""
        return trained_levels(self.grid, self.level_count.taught(self.levels), table=table)

    def on(self, teacher: TeacherKind) -> Consistency:
        """The method on a model; see Consistency. Whatever the model predicts, so does the student."""
        return Consistency(self, teacher)


class Consistency(OnTeacher[ConsistencyOptions]):
    """The method on one model's noise levels.

    Guidance needs an empty or negative prompt, or a teacher that takes its scale as an input. ValueError for options that
    this model does not take.
    """

    name = "consistency_distillation"

    def __init__(self, options: ConsistencyOptions, teacher: TeacherKind) -> None:
        teacher.require_guided(options.scales, as_input=options.scale_input)
        super().__init__(options, teacher)
        options.weighting.require_for(teacher.family, table=teacher.table, unit=teacher.unit)
        self._takes_scale = teacher.takes_scale
        self._levels = options.trained_levels(table=teacher.table)
        self._sigmas = options.schedule(options.steps, table=teacher.table)
        self._function = ConsistencyFunction(family=teacher.family, table=teacher.table, unit=teacher.unit)

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name=f"consistency over {len(self._levels) - 1} levels",
                iterations=self._options.iterations,
                learning_rate=self._options.learning_rate,
                sigmas=self._sigmas,
                teacher_sigmas=torch.cat([self._levels[:-1], self._levels.new_zeros(1)]),
                gamma=self._options.gamma,
                target_decay=self._options.target_decay,
            )
        ]

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        """The student's own word at the next level down, where the teacher's step leads."""
        batch, k, noise = lesson.batch, lesson.numbers(len(self._levels) - 1), lesson.noise()
        sigma, sigma_next = (self._levels[k + i].to(batch.x0) for i in range(2))
        x_t = self.family.add_noise(batch.x0, noise, sigma=sigma)
        scales = self._options.scales.draw(len(k), generator=lesson.generator).to(batch.x0)
        x_s = self._options.solver.step(
            self._taught_by(lesson.teacher, batch, scales),
            x_t,
            sigma=sigma,
            sigma_next=sigma_next,
            condition=batch.condition,
            family=self.family,
        )
        condition = with_scale(batch.condition, scales) if self.scale_input else batch.condition
        wanted = self._function.of(lesson.student)(x_s, sigma_next, **condition)
        weight = self._options.weighting(sigma, family=self.family, unit=self._unit)
        return self._function.target(
            x_t, wanted, sigma=sigma, condition=condition, weight=weight, distance=self._options.distance
        )

    def options_of_old(self) -> dict[str, Any]:
        return super().options_of_old() | level_count_of_old(self._options.grid)

    @property
    def scale_input(self) -> GuidanceRange | None:
        return self._options.scales if self._options.scale_input else None

    def _taught_by(self, teacher: Denoiser, batch: Batch, scales: float | Tensor) -> Denoiser:
        return self._options.scales.teaching(teacher, batch, scales, takes_scale=self._takes_scale, rule=self._rule)

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """At the middle of the range of guidance scales."""
        return self._taught_by(teacher, batch, self._options.scales.usual)

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        """LCM's sampling: all noise fresh at each step. The boundary is none at its levels: c_skip < 1e-5 from timestep 19 on."""
        trailing = self._options.grid is Grid.TRAILING
        return self._sampled(
            self._sigmas,
            prediction_type=prediction_type,
            guidance_scale=self._options.scales.usual,
            schedule="lcm" if trailing else None,
        )
