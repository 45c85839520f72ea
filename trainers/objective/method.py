"""What a distillation method is: stages to train, and a target for each batch."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, GuidanceRule, NoiseFamily
from ...samplers.recipe import Recipe
from ..data.batches import Batch
from ..data.conditions import Condition
from . import choices
from .distance import Distance
from .grid import Grid
from .guidance_range import GuidanceRange
from .level_range import LevelRange

Decay = float | Callable[[int], float]
"""Of a moving average, always or after n steps."""


class Target(NamedTuple):
    """What the student must see at x_t (B, ...), sigma (B,) and condition: x0 (B, ...), its distance times weight (B,).

    skipped (B, ...), c_out (B, 1, ...): a consistency function's, where pictures of skipped + c_out x0 are to be compared.
    pull (B, ...): where it is given, it times weight is the gradient on the student's x0, over the number of its elements, and
    x0 is what the student says less the pull, of which nothing else is asked. measures: (B,) each, told by name beside the loss.
    beside: a further target of the same student, of as many samples, whose loss is added. near (B, ...): of a critic's target,
    whose x_t is what the student drew and x0 a picture, both noised to sigma: the picture made a little noisier before.
    unit: of the data, see TeacherKind: what a distance's constant is in.
    """

    x_t: Tensor
    sigma: Tensor
    condition: Condition
    x0: Tensor
    weight: Tensor
    distance: Distance = Distance.SQUARED
    skipped: Tensor | None = None
    c_out: Tensor | None = None
    pull: Tensor | None = None
    measures: Mapping[str, Tensor] = types.MappingProxyType({})
    beside: Target | None = None
    near: Tensor | None = None
    unit: float = 1.0

    def compared(self, x0: Tensor) -> Tensor:
        """(B, ...) what a distance between pictures decodes: x0 (B, ...), or the consistency function's word."""
        return x0 if self.skipped is None or self.c_out is None else self.skipped + self.c_out * x0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What a method makes a target of: a batch, the networks by name, and where in the training they stand.

    iteration: how many of the stage are done. generator: on the CPU, where all that is random comes from. companions: of those
    that the method has, by name, the denoisers, or a critic's gradient. examples: what the method drew of the student in this
    iteration, see Method.examples.
    """

    batch: Batch
    stage: int
    iteration: int = 0
    teacher: Denoiser
    student: Denoiser
    generator: torch.Generator
    companions: Mapping[str, Denoiser] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def numbers(self, count: int) -> Tensor:
        """(B,) from 0 to count - 1, each as likely as the others."""
        return torch.randint(count, (len(self.batch.x0),), generator=self.generator)

    def noise(self) -> Tensor:
        """(B, ...) unit noise for the batch."""
        return torch.randn(self.batch.x0.shape, generator=self.generator).to(self.batch.x0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companion:
    """Who learns besides the student in a stage: a further set of adapters on the teacher's network, which begins as the teacher.

    learning_rate: the same from start to end. updates: in each iteration, before the student's. rank: of its adapters; 0 is the
    student's, or 32 where that has none. betas: of its Adam; it has no weight decay, which would draw it to the teacher.
    is_critic: it tells what the student draws from pictures, by heads on what the teacher's blocks say, and has no adapters.
    """

    name: str
    learning_rate: float
    updates: int = 1
    rank: int = 0
    betas: tuple[float, float] = (0.0, 0.99)
    is_critic: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One optimisation from start to end. After it the student becomes the teacher of the next stage.

    sigmas: (steps + 1,) the schedule that the student of this stage is sampled with. teacher_sigmas: the schedule that its
    teacher is sampled with, to draw what the student should draw; None where the stage has no such teacher. gamma: of the
    student's sampling, see NoiseFamily.jump; the teacher's is 0, but for one on the student's own schedule. target_decay: of
    the moving average of the student that the method is given in place of the student itself, anew in each stage, or what it
    is after so many steps; 0 is none. top, bottom: the levels between which an expert's student walks; beyond them its partner
    does. lead: of the iterations, how many at the beginning are the companions' alone. betas: of the student's optimiser; None
    for its own.
    """

    name: str
    iterations: int
    learning_rate: float
    sigmas: Tensor
    teacher_sigmas: Tensor | None = None
    gamma: float = 0.0
    target_decay: Decay = 0.0
    top: float = math.inf
    bottom: float = 0.0
    lead: int = 0
    betas: tuple[float, float] | None = None

    @property
    def updates(self) -> int:
        """Of the student."""
        return self.iterations - self.lead

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def walked(self, sigmas: Tensor) -> Tensor:
        """The part of a schedule (n + 1,), the student's or its teacher's, that an expert walks; all of it for others."""
        return sigmas[(sigmas <= self.top) & (sigmas >= self.bottom)]

    @property
    def compared(self) -> tuple[Tensor, Tensor, float]:
        """The schedules on which the student and its teacher should draw the same, and the gamma of both.

        Fresh noise leads a student elsewhere than a teacher on finer levels goes: of such a one only the first jump, to where
        the teacher's whole walk leads, is the teacher's.
        """
        if self.teacher_sigmas is None:
            raise ValueError(
                f"the stage {self.name!r} has no schedule for its teacher, so there is nothing to compare."
            )
        own, teachers = self.walked(self.sigmas), self.walked(self.teacher_sigmas)
        if not self.gamma or torch.equal(own, teachers):
            return own, teachers, self.gamma
        return torch.cat([own[:1], own.new_zeros(1)]), teachers, 0.0

    @property
    def shown(self) -> Tensor:
        """The student's own levels and a 0, at which it says what it sees."""
        own = self.walked(self.sigmas)
        return torch.cat([own[:-1], own.new_zeros(1)])

    @property
    def from_noise(self) -> bool:
        """Whether the student begins at the top; otherwise where another expert left, with a picture in the noise."""
        return self.top >= float(self.sigmas[0])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TeacherKind:
    """What a method must know of the model that it distils, and of its data.

    table: (T,) the model's noise levels, ascending. prediction_type: what its network predicts. takes_scale: whether its
    guidance scale is an input of it. empty_prompt: whether the data have an empty or negative prompt, for guidance by two
    prompts. unit: what is called 1 of data whose deviation is about 1; less where the model's own noise has more than that, in
    whose units the data then are (HiDream-O1: an eighth). rule: of its guidance, where that is not the usual one.
    """

    family: NoiseFamily
    table: Tensor
    prediction_type: str | None = None
    takes_scale: bool = False
    empty_prompt: bool = False
    unit: float = 1.0
    rule: GuidanceRule | None = None

    def require_guided(self, scales: GuidanceRange, *, as_input: bool) -> None:
        """ValueError where it cannot be guided at these scales: by two prompts, or by an input as the student's."""
        choices.require_empty_prompt(scales.high, given=self.empty_prompt or self.takes_scale)
        if self.rule is not None:
            choices.require_rule(self.rule, takes_scale=self.takes_scale, empty_prompt=self.empty_prompt)
        if self.takes_scale and not as_input:
            choices.require_guided_once(scales.high)


