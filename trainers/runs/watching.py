"""What a run folder says to whoever looks at it: how far it is, its curves, its pictures. Nothing here writes."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..storage import reading
from ..storage.places import is_link, is_name, is_regular, last_change, regular_files
from ..storage.prefixes import below
from ..storage.run_folder import RunFolder
from . import keeping, known
from .curves import curves
from .unchanged import Unchanged

V = TypeVar("V")

_OF_A_RUN = ("run.json", "metrics.jsonl", "checkpoints", "stages", "student.safetensors", "data/source.json")
"""Of which a run has one at least, even when it has lost the others."""


class State(str, enum.Enum):
    """Of a run. PREPARED: training data are kept, and nothing else, as of a start that was cancelled while they were made.

    WRITTEN: described, but nothing of worth is saved yet, and nobody trains it. DAMAGED: it cannot be told.
    """

    ABSENT = "absent"
    PREPARED = "prepared"
    WRITTEN = "written"
    TRAINING = "training"
    STOPPED = "stopped"
    FINISHED = "finished"
    DAMAGED = "damaged"


def state_of(run: RunFolder) -> State:
    """As the folder and its lock have it: also right when another process trains the run, or one was killed."""
    if run.busy:
        return State.TRAINING
    if run.finished:
        return State.FINISHED
    if run.begun:
        return State.STOPPED
    if is_regular(run.place("run.json")):
        return State.WRITTEN
    return State.PREPARED if run.files("data", ".safetensors") else State.ABSENT


def is_quiet(run: RunFolder) -> bool:
    """Whether it is a folder of its own that nobody trains; not where that cannot be told, of which `summary` says why."""
    return not is_link(run.path) and _Found().read(lambda: run.busy) is False


def previews(run: RunFolder) -> list[int]:
    """The iterations that a preview picture was kept of, in order."""
    stems = (name.removesuffix(".png") for name in regular_files(run.place("previews"), ending=".png"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def students_of(run: RunFolder) -> list[Path]:
    """What RunFolder.students lists; nothing of a run that is damaged there, of which `summary` says why."""
    return _Found().read(run.students) or []


def curves_after(run: RunFolder, iteration: int) -> dict[str, Any]:
    """The curves of later iterations, see Curves; nothing where they cannot be read, of which `summary` says why.

    A look that knows the earlier ones reads the file's end alone, and one that knows none what no look before has read: it is in
    the process that trains, again and again.
    """
    if iteration >= 0:
        return curves(lines_after(run, iteration))
    found = _Found().read(lambda: known.metrics(run, draw=True))
    return dict(found.curves or {}) if found else curves([])


def lines_after(run: RunFolder, iteration: int) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl, those of later iterations; nothing where it cannot be read, of which `summary` says why."""

    def read() -> list[dict[str, Any]]:
        file = run.place("metrics.jsonl")
        return reading.read_last_lines(file, reading.METRICS, enough=lambda line: line["iteration"] <= iteration)

    return [line for line in _Found().read(read) or [] if line["iteration"] > iteration]


def newest_metrics(run: RunFolder) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl, without reading all of it; None before the first. ValueError: damaged."""
    file = run.place("metrics.jsonl")
    if not is_regular(file):
        return None
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - 2 * reading.LONGEST_LINE))
        lines = content.read().split(b"\n")[:-1]
    return reading.read_line(lines[-1], reading.METRICS, what="the last line of metrics.jsonl") if lines else None


def preview_file(run: RunFolder, iteration: int) -> Path:
    """Where the picture of an iteration lies, there or not. ValueError where that is a link."""
    return run.place("previews", f"{iteration:08d}.png")


def all_runs(root: Path) -> list[RunFolder]:
    """The runs below a folder, the one that changed last first: damaged ones too, and links, which are none but look so."""
    return sorted(_runs_in(root), key=_changed, reverse=True)


def _runs_in(root: Path) -> Iterator[RunFolder]:
    for path in root.iterdir() if root.is_dir() else ():
        if is_name(path.name) and _looks_like_a_run(path):
            yield RunFolder(root, path.name)


_STUDENTS: Unchanged[list[Path]] = Unchanged(most=10000)


def all_students(root: Path) -> dict[RunFolder, list[Path]]:
    """What `students_of` says of each run below a folder, by their names. A host asks for it while it answers nobody else."""
    return {run: _students_kept(run) for run in sorted(_runs_in(root), key=lambda run: run.name)}


def _students_kept(run: RunFolder) -> list[Path]:
    return students_of(run) if is_link(run.path) else _STUDENTS.of(run.path, lambda: students_of(run), only=("stages",))


def _looks_like_a_run(path: Path) -> bool:
    if is_link(path):
        return True
    return path.is_dir() and any(os.path.lexists(path / name) for name in _OF_A_RUN)


def _changed(run: RunFolder) -> float:
    """0 for one that is just being deleted, or cannot be looked into."""
    try:
        return run.path.lstat().st_mtime if is_link(run.path) else last_change(run.path)
    except OSError:
        return 0.0


def summary(run: RunFolder) -> dict[str, Any]:
    """What a list of runs says of one: of a damaged one what can be read of it, and in `error` all that is wrong with it.

    iteration, iterations, loss: of the newest metrics. saved: the iteration at which it goes on, or None. repairable: whether
    RunFolder.repair mends its metrics. failure: what ended its last start, where that was an error.
    """
    found = _Found()
    metrics = found.read(lambda: known.metrics(run)) or known.NOTHING
    said = found.read(lambda: _described(run)) or {}
    pictures = found.read(lambda: previews(run)) or []
    newest, wrong = metrics.newest, metrics.wrong
    told = {
        "run": run.name,
        "state": found.read(lambda: state_of(run).value) or State.DAMAGED.value,
        "changed": _changed(run),
        "iteration": newest.get("iteration", 0),
        "iterations": newest.get("iterations"),
        "saved": found.read(lambda: run.saved),
        "loss": newest.get("loss"),
        "stage_names": metrics.stages,
        "preview": max(pictures, default=None),
        "previews": pictures,
        "has_workflow": bool(found.read(lambda: is_regular(run.place("workflow.json")))),
        "method": said.get("method"),
        "options": below(said, "method."),
        "student": below(said, "student."),
        "teacher": said.get("teacher_sha256"),
        "stages": found.read(run.comparisons) or [],
        "scores": found.read(run.scores) or [],
        "repairable": bool(wrong),
        "failure": found.read(run.error),
        "note": found.read(lambda: keeping.note(run)) or "",
    }
    reasons = list(dict.fromkeys([*wrong, *found.wrong]))
    return told | ({"error": f"the run {run.name!r} is damaged: {'; '.join(reasons)}."} if reasons else {})


def _described(run: RunFolder) -> dict[str, Any]:
    """What run.json identifies it by; empty where nothing is begun yet. ValueError for a damaged one."""
    if not os.path.lexists(run.place("run.json")) and not run.begun:
        return {}
    return reading.identity_in(run.description())


class _Found:
    """What can be read of a run, and why the rest cannot."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def read(self, what: Callable[[], V]) -> V | None:
        try:
            return what()
        except (ValueError, OSError) as error:
            self.wrong.append(str(error).rstrip("."))
            return None
