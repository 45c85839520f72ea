"""What a training run shows in the host while it goes on: progress, messages to the browser, previews; and cancel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...trainers.data.batches import Batch
from ...trainers.objective.method import Stage
from ...trainers.runs.watching import preview_file
from ...trainers.storage.export import LORA
from ...trainers.storage.reading import without_nan
from ...trainers.students.student import Student
from ...trainers.training.distillation import Distillation
from ...trainers.training.loop import Metrics
from ...trainers.training.stages import few_at_once, sampled
from .. import host
from ..host.sampling.inputs import Shapes
from .data import preview_pictures, preview_prompts
from .telling import MEASURING, MESSAGES, METRICS, Messages

PREVIEW_PICTURES = 10
PREVIEW_PIXELS = 512


class Show:
    """The observer on the host's side: cancel, progress bar, previews, messages to the browser, stop when asked to."""

    def __init__(self, distillation: Distillation, preview: Preview | None, *, messages: Messages = MESSAGES) -> None:
        self._distillation, self._preview, self._messages = distillation, preview, messages
        self._bar: Any = None

    def __call__(self, metrics: Metrics) -> None:
        host.signals.check_cancelled()
        picture = None
        if self._preview and self._preview.due(metrics):
            picture = ("JPEG", self._preview(metrics), PREVIEW_PIXELS)
        last = metrics.stage_iteration == metrics.stage_iterations
        if metrics.logged or picture or last:
            self._tell(metrics, picture, important=last or picture is not None)
        if stops_here(self._distillation, metrics):
            raise host.signals.Cancelled
        if last and self._distillation.method.stages()[metrics.stage].teacher_sigmas is not None:
            self._messages.begin(MEASURING)

    def _tell(self, metrics: Metrics, picture: Any, *, important: bool) -> None:
        message = {"run": self._distillation.run.name, **without_nan(vars(metrics))}
        if not self._messages.offer(METRICS, message, important=important):
            return
        self._bar = self._bar or host.signals.progress_bar(metrics.iterations)
        self._bar.update_absolute(metrics.iteration, metrics.iterations, picture)


def stops_here(distillation: Distillation, metrics: Metrics) -> bool:
    """Whether somebody asked this run to stop after a checkpoint, and one is due."""
    return metrics.iteration % distillation.options.checkpoint_every == 0 and distillation.run.stop_asked


class Preview:
    """Pictures at fixed noise and equal steps, what teaches this stage above and the student below, kept in the run folder.

    Of the prompts that the run's folder keeps, each from the noise of seed 0, as samplers draw it; else of the first training
    samples, of as many prompts as there are. The teacher is drawn as the student learns from it, see Method.teaching: with its
    guidance, say, once in a stage. The student as the stage would result in it now: its average, where there is one. Of video the
    frame in the middle, of video with sound too.
    """

    def __init__(self, distillation: Distillation, student: Student, *, model: Any, vae: Any) -> None:
        self._distillation, self._student, self._model, self._vae = distillation, student, model, vae
        own = preview_prompts.kept(distillation.run, distillation.data)
        self._prompts = [prompt for prompt, _ in own] or None
        self._samples = [sample for _, sample in own] or [distillation.data.varied(PREVIEW_PICTURES)]
        self._shapes = [host.inputs.shapes_told(sample.condition) for sample in self._samples]
        self._teachers_row: dict[int, Tensor] = {}  # by stage: of the one that it is in

    def due(self, metrics: Metrics) -> bool:
        """With every checkpoint, and at the end of a stage."""
        every = self._distillation.options.checkpoint_every
        return metrics.stage_iteration == metrics.stage_iterations or metrics.iteration % every == 0

    def __call__(self, metrics: Metrics) -> Image.Image:
        stage = self._distillation.method.stages()[metrics.stage]
        with self._student.result():  # all is drawn before the VAE comes, for which the host may put the model away
            drawn = [self._drawn(sample, stage, number=metrics.stage) for sample in self._samples]
        *teachers, own = self._decoded(drawn)
        if teachers:
            self._teachers_row = {metrics.stage: teachers[0]}
        file = preview_file(self._distillation.run, metrics.iteration)
        return preview_pictures.write(file, [self._teachers_row[metrics.stage], own], prompts=self._prompts)

    def _drawn(self, sample: Batch, stage: Stage, *, number: int) -> tuple[Tensor, ...]:
        """The latents of the teacher of stage `number`, unless its row is there, and of the student."""
        few = functools.partial(
            few_at_once, batch=sample, at_once=self._distillation.at_once, heed=host.signals.check_cancelled
        )
        drawn = []
        if number not in self._teachers_row:
            teacher = self._distillation.method.teaching(few(self._student.teacher), stage=number, batch=sample)
            drawn.append(self._draw(teacher, sample, stage, gamma=0.0))
        return (*drawn, self._draw(few(self._student.denoiser), sample, stage, gamma=stage.gamma))

    def _draw(self, denoiser: Any, sample: Batch, stage: Stage, *, gamma: float) -> Tensor:
        """Of one of two experts what it sees at the end of its own levels, from the data in noise where these begin below."""
        return sampled(
            denoiser,
            sample,
            stage.shown,
            stage=stage,
            family=self._distillation.method.family,
            gamma=gamma,
        )

    def _decoded(self, drawn: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The row of the teacher, where it was drawn, and that of the student."""
        if self._student.kind == LORA:  # which learns on the MODEL itself
            host.training.may_go(self._model)
        try:
            with torch.inference_mode():  # the host's VAE holds inference tensors, which autograd refuses to save
                return [
                    torch.cat(
                        [self._decode(latents, shapes) for latents, shapes in zip(row, self._shapes, strict=True)]
                    )
                    for row in zip(*drawn, strict=True)
                ]
        finally:
            if self._student.kind == LORA:
                host.training.loaded(self._model)

    def _decode(self, latents: Tensor, shapes: Shapes | None) -> Tensor:
        host.signals.check_cancelled()
        if not host.videos.batch_is_frames(self._model.model):
            return self._seen(latents, shapes)
        videos = [self._seen(one, shapes) for one in latents.split(1)]  # a batch of frames of the VAE is one video, too
        return torch.stack([frames[len(frames) // 2] for frames in videos])

    def _seen(self, latents: Tensor, shapes: Shapes | None) -> Tensor:
        ready = host.inputs.latents_for_host(self._model, latents, shapes=shapes)
        return host.encoding.shown(self._vae, host.inputs.first_stream(ready, shapes))
