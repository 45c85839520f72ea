"""One distillation from start to file: what identifies it, whether to go on, train, export."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .data import TensorData
from .export import FULL_WEIGHTS, LORA, read_student, write_student
from .files import tensors_sha256
from .loop import Observer, train
from .method import Method
from .options import TrainOptions
from .out_of_memory import naming_what_to_lower
from .run_folder import RunFolder
from .student import Student, probe_writes_in_place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """A run folder and everything that must be equal for the run to be the same run.

    student: what of the model learns, as JSON values.
    """

    run: RunFolder
    method: Method
    data: TensorData
    options: TrainOptions
    teacher_sha256: str
    prediction_type: str
    student: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"kind": FULL_WEIGHTS})

    def description(self) -> dict[str, Any]:
        """run.json: "run" identifies it and is compared on resume; "made_with" is for the reader."""
        options = dataclasses.asdict(self.options)
        # gradient_checkpointing too: who runs out of memory may switch it on and go on with the same run
        free = {key: options.pop(key) for key in ("log_every", "checkpoint_every", "gradient_checkpointing")}
        return {
            "run": {
                "format": 1,
                "method": self.method.name,
                **{f"method.{key}": value for key, value in self.method.options().items()},
                **{f"training.{key}": value for key, value in options.items()},
                **{f"student.{key}": value for key, value in self.student.items()},
                "teacher_sha256": self.teacher_sha256,
                "data_sha256": self._data_sha256,
                "prediction_type": self.prediction_type,
                "noise_family": self.method.family.value,
            },
            "made_with": {
                "torch": torch.__version__,
                "device": str(self.data.x0.device),
                "platform": platform.platform(),
                **free,
            },
        }

    @functools.cached_property
    def _data_sha256(self) -> str:
        """Once, however often the run is asked what it is: the data may be large."""
        return tensors_sha256(self.data.tensors())

    def finished(self) -> bool:
        """Whether there is nothing to do. Makes the folder this run's; ValueError when it holds another."""
        self.run.claim(self.description())
        return self.run.finished

    def execute(self, student: Student, *, observers: Sequence[Observer] = ()) -> bool:
        """Trains and exports; False when the run was finished before and nothing was done.

        The caller holds the run's lock. ValueError when the folder holds another run or a damaged checkpoint. OutOfMemory,
        naming what to lower, when the device's memory does not suffice.
        """
        if self.finished():
            return False
        with naming_what_to_lower(self.options, student=self.student):
            student.writes_in_place = probe_writes_in_place(student, self.data.take(torch.zeros(1, dtype=torch.long)))
            train(self.run, self.method, student, self.data, options=self.options, observers=observers)
        stages = self.method.stages()
        recipe = self.method.recipe(stage=len(stages) - 1, prediction_type=self.prediction_type)
        write_student(
            self.run.student_file,
            student.exported(),
            kind=student.kind,
            recipe=recipe,
            teacher_sha256=self.teacher_sha256,
            title=self.run.name,
            provenance=self._provenance(),
        )
        return True

    def _provenance(self) -> dict[str, str]:
        iterations = sum(stage.iterations for stage in self.method.stages())
        facts = {"fewstep.seed": str(self.options.seed), "fewstep.iterations": str(iterations)}
        if self.student["kind"] != LORA:
            return facts
        rank, alpha = str(self.student["rank"]), str(self.student["alpha"])
        return {**facts, "ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}

    def result(self) -> dict[str, Tensor]:
        """The exported student's tensors, from the file that users will load; see read_student."""
        return read_student(self.run.student_file)[0]
