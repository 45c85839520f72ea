"""Plain diffusion training: the clean sample is the target. It makes the demo teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily, expand_like
from ...samplers.recipe import Recipe
from ...samplers.schedules import trailing_sigmas
from ..data.batches import Batch
from ..objective.method import Alone, Lesson, Stage, Target
from ..objective.weighting import Weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Alone):
    """One stage over all of a model's noise levels; with SNR + 1 as weight it is the usual v-loss.

    table: (T,) noise levels, ascending. condition_dropout: share of samples whose condition is zeroed, so that the
    model also learns the empty prompt for guidance (Ho and Salimans 2021). preview_steps: of the stage's schedule.
    """

    table: Tensor
    iterations: int
    learning_rate: float
    condition_dropout: float = 0.1
    weighting: Weighting = Weighting.SNR_PLUS_ONE
    family: NoiseFamily = NoiseFamily.VARIANCE_EXPLODING
    preview_steps: int = 64
    name: str = "denoising"
    scale_input: ClassVar[None] = None

    def options(self) -> dict[str, Any]:
        return {
            "iterations": self.iterations,
            "learning_rate": self.learning_rate,
            "condition_dropout": self.condition_dropout,
            "weighting": self.weighting.value,
        }

    def options_of_old(self) -> dict[str, Any]:
        return {}

    def stages(self) -> list[Stage]:
        sigmas = trailing_sigmas(self.preview_steps, table=self.table)
        return [Stage(name="denoising", iterations=self.iterations, learning_rate=self.learning_rate, sigmas=sigmas)]

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        batch = lesson.batch
        sigma = self.table[lesson.numbers(len(self.table))].to(batch.x0)
        keep = (torch.rand(len(sigma), generator=lesson.generator) >= self.condition_dropout).to(batch.x0)
        condition = {name: value * expand_like(keep, value) for name, value in batch.condition.items()}
        x_t = self.family.add_noise(batch.x0, lesson.noise(), sigma=sigma)
        return Target(x_t, sigma, condition, batch.x0, self.weighting(sigma, family=self.family))

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        return teacher

    def continues(self, options: Mapping[str, Any]) -> bool:
        return False

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        raise NotImplementedError("plain denoising makes a many-step model, which has no few-step recipe.")
