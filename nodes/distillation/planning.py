"""What a run on a MODEL will take, tried on the MODEL itself, and how its batch passes the networks so that it fits."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...trainers.data.batches import Batch
from ...trainers.objective.method import Method
from ...trainers.objective.perceptual import Perceptual
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import probe_writes_in_place
from ...trainers.training.optimisation.options import TrainOptions
from ...trainers.training.out_of_memory import unless_no_memory
from ...trainers.training.plan import Needs, Plan, size
from ...trainers.training.trial import Rehearsal, StageCost, most_held
from .. import host
from . import running
from .learning import students

ENOUGH_AT_ONCE = 4
"""Pictures at a time from which on a plan does without gradient checkpointing, which costs time."""
HELD, TIMED = 2, 5
"""Iterations of a stage, about, in which is found what it holds, and how long it takes."""
LEFT_ALONE = 0.1
"""Of the memory that is free: for what a trial on copies of one sample does not see."""


class Pace:
    """How far trials are, by the samples that pass the networks in them: those that are done, and those that are to come."""

    def __init__(self) -> None:
        self._done = self._ahead = 0

    def ahead(self, samples: int) -> None:
        """So many are to come, as far as is known by now."""
        self._ahead = samples

    @contextmanager
    def of(self, samples: int) -> Iterator[None]:
        """A trial; whoever follows is told when it is over."""
        yield
        self._done, self._ahead = self._done + samples, max(0, self._ahead - samples)
        host.signals.progressed(self._done, self._done + self._ahead)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A run as far as it is chosen. sample: one of its samples, or what is of the same shape (1, ...)."""

    model: Any
    run: RunFolder
    method: Method
    student: students.StudentOptions
    sample: Batch
    perceptual: Perceptual | None = None
    clock: Callable[[], float] = time.perf_counter
    pace: Pace = dataclasses.field(default_factory=Pace)

    def costs(self, options: TrainOptions, *, rows: int) -> list[StageCost]:
        """Each stage's, on whole batches that pass so many rows at a time. The MODEL is afterwards as it was.

        Of several pieces only two are tried: what the second adds, each further one adds.
        """
        pieces = options.batch_size // rows
        with self._rehearsal(options, rows=rows) as rehearsal, self.pace.of(self._timing(rows)):
            one = rehearsal.costs()
        if pieces == 1:
            return one
        with self._rehearsal(options, rows=rows, pieces=2) as rehearsal, self.pace.of(self._timing(2 * rows)):
            return [first.with_pieces(pieces, two=two) for first, two in zip(one, rehearsal.costs(), strict=True)]

    def room(self) -> float:
        """Bytes that are free beside the MODEL on its device."""
        host.training.loaded(self.model)
        return (1.0 - LEFT_ALONE) * host.training.free_beside(self.model)

    def needs(self, options: TrainOptions) -> Needs:
        """Of the stage that holds most, with all that learns; tried with one sample at a time and with two."""
        return Needs({rows: self.held(options, rows=rows) for rows in (1, 2)})

    @host.training.memory_given_back()
    def held(self, options: TrainOptions, *, rows: int) -> float:
        """Bytes beyond the MODEL with so many samples at a time; infinite where they do not fit at all."""

        def run() -> None:
            with self._rehearsal(options, rows=rows) as rehearsal, self.pace.of(self._holding(rows)):
                rehearsal.through()

        found = unless_no_memory(lambda: most_held(run, self.model.load_device))
        return math.inf if found is None else found

    def expect(self, *holding: int, rows: int, batch_size: int) -> None:
        """What is to be tried yet: what so many samples hold, and how long a batch takes that passes so many rows at a time."""
        timing = self._timing(rows) + (self._timing(2 * rows) if rows < batch_size else 0)
        self.pace.ahead(sum(map(self._holding, holding)) + timing)

    def _holding(self, rows: int) -> int:
        return HELD * min(2, len(self.method.stages())) * rows

    def _timing(self, rows: int) -> int:
        return TIMED * len(self.method.stages()) * rows

    @contextmanager
    def _rehearsal(self, options: TrainOptions, *, rows: int, pieces: int = 1) -> Iterator[Rehearsal]:
        host.signals.check_cancelled()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            running.learning(self.model, self.student, method=self.method, options=options) as learning,
        ):
            learning.writes_in_place = probe_writes_in_place(learning, self.sample)
            yield Rehearsal(
                method=self.method,
                student=learning,
                sample=self.sample,
                run=self.run,
                options=options,
                rows=rows,
                pieces=pieces,
                perceptual=self.perceptual,
                clock=self.clock,
                heed=host.signals.check_cancelled,
            )


