"""One distillation from start to file: what identifies it, whether to go on, train, export."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .data import TensorData
from .export import read_student, write_student
from .files import tensors_sha256
from .loop import Observer, TrainOptions, train
from .method import Method
from .run_folder import RunFolder
from .student import Student


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """A run folder and everything that must be equal for the run to be the same run."""

    run: RunFolder
    method: Method
    data: TensorData
    options: TrainOptions
    teacher_sha256: str
    prediction_type: str

    def description(self) -> dict[str, Any]:
        """run.json: "run" identifies it and is compared on resume; "made_with" is for the reader."""
        options = dataclasses.asdict(self.options)
        how_often = {key: options.pop(key) for key in ("log_every", "checkpoint_every")}
        return {
            "run": {
                "format": 1,
                "method": self.method.name,
                **{f"method.{key}": value for key, value in self.method.options().items()},
                **{f"training.{key}": value for key, value in options.items()},
                "teacher_sha256": self.teacher_sha256,
                "data_sha256": tensors_sha256(self.data.tensors()),
                "prediction_type": self.prediction_type,
                "noise_family": self.method.family.value,
            },
            "made_with": {
                "torch": torch.__version__,
                "device": str(self.data.x0.device),
                "platform": platform.platform(),
                **how_often,
            },
        }

    def execute(
        self, student: Student, *, weights: Callable[[], Mapping[str, Tensor]], observers: Sequence[Observer] = ()
    ) -> bool:
        """Trains and exports; False when the run was finished before and nothing was done.

        weights: reads the student's weights for the export, under the names that the host's loader knows. The caller
        holds the run's lock. ValueError when the folder holds another run or a damaged checkpoint.
        """
        self.run.claim(self.description())
        if self.run.finished:
            return False
        train(self.run, self.method, student, self.data, options=self.options, observers=observers)
        stages = self.method.stages()
        recipe = self.method.recipe(stage=len(stages) - 1, prediction_type=self.prediction_type)
        write_student(
            self.run.student_file,
            weights(),
            recipe=recipe,
            teacher_sha256=self.teacher_sha256,
            title=self.run.name,
            provenance={"seed": str(self.options.seed), "iterations": str(sum(stage.iterations for stage in stages))},
        )
        return True

    def result(self) -> dict[str, Tensor]:
        """The exported student's weights, from the file that users will load."""
        return read_student(self.run.student_file)[0]
