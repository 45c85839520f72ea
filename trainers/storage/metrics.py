"""A run's metrics.jsonl, line by line: a run of days has tens of thousands, which need not be in memory at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import reading
from .files import writing


def each(file: Path, *, run: str) -> Iterator[dict[str, Any]]:
    """The whole lines; none where there is no file. ValueError, naming the run, at a damaged one."""
    return (line for line, _ in _each(file, run=run))


def _each(file: Path, *, run: str) -> Iterator[tuple[dict[str, Any], int]]:
    """With the byte where each ends."""
    for line in reading.each_line(file, reading.METRICS) if os.path.lexists(file) else ():
        if line.value is None:
            raise ValueError(
                f"the run {run!r} is damaged: {line.wrong}. Repair it in the list of runs (FewStep runs), which keeps the lines "
                "that are whole."
            )
        yield line.value, line.end


def write(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with writing(file) as unfinished, unfinished.open("wb") as made:
        made.writelines(json.dumps(line).encode() + b"\n" for line in lines)


def forget_after(file: Path, iteration: int, *, run: str) -> None:
    """Drops the lines of later iterations, and one that a crash cut. A file of which nothing goes stays as it is."""
    newest = whole = 0
    for line, end in _each(file, run=run):
        newest, whole = max(newest, line["iteration"]), end
    if not file.exists() or newest > iteration or whole < file.stat().st_size:
        write(file, (line for line in each(file, run=run) if line["iteration"] <= iteration))
