"""What the student predicts and how its loss is weighed, as in table 1 of Salimans and Ho 2022, at small settings."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..trainers.measures.charts import panels_chart
from ..trainers.methods.progressive import StudentPrediction
from ..trainers.objective.weighting import Weighting
from .progressive_setup import TEACHER_PREDICTION, Bench, Settings, Start, machine

PREDICTIONS = (
    StudentPrediction.V_PREDICTION,
    StudentPrediction.X0,
    StudentPrediction.X0_AND_EPS,
    StudentPrediction.EPS,
)
NAME = "progressive_ablation"
CONVERSION = Settings(start_steps=16, conversion_iterations=1000, learning_rate=2e-3)
SETTINGS = Settings(start_steps=16, batch_size=32, iterations=100, last_iterations=250)


def reports(*, seeds: int, pictures: int) -> Iterator[dict[str, Any]]:
    """All figures so far as JSON values, after each pair of a prediction and a weighting, all else equal."""
    bench = Bench(guidance_scale=SETTINGS.guidance_scale, pictures=pictures)
    best = bench.teacher(64).frechet
    rows: list[dict[str, Any]] = []
    for prediction in PREDICTIONS:
        starts = [_start(bench, prediction, best=best, seed=seed) for seed in range(seeds)]
        for weighting in Weighting:
            found = [_over(best, bench, weighting, start, seed=seed) for seed, start in enumerate(starts)]
            ratios = {steps: statistics.mean(one[steps] for one in found) for steps in found[0]}
            rows.append({"prediction": prediction.value, "weighting": weighting.value, "over_teacher": ratios})
            written = {"settings": SETTINGS.written(), "conversion": CONVERSION.written()}
            yield {**written, "seeds": seeds, "pictures": pictures, "machine": machine(), "rows": rows}


_Begin = tuple[dict[str, float], Start | None]
"""The distance over 64 DDIM steps by steps, of what the halvings begin with, and that itself; None for the teacher."""


def _start(bench: Bench, prediction: StudentPrediction, *, best: float, seed: int) -> _Begin:
    """The converted student, with guidance in it."""
    if prediction.value == TEACHER_PREDICTION:
        return {}, None
    stage, start = bench.converted(dataclasses.replace(CONVERSION, prediction=prediction), seed=seed)
    return {str(CONVERSION.start_steps): stage["score"]["frechet"] / best}, start


def _over(best: float, bench: Bench, weighting: Weighting, begin: _Begin, *, seed: int) -> dict[str, float]:
    first, start = begin
    settings = dataclasses.replace(SETTINGS, weighting=weighting)
    if start:
        settings = dataclasses.replace(settings, guidance_scale=1.0)
    with tempfile.TemporaryDirectory() as folder:
        stages = bench.distilled(settings, seed=seed, folder=Path(folder), start=start)
    return first | {str(stage["score"]["steps"]): stage["score"]["frechet"] / best for stage in stages}


def chart(figures: dict[str, Any]) -> Tensor:
    """A panel for each weighting, a curve for each prediction."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for row in figures["rows"]:
        points = {int(steps): ratio for steps, ratio in row["over_teacher"].items()}
        panels.setdefault(row["weighting"], {})[row["prediction"]] = points
    return panels_chart(panels, value="distance over 64 DDIM steps")


def page(figures: dict[str, Any], *, command: str) -> str:
    s, c, m, rows = figures["settings"], figures["conversion"], figures["machine"], figures["rows"]
    counts = sorted({int(steps) for row in rows for steps in row["over_teacher"]}, reverse=True)
    lines = [
        f"| {row['prediction']} | {row['weighting']} | {' | '.join(_cell(row, steps) for steps in counts)} |"
        for row in rows
    ]
    return "\n".join(
        [
            "# What the student predicts and how its loss is weighed",
            "",
            f"`{command}` on {m['platform']}, {m['cores']} CPU cores ({m['threads']} threads). Frechet distance over the "
            f"teacher's at 64 DDIM steps, {figures['pictures']} pictures a row; training seeds: {figures['seeds']}. Halvings "
            f"from {s['start_steps']} steps with {s['iterations']} iterations each, {s['last_iterations']} for those to 2 steps "
            f"and to 1, batch {s['batch_size']}, guidance {s['guidance_scale']:g}: small settings, to compare rows, not to "
            "reach the best.",
            "",
            f"The teacher predicts {TEACHER_PREDICTION}, and a student that does begins as the teacher. All others begin with a "
            f"converted student of {c['conversion_iterations']} iterations at batch {c['batch_size']} and learning rate "
            f"{c['learning_rate']:g}, the same for all weightings (its own is {c['weighting']}), with guidance in it: the column "
            f"of {s['start_steps']} steps. x0_and_eps has twice the output channels and begins near the teacher; see "
            "trainers/x0_and_eps.py.",
            "",
            "| student predicts | weighting | " + " | ".join(f"{steps} steps" for steps in counts) + " |",
            "|---|---|" + "--:|" * len(counts),
            *lines,
            "",
            *_missing(rows),
            *[_best(rows, steps) for steps in counts if steps < s["start_steps"]],
            "",
        ]
    )


def _missing(rows: list[dict[str, Any]]) -> list[str]:
    found = {(row["prediction"], row["weighting"]) for row in rows}
    wanted = [(prediction.value, weighting.value) for prediction in PREDICTIONS for weighting in Weighting]
    return [f"Not trained yet: {' with '.join(pair)}.\n" for pair in wanted if pair not in found]


def _cell(row: dict[str, Any], steps: int) -> str:
    ratio = row["over_teacher"].get(str(steps))
    return "-" if ratio is None else f"{ratio:.2f}"


def _best(rows: list[dict[str, Any]], steps: int) -> str:
    best, worst = (choose(rows, key=lambda row: row["over_teacher"][str(steps)]) for choose in (min, max))
    return (
        f"- {steps} steps: least with {best['prediction']} and {best['weighting']} ({_cell(best, steps)}), most with "
        f"{worst['prediction']} and {worst['weighting']} ({_cell(worst, steps)})."
    )
