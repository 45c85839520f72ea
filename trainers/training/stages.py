"""What a run keeps of every finished stage: its student, as a file of its own, and how near that comes to its teacher.

A stage begins with its teacher's weights and a new optimiser. So the file of a stage's student is also all that is needed
to go on after that stage: when the checkpoints are gone, or with further halvings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import draw_from_noise
from ...samplers.noise import Denoiser, NoiseFamily
from ..data.batches import Batch, Data
from ..objective.method import Method, Stage
from ..processes.group import Processes
from ..processes.sharding import gathered
from ..storage.export import read_student
from ..storage.files import is_whole
from ..storage.run_folder import RunFolder
from ..students.student import Student
from .optimisation.micro_batches import in_pieces

SAMPLES = 8
"""That are drawn at the end of a stage: for the first samples of the data, from noise that is the same in every run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptStages:
    """The loop tells it, in all processes, where a run stands between two stages.

    export: writes tensors as the student of a stage; called on the first process. at_once: samples that pass a network
    together, at most. heed: called before each pass of a comparison, which it stops by raising.
    """

    run: RunFolder
    method: Method
    student: Student
    data: Data
    processes: Processes
    at_once: int
    export: Callable[[Mapping[str, Tensor], int], None]
    heed: Callable[[], None] = lambda: None

    def ended(self, stage: int) -> None:
        """The stage's result is in the student's weights, and its teacher still teaches."""
        stop = self.processes.agree(self._compare_on_first(stage), signals=False)
        if stop is not None:
            raise stop
        self._keep(self.student.exported(), stage)

    def resumed(self, finished: int) -> None:
        """So many stages are over, and the student of the last teaches: its file is written where it is missing or damaged."""
        if finished and not self.processes.on_first(lambda: is_whole(self._file(finished - 1))):
            self._keep(self.student.exported(teacher=True), finished - 1)

    def load_newest(self) -> int:
        """Makes the newest kept student the one that goes on, and teaches. How many stages are over with it; 0 for none."""
        kept = [number + 1 for number in range(len(self.method.stages())) if self._file(number).exists()]
        finished = max(kept, default=0)
        self.processes.require_same({"the newest": finished}, what="the stages' students, in a folder that all share,")
        if finished:
            self._load(self._file(finished - 1))
            self.student.promote()
        return finished

    def _load(self, file: Path) -> None:
        """ValueError, naming it, for what is no student of this run."""
        tensors, *_ = read_student(file)
        try:
            self.student.load_exported(tensors)
        except ValueError as error:
            raise ValueError(
                f"the run {self.run.name!r} cannot go on from {file.name}, the student of its last finished stage: {error} "
                "Delete it to go on without it."
            ) from error

    def _file(self, stage: int) -> Path:
        return self.run.stage_file(self.method.stages()[stage].steps)

    def _keep(self, tensors: Mapping[str, Tensor], stage: int) -> None:
        whole = gathered(tensors, keep=self.processes.is_first)
        self.processes.on_first(lambda: self.export(whole, stage))

    def _compare_on_first(self, stage: int) -> BaseException | None:
        """Writes the comparison. What went wrong with it, on the first process; the others have nothing that could."""
        try:
            with self.student.first_alone():
                if self.processes.is_first and self.method.stages()[stage].teacher_sigmas is not None:
                    batch = self.data.first(SAMPLES)
                    self.run.keep_comparison(
                        compared(self.method, self.student, batch, stage=stage, at_once=self.at_once, heed=self.heed)
                    )
        except BaseException as error:
            return error
        return None


def compared(
    method: Method,
    student: Student,
    batch: Batch,
    *,
    stage: int,
    at_once: int,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """How far a stage's student lands from its teacher, both sampled from the same noise for the conditions of batch.

    As Stage.compared has it: one that adds noise between its steps is asked for its first jump, to the end. Of an expert on
    its own part of the levels: from the data in noise where that begins below the top, and to where it ends.
    mean_squared_distance: of their latents.
    teacher_mean_square: of the teacher's latents, to measure the distance by.
    """
    trained = method.stages()[stage]
    own, teachers, gamma = trained.compared
    few = functools.partial(few_at_once, batch=batch, at_once=at_once, heed=heed)
    teacher = method.teaching(few(student.teacher), stage=stage, batch=batch)
    drawn, wanted = (
        sampled(denoiser, batch, sigmas, stage=trained, family=method.family, gamma=gamma).cpu().double()
        for denoiser, sigmas in ((few(student.denoiser), own), (teacher, teachers))
    )
    return {
        "stage": trained.name,
        "steps": trained.steps,
        "teacher_steps": len(teachers) - 1,
        "samples": len(batch.x0),
        "mean_squared_distance": float((drawn - wanted).square().mean()),
        "teacher_mean_square": float(wanted.square().mean()),
    }


def sampled(
    denoiser: Denoiser,
    batch: Batch,
    sigmas: Tensor,
    *,
    stage: Stage,
    family: NoiseFamily,
    gamma: float,
) -> Tensor:
    """(B, ...) from the noise of seed 0 for the conditions of batch.

    Of one of two experts from the data in noise, where its part of the levels begins below the top.
    """
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(0)).to(batch.x0)
    return draw_from_noise(
        denoiser,
        noise,
        sigmas,
        batch.condition,
        family=family,
        seed=0,
        gamma=gamma,
        x0=None if stage.from_noise else batch.x0,
    )


def few_at_once(denoiser: Denoiser, *, batch: Batch, at_once: int, heed: Callable[[], None]) -> Denoiser:
    """A network as it answers for the samples of batch, so many at a time as training was found to hold.

    Guidance belongs around it: each sample may have an empty prompt of its own.
    """
    return in_pieces(heeding(denoiser, heed), -(-len(batch.x0) // at_once))


def heeding(denoiser: Denoiser, heed: Callable[[], None]) -> Denoiser:
    """The same denoiser, before each pass of which heed is called."""

    def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        heed()
        return denoiser(x, sigma, **condition)

    return denoise
