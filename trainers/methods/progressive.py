"""Progressive distillation (Salimans and Ho 2022, Algorithm 2), for every noise family."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily, solved_x0
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..data.conditions import Condition
from ..objective import choices
from ..objective.consistency_function import timestep
from ..objective.distance import Distance
from ..objective.grid import Grid
from ..objective.guidance_range import GuidanceRange, taking, with_scale
from ..objective.level_range import LevelRange
from ..objective.method import Lesson, OnTeacher, Stage, Target, TeacherKind
from ..objective.weighting import Weighting


class StudentPrediction(Enum):
    """What the student's network predicts; AS_TEACHER: what the teacher's does.

    eps says nothing about x0 where there is no signal: towards one step x0 and v are stable (Salimans and Ho 2022,
    section 4). X0_AND_EPS: both, in twice the output channels, see `x0_and_eps`; of students that no host has to load.
    """

    AS_TEACHER = "as_teacher"
    X0 = "x0"
    EPS = "eps"
    V_PREDICTION = "v_prediction"
    X0_AND_EPS = "x0_and_eps"


_WITH_TABLE = ("eps", "v_prediction", "x0")
"""Predictions of the variance-exploding models with a table of timesteps: the same network can be taught any of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    start_steps: steps at which the teacher is sampled well. target_steps: steps of the final student.
    iterations: optimiser steps in each stage. learning_rate: at the start of each, annealed linearly to 0.
    guidance_scale: classifier-free guidance baked in by the first stage only; 1 for none. guidance_scale_max: where it is not 0,
    the student takes any scale between the two as an input (Meng et al. 2023, section 3.2).
    student_prediction: where it is not the teacher's, a first stage converts the student and halves nothing.
    conversion_iterations: of that stage. last_stages_iterations: of the halvings to 2 steps and to 1, which the paper
    trains twice as long. Of both 0 is as many as `iterations`. merged_steps: of the teacher, which become one of the student;
    2 is the paper's halving, 4 makes half as many stages with twice as many passes of the teacher in each.
    level_from, level_to: of one of two experts (see LevelRange): the steps of the final student that begin there, and at finer
    stages all steps that these span, so that no student is asked for a step that it was not taught.
    """

    start_steps: int
    target_steps: int
    iterations: int
    weighting: Weighting
    learning_rate: float
    guidance_scale: float
    student_prediction: StudentPrediction = StudentPrediction.AS_TEACHER
    conversion_iterations: int = 0
    distance: Distance = Distance.SQUARED
    last_stages_iterations: int = 0
    grid: Grid = Grid.TRAILING
    merged_steps: int = 2
    guidance_scale_max: float = 0.0
    level_from: float = 0.0
    level_to: float = 1.0
    gamma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not _is_power_of_two(self.start_steps / self.target_steps if self.target_steps >= 1 else 0.0):
            raise ValueError(
                f"start_steps is {self.start_steps} and target_steps is {self.target_steps}; start_steps must be "
                "target_steps times a power of two, at least twice: 64 and 4, for example."
            )
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; give at least 1 iteration for each stage.")
        for name in ("conversion_iterations", "last_stages_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must not be negative, and 0 is as many as iterations."
                )
        if not _is_power_of_two(self.merged_steps):
            raise ValueError(f"merged_steps is {self.merged_steps}; allowed are 2, 4, 8 and further powers of two.")
        choices.require_learning_rate(self.learning_rate)
        GuidanceRange.of(self.guidance_scale, self.guidance_scale_max)
        LevelRange(self.level_from, self.level_to)

    @property
    def scales(self) -> GuidanceRange:
        return GuidanceRange.of(self.guidance_scale, self.guidance_scale_max)

    def counts(self) -> list[int]:
        """Steps from start_steps to target_steps, before each stage and after the last; what is left over comes last."""
        counts = [self.start_steps]
        while counts[-1] > self.target_steps:
            counts.append(max(counts[-1] // self.merged_steps, self.target_steps))
        return counts

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) the levels of a student of so many steps: of the finest grid, halving after halving, every second.

        A step count that no halving leads to has the grid of its own. table: (T,) the model's noise levels, ascending.
        """
        if self.start_steps % steps:
            return self.grid.sigmas(steps, table=table)
        return self.grid.sigmas(self.start_steps, table=table, name="start_steps")[:: self.start_steps // steps]

    def on(self, teacher: TeacherKind) -> Progressive:
        """The method on a model; see Progressive."""
        return Progressive(self, teacher)


def _is_power_of_two(ratio: float) -> bool:
    """From 2 on."""
    return ratio >= 2 and ratio == int(ratio) and not int(ratio) & (int(ratio) - 1)


class Progressive(OnTeacher[ProgressiveOptions]):
    """The method on one model's noise levels.

    Guidance needs an empty or negative prompt, or a teacher that takes its scale as an input; a student_prediction other
    than AS_TEACHER, a known prediction_type. ValueError for options that this model does not take.
    """

    name = "progressive_distillation"

    def __init__(self, options: ProgressiveOptions, teacher: TeacherKind) -> None:
        teacher.require_guided(options.scales, as_input=options.guidance_scale_max > 0.0)
        super().__init__(options, teacher)
        options.weighting.require_for(teacher.family, table=teacher.table, unit=teacher.unit)
        self._takes_scale = teacher.takes_scale
        self._converts = _converts(options.student_prediction, teacher=teacher.prediction_type)
        self._finest = options.schedule(options.start_steps, table=teacher.table)
        self._table = teacher.table
        self.levels = LevelRange(options.level_from, options.level_to)
        last = self._schedule(options.target_steps)
        self._last_steps = self.levels.steps_in(last, family=teacher.family, table=teacher.table)

    def stages(self) -> list[Stage]:
        stages, counts = [], self._options.counts()
        if self._converts:
            name = f"conversion to {self._options.student_prediction.value}"
            stages.append(self._stage(name, counts[0], self._options.conversion_iterations, teacher_steps=counts[0]))
        for before, steps in pairwise(counts):
            iterations = self._options.last_stages_iterations if steps <= 2 else 0
            stages.append(self._stage(f"{before} to {steps} steps", steps, iterations, teacher_steps=before))
        return stages

    def _stage(self, name: str, steps: int, iterations: int, *, teacher_steps: int) -> Stage:
        """iterations: 0 for the usual number."""
        return Stage(
            name=name,
            iterations=iterations or self._options.iterations,
            learning_rate=self._options.learning_rate,
            sigmas=self._schedule(steps),
            teacher_sigmas=self._schedule(teacher_steps),
            top=float(self._finest[self._steps(self._options.start_steps)[0]]),
            bottom=float(self._finest[self._steps(self._options.start_steps)[-1] + 1]),
        )

    def _steps(self, count: int) -> range:
        """Of so many steps, a multiple of the last student's, those that the student is for."""
        finer = count // self._options.target_steps
        return range(finer * self._last_steps.start, finer * self._last_steps.stop)

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        batch, stage = lesson.batch, lesson.stage
        if self.scale_input is None:
            return self._taught(lesson, self.teaching(lesson.teacher, stage=stage, batch=batch))
        scales = self._options.scales.draw(len(batch.x0), generator=lesson.generator).to(batch.x0)
        target = self._taught(lesson, self._at(scales, lesson.teacher, stage=stage, batch=batch))
        return target._replace(condition=with_scale(batch.condition, scales))

    @property
    def scale_input(self) -> GuidanceRange | None:
        return self._options.scales if self._options.guidance_scale_max else None

    def _taught(self, lesson: Lesson, teacher: Denoiser) -> Target:
        """teacher: the lesson's, with its guidance."""
        return (self._converted if self._converts and lesson.stage == 0 else self._merged)(lesson, teacher)

    def _converted(self, lesson: Lesson, teacher: Denoiser) -> Target:
        """What the teacher itself sees, at a random level of the schedule that it is sampled with."""
        batch, k, noise = lesson.batch, self._step(lesson, of=self._options.start_steps), lesson.noise()
        sigma = self._finest[k].to(batch.x0.device)
        x_t = self.family.add_noise(batch.x0, noise, sigma=sigma)
        return self._target(x_t, sigma, batch.condition, teacher(x_t, sigma, **batch.condition).float())

    def _merged(self, lesson: Lesson, teacher: Denoiser) -> Target:
        """Two steps of the teacher, or more, from a random level of the student's schedule, as the x0 of one student step.

        The last step of the schedule ends at sigma 0, where `solved_x0` is the teacher's last prediction itself.
        """
        number = lesson.stage - self._converts
        before, steps = self._options.counts()[number : number + 2]
        fine, merged = self._schedule(before), before // steps
        batch, k, noise = lesson.batch, self._step(lesson, of=steps), lesson.noise()
        sigmas = [fine[merged * k + step].to(batch.x0.device) for step in range(merged + 1)]
        x_t = x_s = self.family.add_noise(batch.x0, noise, sigma=sigmas[0])
        for sigma, sigma_next in pairwise(sigmas):
            x_s = self._teacher_step(teacher, x_s, batch.condition, sigma=sigma, sigma_next=sigma_next)
        x0 = solved_x0(x_t, x_s, sigma_t=sigmas[0], sigma_s=sigmas[-1])
        return self._target(x_t, sigmas[0], batch.condition, x0)

    def _step(self, lesson: Lesson, *, of: int) -> Tensor:
        """(B,) which of so many steps each sample is for."""
        own = self._steps(of)
        return own.start + lesson.numbers(len(own))

    def _target(self, x_t: Tensor, sigma: Tensor, condition: Condition, x0: Tensor) -> Target:
        weight = self._options.weighting(sigma, family=self.family, unit=self._unit)
        return Target(x_t, sigma, condition, x0, weight, self._options.distance, unit=self._unit)

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """Guided in the first stage alone, whichever that is: every later teacher has the guidance in it, or takes its scale."""
        if self.scale_input is None and stage > 0:
            return teacher
        return self._at(self._options.scales.usual, teacher, stage=stage, batch=batch)

    def _at(self, scales: float | Tensor, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        if stage > 0:
            return taking(teacher, scales)
        return self._options.scales.teaching(teacher, batch, scales, takes_scale=self._takes_scale, rule=self._rule)

    def continues(self, options: Mapping[str, Any]) -> bool:
        """With a larger target_steps, all else equal: the schedules are those of start_steps, and so the same.

        Iterations of the last halvings may be others where it had none of them. Not of an expert: which steps are its own
        depends on the last.
        """
        if options.keys() != self.options().keys() or not self.levels.is_whole:
            return False
        earlier = copy.copy(self)
        earlier._options = ProgressiveOptions.read(options)
        earlier._last_steps = range(earlier._options.target_steps)
        further = ("target_steps", "last_stages_iterations")
        if {**earlier.options(), **{name: getattr(self._options, name) for name in further}} != self.options():
            return False
        first, own = ([(s.name, s.iterations, s.learning_rate) for s in of.stages()] for of in (earlier, self))
        return own[: len(first)] == first

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        trained, student = self.stages()[stage], self._options.student_prediction
        recipe = self._sampled(
            trained.sigmas,
            prediction_type=prediction_type if student is StudentPrediction.AS_TEACHER else student.value,
            guidance_scale=self._options.scales.usual,
        )
        if self.levels.is_whole or trained.steps == self._options.target_steps:
            return recipe
        low, high = self._handed_over(trained.sigmas)
        return dataclasses.replace(recipe, level_from=low, level_to=high)

    def _handed_over(self, sigmas: Tensor) -> tuple[float, float]:
        """level_from and level_to of a finer student: the shares at which its last step begins, and the last before its first.

        The steps that are its own end where a step of the last student does, and not at the boundary that was asked for.
        """
        own, steps = self._steps(len(sigmas) - 1), len(sigmas) - 1
        low = 0.0 if own.stop == steps else self._share(sigmas[own[-1]])
        return low, 1.0 if own.start == 0 else self._share(sigmas[own.start - 1])

    def _share(self, sigma: Tensor) -> float:
        """Of the model's time; see LevelRange."""
        if self.family is NoiseFamily.FLOW:
            return float(sigma)
        return (float(timestep(sigma.double(), table=self._table)) * len(self._table) / 1000.0 + 1.0) / len(self._table)

    def _schedule(self, steps: int) -> Tensor:
        """A student is trained on the very levels it will be sampled at."""
        return self._finest[:: self._options.start_steps // steps]

    def _teacher_step(
        self, teacher: Denoiser, x: Tensor, condition: Condition, *, sigma: Tensor, sigma_next: Tensor
    ) -> Tensor:
        return self.family.jump(x, teacher(x, sigma, **condition).float(), sigma=sigma, sigma_next=sigma_next)


def _converts(student: StudentPrediction, *, teacher: str | None) -> bool:
    """Whether the student predicts something else than the teacher. ValueError where it cannot."""
    if student is StudentPrediction.AS_TEACHER:
        return False
    if teacher not in _WITH_TABLE:
        raise ValueError(
            f"student_prediction is {student.value}, but the teacher's network is of the kind {teacher}; students of "
            f"{', '.join(_WITH_TABLE)} models may predict otherwise than their teacher, for all others choose "
            f"{StudentPrediction.AS_TEACHER.value}."
        )
    return student.value != teacher
