"""The students' table as Markdown, beside the teacher's solvers at as many calls, and what was aimed at and published.

And as the curve of Salimans and Ho 2022, figure 4.
"""

from __future__ import annotations

import itertools
import json
import statistics
from typing import Any, NamedTuple

from torch import Tensor

from ...trainers.measures.charts import Interval, curves_chart
from . import diversity
from .engine.machine import RESULTS, save_picture
from .model.solvers import CHUNK
from .tables import pages
from .tables.trainings import Students, by_training, distance, in_order, over_trainings, ratio
from .trials import ADDED, adds_noise

Figures = dict[str, Any]
TEACHER = "teacher, "


class Aim(NamedTuple):
    """At most these, of the best student's distance: over the teacher's best, and over the best solver's at equal calls."""

    over_best: float
    over_solver: float


AIMS = {4: Aim(1.05, 0.75), 2: Aim(1.1, 0.55), 1: Aim(1.2, 0.15)}
PUBLISHED = {"matching": 2.62, "consistency": 6.20, "progressive": 15.39}
"""FID on ImageNet of 64 x 64, with classes, in one step, by how our labels begin (Yin et al. 2024, table 1)."""


def page(written: Figures, solvers: Figures) -> str:
    lines = [
        "# Students of the scenes' teacher",
        "",
        pages.made(written),
        "",
        " ".join([pages.ABOUT, *of_one_noise(written["parts"])]),
        "",
    ]
    lines += ["![Distance over network calls](scenes_students.png)", ""]
    lines += [*pages.header("pictures"), *pages.floors(solvers["parts"])]
    rows = pages.by_noise(solvers["parts"])
    for label, seeds in rows.items():
        lines.append(pages.row(f"{TEACHER}{label.rpartition(', ')[0]}", _calls(seeds), _figures(seeds)))
    students = by_training(written["parts"])
    for (label, calls), trainings in in_order(students):
        lines.append(pages.row(f"{label}, {pages.count(len(trainings), 'training')}", calls, over_trainings(trainings)))
    lines += ["", *_trainings(written["parts"]), ""]
    if rows:
        lines += [*aims(students, rows), ""]
        best = _figures(pages.best_of(rows.values()))
        lines += diversity.table(written["parts"], students, best)
    lines += uneven(students)
    return "\n".join([*lines, *order(students), ""])


def of_one_noise(parts: Figures) -> list[str]:
    """A sentence on the rows that are older than ADDED."""
    settings = {name: part["settings"] for name, part in parts.items()}
    old = [name for name, said in settings.items() if adds_noise(said) and not ADDED.items() <= said.items()]
    labels = ", ".join(sorted({name.partition(", ")[0] for name in old}))
    said = (
        f"What these students add between their steps is the noise of one seed in all rows, the same for every {CHUNK} pictures, "
        f"which their intervals leave out: {labels}."
    )
    return [said] if old else []


def _calls(seeds: list[Figures]) -> int:
    return int(seeds[0]["settings"]["calls"])


def _figures(seeds: list[Figures]) -> list[Figures]:
    return [part["figures"] for part in seeds]


def _trainings(parts: Figures) -> list[str]:
    """What was trained, how long, and what was not."""
    lines = []
    for name, part in pages.named(parts, "training: ").items():
        settings = part["settings"]
        lines.append(
            f"- {name}: {settings['method']}, {settings['passes']}, {part['seconds']:.0f} s; {_said(settings)}."
        )
    return lines


def _said(settings: Figures) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings["options"].items())


_AIMED = (
    "Aims, of the student that is best here, on the test split, at each number of calls, and the same by random features, with "
    "the student and the solvers that are best by those (guidance was tuned on the former); of one training, the interval is of "
    "noise alone:"
)


def aims(students: Students, rows: dict[str, list[Figures]]) -> list[str]:
    """Whether the best student at each number of calls is what was aimed at, interval and all, by each judge, under a heading."""
    best = _figures(pages.best_of(rows.values()))
    lines = []
    for calls in AIMS:
        found = _aimed(students, rows, calls, "frechet")
        if found:
            label, said = found
            own = over_trainings(students[label, calls])
            lines.append(
                f"- {said}; right {pages.plus_minus(pages.over(own, 'accuracy'), digits=3)}, the teacher's best "
                f"{pages.plus_minus(pages.over(best, 'accuracy'), digits=3)}."
            )
    for calls in AIMS:
        found = _aimed(students, rows, calls, "frechet_random")
        lines += [f"- By random features, {found[1]}."] if found else []
    return [_AIMED, "", *lines]


