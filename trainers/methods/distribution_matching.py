"""Distribution matching (DMD: Yin et al. 2023, arXiv 2311.18828; DMD2: 2024, arXiv 2405.14867), for every noise family.

The student's own samples are noised again, and pulled to where the teacher and a companion that knows the student's samples
agree. So the student need not go the teacher's way, only draw from where it draws; no pictures are needed, prompts are enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...samplers.noise import Denoiser, solved_x0, unconditioned
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..objective import choices
from ..objective.grid import Grid
from ..objective.guidance_range import GuidanceRange
from ..objective.method import Companion, Lesson, OnTeacher, Stage, Target, TeacherKind
from ..objective.score import Strength, noised, seen_in, weight_of_seen
from .consistency import ConsistencyOptions

FAKE = "fake"
"""The companion: the denoiser of what the student draws."""
BETAS = (0.0, 0.99)
"""Of the student's Adam and the companion's: gradients of a while ago are those of another companion (Self-Forcing, rCM)."""


class Guidance(Enum):
    """How the teacher's guidance pulls. TEACHER: it is matched with its guidance on, at one level (DMD2).

    DECOUPLED: it is matched without; what guidance adds pulls by itself, at a level of its own below the student's, where it
    does not harm the composition (Decoupled DMD: arXiv 2511.22677, equations 6 to 8). Costs a pass more.
    """

    TEACHER = "teacher"
    DECOUPLED = "decoupled"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatchingOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    steps: in which the student is sampled and trained. iterations: updates of the student. guidance_scale: of the teacher,
    baked in. companion_learning_rate, companion_updates: of the companion, the latter for each of the student's.
    companion_first: iterations before the student's first in which it learns alone. companion_rank: of its adapters; 0 is the
    student's. share_samples: its updates see the samples of the student's own update, noised anew; otherwise each draws its
    own. renoise_from, renoise_to: of the levels that samples are noised to, as shares of the model's time. fewest_steps: where
    it is not 0, each iteration draws in a number of steps from this to `steps`, and the student is for all of them.
    anchor_steps: where it is not 0, the student's first step is also taught to go as so many of the teacher's, which are half
    of its way, weighted by anchor_weight; this keeps seeds apart (DP-DMD: arXiv 2602.03139). consistency_levels: where it is
    not 0, the student also learns consistency along so many levels, from pictures, and what is matched counts matching_weight
    times (the discrete form of rCM: arXiv 2510.08431).
    """

    steps: int
    iterations: int
    learning_rate: float
    guidance_scale: float
    companion_learning_rate: float = 3e-5
    companion_updates: int = 4
    companion_first: int = 100
    companion_rank: int = 0
    share_samples: bool = True
    guidance: Guidance = Guidance.TEACHER
    rollout: Rollout = Rollout.FRESH_NOISE
    strength: Strength = Strength.NORMALISED
    renoise_from: float = 0.02
    renoise_to: float = 0.98
    fewest_steps: int = 0
    anchor_steps: int = 0
    anchor_weight: float = 0.05
    consistency_levels: int = 0
    matching_weight: float = 1.0
    grid: Grid = Grid.TRAILING

    def __post_init__(self) -> None:
        choices.require_finite(self)
        choices.require_at_least_one(self, "steps", "iterations", "companion_updates")
        choices.require_learning_rate(self.learning_rate)
        choices.require_learning_rate(self.companion_learning_rate, name="companion_learning_rate")
        choices.require_not_negative(self, "companion_first", "companion_rank", "fewest_steps", "anchor_steps")
        if self.fewest_steps > self.steps:
            raise ValueError(
                f"fewest_steps is {self.fewest_steps} and steps is {self.steps}; samples are drawn in no more steps than the "
                "student is for: fewest_steps must be 1 to steps, or 0 for steps alone."
            )
        if not 0.0 <= self.renoise_from < self.renoise_to <= 1.0:
            raise ValueError(
                f"renoise_from is {self.renoise_from} and renoise_to is {self.renoise_to}; allowed are 0 to 1, the second above "
                "the first."
            )
        self._require_parts()

    def _require_parts(self) -> None:
        if not self.scales.guides and self.guidance is Guidance.DECOUPLED:
            raise ValueError(
                f"guidance is {self.guidance.value}, but guidance_scale is 1, which is no guidance; give more, or set guidance "
                f"to {Guidance.TEACHER.value}."
            )
        if self.anchor_weight <= 0.0 or self.matching_weight <= 0.0:
            raise ValueError(
                f"anchor_weight is {self.anchor_weight} and matching_weight is {self.matching_weight}; both must be above 0. To "
                "switch the anchor off, set anchor_steps to 0."
            )
        if self.consistency_levels:
            self.consistency()

    @property
    def scales(self) -> GuidanceRange:
        return GuidanceRange(self.guidance_scale, self.guidance_scale)

    @property
    def gamma(self) -> float:
        return self.rollout.gamma

    def consistency(self) -> ConsistencyOptions:
        """What is learnt beside, where consistency_levels is not 0. ValueError for too few of them."""
        if self.consistency_levels < max(2, self.steps):
            raise ValueError(
                f"consistency_levels is {self.consistency_levels} and steps is {self.steps}; allowed is 0 for none, or at least "
                "2 and no less than steps: 50, for example."
            )
        return ConsistencyOptions(
            steps=self.steps,
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            guidance_scale=self.guidance_scale,
            levels=self.consistency_levels,
            grid=self.grid,
        )

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) the levels of the chosen grid. table: (T,) the model's noise levels, ascending."""
        return self.grid.sigmas(steps, table=table)

    def on(self, teacher: TeacherKind) -> DistributionMatching:
        """The method on a model; see DistributionMatching. Whatever the model predicts, so does the student."""
        return DistributionMatching(self, teacher)


