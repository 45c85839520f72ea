"""A run resolved against the host's MODEL: the same for the node that trains it here and the process that trains it elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.noise import GuidanceRule
from ...trainers.methods import UNCHOSEN
from ...trainers.methods.progressive import ProgressiveOptions
from ...trainers.objective.method import Method, MethodOptions, TeacherKind, student_prediction
from ...trainers.processes.group import Processes
from ...trainers.storage.export import read_student
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.students.student import LoRAStudent, Student
from ...trainers.training.distillation import Distillation, Recorded
from ...trainers.training.loop import Observer
from ...trainers.training.optimisation.options import TrainOptions
from .. import host
from ..host import folders
from . import perceptual
from .learning import starting_lora, students
from .learning.methods import STUDENT_PREDICTIONS
from .learning.starting_lora import StartingLoRA
from .observing import Preview

ORIGIN = ("model", "vae")
"""Inputs of Distill Model whose making a run folder keeps."""


def method_on(model: Any, method: MethodOptions, *, empty_prompt: bool) -> Method:
    """The method on a MODEL's noise levels. empty_prompt: of TeacherKind. ValueError for what it cannot do."""
    if isinstance(method, ProgressiveOptions) and method.student_prediction.value not in STUDENT_PREDICTIONS:
        raise ValueError(
            f"student_prediction is {method.student_prediction.value}, which needs twice the output channels, and ComfyUI "
            f"loads no such model; allowed are {', '.join(STUDENT_PREDICTIONS)}."
        )
    kind = teacher_kind(
        host.models.model_sampling_of(model),
        takes_scale=host.guidance.embedding_of(model) is not None,
        empty_prompt=empty_prompt,
        rule=host.guiding.rule_of(model),
    )
    return method.on(kind)


def method_as_begun(method: MethodOptions, run: RunFolder) -> MethodOptions:
    """With what nobody chooses as the run has it that is in the folder; of a new one, or of another method, as given."""
    if not run.begun:
        return method
    there = Recorded.of(run)
    if type(there.chosen) is not type(method):
        return method
    kept = {name: getattr(there.chosen, name) for name in UNCHOSEN if hasattr(there.chosen, name)}
    return dataclasses.replace(method, **kept)  # type: ignore[type-var]


def teacher_kind(
    sampling: Any, *, takes_scale: bool = False, empty_prompt: bool = False, rule: GuidanceRule | None = None
) -> TeacherKind:
    """Of a host's model sampling."""
    return TeacherKind(
        family=host.models.noise_family(sampling),
        table=host.models.noise_levels(sampling),
        prediction_type=host.models.prediction_type(sampling),
        takes_scale=takes_scale,
        empty_prompt=empty_prompt,
        unit=1.0 / host.models.noise_scale(sampling),
        rule=rule,
    )


def learning(
    model: Any, student: students.StudentOptions, *, method: Method, options: TrainOptions
) -> AbstractContextManager[Student]:
    """What learns in a run of this method with these options; see student_of."""
    prediction_type = host.models.prediction_type(host.models.model_sampling_of(model))
    return students.student_of(
        model,
        student,
        seed=options.seed,
        prediction=student_prediction(method, prediction_type=prediction_type),
        scale_input=method.scale_input,
        precision=options.precision,
        gradient_checkpointing=options.gradient_checkpointing,
    )


@host.training.memory_given_back()
def execute(
    distillation: Distillation,
    student: students.StudentOptions,
    *,
    model: Any,
    vae: Any,
    show: Callable[[Preview | None], Observer],
    heed: Callable[[], None] = host.signals.check_cancelled,
) -> None:
    """Trains and exports what is left of the run; show makes the observer. The caller holds the run's lock.

    heed: see Distillation.execute.
    """
    options, first = distillation.options, distillation.processes.is_first
    with ExitStack() as stack:
        if first:
            stack.enter_context(distillation.run.keeping_error(unless=host.signals.Cancelled))
        _require_possible(options, student, processes=distillation.processes)
        sample = distillation.data.first(1)
        host.following.require_followed(model, sample)
        measure = perceptual.perceptual_of(distillation.method, sample, model=model, vae=vae)
        learner = stack.enter_context(learning(model, student, method=distillation.method, options=options))
        if isinstance(learner, LoRAStudent) and isinstance(student, StartingLoRA) and not distillation.run.begun:
            starting_lora.begin(learner, student, model=model)
        shown = vae is not None and host.data.shows_pictures(model)
        preview = Preview(distillation, learner, model=model, vae=vae) if shown else None
        stack.enter_context(host.backward.heard_between_iterations())
        distillation.execute(learner, observers=[show(preview)], perceptual=measure, heed=heed)


def finished(
    run: RunFolder, student: students.StudentOptions, *, model: Any, told: dict[str, Any]
) -> tuple[Any, dict[str, list[float]], str, dict[str, Tensor]]:
    """What a finished run gives the graph: MODEL, LOSS_MAP, the run's name, LORA_MODEL (empty for full weights).

    model: the teacher. The student is also put where the host's own loaders list it. told: gets `published`, where that
    is not under the run's name.
    """
    with torch.inference_mode(False):
        host.signals.check_cancelled()
        file = published(run, student)
        if file.stem != run.name:
            told["published"] = f"fewstep/{file.name}"
        tensors, recipe, metadata = read_student(run.student_file, heed=host.signals.check_cancelled)
        lora = isinstance(student, LoRAOptions)
        losses = [loss for stage in run.losses().values() for loss in stage]
        made = students.with_student(model, tensors, lora=lora, recipe=recipe, metadata=metadata)
        return made, {"loss": losses}, run.name, tensors if lora else {}


def _require_possible(options: TrainOptions, student: students.StudentOptions, *, processes: Processes) -> None:
    """ValueError for what does not go together: torch's FSDP sees no second pass of a block."""
    if options.gradient_checkpointing and processes.count > 1 and isinstance(student, students.FullWeights):
        raise ValueError(
            f"gradient_checkpointing is on, and full weights are divided over {processes.count} processes; these do not go "
            "together. Switch it off and raise accumulation instead, train a LoRA, or use one process."
        )


def published(run: RunFolder, student: students.StudentOptions) -> Path:
    """Puts the finished student where the host's own loaders list it, and says where."""
    folder = "loras" if isinstance(student, LoRAOptions) else "diffusion_models"
    return folders.publish(run, folder=folder)