def _aimed(students: Students, rows: dict[str, list[Figures]], calls: int, key: str) -> tuple[str, str] | None:
    """The student of so many calls that is best by a judge, and how it stands to the solvers that are; None without either."""
    found = {label: pages.over(over_trainings(of), key) for (label, n), of in students.items() if n == calls}
    equal = [seeds for seeds in rows.values() if _calls(seeds) <= calls]
    if not found or not equal:
        return None
    label = min(found, key=lambda one: found[one][0])
    trainings = pages.count(len(students[label, calls]), "training")
    best, solver = (pages.over(_figures(pages.best_of(of, key)), key) for of in (rows.values(), equal))
    return label, (
        f"{pages.count(calls, 'call')}, {label} ({trainings}): "
        f"{_against(found[label], best, AIMS[calls].over_best)} the teacher's best; "
        f"{_against(found[label], solver, AIMS[calls].over_solver)} the best solver at equal calls"
    )


def _against(own: list[float], other: list[float], aim: float) -> str:
    found = ratio(own, other)
    said = "reached" if found.value + found.margin <= aim else "not reached"
    return f"{pages.plus_minus(found.written(), digits=2 if found.value >= 0.1 else 3)} times (aim {aim:g}: {said})"


def uneven(students: Students) -> list[str]:
    """The rows whose trainings came out otherwise than one another, the worst at over twice the best's distance."""
    lines = []
    for (label, calls), trainings in in_order(students):
        each = [statistics.mean(seed["frechet"][0] for seed in seeds) for _, seeds in sorted(trainings.items())]
        if max(each) > 2 * min(each):
            said = ", ".join(f"{value:.2f}" for value in each)
            lines.append(f"- {label}, {pages.count(calls, 'call')}: its trainings came out apart, at {said}.")
    return [*lines, ""] if lines else []


def order(students: Students) -> list[str]:
    """The methods in one call from the least distance to the most, each by its best student, beside the published order."""
    best: dict[str, list[float]] = {}
    for (label, calls), trainings in students.items():
        method = next((name for name in PUBLISHED if label == name or label.startswith(f"{name} in ")), None)
        if calls == 1 and method:
            best[method] = min([best.get(method, [float("inf"), 0.0]), distance(trainings)], key=lambda pair: pair[0])
    here = sorted(best, key=lambda name: best[name][0])
    there = [name for name in PUBLISHED if name in best]
    if len(here) < 2:
        return []
    apart = all(sum(best[a]) < best[b][0] - best[b][1] for a, b in itertools.pairwise(here))
    said = "the same order" if here == there else "another order"
    return [
        f"In one call, from the best: {', '.join(f'{name} {pages.plus_minus(best[name])}' for name in here)}; "
        f"{'no two' if apart else 'some'} intervals overlap. Published, FID on ImageNet 64 x 64 "
        f"after far more training: {', '.join(f'{name} {PUBLISHED[name]:.2f}' for name in there)}; {said}.",
        "",
    ]


def chart(written: Figures, solvers: Figures) -> Tensor:
    """Salimans and Ho 2022, figure 4: distance over network calls, every student's and every solver's."""
    curves: dict[str, dict[int, Interval]] = {}
    for label, seeds in pages.by_noise(solvers["parts"]).items():
        value, margin = pages.over(_figures(seeds), "frechet")
        curves.setdefault(f"{TEACHER}{label.rpartition(', ')[0]}", {})[_calls(seeds)] = (value, margin)
    for (label, calls), trainings in in_order(by_training(written["parts"])):
        value, margin = distance(trainings)
        curves.setdefault(label, {})[calls] = (value, margin)
    return curves_chart(curves, over="network calls", value="Frechet distance at infinity", beside=TEACHER)


def _solvers() -> Figures:
    return dict(json.loads((RESULTS / "scenes_solvers.json").read_text(encoding="utf-8")))


def best_setting() -> list[Any]:
    """How the teacher draws best, of solvers.Setting."""
    return list(pages.best_of(pages.by_noise(_solvers()["parts"]).values())[0]["settings"]["setting"])


def write(written: Figures) -> None:
    solvers = _solvers()
    (RESULTS / "scenes_students.md").write_text(page(written, solvers), encoding="utf-8")
    save_picture(chart(written, solvers), RESULTS / "scenes_students.png")
