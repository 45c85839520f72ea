"""Metrics as columns for charts: of lines that come one after another, in memory that does not grow with them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..storage import reading

COLUMNS = ("loss", "x0_error", "gradient_norm", "learning_rate")
MOST_POINTS = 2000
_BAND, _MEASURE = "band", "measure"

Line = Mapping[str, Any]
"""Of metrics.jsonl."""
Key = tuple[str, Any]


class Curves:
    """Of at most about `most` points. Of more lines, 2, 4, 8 ... neighbours of one stage are put together: their means, at the
    iteration of the last. The same lines give the same points, however many come at a time.
    """

    def __init__(self, *, most: int = MOST_POINTS) -> None:
        self._most, self._lines, self._together = most, 0, 1
        self._iterations: list[int] = []
        self._stages: list[int] = []
        self._held: list[int] = []  # lines, of each point
        self._sums: dict[Key, array[Any]] = {}
        self._counts: dict[Key, array[Any]] = {}

    def add(self, line: Line) -> None:
        self._lines += 1
        if self._lines > self._together * self._most:
            self._put_together()
        if not self._held or self._stages[-1] != line["stage"] or self._held[-1] == self._together:
            self._begin_point(line["stage"])
        self._iterations[-1] = line["iteration"]
        self._held[-1] += 1
        for key, value in _values(line):
            self._count(key, value)

    def _begin_point(self, stage: int) -> None:
        self._iterations.append(0)
        self._stages.append(stage)
        self._held.append(0)
        for column in (*self._sums.values(), *self._counts.values()):
            column.append(0)

    def _count(self, key: Key, value: float | None) -> None:
        if key not in self._sums:
            self._sums[key], self._counts[key] = (array(kind, [0]) * len(self._held) for kind in "dL")
        if value is not None:
            self._sums[key][-1] += value
            self._counts[key][-1] += 1

    def _put_together(self) -> None:
        """Two of a stage each."""
        self._together *= 2
        pairs = list(_pairs(self._stages))
        self._iterations = [self._iterations[pair[-1]] for pair in pairs]
        self._stages = [self._stages[pair[-1]] for pair in pairs]
        self._held = [sum(self._held[i] for i in pair) for pair in pairs]
        for columns in (self._sums, self._counts):
            for key, column in columns.items():
                columns[key] = array(column.typecode, (sum(column[i] for i in pair) for pair in pairs))

    def columns(self) -> dict[str, Any]:
        """iteration, stage, COLUMNS, band_errors, which is one list a band, and measures, which is one list for each name."""
        bands = [name for kind, name in self._sums if kind == _BAND]
        return {
            "iteration": list(self._iterations),
            "stage": list(self._stages),
            **{name: self._means((name, None)) for name in COLUMNS},
            "band_errors": [self._means((_BAND, band)) for band in sorted(bands)],
            "measures": {name: self._means((kind, name)) for kind, name in self._sums if kind == _MEASURE},
        }

    def _means(self, key: Key) -> list[float | None]:
        """Over those that are known; None where none is."""
        pairs = zip(self._sums.get(key, ()), self._counts.get(key, ()), strict=True)
        return [total / count if count else None for total, count in pairs]


def curves(lines: Iterable[Line], *, most: int = MOST_POINTS) -> dict[str, Any]:
    """The columns of these lines; see Curves."""
    made = Curves(most=most)
    for line in lines:
        made.add(line)
    return made.columns()


def _values(line: Line) -> Iterator[tuple[Key, float | None]]:
    yield from (((name, None), line[name]) for name in COLUMNS)
    yield from (((_BAND, band), error) for band, error in enumerate(line["band_errors"]))
    measures = line.get("measures", {})  # of a method that tells any
    if reading.is_numbers_by_name(measures):
        yield from (((_MEASURE, name), value) for name, value in measures.items())


def _pairs(stages: list[int]) -> Iterator[tuple[int, ...]]:
    """The places of neighbours, two by two, and of what is left alone at the end of a stage."""
    i = 0
    while i < len(stages):
        pair = (i, i + 1) if stages[i : i + 2] == [stages[i]] * 2 else (i,)
        yield pair
        i += len(pair)
