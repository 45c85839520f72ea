"""What a run will cost, found before it begins: iterations of each stage, tried on a student that is thrown away."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...samplers.noise import Denoiser
from ..data.batches import Batch, TensorData
from ..objective.method import Lesson, Method, Stage, Target
from ..objective.perceptual import Perceptual
from ..storage.run_folder import RunFolder
from ..students.student import Student
from . import accelerator
from .loop import rehearsal
from .optimisation.options import TrainOptions
from .stages import SAMPLES, compared

LEAST_TIMED, MOST_TIMED, ENOUGH_SECONDS = 3, 15, 1.5
"""Iterations that are timed, after one that is not: more of short ones. The one in the middle counts: what disturbs a machine
now disturbs the run too, and a single long one is chance."""
DRAWS = 200
"""Iterations whose forwards are counted without a network, where a method draws how many there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iteration:
    """seconds: of one on a whole batch. forwards: of all networks, for one sample, in the mean of many."""

    seconds: float
    forwards: float

    def with_pieces(self, pieces: int, *, two: Iteration) -> Iteration:
        """This one of a batch in one piece, as one of so many pieces as large. two: of two."""
        added = min(max(two.seconds - self.seconds, 0.0), self.seconds)
        return dataclasses.replace(self, seconds=self.seconds + (pieces - 1) * added)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """Of a stage: an iteration, and one of those at the beginning in which the companions learn alone, where there are any.

    measuring: seconds of comparing the student with its teacher when the stage is over.
    """

    stage: Stage
    iteration: Iteration
    leading: Iteration | None = None
    measuring: float = 0.0

    def with_pieces(self, pieces: int, *, two: StageCost) -> StageCost:
        """See Iteration."""
        leading = self.leading and two.leading and self.leading.with_pieces(pieces, two=two.leading)
        iteration = self.iteration.with_pieces(pieces, two=two.iteration)
        return dataclasses.replace(self, iteration=iteration, leading=leading)

    @property
    def _parts(self) -> list[tuple[int, Iteration]]:
        leading = [] if self.leading is None else [(self.stage.lead, self.leading)]
        return [*leading, (self.stage.updates, self.iteration)]

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.left(after=0)

    def left(self, *, after: int) -> float:
        """Seconds of the stage after so many of its iterations; 0 after all, when it is measured too."""
        if after >= self.stage.iterations:
            return 0.0
        seconds = self.measuring
        for count, one in self._parts:
            seconds += max(0, count - after) * one.seconds
            after = max(0, after - count)
        return seconds

    @property
    def forwards(self) -> float:
        """Of all iterations, for one sample of the batch."""
        return sum(count * one.forwards for count, one in self._parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A run on copies of one sample (1, ...), which pass the networks `rows` at a time, `pieces` times in a batch.

    Its student is of no use afterwards. run: whose folder the loop would write to; nothing is written. clock: in seconds.
    heed: called before each pass of a network, which it stops by raising.
    """

    method: Method
    student: Student
    sample: Batch
    run: RunFolder
    options: TrainOptions
    rows: int
    pieces: int = 1
    perceptual: Perceptual | None = None
    clock: Callable[[], float] = time.perf_counter
    heed: Callable[[], None] = lambda: None

    def costs(self) -> list[StageCost]:
        """Each stage's."""
        counted = _Counted(self.student, heed=self.heed)
        return [
            StageCost(
                stage=stage,
                iteration=self._timed(counted, number, iterate, at=_last(stage)),
                leading=self._timed(counted, number, iterate, at=0) if stage.lead else None,
                measuring=self._measuring(number) if stage.teacher_sigmas is not None else 0.0,
            )
            for number, (stage, iterate) in enumerate(self._stages(cast(Student, counted)))
        ]

    def through(self) -> None:
        """Two iterations of the first two stages: the second iteration holds what the first one made, an optimiser's moments say.

        From the second on stages are alike: their teacher was a student.
        """
        counted = _Counted(self.student, heed=self.heed)
        for stage, iterate in itertools.islice(self._stages(cast(Student, counted)), 2):
            for _ in range(2):
                iterate(_last(stage))

    def _timed(self, counted: _Counted, number: int, iterate: Callable[[int], None], *, at: int) -> Iteration:
        """Of one and the same iteration of the stage of that number, corrected by what it draws more or less than the mean."""
        once = functools.partial(iterate, at)
        once()
        counted.drawn = counted.learning = 0
        found = [self._seconds_of(once)]
        drawn, learning = (count / self._batch_size for count in (counted.drawn, counted.learning))
        while len(found) < LEAST_TIMED or (len(found) < MOST_TIMED and sum(found) < ENOUGH_SECONDS):
            found.append(self._seconds_of(once))
        usual = self._usually_drawn(number, at=at)
        seconds = statistics.median(found)
        if usual != drawn:
            seconds += (usual - drawn) * self.pieces * self._seconds_of_a_forward(self.rows)
        return Iteration(seconds=seconds, forwards=usual + learning)

    def _usually_drawn(self, stage: int, *, at: int) -> float:
        """Forwards without gradient for one sample, in the mean of many such iterations, counted on networks that do nothing."""
        counted = _Nothing()
        plans = self.method.companions(stage=stage)
        leads = at < self.method.stages()[stage].lead
        for number in range(DRAWS):
            lesson = Lesson(
                batch=self.sample,
                stage=stage,
                iteration=at,
                teacher=counted,
                student=counted,
                generator=torch.Generator().manual_seed(number),
                companions={plan.name: counted for plan in plans},
            )
            lesson = dataclasses.replace(lesson, examples=self.method.examples(lesson))
            for plan in plans:
                for _ in range(plan.updates):
                    self.method.companion_target(plan.name, lesson)
            if not leads:
                self.method.target(lesson)
        return counted.rows / DRAWS

    def _measuring(self, stage: int) -> float:
        """Seconds, from the forwards of the networks."""
        counted = _Nothing()
        compared(self.method, cast(Student, _Pair(counted, counted)), self.sample, stage=stage, at_once=1)
        rows = min(SAMPLES, self.rows)
        return -(-SAMPLES // rows) * counted.rows * self._seconds_of_a_forward(rows)

    def _seconds_of_a_forward(self, rows: int) -> float:
        """Without gradient."""
        one = self._data.batch(rows, generator=torch.Generator().manual_seed(0))
        sigma = one.x0.new_ones(rows)

        def forward() -> None:
            self.heed()
            self.student.teacher(one.x0, sigma, **one.condition)

        forward()
        return statistics.median(self._seconds_of(forward) for _ in range(LEAST_TIMED))

    def _seconds_of(self, work: Callable[[], object]) -> float:
        return seconds_of(work, self._device, clock=self.clock)

    def _stages(self, student: Student) -> Iterator[tuple[Stage, Callable[[int], None]]]:
        options = dataclasses.replace(
            self.options, batch_size=self._batch_size, accumulation=self.pieces, warmup=0, caption_dropout=0.0
        )
        return rehearsal(self.run, self.method, student, self._data, options=options, perceptual=self.perceptual)

    @property
    def _batch_size(self) -> int:
        return self.rows * self.pieces

    @property
    def _data(self) -> TensorData:
        one = self.sample
        return TensorData(x0=one.x0, condition=one.condition, unconditional=one.unconditional, noise=one.noise)

    @property
    def _device(self) -> torch.device:
        return self.sample.x0.device


def _last(stage: Stage) -> int:
    """The iteration in which all takes part that ever does: some of it begins later than the others."""
    return stage.iterations - 1


class _Nothing:
    """A network that says what it is given, and notes how many samples it is asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        self.rows += len(x)
        return x


class _Pair(NamedTuple):
    """As much of a student as a comparison asks for."""

    teacher: Denoiser
    denoiser: Denoiser


class _Counted:
    """A student, or a companion's network, that notes how many samples are asked of it: drawn without gradient, learning with.

    What is asked of its companions is noted here too. heed: called before each pass.
    """

    def __init__(self, network: Any, *, by: _Counted | None = None, heed: Callable[[], None] = lambda: None) -> None:
        self._network, self._by, self._heed = network, by or self, heed
        self.drawn = self.learning = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    @property
    def teacher(self) -> Denoiser:
        return self._noting(self._network.teacher, learns=False)

    @property
    def denoiser(self) -> Denoiser:
        return self._noting(self._network.denoiser, learns=True)

    def companion(self, **options: Any) -> _Counted:
        return _Counted(self._network.companion(**options), by=self)

    def critic(self, *sample: Batch, **options: Any) -> _CountedCritic:
        return _CountedCritic(self._network.critic(*sample, **options), by=self)

    def _noting(self, denoiser: Denoiser, *, learns: bool) -> Denoiser:
        def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
            self._by._heed()
            if learns and torch.is_grad_enabled():
                self._by.learning += len(x)
            else:
                self._by.drawn += len(x)
            return denoiser(x, sigma, **condition)

        return denoise


class _CountedCritic(_Counted):
    """Sees what was drawn, and the picture twice."""

    @property
    def gradient(self) -> Denoiser:
        return self._noting(self._network.gradient, learns=False)

    def loss(self, target: Target) -> tuple[Tensor, Tensor]:
        self._by.learning += 3 * len(target.x_t)
        return cast(tuple[Tensor, Tensor], self._network.loss(target))


def seconds_of(
    work: Callable[[], object], device: torch.device, *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Until the device has done all that was asked of it."""
    accelerator.synchronise(device)
    began = clock()
    work()
    accelerator.synchronise(device)
    return clock() - began


def most_held(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that were held at once in the work, beyond those held before.

    As a GPU's allocator counts them; elsewhere as the tensors are made and let go of, without what a kernel needs inside.
    """
    if accelerator.counts_memory(device):
        accelerator.forget_most_held(device)
        before = accelerator.held(device)
        work()
        return (accelerator.most_held(device) or before) - before
    with _Held() as held:
        work()
    return held.most


class _Held(TorchDispatchMode):
    """Counts the memory of tensors that are made inside, as long as somebody holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note((*args, *kwargs.values()), made=False)
        result = func(*args, **kwargs)
        self._note((result,), made=True)
        return result

    def _note(self, values: Sequence[Any], *, made: bool) -> None:
        """Once for each storage, which views share. One that is not made here is known, and counts nothing."""
        for value in values:
            if isinstance(value, list | tuple):
                self._note(value, made=made)
            elif type(value) in (Tensor, torch.nn.Parameter):  # others stand for tensors, which come by themselves
                self._know(value.untyped_storage(), made=made)
            elif isinstance(value, torch.UntypedStorage):  # that a tensor is to be put on
                self._know(value, made=made)

    def _know(self, storage: torch.UntypedStorage, *, made: bool) -> None:
        if storage._cdata not in self._known:
            self._count(storage.nbytes() if made else 0, storage, storage._cdata)

    def _count(self, size: int, storage: torch.UntypedStorage, key: int) -> None:
        def gone(_: object) -> None:
            del self._known[key]
            self._now -= size

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.most = max(self.most, self._now)
