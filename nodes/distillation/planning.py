"""What a run on a MODEL will take, tried on the MODEL itself, and how its batch passes the networks so that it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...trainers.data.batches import Batch
from ...trainers.objective.method import Method
from ...trainers.objective.perceptual import Perceptual
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import probe_writes_in_place
from ...trainers.training.options import TrainOptions
from ...trainers.training.plan import Needs, Plan
from ...trainers.training.trial import Rehearsal, StageCost
from .. import host
from . import running, students

ENOUGH_AT_ONCE = 4
"""Pictures at a time from which on a plan does without gradient checkpointing, which costs time."""
_TRIALS = 5
"""At most: with one and two samples, with and without gradient checkpointing, and as the run is going to be."""
LEFT_ALONE = 0.1
"""Of the memory that is free: for what a trial on copies of one sample does not see."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A run as far as it is chosen. sample: one of its samples, or what is of the same shape (1, ...)."""

    model: Any
    run: RunFolder
    method: Method
    student: students.StudentOptions
    sample: Batch
    perceptual: Perceptual | None = None
    progress: Any = dataclasses.field(default_factory=lambda: host.signals.progress_bar(_TRIALS))

    def costs(self, options: TrainOptions, *, rows: int) -> list[StageCost]:
        """Each stage's. The MODEL is afterwards as it was."""
        with self._rehearsal(options) as rehearsal:
            return rehearsal.costs(rows=rows)

    def needs(self, options: TrainOptions) -> tuple[Needs, float]:
        """(of the stage that holds most, bytes that are free)."""
        with self._rehearsal(options) as rehearsal:
            free = (1.0 - LEFT_ALONE) * host.training.free_beside(self.model)
            one = rehearsal.held(rows=1)
        with self._rehearsal(options) as rehearsal:
            return Needs(one=one, two=rehearsal.held(rows=2)), free

    @contextmanager
    def _rehearsal(self, options: TrainOptions) -> Iterator[Rehearsal]:
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
                perceptual=self.perceptual,
            )
        self.progress.update(1)


@host.training.memory_given_back()
def fitted(
    trial: Trial, options: TrainOptions, *, room: float | None = None, preparing: Sequence[tuple[str, float]] = ()
) -> tuple[TrainOptions, Plan]:
    """The options with accumulation and gradient checkpointing so that the run fits, and what it will take then.

    room: bytes beside the MODEL's weights; None for what is free. ValueError, saying what would need less, where not even one
    sample fits with checkpointing.
    """
    for checkpointing in (False, True):
        options = dataclasses.replace(options, gradient_checkpointing=checkpointing)
        needs, free = trial.needs(options)
        allowed = free if room is None else room
        rows = needs.most_rows(allowed, batch_size=options.batch_size)
        if rows >= min(ENOUGH_AT_ONCE, options.batch_size):
            break
    if not rows:
        raise ValueError(_too_large(trial.student, needs, allowed))
    options = dataclasses.replace(options, accumulation=options.batch_size // rows)
    return options, planned(trial, options, needs=needs, room=allowed, preparing=preparing)


def planned(
    trial: Trial, options: TrainOptions, *, needs: Needs, room: float, preparing: Sequence[tuple[str, float]] = ()
) -> Plan:
    """With the options as they are. Where what passes together does not fit, its time is that of one sample after another."""
    rows = options.batch_size // options.accumulation
    costs = trial.costs(options, rows=rows if needs.at(rows) <= room else 1)
    return Plan(costs=costs, options=options, needs=needs, room=room, preparing=preparing)


def _too_large(student: students.StudentOptions, needs: Needs, room: float) -> str:
    smaller = "train a LoRA" if isinstance(student, students.FullWeights) else "lower the LoRA's rank"
    return (
        f"one picture at a time, with gradient checkpointing, wants {needs.one / 1e9:.2f} GB beside the model, and "
        f"{max(room, 0.0) / 1e9:.2f} GB are free. Take smaller pictures, {smaller}, or load the model in fewer bits (fp8)."
    )
