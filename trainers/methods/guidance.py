"""Guidance distillation (Meng et al. 2023, section 3.1), for every noise family: one forward instead of two.

At a fixed scale, or at all scales of a range, which the student then takes as an input.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...samplers.noise import Denoiser
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..objective import choices
from ..objective.distance import Distance
from ..objective.grid import Grid
from ..objective.guidance_range import GuidanceRange, with_scale
from ..objective.level_range import LevelRange
from ..objective.method import Lesson, OnTeacher, Stage, Target, TeacherKind
from ..objective.weighting import Weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    guidance_scale: what is baked in, s of uncond + s (cond - uncond). guidance_scale_max: where it is not 0, the student takes
    any scale between the two as an input. steps, grid, gamma: how the student is to be sampled,
    which its file says; training is on all levels, so any other way of sampling the teacher does for the student too.
    level_from, level_to: of those levels, the part of one of two experts; see LevelRange.
    """

    guidance_scale: float
    iterations: int
    learning_rate: float
    weighting: Weighting = Weighting.TRUNCATED_SNR
    distance: Distance = Distance.SQUARED
    steps: int = 20
    grid: Grid = Grid.TRAILING
    gamma: float = 0.0
    guidance_scale_max: float = 0.0
    level_from: float = 0.0
    level_to: float = 1.0

    def __post_init__(self) -> None:
        choices.require_at_least_one(self, "iterations", "steps")
        LevelRange(self.level_from, self.level_to)
        choices.require_learning_rate(self.learning_rate)
        if not self.scales.guides:
            raise ValueError("guidance_scale is 1.0, which is no guidance, so there is nothing to distil; give more.")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma}; allowed is 0 (deterministic) to 1 (all noise fresh).")

    @property
    def scales(self) -> GuidanceRange:
        return GuidanceRange.of(self.guidance_scale, self.guidance_scale_max)

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) levels of the chosen grid. table: (T,) the model's noise levels, ascending."""
        return self.grid.sigmas(steps, table=table)

    def on(self, teacher: TeacherKind) -> GuidanceDistillation:
        """The method on a model; see GuidanceDistillation. Whatever the model predicts, so does the student."""
        return GuidanceDistillation(self, teacher)


class GuidanceDistillation(OnTeacher[GuidanceOptions]):
    """The method on one model's noise levels: the student's x0 is the guided teacher's.

    ValueError without an empty or negative prompt, for a model that takes its guidance scale as an input already, and for a
    grid that it does not take.
    """

    name = "guidance_distillation"

    def __init__(self, options: GuidanceOptions, teacher: TeacherKind) -> None:
        if teacher.takes_scale:
            raise ValueError(
                "the connected model takes its guidance scale as an input already; there is nothing to distil."
            )
        teacher.require_guided(options.scales, as_input=options.guidance_scale_max > 0.0)
        super().__init__(options, teacher)
        options.weighting.require_for(teacher.family, table=teacher.table, unit=teacher.unit)
        self.levels = LevelRange(options.level_from, options.level_to)
        self._trained = teacher.table[self.levels.holds(teacher.table, family=teacher.family, table=teacher.table)]
        self._sigmas = options.schedule(options.steps, table=teacher.table)
        self._steps = self.levels.steps_in(self._sigmas, family=teacher.family, table=teacher.table)

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name=f"guidance {self._options.scales} in one forward",
                iterations=self._options.iterations,
                learning_rate=self._options.learning_rate,
                sigmas=self._sigmas,
                teacher_sigmas=self._sigmas,
                gamma=self._options.gamma,
                top=float(self._sigmas[self._steps[0]]),
                bottom=float(self._sigmas[self._steps[-1] + 1]),
            )
        ]

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        """What the teacher sees with guidance, at any of the levels that it is for, with equal chance."""
        batch, k, noise = lesson.batch, lesson.numbers(len(self._trained)), lesson.noise()
        sigma = self._trained[k].to(batch.x0)
        x_t = self.family.add_noise(batch.x0, noise, sigma=sigma)
        weight = self._options.weighting(sigma, family=self.family, unit=self._unit)
        scales = self._options.scales.draw(len(k), generator=lesson.generator).to(x_t)
        x0 = self._taught_by(lesson.teacher, batch, scales)(x_t, sigma, **batch.condition).float()
        condition = with_scale(batch.condition, scales) if self.scale_input else batch.condition
        return Target(x_t, sigma, condition, x0, weight, self._options.distance, unit=self._unit)

    @property
    def scale_input(self) -> GuidanceRange | None:
        return self._options.scales if self._options.guidance_scale_max else None

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """At the middle of the range of guidance scales."""
        return self._taught_by(teacher, batch, self._options.scales.usual)

    def _taught_by(self, teacher: Denoiser, batch: Batch, scales: float | Tensor) -> Denoiser:
        return self._options.scales.teaching(teacher, batch, scales, rule=self._rule)

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        return self._sampled(self._sigmas, prediction_type=prediction_type, guidance_scale=self._options.scales.usual)
