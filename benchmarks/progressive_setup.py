"""The digits, in this process: the shipped teacher, its distillation in a run folder, and the judging of what it drew."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.few_step import draw_from_noise
from ..samplers.noise import Denoiser, NoiseFamily, guided
from ..samplers.schedules import trailing_sigmas
from ..trainers.measures.digits import DIGITS, to_pictures, training_data
from ..trainers.measures.evaluate import Score
from ..trainers.methods.progressive import Progressive, ProgressiveOptions, StudentPrediction
from ..trainers.objective.method import Stage, TeacherKind
from ..trainers.objective.weighting import Weighting
from ..trainers.storage.export import read_student
from ..trainers.storage.run_folder import RunFolder
from ..trainers.students.student import FullWeightsStudent
from ..trainers.students.x0_and_eps import as_before, combining, doubled
from ..trainers.training.distillation import Distillation
from ..trainers.training.loop import Metrics
from ..trainers.training.options import TrainOptions

FAMILY = NoiseFamily.VARIANCE_EXPLODING
TEACHER_PREDICTION = "v_prediction"
RUN = "run"
BOTH = StudentPrediction.X0_AND_EPS.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one distillation, by default down to a single step. last_iterations: of the halvings to 2 steps and to 1.

    conversion_iterations: of the stage that there is where the student predicts otherwise than the teacher.
    """

    start_steps: int = 64
    iterations: int = 300
    last_iterations: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 64
    guidance_scale: float = 1.5
    ema_decay: float = 0.0
    weighting: Weighting = Weighting.TRUNCATED_SNR
    prediction: StudentPrediction = StudentPrediction.AS_TEACHER
    conversion_iterations: int = 0
    merged_steps: int = 2
    target_steps: int = 1

    def written(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "weighting": self.weighting.value, "prediction": self.prediction.value}


class Start(NamedTuple):
    """The teacher of a distillation where that is not the digits teacher: the network's weights, and what it predicts."""

    tensors: dict[str, Tensor]
    prediction: str


