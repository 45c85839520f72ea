"""What a run folder says to whoever looks at it: how far it is, its curves, its pictures. Nothing here writes."""

from __future__ import annotations

import dataclasses
import enum
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from . import keeping, reading
from .places import is_link, is_name, is_regular, last_change
from .prefixes import below
from .run_folder import RunFolder

V = TypeVar("V")

COLUMNS = ("loss", "x0_error", "gradient_norm", "learning_rate")
MOST_POINTS = 2000
_OF_A_RUN = ("run.json", "metrics.jsonl", "checkpoints", "stages", "student.safetensors", "data/source.json")
"""Of which a run has one at least, even when it has lost the others."""

Line = Mapping[str, Any]
"""Of metrics.jsonl."""


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


def curves(lines: Sequence[Line], *, most: int = MOST_POINTS) -> dict[str, Any]:
    """Columns of at most about `most` points for charts: iteration, stage, COLUMNS, band_errors, which is one list a band, and
    measures, which is one list for each name that any line has.

    Of more lines, neighbours of one stage are put together: their means, at the iteration of the last.
    """
    groups = list(_grouped(lines, size=-(-len(lines) // most)))
    bands = max((len(line["band_errors"]) for line in lines), default=0)
    return {
        "iteration": [group[-1]["iteration"] for group in groups],
        "stage": [group[-1]["stage"] for group in groups],
        **{name: [_mean([line[name] for line in group]) for group in groups] for name in COLUMNS},
        "band_errors": [
            [_mean([error for line in group for error in line["band_errors"][band : band + 1]]) for group in groups]
            for band in range(bands)
        ],
        "measures": {
            name: [_mean([_measures(line).get(name) for line in group]) for group in groups]
            for name in dict.fromkeys(name for line in lines for name in _measures(line))
        },
    }


def _measures(line: Line) -> Mapping[str, float | None]:
    """Of a method that tells any; of a line with something else in their place none."""
    told = line.get("measures", {})
    return told if reading.is_numbers_by_name(told) else {}


def _grouped(lines: Sequence[Line], *, size: int) -> Iterator[Sequence[Line]]:
    for _, of_stage in groupby(lines, key=lambda line: line["stage"]):
        whole = list(of_stage)
        yield from (whole[i : i + size] for i in range(0, len(whole), size))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def previews(run: RunFolder) -> list[int]:
    """The iterations that a preview picture was kept of, in order."""
    return sorted(int(path.stem) for path in run.files("previews", ".png") if path.stem.isdecimal())


def students_of(run: RunFolder) -> list[Path]:
    """What RunFolder.students lists; nothing of a run that is damaged there, of which `summary` says why."""
    return _Found().read(run.students) or []


def lines_after(run: RunFolder, iteration: int) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl, those of later iterations; nothing where it cannot be read, of which `summary` says why.

    A look that knows the earlier ones reads the file's end alone: it is in the process that trains, again and again.
    """

    def read() -> list[dict[str, Any]]:
        if iteration < 0:
            return run.metrics_as_found().lines
        file = run.place("metrics.jsonl")
        return reading.read_last_lines(file, reading.METRICS, enough=lambda line: line["iteration"] <= iteration)

    return [line for line in _Found().read(read) or [] if line["iteration"] > iteration]


def preview_file(run: RunFolder, iteration: int) -> Path:
    """Where the picture of an iteration lies, there or not. ValueError where that is a link."""
    return run.place("previews", f"{iteration:08d}.png")


def all_runs(root: Path) -> list[RunFolder]:
    """The runs below a folder, the one that changed last first: damaged ones too, and links, which are none but look so."""
    if not root.is_dir():
        return []
    found = [RunFolder(root, path.name) for path in root.iterdir() if is_name(path.name) and _looks_like_a_run(path)]
    return sorted(found, key=_changed, reverse=True)


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
    known = found.read(lambda: _known(run)) or _Known()
    said = found.read(lambda: _described(run)) or {}
    pictures = found.read(lambda: previews(run)) or []
    newest, wrong = known.newest, known.said()
    told = {
        "run": run.name,
        "state": found.read(lambda: state_of(run).value) or State.DAMAGED.value,
        "changed": _changed(run),
        "iteration": newest.get("iteration", 0),
        "iterations": newest.get("iterations"),
        "saved": found.read(lambda: run.saved),
        "loss": newest.get("loss"),
        "stage_names": known.stages,
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


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is known of a metrics.jsonl as far as it was read: of one that has grown since only the rest is read.

    version: when it was changed, and its size. end, number: see reading.Lines. tail: the bytes before `end`, by which the same
    file is known again; one that was changed and is no larger is another. first_wrong, wrong: what is wrong with the first
    damaged line, and how many there are. stages: names, by number.
    """

    version: tuple[int, int] = (0, -1)
    end: int = 0
    number: int = 0
    tail: bytes = b""
    newest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    first_wrong: str = ""
    wrong: int = 0
    stages: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def said(self) -> list[str]:
        more = f" and {self.wrong - 1} lines more" if self.wrong > 1 else ""
        return [f"{self.first_wrong}{more}"] if self.wrong else []


_KNOWN: dict[Path, _Known] = {}
_KEEPING = threading.Lock()
_MOST_KNOWN = 10000
_TAIL = 512


def _known(run: RunFolder) -> _Known:
    file = run.place("metrics.jsonl")
    if not is_regular(file):
        return _Known()
    told = file.stat()
    version, before = (told.st_mtime_ns, told.st_size), _KNOWN.get(run.path, _Known())
    if version == before.version:
        return before
    if told.st_size <= before.version[1] or _bytes_before(file, before.end) != before.tail:
        before = _Known()
    read = run.metrics_as_found(begin=before.end, number=before.number)
    found = _Known(
        version=version,
        end=read.end,
        number=read.number,
        tail=_bytes_before(file, read.end),
        newest=read.lines[-1] if read.lines else before.newest,
        first_wrong=before.first_wrong or next(iter(read.wrong), ""),
        wrong=before.wrong + len(read.wrong),
        stages={**before.stages, **{line["stage"]: line["stage_name"] for line in read.lines}},
    )
    with _KEEPING:  # several threads answer the browser
        _KNOWN.pop(run.path, None)
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[run.path] = found
    return found


def _bytes_before(file: Path, end: int) -> bytes:
    with file.open("rb") as content:
        begin = content.seek(max(0, end - _TAIL))
        return content.read(end - begin)