class DistributionMatching(OnTeacher[DistributionMatchingOptions]):
    """The method on one model's noise levels.

    Guidance needs an empty or negative prompt. ValueError for options that this model does not take.
    """

    name = "distribution_matching"
    scale_input = None

    def __init__(self, options: DistributionMatchingOptions, teacher: TeacherKind) -> None:
        teacher.require_guided(options.scales, as_input=False)
        super().__init__(options, teacher)
        self._table = teacher.table
        self._sigmas = options.schedule(options.steps, table=teacher.table)
        self._consistency = options.consistency().on(teacher) if options.consistency_levels else None

    @property
    def needs_pictures(self) -> bool:
        return self._consistency is not None

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name=f"matching in {self._options.steps} steps",
                iterations=self._options.companion_first + self._options.iterations,
                lead=self._options.companion_first,
                learning_rate=self._options.learning_rate,
                sigmas=self._sigmas,
                gamma=self._options.gamma,
                betas=BETAS,
            )
        ]

    def companions(self, *, stage: int) -> list[Companion]:
        return [
            Companion(
                name=FAKE,
                learning_rate=self._options.companion_learning_rate,
                updates=self._options.companion_updates,
                rank=self._options.companion_rank,
                betas=BETAS,
            )
        ]

    # --- the student's samples ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def examples(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """A step of the student and what it lands on, from pure noise through the steps before (DMD2, section 4.5).

        x_t (B, ...), sigma (B,): where the step begins; x0 (B, ...): what the student says there; x_s (B, ...), sigma_s (B,):
        what is matched, and its level. noise (B, ...): that the walk began at. One step for all samples, drawn anew each time.
        """
        sigmas, step = self._drawn_step(lesson)
        start = x = self.family.initial(lesson.noise(), sigma=sigmas[0])
        for i in range(step):
            x = self._walked(lesson, x, sigmas[i], sigmas[i + 1])
        sigma, sigma_next = (sigmas[step + i].expand(len(x)) for i in range(2))
        x0 = lesson.student(x, sigma, **lesson.batch.condition).float()
        x_s, sigma_s = x0, torch.zeros_like(sigma)
        if self._options.rollout.matches_landings:
            x_s, sigma_s = self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next), sigma_next
        return {"x_t": x, "sigma": sigma, "x0": x0, "x_s": x_s, "sigma_s": sigma_s, "start": start}

    def _drawn_step(self, lesson: Lesson) -> tuple[Tensor, int]:
        """(levels (n + 1,), which of the n steps). With an anchor the first step is the anchor's, where there is another."""
        steps = self._options.steps
        if self._options.fewest_steps:
            steps = _drawn(lesson, self._options.fewest_steps, steps + 1)
        sigmas = self._options.schedule(steps, table=self._table).to(lesson.batch.x0)
        return sigmas, _drawn(lesson, 1 if self._options.anchor_steps and steps > 1 else 0, steps)

    def _walked(self, lesson: Lesson, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        x0 = lesson.student(x, sigma.expand(len(x)), **lesson.batch.condition).float()
        gamma = self._options.gamma
        noise = lesson.noise() if gamma else None
        return self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next, gamma=gamma, noise=noise)

    def _noised(self, lesson: Lesson, example: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(x (B, ...), sigma (B,), the noise in it): what is matched, noised to a random level, of the step's own in segments."""
        low, high = float(example["sigma_s"][0]), float("inf")
        if self._options.rollout is Rollout.SEGMENTS:
            high = float(example["sigma"][0])
        sigma, noise = self._levels(lesson, low, high), lesson.noise()
        x = noised(example["x_s"], noise, sigma_s=example["sigma_s"], sigma=sigma, family=self.family)
        return x, sigma, noise

    def _levels(self, lesson: Lesson, low: float, high: float) -> Tensor:
        """(B,) of the model's levels above low and below high, within renoise_from and renoise_to, all alike."""
        count = len(self._table)
        first, last = (round(share * count) for share in (self._options.renoise_from, self._options.renoise_to))
        first = max(first, int(torch.searchsorted(self._table, low, right=True)))
        last = min(last, int(torch.searchsorted(self._table, high)))
        first = min(first, count - 1)
        index = first + lesson.numbers(max(last - first, 1))
        return self._table[index].to(lesson.batch.x0)

    # --- targets -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def companion_target(self, name: str, lesson: Lesson) -> Target:
        """What the student drew is what the companion shall see in it, noised to any level."""
        example = lesson.examples if self._options.share_samples else self.examples(lesson)
        x, sigma, noise = self._noised(lesson, example)
        sigma_s = example["sigma_s"]
        x0 = seen_in(example["x_s"], noise, sigma_s=sigma_s, sigma=sigma, family=self.family)
        weight = weight_of_seen(sigma_s, sigma, family=self.family)
        return Target(x, sigma, lesson.batch.condition, x0, weight)

    @torch.no_grad()
    def target(self, lesson: Lesson) -> Target:
        """The pull, and beside it the anchor or the consistency, as far as they are chosen."""
        target = self._matching(lesson)
        if self._options.anchor_steps:
            target = target._replace(beside=self._anchored(lesson))
        if self._consistency is None:
            return target
        return self._consistency.target(lesson)._replace(measures=target.measures, beside=target._replace(measures={}))

    def _matching(self, lesson: Lesson) -> Target:
        example, condition = lesson.examples, lesson.batch.condition
        x, sigma, _ = self._noised(lesson, example)
        fake = lesson.companions[FAKE](x, sigma, **condition).float()
        decoupled = self._options.guidance is Guidance.DECOUPLED
        teacher = lesson.teacher if decoupled else self._guided(lesson.teacher, lesson.batch)
        real = teacher(x, sigma, **condition).float()
        x0 = example["x0"]
        pull = (fake - real) * self._options.strength.of(x0, real, sigma=sigma, family=self.family)
        if decoupled:
            pull = pull + self._guiding(lesson)
        weight = torch.full_like(sigma, self._options.matching_weight)
        measures = _measures(x0, fake=fake, real=real)
        return Target(example["x_t"], example["sigma"], condition, x0 - pull, weight, pull=pull, measures=measures)

    def _guiding(self, lesson: Lesson) -> Tensor:
        """(B, ...) what guidance adds, at levels cleaner than the student's own (Decoupled DMD, section 3)."""
        x0, condition = lesson.examples["x0"], lesson.batch.condition
        sigma = self._levels(lesson, 0.0, float(lesson.examples["sigma"][0]))
        x = self.family.add_noise(x0, lesson.noise(), sigma=sigma)
        real = lesson.teacher(x, sigma, **condition).float()
        without = unconditioned(lesson.teacher, lesson.batch.empty_prompt())(x, sigma).float()
        strength = self._options.strength.of(x0, real, sigma=sigma, family=self.family)
        return (1.0 - self._options.guidance_scale) * (real - without) * strength

    def _anchored(self, lesson: Lesson) -> Target:
        """The first step lands where the teacher is half of its way down, from the same noise."""
        x = start = lesson.examples["start"]
        count = self._options.anchor_steps
        levels = self._options.schedule(2 * count, table=self._table)[: count + 1].to(x)
        teacher = self._guided(lesson.teacher, lesson.batch)
        for sigma, sigma_next in pairwise(levels):
            x0 = teacher(x, sigma.expand(len(x)), **lesson.batch.condition).float()
            x = self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next)
        first = levels[0].expand(len(x))
        x0 = solved_x0(start, x, sigma_t=levels[0], sigma_s=levels[-1])
        return Target(start, first, lesson.batch.condition, x0, torch.full_like(first, self._options.anchor_weight))

    def _guided(self, teacher: Denoiser, batch: Batch) -> Denoiser:
        return self._options.scales.teaching(teacher, batch, self._options.guidance_scale)

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        return self._guided(teacher, batch)

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        """On the levels that it was drawn at in training, all noise fresh at each step or none."""
        return self._sampled(self._sigmas, prediction_type=prediction_type, guidance_scale=self._options.guidance_scale)


def _drawn(lesson: Lesson, first: int, end: int) -> int:
    """From first to end - 1, one for all samples."""
    return first + int(torch.randint(end - first, (), generator=lesson.generator))


def _measures(x0: Tensor, *, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    """(B,) each, of the student's samples x0 (B, ...) and what companion and teacher see in them.

    gap: of both views, over how far the teacher's is from the sample; where it keeps growing the student goes astray, and where
    it has arrived and that distance is none, it is noise. cosine: of where both pull the sample; near 1 they agree. mean, std: of
    the samples; real_mean, real_std: of what the teacher sees in them, which stay above or below where contrast creeps.
    """
    sample, seen, known = (value.flatten(1) for value in (x0, real, fake))
    from_sample = _rms(seen - sample).clamp(min=1e-12)
    return {
        "gap": _rms(seen - known) / from_sample,
        "cosine": cosine_similarity(known - sample, seen - sample, dim=1),
        "mean": sample.mean(dim=1),
        "std": sample.std(dim=1, correction=0),
        "real_mean": seen.mean(dim=1),
        "real_std": seen.std(dim=1, correction=0),
    }


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=1).sqrt()