@host.training.memory_given_back()
def fitted(
    trial: Trial, options: TrainOptions, *, room: float | None = None, preparing: Sequence[tuple[str, float]] = ()
) -> tuple[TrainOptions, Plan]:
    """The options with accumulation and gradient checkpointing so that the run fits, and what it will take then.

    room: bytes beside the MODEL's weights; None for what is free. ValueError, saying what would need less, where not even one
    sample fits with checkpointing.
    """
    free = trial.room()
    allowed = free if room is None else room
    for checkpointing in (False, True):
        options = dataclasses.replace(options, gradient_checkpointing=checkpointing)
        trial.expect(1, 2, options.batch_size, rows=options.batch_size, batch_size=options.batch_size)
        needs, rows = _most_rows(trial, options, allowed=allowed, free=free)
        if rows >= min(ENOUGH_AT_ONCE, options.batch_size):
            break
    if not rows:
        raise ValueError(_too_large(trial.student, needs, allowed, options=options))
    options = dataclasses.replace(options, accumulation=options.batch_size // rows)
    return options, _planned(trial, options, needs=needs, room=allowed, free=free, preparing=preparing)


def _most_rows(trial: Trial, options: TrainOptions, *, allowed: float, free: float) -> tuple[Needs, int]:
    """(what was tried, the most samples at a time that fit into what is allowed): tried themselves, if there is room for that."""
    needs = trial.needs(options)
    while True:
        rows = needs.most_rows(allowed, batch_size=options.batch_size)
        if rows in (0, *needs.tried) or needs.at(rows) > free:
            return needs, rows
        needs = needs.with_tried(rows, trial.held(options, rows=rows))


def planned(trial: Trial, options: TrainOptions) -> Plan:
    """With the options as they are. ValueError, saying what would need less, where there is no room for one sample here."""
    rows = options.batch_size // options.accumulation
    trial.expect(1, 2, rows, rows=rows, batch_size=options.batch_size)
    free, needs = trial.room(), trial.needs(options)
    if math.isinf(needs.at(1)):  # how long one takes cannot be tried either
        raise ValueError(_too_large(trial.student, needs, free, options=options))
    if rows not in needs.tried and needs.at(rows) <= free:
        needs = needs.with_tried(rows, trial.held(options, rows=rows))
    return _planned(trial, options, needs=needs, room=free, free=free)


def _planned(
    trial: Trial,
    options: TrainOptions,
    *,
    needs: Needs,
    room: float,
    free: float,
    preparing: Sequence[tuple[str, float]] = (),
) -> Plan:
    """Where what passes together is more than is free here, the time is that of one sample after another."""
    rows = options.batch_size // options.accumulation
    rows = rows if needs.at(rows) <= free else 1
    trial.expect(rows=rows, batch_size=options.batch_size)
    costs = trial.costs(options, rows=rows)
    done = _done(trial)
    return Plan(costs=costs, options=options, needs=needs, room=room, preparing=preparing, done=done)


def _done(trial: Trial) -> int:
    """Iterations of the run that are saved, of one that has lost its checkpoints those of the stages that it has."""
    if trial.run.saved is not None:
        return trial.run.saved
    there = itertools.takewhile(lambda stage: trial.run.stage_file(stage.steps).exists(), trial.method.stages())
    return sum(stage.iterations for stage in there)


def _too_large(student: students.StudentOptions, needs: Needs, room: float, *, options: TrainOptions) -> str:
    smaller = "train a LoRA" if isinstance(student, students.FullWeights) else "lower the LoRA's rank"
    one = needs.at(1)
    wanted = "more than there is" if math.isinf(one) else size(one)
    checkpointing = options.gradient_checkpointing
    take = "Take" if checkpointing else "Switch gradient_checkpointing on, take"
    return (
        f"one picture at a time{', with gradient checkpointing,' if checkpointing else ''} wants {wanted} beside the model, and "
        f"{size(room)} are free. {take} smaller pictures, {smaller}, or load the model in fewer bits (fp8)."
    )