class MethodOptions(Protocol):
    """What a user chooses about a method, before it is known for which model. ValueError for what no run could use."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> MethodOptions:
        """From a node's or run.json's JSON values; later options may be absent."""

    @classmethod
    def as_begun(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """run.json's JSON values, which may be older than some options, with what a run did then where it is not the default."""

    def written(self) -> dict[str, Any]:
        """As JSON values; the inverse of read."""

    def on(self, teacher: TeacherKind) -> Method:
        """The method on a model's noise levels. ValueError for options that this model does not take."""

    @property
    def grid(self) -> Grid:
        """Of the levels that the method's teacher is sampled on."""

    @property
    def gamma(self) -> float:
        """Of the student's sampling."""

    def schedule(self, steps: int, *, table: Tensor) -> Tensor:
        """(steps + 1,) the levels that the student is sampled on in so many steps."""


Options = TypeVar("Options", bound=MethodOptions)


class Alone:
    """What a method says that has no companions, and learns from pictures."""

    @property
    def needs_pictures(self) -> bool:
        return True

    @property
    def guided_by(self) -> str:
        return ""

    def companions(self, *, stage: int) -> Sequence[Companion]:
        return ()

    def examples(self, lesson: Lesson) -> Mapping[str, Tensor]:
        return {}

    def companion_target(self, name: str, lesson: Lesson) -> Target:
        raise ValueError(f"this method has no companion {name!r}.")


