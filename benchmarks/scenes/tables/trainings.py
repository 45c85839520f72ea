"""The figures of students by training seed, and what they come to."""

from __future__ import annotations

import statistics
from typing import Any

from ....trainers.measures.fidelity import Estimate
from . import pages

Figures = dict[str, Any]
Students = dict[tuple[str, int], dict[int, list[Figures]]]
"""(method, calls) to the figures of each noise seed, by training seed."""


def by_training(parts: Figures) -> Students:
    found: Students = {}
    for name, part in parts.items():
        if not name.rpartition(", noise ")[2].isdigit():
            continue
        label, calls, training, _ = name.split(", ")
        seeds = found.setdefault((label, int(calls.split()[0])), {})
        seeds.setdefault(int(training.split()[1]), []).append(part["figures"])
    return found


def over_trainings(trainings: dict[int, list[Figures]]) -> list[Figures]:
    """One set of figures for each training, the mean over its noise seeds; of a single training those of the noise seeds."""
    if len(trainings) == 1:
        return next(iter(trainings.values()))
    return [{key: _mean([seed[key] for seed in seeds]) for key in seeds[0]} for _, seeds in sorted(trainings.items())]


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [statistics.mean(value[0] for value in values), values[0][1]]
    return statistics.mean(values)


def distance(trainings: dict[int, list[Figures]]) -> list[float]:
    """[value, margin] of a row's Frechet distance."""
    return pages.over(over_trainings(trainings), "frechet")


def ratio(above: list[float], below: list[float]) -> Estimate:
    """Of two independent figures [value, margin]; to first order."""
    value = above[0] / below[0]
    return Estimate(value, (above[1] ** 2 + (value * below[1]) ** 2) ** 0.5 / abs(below[0]))


def in_order(students: Students) -> list[tuple[tuple[str, int], dict[int, list[Figures]]]]:
    """By method, and from many calls to few."""
    return sorted(students.items(), key=lambda item: (item[0][0], -item[0][1]))