class Bench:
    """The teacher, the data and the judge. rows: the first pictures of whatever was drawn first, for a grid."""

    def __init__(self, *, guidance_scale: float, pictures: int) -> None:
        from ..commands.embedded import import_host

        import_host()
        from ..nodes import host
        from ..nodes.demo import digits, digits_model

        self._read, self._copy = digits_model.as_denoiser, host.training.trainable_copy
        self._named_weights = host.training.network_state_dict
        self.pictures = pictures
        self._model = digits_model.load_teacher()
        self._table = host.models.noise_levels(host.models.model_sampling_of(self._model))
        self._judge = digits.load_judge()
        self._labels = torch.arange(pictures) % DIGITS
        self._noise = torch.randn(pictures, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        self._reference: Tensor | None = None
        self._empty = {"y": torch.zeros(1, DIGITS)}
        self._guidance_scale = guidance_scale
        self.rows: dict[str, Tensor] = {}

    def teacher(self, steps: int) -> Score:
        """By DDIM, guided. The first that is asked for is the reference of PSNR."""
        denoiser = guided(self._read(self._model.model), guidance_scale=self._guidance_scale, unconditional=self._empty)
        nfe = steps if self._guidance_scale == 1.0 else 2 * steps
        return self._score("teacher", denoiser, trailing_sigmas(steps, table=self._table), nfe=nfe)

    def _score(self, model: str, denoiser: Denoiser, sigmas: Tensor, *, nfe: int, gamma: float = 0.0) -> Score:
        start, steps = time.perf_counter(), len(sigmas) - 1
        condition = {"y": F.one_hot(self._labels, DIGITS).float()}
        latents = draw_from_noise(denoiser, self._noise, sigmas, condition, family=FAMILY, gamma=gamma)
        seconds, pictures = time.perf_counter() - start, to_pictures(latents)
        score = self._judge.score(
            pictures,
            self._labels,
            reference=self._reference,
            model=model,
            steps=steps,
            nfe=nfe,
            seconds=seconds,
        )
        if self._reference is None:
            self._reference = pictures
        self.rows.setdefault(f"{model}, {steps} steps", pictures[:DIGITS].expand(-1, 3, -1, -1).movedim(1, -1))
        return score

    def distilled(
        self, settings: Settings, *, seed: int, folder: Path, start: Start | None = None
    ) -> list[dict[str, Any]]:
        """Trains a run in folder and scores the student of every stage: its score, iterations and seconds of training."""
        teacher = start.prediction if start else TEACHER_PREDICTION
        method = self._method(settings, teacher)
        distillation = Distillation(
            run=RunFolder(folder, RUN),
            method=method,
            data=training_data(unconditional=self._empty),
            options=TrainOptions(
                batch_size=settings.batch_size, seed=seed, ema_decay=settings.ema_decay, checkpoint_every=10**6
            ),
            teacher_sha256="0" * 64,
            prediction_type=teacher,
        )
        ends = [0.0]

        def note(metrics: Metrics) -> None:
            if metrics.stage_iteration == metrics.stage_iterations:
                ends.append(metrics.seconds)

        with distillation.run.locked():
            distillation.execute(self._student(distillation.student_prediction, start), observers=[note])
        seconds = [end - start for start, end in itertools.pairwise(ends)]
        return [
            {"score": self._kept(distillation.run, stage), "iterations": stage.iterations, "seconds": spent}
            for stage, spent in zip(method.stages(), seconds, strict=True)
        ]

    def converted(self, settings: Settings, *, seed: int) -> tuple[dict[str, Any], Start]:
        """The student of the converting stage alone: as in `distilled`, and as the teacher of further distillations."""
        settings = dataclasses.replace(settings, target_steps=settings.start_steps // 2, iterations=1)
        with tempfile.TemporaryDirectory() as folder:
            first, _ = self.distilled(settings, seed=seed, folder=Path(folder))
            tensors, recipe, _ = read_student(RunFolder(Path(folder), RUN).stage_file(settings.start_steps))
        return first, Start(tensors, recipe.prediction_type)

    def _student(self, prediction: str, start: Start | None) -> FullWeightsStudent:
        networks = [self._network(prediction) for _ in range(2)]
        if start:
            for network in networks:
                network.diffusion_model.load_state_dict(start.tensors)
        first = functools.partial(self._first_teacher, prediction=prediction)
        return FullWeightsStudent(
            *networks,
            as_denoiser=functools.partial(self._denoiser, prediction=prediction),
            named_weights=self._named_weights,
            first_teacher=None if start or prediction == TEACHER_PREDICTION else first,
        )

    def _first_teacher(self, network: Any, *, prediction: str) -> Denoiser:
        if prediction == BOTH:
            return as_before(self._raw(network))
        return self._read(network)

    def _network(self, prediction: str) -> Any:
        """The teacher's, with room for what the student predicts."""
        network = self._copy(self._model)
        if prediction == BOTH:
            network.diffusion_model.out[-1] = doubled(network.diffusion_model.out[-1])
        return network

    def _denoiser(self, network: Any, *, prediction: str) -> Denoiser:
        return combining(self._raw(network)) if prediction == BOTH else self._read(network, prediction=prediction)

    def _raw(self, network: Any) -> Denoiser:
        """The output as it is, which is what an x0-model's is read as."""
        return self._read(network, prediction="x0")

    def _method(self, settings: Settings, teacher: str) -> Progressive:
        options = ProgressiveOptions(
            start_steps=settings.start_steps,
            target_steps=settings.target_steps,
            iterations=settings.iterations,
            weighting=settings.weighting,
            learning_rate=settings.learning_rate,
            guidance_scale=settings.guidance_scale,
            student_prediction=settings.prediction,
            conversion_iterations=settings.conversion_iterations,
            last_stages_iterations=settings.last_iterations,
            merged_steps=settings.merged_steps,
        )
        return options.on(self._kind(teacher))

    def _kind(self, prediction: str) -> TeacherKind:
        """Of a digits teacher that predicts so."""
        return TeacherKind(family=FAMILY, table=self._table, prediction_type=prediction, empty_prompt=True)

    def _kept(self, run: RunFolder, stage: Stage) -> dict[str, Any]:
        """The score of a stage's student, from its file and sampled as that says."""
        tensors, recipe, _ = read_student(run.stage_file(stage.steps))
        network = self._network(recipe.prediction_type).requires_grad_(False)
        network.diffusion_model.load_state_dict(tensors)
        denoiser = self._denoiser(network, prediction=recipe.prediction_type)
        score = self._score("student", denoiser, torch.tensor(recipe.sigmas), nfe=recipe.steps)
        return dataclasses.asdict(score)


def machine() -> dict[str, Any]:
    return {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
