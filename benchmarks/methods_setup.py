"""One training of each method of the methods benchmark: what it is given, and how its student is scored."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..trainers.measures.digits import training_data
from ..trainers.methods import read_method
from ..trainers.storage.export import read_student
from ..trainers.storage.run_folder import RunFolder
from ..trainers.training.distillation import Distillation
from ..trainers.training.options import TrainOptions
from .progressive_setup import TEACHER_PREDICTION, Bench

SCALE = 1.5
"""Of guidance, as in the benchmark of progressive distillation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """method, options: as run.json has them. steps: at which its one student is scored."""

    label: str
    method: str
    options: dict[str, Any]
    steps: tuple[int, ...]
    batch_size: int = 64
    ema_decay: float = 0.0

    def settings(self) -> dict[str, Any]:
        """What makes its figures what they are, as JSON values."""
        return {**dataclasses.asdict(self), "steps": list(self.steps)}


_FEW = {"learning_rate": 1e-3, "distance": "squared", "steps": 4}
_GUIDED = {**_FEW, "guidance_scale": SCALE, "weighting": "truncated_snr"}
TRIALS = (
    Trial(
        label="guidance-distilled",
        method="guidance_distillation",
        options={
            "guidance_scale": SCALE,
            "iterations": 300,
            "learning_rate": 5e-4,
            "steps": 64,
            "weighting": "truncated_snr",
        },
        steps=(64, 32, 16, 8, 4),
    ),
    Trial(
        label="LCD",
        method="consistency_distillation",
        options={**_GUIDED, "iterations": 3000, "levels": 16},
        steps=(4, 2, 1),
    ),
    Trial(
        label="CD",
        method="consistency_distillation",
        options={
            **_GUIDED,
            "iterations": 3200,
            "levels": 16,
            "solver": "heun",
            "target_decay": 0.95,
        },
        steps=(4, 2, 1),
    ),
    Trial(
        label="CT",
        method="consistency_training",
        options={
            **_FEW,
            "iterations": 2000,
            "first_levels": 10,
            "last_levels": 40,
            "level_choice": "uniform",
            "target_decay": 0.9,
        },
        steps=(2, 1),
    ),
    Trial(
        label="iCT",
        method="consistency_training",
        options={**_FEW, "iterations": 2000, "first_levels": 10, "last_levels": 40, "distance": "pseudo_huber"},
        steps=(2, 1),
    ),
)


class MethodsBench(Bench):
    """The teacher, the data and the judge, for any method."""

    def trained(self, trial: Trial, *, seed: int) -> dict[str, Any]:
        """Trains a run and scores its student, from its file, at each of the trial's step counts, with seconds of training."""
        chosen = read_method(trial.method, trial.options)
        method = chosen.on(self._kind(TEACHER_PREDICTION))
        training = TrainOptions(
            seed=seed, batch_size=trial.batch_size, ema_decay=trial.ema_decay, checkpoint_every=10**6
        )
        seconds = [0.0]
        with tempfile.TemporaryDirectory() as folder:
            distillation = Distillation(
                run=RunFolder(Path(folder), "run"),
                method=method,
                data=training_data(unconditional=self._empty),
                options=training,
                teacher_sha256="0" * 64,
                prediction_type=TEACHER_PREDICTION,
            )
            with distillation.run.locked():
                distillation.execute(
                    self._student(TEACHER_PREDICTION, None), observers=[lambda metrics: seconds.append(metrics.seconds)]
                )
            tensors, *_ = read_student(distillation.run.student_file)
        network = self._copy(self._model).requires_grad_(False)
        network.diffusion_model.load_state_dict(tensors)
        denoiser, scores = self._read(network), []
        for steps in trial.steps:
            sigmas = chosen.schedule(steps, table=self._table)
            with torch.no_grad():
                scores.append(self._score(trial.label, denoiser, sigmas, nfe=steps, gamma=chosen.gamma))
        return {"scores": [dataclasses.asdict(score) for score in scores], "seconds": seconds[-1]}
