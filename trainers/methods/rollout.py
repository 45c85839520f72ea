"""What distribution matching is about: samples that the student draws in training as it will be sampled, and noises anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor

from ...samplers.noise import NoiseFamily
from ..objective.method import Lesson
from ..objective.score import noised


class Rollout(Enum):
    """How the student draws what is matched. FRESH_NOISE: each step's x0 is noised afresh, gamma 1 (DMD2).

    DETERMINISTIC: gamma 0. SEGMENTS: gamma 0, and of each step it is what it lands on that is matched, on the levels that the
    step spans (TDM: arXiv 2503.06674). LANDINGS: the same on all levels above, where a teacher tells pictures from what is none;
    low levels alone let the last steps drift (our own, seen on the drawn world).
    """

    FRESH_NOISE = "fresh_noise"
    DETERMINISTIC = "deterministic"
    SEGMENTS = "segments"
    LANDINGS = "landings"

    @property
    def matches_landings(self) -> bool:
        """Whether a step is matched where it lands, not at its x0."""
        return self in (Rollout.SEGMENTS, Rollout.LANDINGS)

    @property
    def gamma(self) -> float:
        return 1.0 if self is Rollout.FRESH_NOISE else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StudentsSamples:
    """Of one student on one model's levels.

    steps, fewest_steps, renoise_from, renoise_to: of DistributionMatchingOptions. anchored: whether the first step is an
    anchor's. schedule: (n + 1,) levels of n steps. table: (T,) the model's noise levels, ascending.
    """

    rollout: Rollout
    steps: int
    fewest_steps: int
    anchored: bool
    renoise_from: float
    renoise_to: float
    schedule: Callable[[int], Tensor]
    table: Tensor
    family: NoiseFamily

    @torch.no_grad()
    def examples(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """A step of the student and what it lands on, from pure noise through the steps before (DMD2, section 4.5).

        x_t (B, ...), sigma (B,): where the step begins; x0 (B, ...): what the student says there; x_s (B, ...), sigma_s (B,):
        what is matched, and its level. start (B, ...): where the walk began. One step for all samples, drawn anew each time.
        levels (2,): sigma and sigma_s on the CPU, since what is drawn by them would wait for a graphics card to tell them.
        """
        levels, step = self._drawn_step(lesson)
        sigmas = levels.to(lesson.batch.x0.device)
        start = x = self.family.initial(lesson.noise(), sigma=sigmas[0])
        for i in range(step):
            x = self._walked(lesson, x, sigmas[i], sigmas[i + 1])
        sigma, sigma_next = (sigmas[step + i].expand(len(x)) for i in range(2))
        x0 = lesson.student(x, sigma, **lesson.batch.condition).float()
        x_s, sigma_s, level_s = x0, torch.zeros_like(sigma), levels.new_zeros(())
        if self.rollout.matches_landings:
            x_s, sigma_s = self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next), sigma_next
            level_s = levels[step + 1]
        told = torch.stack([levels[step], level_s])
        return {"x_t": x, "sigma": sigma, "x0": x0, "x_s": x_s, "sigma_s": sigma_s, "start": start, "levels": told}

    def _drawn_step(self, lesson: Lesson) -> tuple[Tensor, int]:
        """(levels (n + 1,) on the CPU, which of the n steps). With an anchor the first is the anchor's, if there is another."""
        steps = self.steps
        if self.fewest_steps:
            steps = _drawn(lesson, self.fewest_steps, steps + 1)
        levels = self.schedule(steps).to("cpu", lesson.batch.x0.dtype)
        return levels, _drawn(lesson, 1 if self.anchored and steps > 1 else 0, steps)

    def _walked(self, lesson: Lesson, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        x0 = lesson.student(x, sigma.expand(len(x)), **lesson.batch.condition).float()
        gamma = self.rollout.gamma
        noise = lesson.noise() if gamma else None
        return self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next, gamma=gamma, noise=noise)

    def noised(self, lesson: Lesson, example: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(x (B, ...), sigma (B,), the noise in it): what is matched, noised to a random level, of the step's own in segments."""
        low, high = self._around(*example["levels"].tolist())
        sigma, noise = self.levels(lesson, low, high), lesson.noise()
        x = noised(example["x_s"], noise, sigma_s=example["sigma_s"], sigma=sigma, family=self.family)
        return x, sigma, noise

    def levels(self, lesson: Lesson, low: float, high: float) -> Tensor:
        """(B,) of the model's levels above low and below high, within renoise_from and renoise_to, all alike."""
        within = self._within(low, high)
        index = within.start + lesson.numbers(len(within))
        return self.table[index].to(lesson.batch.x0)

    def _around(self, sigma: float, sigma_s: float) -> tuple[float, float]:
        """Between which levels a step's samples are noised to. sigma, sigma_s: where it begins, and where what is matched is."""
        return sigma_s, sigma if self.rollout is Rollout.SEGMENTS else math.inf

    def _within(self, low: float, high: float) -> range:
        """Of the model's levels."""
        first, last = (round(share * len(self.table)) for share in (self.renoise_from, self.renoise_to))
        first = max(first, int(torch.searchsorted(self.table, low, right=True)))
        return range(first, min(last, int(torch.searchsorted(self.table, high))))

    def require_levels(self, *, below: bool) -> None:
        """ValueError, naming what to change, where a step has no level to be noised to.

        below: whether guidance wants some below the step's own too.
        """
        for steps in range(self.fewest_steps or self.steps, self.steps + 1):
            for i, (sigma, sigma_next) in enumerate(pairwise(self.schedule(steps).tolist())):
                if i == 0 and self.anchored and steps > 1:
                    continue
                spans = [self._around(sigma, sigma_next if self.rollout.matches_landings else 0.0)]
                spans += [(0.0, sigma)] if below else []
                if any(not self._within(*span) for span in spans):
                    raise ValueError(
                        f"renoise_from is {self.renoise_from:g} and renoise_to is {self.renoise_to:g}, which leave step {i + 1} "
                        f"of {steps} no noise level of its own ({self.rollout.value}); allowed are a lower renoise_from, a "
                        "higher renoise_to or fewer steps."
                    )


def _drawn(lesson: Lesson, first: int, end: int) -> int:
    """From first to end - 1, one for all samples."""
    return first + int(torch.randint(end - first, (), generator=lesson.generator))