class OnTeacher(Alone, Generic[Options]):
    """What methods share: their options as JSON values, their noise family. ValueError for a grid that the teacher lacks."""

    name: ClassVar[str]

    levels = LevelRange()

    def __init__(self, options: Options, teacher: TeacherKind) -> None:
        options.grid.require_for(teacher.family)
        self.family, self._options, self._unit = teacher.family, options, teacher.unit
        self._rule = teacher.rule

    def options(self) -> dict[str, Any]:
        return self._options.written()

    def options_of_old(self) -> dict[str, Any]:
        return choices.defaults(type(self._options))

    @property
    def guided_by(self) -> str:
        return "" if self._rule is None else str(self._rule)

    def continues(self, options: Mapping[str, Any]) -> bool:
        """Of one stage: there is nothing to go on with."""
        return False

    def _sampled(
        self, sigmas: Tensor, *, prediction_type: str, guidance_scale: float = 1.0, schedule: str | None = None
    ) -> Recipe:
        """The recipe of a student. sigmas: (steps + 1,). schedule: its name, where that is not the grid's."""
        return Recipe(
            method=self.name,
            steps=len(sigmas) - 1,
            sigmas=tuple(sigmas.tolist()),
            schedule=schedule or self._options.grid.value,
            gamma=self._options.gamma,
            prediction_type=prediction_type,
            noise_family=self.family.value,
            guidance_scale=guidance_scale,
            level_from=self.levels.low,
            level_to=self.levels.high,
        )


class Method(Protocol):
    """Progressive, guidance, consistency, ...: everything that differs between distillations."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> NoiseFamily: ...

    @property
    def scale_input(self) -> GuidanceRange | None:
        """The scales of a student that takes its guidance scale as an input; None where it does not."""

    @property
    def guided_by(self) -> str:
        """Whose functions its teacher's guidance goes through, which the student learns with it; empty where it is as usual."""

    @property
    def needs_pictures(self) -> bool:
        """Whether the data's x0 are looked at; otherwise their shape and the prompts are enough."""

    def options(self) -> dict[str, Any]:
        """What identifies the method in run.json: JSON values."""

    def options_of_old(self) -> dict[str, Any]:
        """What options mean that a run.json older than them does not hold: JSON values."""

    def stages(self) -> Sequence[Stage]:
        """What to train, in order."""

    def target(self, lesson: Lesson) -> Target:
        """The target for a batch, without gradient, in float32 or better. All randomness comes from the lesson.

        Row by row: of the rows that another process computes, teacher and student answer 0 here, see on_share.
        """

    def companions(self, *, stage: int) -> Sequence[Companion]:
        """Who learns besides the student in a stage, in the order of their updates."""

    def examples(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """What this iteration's targets have in common, such as samples of the student (B, ...), without gradient.

        Made once, before the companions' updates and the student's, which all find it in their lesson.
        """

    def companion_target(self, name: str, lesson: Lesson) -> Target:
        """A companion's target, as `target` is the student's. The lesson's generator is of this update alone."""

    def teaching(self, teacher: Denoiser, *, stage: int, batch: Batch) -> Denoiser:
        """The teacher as a stage's student learns from it, with its guidance, say, for the conditions of batch."""

    def continues(self, options: Mapping[str, Any]) -> bool:
        """Whether the stages of a run with these options (JSON values, as in run.json) are the first of this one's."""

    def recipe(self, *, stage: int, prediction_type: str) -> Recipe:
        """How the student of a stage is sampled. prediction_type: the teacher's; the recipe's own is the student's."""


def student_prediction(method: Method, *, prediction_type: str) -> str:
    """What a method's student predicts: what its teacher does, which is prediction_type, unless the method has it otherwise."""
    return method.recipe(stage=0, prediction_type=prediction_type).prediction_type
