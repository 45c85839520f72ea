"""Progressive distillation (Salimans and Ho 2022, Algorithm 2), for every noise family."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily, guided, solved_x0
from ...samplers.recipe import Recipe
from ...samplers.schedules import trailing_sigmas
from ..data import Batch, Condition
from ..method import Stage, Target
from ..weighting import Weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveOptions:
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    start_steps: steps at which the teacher is sampled well. target_steps: steps of the final student.
    iterations: optimiser steps in each halving. learning_rate: at the start of each halving, annealed linearly to 0.
    guidance_scale: classifier-free guidance baked in during the first halving only; 1 for none.
    """

    start_steps: int
    target_steps: int
    iterations: int
    weighting: Weighting
    learning_rate: float
    guidance_scale: float

    def __post_init__(self) -> None:
        ratio = self.start_steps / self.target_steps if self.target_steps >= 1 else 0.0
        if ratio < 2 or ratio != int(ratio) or int(ratio) & (int(ratio) - 1):
            raise ValueError(
                f"start_steps is {self.start_steps} and target_steps is {self.target_steps}; start_steps must be "
                "target_steps times a power of two, at least twice: 64 and 4, for example."
            )
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; give at least 1 iteration for each stage.")
        if not 0.0 < self.learning_rate < 1.0:
            raise ValueError(f"learning_rate is {self.learning_rate}; allowed is above 0 and below 1.")
        if not 1.0 <= self.guidance_scale <= 100.0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; allowed is 1 (no guidance) to 100.")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ProgressiveOptions:
        """From run.json's JSON values."""
        return cls(**{**values, "weighting": Weighting(values["weighting"])})


class Progressive:
    """The method on one model's noise levels.

    table: (T,) the model's noise levels, ascending. unconditional: the data's empty prompt, needed when
    options.guidance_scale is not 1; batches carry the one of their own shape.
    """

    name = "progressive_distillation"

    def __init__(
        self, options: ProgressiveOptions, *, family: NoiseFamily, table: Tensor, unconditional: Condition | None
    ) -> None:
        if options.guidance_scale != 1.0 and unconditional is None:
            raise ValueError(
                f"guidance_scale is {options.guidance_scale}, which needs the empty prompt: connect the negative "
                "conditioning, or set guidance_scale to 1."
            )
        if options.start_steps > len(table):
            raise ValueError(f"start_steps is {options.start_steps}; this model has {len(table)} noise levels.")
        self.family = family
        self._options = options
        self._finest = trailing_sigmas(options.start_steps, table=table)

    def options(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._options), "weighting": self._options.weighting.value}

    def stages(self) -> list[Stage]:
        stages, steps = [], self._options.start_steps
        while steps > self._options.target_steps:
            steps //= 2
            stages.append(
                Stage(
                    name=f"{2 * steps} to {steps} steps",
                    iterations=self._options.iterations,
                    learning_rate=self._options.learning_rate,
                    sigmas=self._schedule(steps),
                    teacher_sigmas=self._schedule(2 * steps),
                )
            )
        return stages

    @torch.no_grad()
    def target(
        self, batch: Batch, *, stage: int, teacher: Denoiser, student: Denoiser, generator: torch.Generator
    ) -> Target:
        """Two steps of the teacher from a random level of the student's schedule, as the x0 of one student step.

        The last step of the schedule ends at sigma 0, where `solved_x0` is the teacher's second prediction itself.
        """
        teacher = self.teaching(teacher, stage=stage, batch=batch)
        steps = self._options.start_steps >> (stage + 1)
        fine = self._schedule(2 * steps)
        k = torch.randint(steps, (len(batch.x0),), generator=generator)
        noise = torch.randn(batch.x0.shape, generator=generator).to(batch.x0)
        sigma_t, sigma_mid, sigma_s = (fine[2 * k + half].to(batch.x0.device) for half in range(3))
        x_t = self.family.add_noise(batch.x0, noise, sigma=sigma_t)
        x_mid = self._teacher_step(teacher, x_t, batch.condition, sigma=sigma_t, sigma_next=sigma_mid)
        x_s = self._teacher_step(teacher, x_mid, batch.condition, sigma=sigma_mid, sigma_next=sigma_s)
        x0 = solved_x0(x_t, x_s, sigma_t=sigma_t, sigma_s=sigma_s)
        return Target(x_t, sigma_t, batch.condition, x0, self._options.weighting(sigma_t, family=self.family))

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """Guided in the first stage only: the student of that one has learnt the guidance."""
        scale = self._options.guidance_scale
        if stage > 0 or scale == 1.0:
            return teacher
        return guided(teacher, guidance_scale=scale, unconditional=batch.empty_prompt())

    def continues(self, options: Mapping[str, Any]) -> bool:
        """With a larger target_steps, all else equal: the schedules are those of start_steps, and so the same."""
        if options.keys() != self.options().keys():
            return False
        earlier = copy.copy(self)
        earlier._options = ProgressiveOptions.read(options)
        if {**earlier.options(), "target_steps": self._options.target_steps} != self.options():
            return False
        first, own = ([(s.name, s.iterations, s.learning_rate) for s in of.stages()] for of in (earlier, self))
        return len(first) < len(own) and own[: len(first)] == first

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        trained = self.stages()[stage]
        return Recipe(
            method=self.name,
            steps=trained.steps,
            sigmas=tuple(trained.sigmas.tolist()),
            schedule="trailing",
            gamma=0.0,
            prediction_type=prediction_type,
            noise_family=self.family.value,
            guidance_scale=self._options.guidance_scale,
        )

    def _schedule(self, steps: int) -> Tensor:
        """Each halving keeps every second level: a student is trained on the very levels it will be sampled at."""
        return self._finest[:: self._options.start_steps // steps]

    def _teacher_step(
        self, teacher: Denoiser, x: Tensor, condition: Condition, *, sigma: Tensor, sigma_next: Tensor
    ) -> Tensor:
        return self.family.jump(x, teacher(x, sigma, **condition).float(), sigma=sigma, sigma_next=sigma_next)
