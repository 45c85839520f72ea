"""The digits, in this process: the shipped teacher, its distillation in a run folder, and the judging of what it drew."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.few_step import draw_from_noise
from ..samplers.noise import Denoiser, NoiseFamily, guided
from ..samplers.schedules import trailing_sigmas
from ..trainers.data import TensorData
from ..trainers.digits import DIGITS, load_pictures, to_latents, to_pictures
from ..trainers.distillation import Distillation
from ..trainers.evaluate import Score
from ..trainers.export import read_student
from ..trainers.loop import Metrics
from ..trainers.method import Stage
from ..trainers.options import TrainOptions
from ..trainers.run_folder import RunFolder
from ..trainers.student import FullWeightsStudent
from ..trainers.targets.progressive import Progressive, ProgressiveOptions
from ..trainers.weighting import Weighting

FAMILY = NoiseFamily.VARIANCE_EXPLODING
AS_TEACHER = "as_teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one distillation down to a single step. last_iterations: of the halvings to 2 steps and to 1."""

    start_steps: int = 64
    iterations: int = 300
    last_iterations: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 64
    guidance_scale: float = 1.5
    ema_decay: float = 0.0
    weighting: Weighting = Weighting.TRUNCATED_SNR
    prediction: str = AS_TEACHER


class _Longer(Progressive):
    """The method with more iterations for the last halvings, which the paper trains twice as long."""

    last_iterations = 0

    def stages(self) -> list[Stage]:
        stages = super().stages()
        return [dataclasses.replace(s, iterations=self.last_iterations) if s.steps <= 2 else s for s in stages]


class Bench:
    """The teacher, the data and the judge. rows: the first pictures of what was drawn, for a grid, of the first seed."""

    def __init__(self, *, guidance_scale: float, pictures: int) -> None:
        from ..commands.embedded import import_host

        import_host()
        from ..nodes import demo, digits_model, host

        self.pictures = pictures
        self._model = digits_model.load_teacher()
        self._table = host.noise_levels(host.model_sampling_of(self._model))
        self._judge = demo.load_judge()
        self._labels = torch.arange(pictures) % DIGITS
        self._noise = torch.randn(pictures, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        self._reference: Tensor | None = None
        self._empty = {"y": torch.zeros(1, DIGITS)}
        self._guidance_scale = guidance_scale
        self.rows: dict[str, Tensor] = {}

    def teacher(self, steps: int) -> Score:
        """By DDIM, guided. The first that is asked for is the reference of PSNR."""
        denoiser = guided(
            as_denoiser(self._model.model), guidance_scale=self._guidance_scale, unconditional=self._empty
        )
        nfe = steps if self._guidance_scale == 1.0 else 2 * steps
        return self._score("teacher", denoiser, trailing_sigmas(steps, table=self._table), nfe=nfe)

    def _score(self, model: str, denoiser: Denoiser, sigmas: Tensor, *, nfe: int) -> Score:
        start, steps = time.perf_counter(), len(sigmas) - 1
        condition = {"y": F.one_hot(self._labels, DIGITS).float()}
        latents = draw_from_noise(denoiser, self._noise, sigmas, condition, family=FAMILY)
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

    def distilled(self, settings: Settings, *, seed: int, folder: Path) -> list[dict[str, Any]]:
        """Trains a run in folder and scores the student of every stage: its score, iterations and seconds of training."""
        method = self._method(settings)
        from ..nodes import host_training

        networks = [host_training.trainable_copy(self._model) for _ in range(2)]
        student = FullWeightsStudent(*networks, as_denoiser=as_denoiser, named_weights=host_training.network_state_dict)
        distillation = Distillation(
            run=RunFolder(folder, "run"),
            method=method,
            data=digits(self._empty),
            options=TrainOptions(
                batch_size=settings.batch_size, seed=seed, ema_decay=settings.ema_decay, checkpoint_every=10**6
            ),
            teacher_sha256="0" * 64,
            prediction_type="v_prediction",
        )
        ends = [0.0]

        def note(metrics: Metrics) -> None:
            if metrics.stage_iteration == metrics.stage_iterations:
                ends.append(metrics.seconds)

        with distillation.run.locked():
            distillation.execute(student, observers=[note])
        seconds = [end - start for start, end in itertools.pairwise(ends)]
        return [
            {"score": self._kept(distillation.run, stage), "iterations": stage.iterations, "seconds": spent}
            for stage, spent in zip(method.stages(), seconds, strict=True)
        ]

    def _method(self, settings: Settings) -> Progressive:
        chosen = {} if settings.prediction == AS_TEACHER else {"student_prediction": settings.prediction}
        options = ProgressiveOptions.read(
            {
                "start_steps": settings.start_steps,
                "target_steps": 1,
                "iterations": settings.iterations,
                "weighting": settings.weighting.value,
                "learning_rate": settings.learning_rate,
                "guidance_scale": settings.guidance_scale,
                **chosen,
            }
        )
        method = _Longer(options, family=FAMILY, table=self._table, unconditional=self._empty)
        method.last_iterations = settings.last_iterations
        return method

    def _kept(self, run: RunFolder, stage: Stage) -> dict[str, Any]:
        """The score of a stage's student, from its file and sampled as that says."""
        from ..nodes import host_training

        tensors, recipe, _ = read_student(run.stage_file(stage.steps))
        network = host_training.trainable_copy(self._model).requires_grad_(False)
        network.diffusion_model.load_state_dict(tensors)
        score = self._score("student", as_denoiser(network), torch.tensor(recipe.sigmas), nfe=recipe.steps)
        return dataclasses.asdict(score)


def digits(empty: dict[str, Tensor]) -> TensorData:
    """The digits as latents, each with its class."""
    pictures, labels = load_pictures()
    condition = {"y": F.one_hot(labels, DIGITS).float()}
    return TensorData(x0=to_latents(pictures), condition=condition, unconditional=empty)


def as_denoiser(network: torch.nn.Module) -> Denoiser:
    """With a placeholder for the text that the host's apply_model wants and this network ignores."""
    from ..nodes import host_training

    denoiser = host_training.as_denoiser(network)
    return lambda x, sigma, **condition: denoiser(x, sigma, c_crossattn=x.new_zeros(len(x), 1, 1), **condition)
