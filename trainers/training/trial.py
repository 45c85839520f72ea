"""What a run will cost, found before it begins: iterations of each stage, tried on a student that is thrown away."""

from __future__ import annotations

import dataclasses
import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...samplers.noise import Denoiser
from ..data.batches import Batch, TensorData
from ..objective.method import Method, Stage
from ..objective.perceptual import Perceptual
from ..storage.run_folder import RunFolder
from ..students.student import Student
from .loop import rehearsal
from .options import TrainOptions

TIMED = 2
"""Iterations that are timed, after one that is not; the quicker counts, since what disturbs a machine only delays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """Of one iteration of a stage on `rows` samples. forwards: of both networks, for one sample."""

    stage: Stage
    rows: int
    seconds: float
    forwards: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A run on copies of one sample (1, ...), which pass the networks in one piece. Its student is of no use afterwards.

    run: whose folder the loop would write to; nothing is written.
    """

    method: Method
    student: Student
    sample: Batch
    run: RunFolder
    options: TrainOptions
    perceptual: Perceptual | None = None

    def costs(self, *, rows: int) -> list[StageCost]:
        """Each stage's, on batches of so many rows."""
        counted = _Counted(self.student)
        found = []
        for stage, iteration in self._stages(cast(Student, counted), rows=rows):
            before = counted.rows
            iteration()
            forwards = (counted.rows - before) / rows
            seconds = min(seconds_of(iteration, self._device) for _ in range(TIMED))
            found.append(StageCost(stage=stage, rows=rows, seconds=seconds, forwards=forwards))
        return found

    def held(self, *, rows: int) -> int:
        """The most bytes that an iteration holds beyond what was held before, in the stage that holds most.

        From the second on stages are alike: their teacher was a student.
        """
        stages = self._stages(self.student, rows=rows)
        return max(most_held(iteration, self._device) for _, iteration in itertools.islice(stages, 2))

    def _stages(self, student: Student, *, rows: int) -> Iterator[tuple[Stage, Callable[[], None]]]:
        options = dataclasses.replace(self.options, batch_size=rows, accumulation=1, warmup=0, caption_dropout=0.0)
        one = self.sample
        data = TensorData(x0=one.x0, condition=one.condition, unconditional=one.unconditional, noise=one.noise)
        return rehearsal(self.run, self.method, student, data, options=options, perceptual=self.perceptual)

    @property
    def _device(self) -> torch.device:
        return self.sample.x0.device


class _Counted:
    """A student that notes how many samples its networks are asked for."""

    def __init__(self, student: Student) -> None:
        self._student, self.rows = student, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    @property
    def teacher(self) -> Denoiser:
        return self._noting(self._student.teacher)

    @property
    def denoiser(self) -> Denoiser:
        return self._noting(self._student.denoiser)

    def _noting(self, denoiser: Denoiser) -> Denoiser:
        def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
            self.rows += len(x)
            return denoiser(x, sigma, **condition)

        return denoise


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Until the device has done all that was asked of it."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def most_held(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that were held at once in the work, beyond those held before.

    As a GPU's allocator counts them; elsewhere as the tensors are made and let go of, without what a kernel needs inside.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
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
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._count(storage.nbytes() if made else 0, storage, storage._cdata)

    def _count(self, size: int, storage: torch.UntypedStorage, key: int) -> None:
        def gone(_: object) -> None:
            del self._known[key]
            self._now -= size

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.most = max(self.most, self._now)
