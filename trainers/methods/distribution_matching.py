"""Distribution matching (DMD: Yin et al. 2023, arXiv 2311.18828; DMD2: 2024, arXiv 2405.14867), for every noise family.

The student's own samples are noised again, and pulled to where the teacher and a companion that knows the student's samples
agree. So the student need not go the teacher's way, only draw from where it draws; no pictures are needed, prompts are enough.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...samplers.noise import Denoiser, expand_like, solved_x0, unconditioned
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..objective import choices
from ..objective.grid import Grid
from ..objective.guidance_range import GuidanceRange
from ..objective.method import Companion, Lesson, OnTeacher, Stage, Target, TeacherKind
from ..objective.score import Strength, seen_in, weight_of_seen
from .consistency import ConsistencyOptions
from .rollout import Rollout, StudentsSamples

FAKE = "fake"
"""The companion: the denoiser of what the student draws."""
CRITIC = "critic"
"""The other one: who tells what the student draws from pictures."""
SHAKEN = 0.01
"""Of noise in the data's unit: what makes a picture a little noisier, on which the critic must not turn. With ten times as much
it was half as steep on the drawn world, and hardly better than blind."""
BETAS = (0.0, 0.99)
"""Of the student's Adam and the companion's: gradients of a while ago are those of another companion (Self-Forcing, rCM)."""


class Guidance(Enum):
    """How the teacher's guidance pulls. TEACHER: it is matched with its guidance on, at one level (DMD2).

    DECOUPLED: it is matched without; what guidance adds pulls by itself, at a level of its own below the student's, where it
    does not harm the composition (Decoupled DMD: arXiv 2511.22677, equations 6 to 8). Costs a pass more.
    """

    TEACHER = "teacher"
    DECOUPLED = "decoupled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatchingOptions(choices.Choices):
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    steps: in which the student is sampled and trained. iterations: updates of the student. guidance_scale: of the teacher,
    baked in. companion_learning_rate, companion_updates: of the companion, the latter for each of the student's; a critic has
    as many. companion_first: iterations before the student's first in which they learn alone. companion_rank: of the
    companion's adapters; 0 is the student's. share_samples: their updates see the samples of the student's own update, noised
    anew; otherwise each draws its own. renoise_from, renoise_to: of the levels that samples are noised to, as shares of the
    model's time. fewest_steps: where it is not 0, each iteration draws in a number of steps from this to `steps`, and the
    student is for all of them. anchor_steps: where it is not 0, the student's first step is also taught to go as so many of the
    teacher's, which are half of its way, weighted by anchor_weight; this keeps seeds apart (DP-DMD: arXiv 2602.03139).
    consistency_levels: where it is not 0, the student also learns consistency along so many levels, from pictures, and what is
    matched counts matching_weight times (the discrete form of rCM: arXiv 2510.08431). adversarial_weight: where it is not 0, a
    critic learns to tell the samples from pictures, at critic_learning_rate, and what would make them look real pulls too, from
    the student's iteration adversarial_from on (DMD2, section 4.3).
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
    adversarial_weight: float = 0.0
    adversarial_from: int = 0
    critic_learning_rate: float = 1e-4
    grid: Grid = Grid.TRAILING

    def __post_init__(self) -> None:
        choices.require_finite(self)
        choices.require_at_least_one(self, "steps", "iterations", "companion_updates")
        choices.require_learning_rate(self.learning_rate)
        choices.require_learning_rate(self.companion_learning_rate, name="companion_learning_rate")
        choices.require_learning_rate(self.critic_learning_rate, name="critic_learning_rate")
        choices.require_not_negative(self, "companion_first", "companion_rank", "fewest_steps", "anchor_steps")
        choices.require_not_negative(self, "adversarial_weight", "adversarial_from")
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
        if self.adversarial_weight and self.adversarial_from >= self.iterations:
            raise ValueError(
                f"adversarial_from is {self.adversarial_from} and iterations is {self.iterations}, so that the critic would "
                "never pull; allowed is less than iterations."
            )

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
        if options.guidance is Guidance.DECOUPLED and teacher.rule is not None:
            raise ValueError(
                f"guidance is {options.guidance.value}, which takes guidance apart, but the MODEL carries {teacher.rule}, which "
                "makes another thing of it; remove that node, or choose another guidance."
            )
        super().__init__(options, teacher)
        self._table = teacher.table
        self._sigmas = options.schedule(options.steps, table=teacher.table)
        self._samples = StudentsSamples(
            rollout=options.rollout,
            steps=options.steps,
            fewest_steps=options.fewest_steps,
            anchored=options.anchor_steps > 0,
            renoise_from=options.renoise_from,
            renoise_to=options.renoise_to,
            schedule=functools.partial(options.schedule, table=teacher.table),
            table=teacher.table,
            family=self.family,
        )
        self._samples.require_levels(below=options.guidance is Guidance.DECOUPLED)
        if options.anchor_steps:
            self._to_anchor()
        self._consistency = options.consistency().on(teacher) if options.consistency_levels else None

    @property
    def needs_pictures(self) -> bool:
        return self._consistency is not None or self._options.adversarial_weight > 0.0

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
        options = self._options
        fake = Companion(
            name=FAKE,
            learning_rate=options.companion_learning_rate,
            updates=options.companion_updates,
            rank=options.companion_rank,
            betas=BETAS,
        )
        critic = dataclasses.replace(
            fake, name=CRITIC, learning_rate=options.critic_learning_rate, rank=0, is_critic=True
        )
        return [fake, critic] if options.adversarial_weight else [fake]

    def examples(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """See StudentsSamples."""
        return self._samples.examples(lesson)

    # --- targets -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def companion_target(self, name: str, lesson: Lesson) -> Target:
        """What the student drew is what the companion shall see in it, noised to any level; the critic shall see that it drew."""
        example = lesson.examples if self._options.share_samples else self.examples(lesson)
        x, sigma, noise = self._samples.noised(lesson, example)
        if name == CRITIC:
            return self._told_apart(lesson, x, sigma)
        sigma_s = example["sigma_s"]
        x0 = seen_in(example["x_s"], noise, sigma_s=sigma_s, sigma=sigma, family=self.family)
        weight = weight_of_seen(sigma_s, sigma, family=self.family)
        return Target(x, sigma, lesson.batch.condition, x0, weight)

    def _told_apart(self, lesson: Lesson, drawn: Tensor, sigma: Tensor) -> Target:
        """drawn (B, ...) at sigma (B,) against as many pictures, noised to the same levels."""
        x0, noise = lesson.batch.x0, lesson.noise()
        real, near = (
            self.family.add_noise(picture, noise, sigma=sigma)
            for picture in (x0, x0 + SHAKEN * self._unit * lesson.noise())
        )
        return Target(drawn, sigma, lesson.batch.condition, real, torch.ones_like(sigma), near=near)

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
        x, sigma, _ = self._samples.noised(lesson, example)
        fake = lesson.companions[FAKE](x, sigma, **condition).float()
        decoupled = self._options.guidance is Guidance.DECOUPLED
        teacher = lesson.teacher if decoupled else self._guided(lesson.teacher, lesson.batch)
        real = teacher(x, sigma, **condition).float()
        x0 = example["x0"]
        pull = (fake - real) * self._options.strength.of(x0, real, sigma=sigma, family=self.family, unit=self._unit)
        if decoupled:
            pull = pull + self._guiding(lesson)
        measures = _measures(x0, fake=fake, real=real)
        if self._options.adversarial_weight:
            added = self._looking_real(lesson, x, sigma)
            measures["adversarial"] = _rms(added.flatten(1)) / _rms(pull.flatten(1)).clamp(min=1e-12)
            pull = pull + added
        weight = torch.full_like(sigma, self._options.matching_weight)
        return Target(example["x_t"], example["sigma"], condition, x0 - pull, weight, pull=pull, measures=measures)

    def _looking_real(self, lesson: Lesson, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, ...) the critic's pull on the samples, by what it says of them in x (B, ...) at sigma (B,).

        The gradient of its loss on the samples, times the root of how many values each has: then it is as large as the gradient
        is long, in pictures of any size (DMD2's weights are for one).
        """
        if lesson.iteration < self._options.companion_first + self._options.adversarial_from:
            return torch.zeros_like(x)
        example = lesson.examples
        found = lesson.companions[CRITIC](x, sigma, **lesson.batch.condition)
        landing = 1.0 - example["sigma_s"] / example["sigma"]  # of the step's x0, what arrives where it lands
        left = self.family.signal(sigma) / self.family.signal(example["sigma_s"])
        # a slope is one over the unit
        strength = self._options.adversarial_weight * x[0].numel() ** 0.5 * self._unit**2
        return expand_like(strength * landing * left, x) * found

    def _guiding(self, lesson: Lesson) -> Tensor:
        """(B, ...) what guidance adds, at levels cleaner than the student's own (Decoupled DMD, section 3)."""
        x0, condition = lesson.examples["x0"], lesson.batch.condition
        sigma = self._samples.levels(lesson, 0.0, float(lesson.examples["levels"][0]))
        x = self.family.add_noise(x0, lesson.noise(), sigma=sigma)
        real = lesson.teacher(x, sigma, **condition).float()
        without = unconditioned(lesson.teacher, lesson.batch.empty_prompt())(x, sigma).float()
        strength = self._options.strength.of(x0, real, sigma=sigma, family=self.family, unit=self._unit)
        return (1.0 - self._options.guidance_scale) * (real - without) * strength

    def _anchored(self, lesson: Lesson) -> Target:
        """The first step lands where the teacher is half of its way down, from the same noise."""
        x = start = lesson.examples["start"]
        levels = self._to_anchor().to(x)
        teacher = self._guided(lesson.teacher, lesson.batch)
        for sigma, sigma_next in pairwise(levels):
            x0 = teacher(x, sigma.expand(len(x)), **lesson.batch.condition).float()
            x = self.family.jump(x, x0, sigma=sigma, sigma_next=sigma_next)
        first = levels[0].expand(len(x))
        x0 = solved_x0(start, x, sigma_t=levels[0], sigma_s=levels[-1])
        return Target(start, first, lesson.batch.condition, x0, torch.full_like(first, self._options.anchor_weight))

    def _to_anchor(self) -> Tensor:
        """(anchor_steps + 1,) the first half of the teacher's way. ValueError where the model has too few levels for it."""
        count = self._options.anchor_steps
        return self._options.grid.sigmas(2 * count, table=self._table, name="twice anchor_steps")[: count + 1]

    def _guided(self, teacher: Denoiser, batch: Batch) -> Denoiser:
        return self._options.scales.teaching(teacher, batch, self._options.guidance_scale, rule=self._rule)

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        return self._guided(teacher, batch)

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        """On the levels that it was drawn at in training, all noise fresh at each step or none."""
        return self._sampled(self._sigmas, prediction_type=prediction_type, guidance_scale=self._options.guidance_scale)


def _measures(x0: Tensor, *, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    """(B,) each, of the student's samples x0 (B, ...) and what companion and teacher see in them.

    gap: of both views, over how far the teacher's is from the sample; where it keeps growing the student goes astray, and where
    it has arrived and that distance is none, it is noise. cosine: of where both pull the sample; near 1 they agree. mean, std: of
    the samples; real_mean, real_std: of what the teacher sees in them, which stay above or below where contrast creeps.
    adversarial, where there is a critic: its pull over theirs.
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
