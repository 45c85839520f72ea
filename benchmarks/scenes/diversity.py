"""How different the pictures of one prompt are from seed to seed, beside the teacher's own: what matching distributions may lose.

Spread: the mean distance of two pictures of one prompt, on what the reader of captions makes of a picture before it decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...trainers.measures.fidelity import Estimate
from ...trainers.storage.run_folder import RunFolder
from .engine.parts import Figures, Parts
from .tables import pages
from .tables.trainings import Students, in_order, over_trainings, ratio
from .trials import Subject

BEGINNING = "spread: "
PROMPTS, EACH, SEED = 128, 8, 5000
SETTINGS = {"prompts": PROMPTS, "pictures of each": EACH, "noise seed": SEED}


def spread(features: Tensor, *, each: int = EACH) -> Estimate:
    """Of features (P * each, F), the pictures of one prompt after those of the other; the margin is over prompts."""
    apart = [torch.pdist(of_one.double()).mean() for of_one in features.split(each)]
    return Estimate.of([float(value) for value in apart])


class Drawn(Subject, Protocol):
    """See students.Scenes."""

    def spread(self, label: str, run: RunFolder, steps: int) -> Figures: ...

    def spread_of_teacher(self, setting: Sequence[Any]) -> Figures: ...


def measure(
    parts: Parts, scenes: Drawn, labels: Sequence[str], *, seeds: int, setting: Sequence[Any]
) -> Iterator[None]:
    """The teacher's by its best solver's setting, and every student's; after each part there is a page to write."""
    said = {**SETTINGS, "setting": list(setting)}
    parts.part(f"{BEGINNING}teacher", said, lambda: scenes.spread_of_teacher(setting))
    for label in labels:
        trial = scenes.trials[label]
        for seed in range(seeds):
            run = functools.cache(functools.partial(scenes.trained, label, seed))
            for steps in trial.steps:
                said = {**trial.settings(), **SETTINGS, "seed": seed, "steps": steps}
                work = functools.partial(_spread, scenes, label, run, steps)
                parts.part(f"{BEGINNING}{label}, {steps} calls, training {seed}", said, work)
                yield


def _spread(scenes: Drawn, label: str, run: Callable[[], RunFolder], steps: int) -> Figures:
    return scenes.spread(label, run(), steps)


def table(parts: Figures, students: Students, teacher: list[Figures]) -> list[str]:
    """Spread and recall of every student over the teacher's. teacher: the figures of its best row, by noise seed."""
    found = pages.named(parts, BEGINNING)
    if "teacher" not in found:
        return []
    own = found["teacher"]["figures"]["spread"]
    lines = [
        "How different pictures of one prompt are, over the teacher's by its best solver: **spread** is the mean distance of "
        f"two pictures of one prompt, of {PROMPTS} prompts and {EACH} noises, on the features of the Frechet distance.",
        "",
        "| pictures | calls | spread over the teacher's | recall over the teacher's | trainings |",
        "|---|--:|--:|--:|--:|",
    ]
    recall = _recall(teacher)
    for (label, calls), trainings in in_order(students):
        spreads = [
            found[name]["figures"]
            for name in (f"{label}, {calls} calls, training {seed}" for seed in sorted(trainings))
            if name in found
        ]
        if not spreads:
            continue
        recalled = ratio(_recall(over_trainings(trainings)), recall)
        cells = [label, str(calls), pages.plus_minus(ratio(pages.over(spreads, "spread"), own).written())]
        cells += [pages.plus_minus(recalled.written(), digits=3), str(len(spreads))]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _recall(figures: list[Figures]) -> list[float]:
    """[value, margin] over seeds."""
    return Estimate.of([seed["recall"] for seed in figures]).written()
