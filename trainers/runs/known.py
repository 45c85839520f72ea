"""What is known of runs' metrics as far as they were read: of those that have grown since only the rest is read.

A look is in the process that trains, again and again, and a run of days has logged many megabytes.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage import reading
from ..storage.places import is_regular
from ..storage.run_folder import RunFolder
from .curves import Curves

_KEEPING = threading.Lock()
"""Several threads answer the browser."""
_MOST_KNOWN = 10000
_MOST_DRAWN = 16
"""Runs whose curves are kept, half a megabyte each."""
_TAIL = 512


@dataclasses.dataclass(frozen=True)
class Found:
    """newest: line. wrong: in words, all together. stages: names, by number. curves: columns, where they were asked for."""

    newest: Mapping[str, Any]
    wrong: list[str]
    stages: Mapping[int, str]
    curves: Mapping[str, Any] | None = None


NOTHING = Found({}, [], {})


class _Known:
    """Of one metrics.jsonl."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._begin(None)

    def _begin(self, curves: Curves | None) -> None:
        """version: when the file was changed, and its size. end, number: see reading.Line. tail: the bytes before `end`, by which
        the same file is known again; one that was changed and is no larger is another.
        """
        self._version, self._end, self._number, self._tail = (0, -1), 0, 0, b""
        self._newest: Mapping[str, Any] = {}
        self._first_wrong, self._wrong = "", 0
        self._stages: dict[int, str] = {}
        self._curves = curves

    def look(self, file: Path, *, draw: bool) -> Found:
        with self._reading:
            if draw and self._curves is None:
                self._begin(Curves())
            self._read_on(file)
            more = f" and {self._wrong - 1} lines more" if self._wrong > 1 else ""
            wrong = [f"{self._first_wrong}{more}"] if self._wrong else []
            curves = self._curves.columns() if draw and self._curves else None
            return Found(self._newest, wrong, dict(self._stages), curves)

    def _read_on(self, file: Path) -> None:
        told = file.stat()
        version = (told.st_mtime_ns, told.st_size)
        if version == self._version:
            return
        if told.st_size <= self._version[1] or _bytes_before(file, self._end) != self._tail:
            self._begin(Curves() if self._curves else None)
        for line in reading.each_line(file, reading.METRICS, begin=self._end, number=self._number):
            self._learn(line)
        self._version, self._tail = version, _bytes_before(file, self._end)

    def _learn(self, line: reading.Line) -> None:
        self._end, self._number = line.end, line.number
        if line.value is None:
            self._first_wrong = self._first_wrong or line.wrong
            self._wrong += 1
            return
        self._newest = line.value
        self._stages[line.value["stage"]] = line.value["stage_name"]
        if self._curves:
            self._curves.add(line.value)

    def forget_curves(self) -> None:
        with self._reading:
            self._curves = None


_KNOWN: dict[Path, _Known] = {}
_DRAWN: dict[Path, _Known] = {}
"""Of these those with curves. The one that was looked at last is the last in both."""


def metrics(run: RunFolder, *, draw: bool = False) -> Found:
    """draw: with its curves. ValueError where something else than a file is."""
    file = run.place("metrics.jsonl")
    if not is_regular(file):
        return dataclasses.replace(NOTHING, curves=Curves().columns()) if draw else NOTHING
    with _KEEPING:
        known, _ = _keep(_KNOWN, run.path, _KNOWN.get(run.path) or _Known(), most=_MOST_KNOWN)
        gone = _keep(_DRAWN, run.path, known, most=_MOST_DRAWN)[1] if draw else []
    for other in gone:
        other.forget_curves()
    return known.look(file, draw=draw)


def _keep(kept: dict[Path, _Known], path: Path, known: _Known, *, most: int) -> tuple[_Known, list[_Known]]:
    """As the last one, and those that it takes the place of."""
    kept.pop(path, None)
    gone = [kept.pop(next(iter(kept))) for _ in range(len(kept) - most + 1)]
    kept[path] = known
    return known, gone


def _bytes_before(file: Path, end: int) -> bytes:
    with file.open("rb") as content:
        begin = content.seek(max(0, end - _TAIL))
        return content.read(end - begin)
