"""Executes a run folder in a process without graph or browser: teacher from the kept graph, data from the folder's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...trainers.data.cache import read_data
from ...trainers.processes.group import Processes
from ...trainers.storage.export import LORA
from ...trainers.storage.reading import identity_in
from ...trainers.storage.run_folder import RunFolder
from ...trainers.training.distillation import Distillation, Recorded
from ...trainers.training.loop import Metrics, Observer
from ...trainers.training.plan import Plan
from .. import host
from ..host import folders
from ..host.editor.graph import Execution
from . import perceptual, planning, running, teacher
from .learning import students
from .observing import Preview, stops_here


def train_folder(run: RunFolder, *, classes: Mapping[str, Any], processes: Processes, say: Observer) -> Path | None:
    """Trains what is left of the run. The student's file, on the first of the processes; None on the others.

    classes: the host's node classes by name. say: is told every iteration's metrics; raising in it saves and stops.
    ValueError, before any work, when the folder is no such run, or what it names is not here or not the same.
    """
    students.recorded_of(run)  # before a lock is made in a folder that is no run
    with processes.held_by_first(run.locked()), torch.inference_mode(False):
        recorded, student = students.recorded_of(run)  # who held the lock until now may have written it anew
        if not run.finished:  # else neither its teacher nor its data need be here any more
            _train(run, recorded, student, made=_teacher(recorded, classes), processes=processes, say=say)
        return _published(run, student) if processes.is_first else None


def _train(
    run: RunFolder,
    recorded: Recorded,
    student: students.StudentOptions,
    *,
    made: Mapping[str, Any],
    processes: Processes,
    say: Observer,
) -> None:
    """made: what the kept graph gives."""
    model = made["model"]
    distillation = _distillation(run, recorded, model=model, processes=processes)
    if distillation.finished():
        return
    running.execute(
        distillation,
        student,
        model=model,
        vae=made.get("vae"),
        show=lambda preview: _Tell(distillation, preview, say),
        heed=lambda: _heed(run),
    )


def plan_folder(run: RunFolder, *, classes: Mapping[str, Any]) -> Plan:
    """What training the run here will take; see train_folder. Nothing is written."""
    recorded, student = students.recorded_of(run)
    with torch.inference_mode(False):
        made = _teacher(recorded, classes)
        model = made["model"]
        distillation = _distillation(run, recorded, model=model, processes=Processes())
        method, sample = distillation.method, distillation.data.first(1)
        distillation.options.require_suit(method.stages())
        measure = perceptual.perceptual_of(method, sample, model=model, vae=made.get("vae"))
        trial = planning.Trial(model=model, run=run, method=method, student=student, sample=sample, perceptual=measure)
        return planning.planned(trial, distillation.options)


def _distillation(run: RunFolder, recorded: Recorded, *, model: Any, processes: Processes) -> Distillation:
    try:
        data = read_data(run.data_folder, device=model.load_device)
    except ValueError as error:
        raise ValueError(
            f"{error} In a terminal nothing makes them: queue Write Run once more, with this run's name."
        ) from error
    if data is None:
        raise ValueError(f"the run {run.name!r} lacks its training data ({run.data_folder}); write it again.")
    if run.description().get("started_from") and not run.begun:
        raise ValueError(f"the run {run.name!r} lacks the checkpoint that it was to start from; write it again.")
    teacher_is = teacher.require(recorded, model, run=run, first=data.first(1))
    distillation = Distillation(
        run=run,
        method=running.method_on(model, recorded.chosen, empty_prompt=data.unconditional is not None),
        data=data,
        options=recorded.options,
        teacher_sha256=recorded.teacher_sha256,
        prediction_type=host.models.prediction_type(host.models.model_sampling_of(model)),
        student=recorded.student,
        origin=recorded.origin,
        teacher_is=teacher_is,
        processes=processes,
        about=host.naming.said_of_model(model, lora=recorded.student["kind"] == LORA),
    )
    if not run.begun:  # else the run compares all that it was begun with
        _require_as_written(run, distillation)
    return distillation


def _require_as_written(run: RunFolder, found: Distillation) -> None:
    """ValueError where data or teacher are not those that the run was written with."""
    there, here = (identity_in(said) for said in (run.description(), found.description()))
    names = ("data_sha256", "prediction_type", "noise_family")
    lines = [f"{name}: there {there.get(name)}, here {here[name]}" for name in names if there.get(name) != here[name]]
    if lines:
        raise ValueError(f"the run {run.name!r} was written with other data or another teacher: {'; '.join(lines)}.")


def _published(run: RunFolder, student: students.StudentOptions) -> Path:
    """Among the host's own models, where the run lies in its output folder."""
    return (
        running.published(run, student)
        if run.path.parent.resolve() == folders.runs_root().resolve()
        else run.student_file
    )


def node_kinds(run: RunFolder) -> set[str]:
    """The node classes that the run's teacher was made with."""
    return {node["class_type"] for node in _origin(Recorded.of(run))["nodes"].values()}


def _teacher(recorded: Recorded, classes: Mapping[str, Any]) -> dict[str, Any]:
    origin = _origin(recorded)
    execution = Execution(origin["nodes"], classes=classes)
    with torch.inference_mode():  # as the host executes nodes
        return {name: execution.output(link) for name, link in origin["outputs"].items()}


def _origin(recorded: Recorded) -> dict[str, Any]:
    if recorded.origin is None or "model" not in recorded.origin["outputs"]:
        raise ValueError(
            "the run does not say where its teacher comes from, so no other process can make it; train it in the editor."
        )
    return recorded.origin


class _Tell:
    """The observer: previews into the folder, what `say` makes of the metrics, and stopping when the browser asks for it."""

    def __init__(self, distillation: Distillation, preview: Preview | None, say: Callable[[Metrics], None]) -> None:
        self._distillation, self._preview, self._say = distillation, preview, say

    def __call__(self, metrics: Metrics) -> None:
        if self._preview and self._preview.due(metrics):
            self._preview(metrics)
        self._say(metrics)
        _heed(self._distillation.run)
        if stops_here(self._distillation, metrics):
            raise KeyboardInterrupt


def _heed(run: RunFolder) -> None:
    """Stops as Ctrl-C does, which the command tells of, when somebody cancels the run."""
    if run.cancel_asked:
        raise KeyboardInterrupt
