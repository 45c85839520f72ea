"""What a run folder says to whoever looks at it: how far it is, its curves, its pictures. Nothing here writes."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .prefixes import below
from .run_folder import RunFolder, is_name

COLUMNS = ("loss", "x0_error", "gradient_norm", "learning_rate")
MOST_POINTS = 2000

Line = Mapping[str, Any]
"""Of metrics.jsonl."""


class State(str, enum.Enum):
    """Of a run. WRITTEN: described, but nothing of worth is saved yet, and nobody trains it."""

    ABSENT = "absent"
    WRITTEN = "written"
    TRAINING = "training"
    STOPPED = "stopped"
    FINISHED = "finished"


def state_of(run: RunFolder) -> State:
    """As the folder and its lock have it: also right when another process trains the run, or one was killed."""
    if run.busy:
        return State.TRAINING
    if run.finished:
        return State.FINISHED
    if run.begun:
        return State.STOPPED
    return State.WRITTEN if (run.path / "run.json").exists() else State.ABSENT


def curves(lines: Sequence[Line], *, most: int = MOST_POINTS) -> dict[str, Any]:
    """Columns of at most about `most` points for charts: iteration, stage, COLUMNS and band_errors, which is one list a band.

    Of more lines, neighbours of one stage are put together: their means, at the iteration of the last.
    """
    groups = list(_grouped(lines, size=-(-len(lines) // most)))
    bands = max((len(line["band_errors"]) for line in lines), default=0)
    return {
        "iteration": [group[-1]["iteration"] for group in groups],
        "stage": [group[-1]["stage"] for group in groups],
        **{name: [_mean([line[name] for line in group]) for group in groups] for name in COLUMNS},
        "band_errors": [
            [_mean([line["band_errors"][band] for line in group]) for group in groups] for band in range(bands)
        ],
    }


def _grouped(lines: Sequence[Line], *, size: int) -> Iterator[Sequence[Line]]:
    for _, of_stage in groupby(lines, key=lambda line: line["stage"]):
        whole = list(of_stage)
        yield from (whole[i : i + size] for i in range(0, len(whole), size))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def stage_names(lines: Sequence[Line]) -> dict[int, str]:
    """The stages that have logged something, by number."""
    return {line["stage"]: line["stage_name"] for line in lines}


def previews(run: RunFolder) -> list[int]:
    """The iterations that a preview picture was kept of, in order."""
    return sorted(int(path.stem) for path in (run.path / "previews").glob("*.png") if path.stem.isdigit())


def preview_file(run: RunFolder, iteration: int) -> Path:
    """Where the picture of an iteration lies, there or not."""
    return run.path / "previews" / f"{iteration:08d}.png"


def all_runs(root: Path) -> list[RunFolder]:
    """The runs below a folder, the one that changed last first."""
    folders = [path for path in root.glob("*") if (path / "run.json").is_file()]
    return [RunFolder(root, path.name) for path in sorted(folders, key=_changed, reverse=True) if is_name(path.name)]


def _changed(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def summary(run: RunFolder) -> dict[str, Any]:
    """What a list of runs says of one. A damaged run.json is said in `error`, so that the others are listed still."""
    newest = run.newest_metrics() or {}
    told: dict[str, Any] = {
        "run": run.name,
        "state": state_of(run).value,
        "changed": _changed(run.path),
        "iteration": newest.get("iteration", 0),
        "iterations": newest.get("iterations"),
        "loss": newest.get("loss"),
        "preview": max(previews(run), default=None),
        "has_workflow": (run.path / "workflow.json").exists(),
    }
    try:
        said = run.description()["run"]
        return told | {
            "method": said["method"],
            "options": below(said, "method."),
            "student": below(said, "student."),
            "teacher": said["teacher_sha256"],
            "stages": run.comparisons(),
            "scores": _scores(run),
        }
    except (ValueError, KeyError, TypeError) as error:
        return told | {"error": f"run.json of the run {run.name!r} cannot be read ({error})."}


def _scores(run: RunFolder) -> list[dict[str, Any]]:
    """Of report.json, which Evaluate Digits writes."""
    file = run.path / "report.json"
    return list(json.loads(file.read_text(encoding="utf-8"))["scores"]) if file.exists() else []
