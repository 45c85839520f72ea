"""One case of the benchmark of plans, alone in a process: what the plan of a run says, and what the run then takes."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...trainers.data.batches import TensorData
from ...trainers.methods.consistency import ConsistencyOptions
from ...trainers.methods.consistency_training import ConsistencyTrainingOptions
from ...trainers.methods.distribution_matching import DistributionMatchingOptions
from ...trainers.methods.guidance import GuidanceOptions
from ...trainers.methods.progressive import ProgressiveOptions
from ...trainers.objective.method import MethodOptions
from ...trainers.objective.weighting import Weighting
from ...trainers.storage.run_folder import RunFolder
from ...trainers.storage.stored import in_memory
from ...trainers.students.adapters import LoRALayers, LoRAOptions
from ...trainers.training.distillation import Distillation
from ...trainers.training.optimisation.options import TrainOptions
from ...trainers.training.plan import Plan
from ...trainers.training.stages import SAMPLES
from ..architectures.pictures import PICTURES
from ..architectures.setup import Architecture
from ..architectures.subject import Subject
from ..training.parts import Peak, in_a_process

Figures = dict[str, Any]
_FEW = {"learning_rate": 1e-4, "guidance_scale": 2.0}
METHODS: dict[str, Callable[[int], MethodOptions]] = {
    "progressive": lambda n: ProgressiveOptions(
        start_steps=16, target_steps=4, iterations=n, weighting=Weighting.TRUNCATED_SNR, **_FEW
    ),
    "guidance": lambda n: GuidanceOptions(steps=8, iterations=2 * n, **_FEW),
    "consistency": lambda n: ConsistencyOptions(steps=4, iterations=2 * n, **_FEW),
    "consistency training": lambda n: ConsistencyTrainingOptions(steps=2, iterations=2 * n, learning_rate=1e-4),
    "distribution matching": lambda n: DistributionMatchingOptions(
        steps=4, iterations=2 * n, companion_first=2, **_FEW
    ),
}
"""By name, of so many iterations; progressive in two halvings."""
SIDE = 16
"""Of the latents of tiny shapes."""
FEW = 3
"""Iterations of runs whose memory is measured."""
DIGITS = "digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """model: digits, or one of the tables of architectures. iterations: about half of the run's.

    batch, large: pictures in one, of runs that are timed and of those whose memory is measured.
    """

    model: str
    method: str
    student: str
    iterations: int
    batch: int
    large: int
    accumulation: int = 1
    rounds: int = 3

    @property
    def name(self) -> str:
        return f"{self.model}, {self.method}, {self.student}"

    def written(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @property
    def options(self) -> TrainOptions:
        return TrainOptions(batch_size=self.batch, accumulation=self.accumulation)


class Tried:
    """A case made: its MODEL, its data, and what plans and trains it."""

    def __init__(self, case: Case) -> None:
        from ...commands.embedded import import_host

        import_host()
        from ...nodes.distillation import planning, running
        from ...nodes.distillation.learning import students

        self._case, self._planning, self._running = case, planning, running
        with torch.inference_mode(False):
            self.model, self.data = _digits() if case.model == DIGITS else _tiny(case.model)
        self._student = (
            students.FullWeights()
            if case.student == "full"
            else LoRAOptions(rank=16, layers=LoRALayers.LINEAR_AND_CONV)
        )
        self._method = running.method_on(self.model, METHODS[case.method](case.iterations), empty_prompt=True)

    def planned(self) -> Plan:
        return self._planning.planned(self._trial, self._case.options)

    def timed(self) -> float:
        """Seconds of the training, as a plan has them."""
        rows = self._case.batch // self._case.accumulation
        return sum(cost.seconds for cost in self._trial.costs(self._case.options, rows=rows))

    @property
    def _trial(self) -> Any:
        return self._planning.Trial(
            model=self.model,
            run=RunFolder(Path("nothing is written"), "plan"),
            method=self._method,
            student=self._student,
            sample=self.data.first(1),
            clock=self._clock,
        )

    def trained(self) -> float:
        """Seconds of its training, from the first iteration to the student's file."""
        began = 0.0

        def show(_: object) -> Callable[[object], None]:
            nonlocal began
            began = self._clock()
            return lambda metrics: None

        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            models = self._running.host.models
            distillation = Distillation(
                run=RunFolder(Path(folder), "run"),
                method=self._method,
                data=self.data,
                options=self._case.options,
                teacher_sha256="0" * 64,
                prediction_type=models.prediction_type(models.model_sampling_of(self.model)),
            )
            with distillation.run.locked():
                self._running.execute(distillation, self._student, model=self.model, vae=None, show=show)
        return self._clock() - began

    @property
    def _clock(self) -> Callable[[], float]:
        """Of this process alone on a CPU, which does other work besides."""
        return time.process_time if self.model.load_device.type == "cpu" else time.perf_counter


def _digits() -> tuple[Any, TensorData]:
    from ...nodes.demo import digits
    from ...nodes.distillation.data.data_in_graph import data_in_graph

    model, *_ = digits.DemoTeacher().load()
    empty = digits.DigitPrompt().encode("")[0]
    return model, data_in_graph(model, *digits.DigitsData().load(), empty, dropout=0.0).data


def _tiny(name: str) -> tuple[Any, TensorData]:
    architecture: Architecture = PICTURES[name]
    larger = dataclasses.replace(architecture, latent=(architecture.latent[0], SIDE, SIDE))
    subject = Subject(larger)
    data = subject.data()  # of two samples: as many as a stage's comparison draws
    return subject.model, dataclasses.replace(data, x0=torch.cat([in_memory(data.x0)] * (SAMPLES // len(data.x0))))


def times(case: Case) -> Figures:
    """(the plan's seconds, the run's), one after the other so that both see the same machine."""
    tried = Tried(case)
    return {"pairs": [(tried.timed(), tried.trained()) for _ in range(case.rounds)]}


def memory(case: Case) -> Figures:
    """What the plan says that the run holds beside its MODEL, and by how much the process then grew.

    Of a few iterations, on batches that are large where the process's own accounting, in pages, counts beside little.
    """
    tried = Tried(dataclasses.replace(case, iterations=FEW, batch=case.large))
    tried.trained()  # once, for what a process makes on its first time and keeps
    planned = tried.planned()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    peak = Peak(tried.model.load_device)
    tried.trained()
    return {"planned": planned.held, "held": peak.bytes()}


PARTS = {"times": times, "memory": memory}


def alone(part: str, case: Case) -> Figures:
    """One part of a case in a process of its own."""
    return in_a_process(__spec__.name, [part, case.written()], tame=part == "memory")


def main() -> None:
    part, case = json.loads(sys.argv[1])
    print(json.dumps(PARTS[part](Case(**case))))


if __name__ == "__main__":
    main()
