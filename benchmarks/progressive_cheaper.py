"""Shorter ways to the students of progressive distillation, against the plain recipe: what each costs and how good it is."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..trainers.measures.charts import panels_chart
from .progressive_setup import Bench, Settings, machine

NAME = "progressive_cheaper"
PLAIN = "plain"
WAYS = {
    PLAIN: Settings(),
    "4 steps merged into 1": Settings(merged_steps=4),
    "from 16 steps": Settings(start_steps=16),
    "a third of the iterations above 2 steps": Settings(iterations=100),
}
COUNTS = (4, 2, 1)


def reports(*, plain: list[Any], pictures: int) -> Iterator[dict[str, Any]]:
    """All figures so far as JSON values, after each training; the first seed of all ways, then the second.

    plain: of each seed the stages of that way, from the report of the plain recipe.
    """
    bench = Bench(guidance_scale=Settings.guidance_scale, pictures=pictures)
    best = bench.teacher(64).frechet
    others = {way: settings for way, settings in WAYS.items() if way != PLAIN}
    found: dict[str, list[Any]] = {PLAIN: plain, **{way: [] for way in others}}
    for seed in range(len(plain)):
        for way, settings in others.items():
            with tempfile.TemporaryDirectory() as folder:
                found[way].append(bench.distilled(settings, seed=seed, folder=Path(folder)))
            written = {name: chosen.written() for name, chosen in WAYS.items()}
            yield {"settings": written, "pictures": pictures, "machine": machine(), "best": best, "ways": found}


def forwards(settings: dict[str, Any], stages: list[dict[str, Any]]) -> int:
    """Forward passes of the network for each sample of a batch, over all stages; a backward pass counts as two.

    Of the teacher as many as it has steps in one of the student's, twice that where it is guided, which the first is.
    """
    total, before = 0, settings["start_steps"]
    for stage in stages:
        steps = stage["score"]["steps"]
        guided = 2 if before == settings["start_steps"] and settings["guidance_scale"] != 1.0 else 1
        total += stage["iterations"] * (guided * (before // steps) + 3)
        before = steps
    return total


def over_ddim(figures: dict[str, Any], way: str) -> dict[int, list[float]]:
    """The distance over 64 DDIM steps, by steps, of each seed."""
    found: dict[int, list[float]] = {}
    for stages in figures["ways"][way]:
        for stage in stages:
            found.setdefault(stage["score"]["steps"], []).append(stage["score"]["frechet"] / figures["best"])
    return found


def chart(figures: dict[str, Any]) -> Tensor:
    """The mean over seeds of each way that has one."""
    curves = {
        way: {steps: statistics.mean(ratios) for steps, ratios in over_ddim(figures, way).items()}
        for way, seeds in figures["ways"].items()
        if seeds
    }
    return panels_chart({"Frechet distance": curves}, value="distance over 64 DDIM steps")


def page(figures: dict[str, Any], *, command: str) -> str:
    s, m = figures["settings"][PLAIN], figures["machine"]
    return "\n".join(
        [
            "# Shorter ways down to one step",
            "",
            f"`{command}` on {m['platform']}, {m['cores']} CPU cores ({m['threads']} threads), beside other work, so that times "
            f"are rough. Frechet distance over the teacher's at 64 DDIM steps, {figures['pictures']} pictures; mean over seeds, "
            "and the range.",
            "",
            f"plain is the recipe of progressive.md, where its figures are from: from {s['start_steps']} steps, "
            f"{s['iterations']} iterations a halving and {s['last_iterations']} for those to 2 steps and to 1. Every other row "
            "differs only in what it says. Forwards "
            "are passes of the network for each sample of a batch, in thousands: a backward pass counts as two, a guided "
            "teacher as two.",
            "",
            "| way | seeds | stages | iterations | forwards | of plain's | seconds | "
            + " | ".join(f"{steps} steps" for steps in COUNTS)
            + " |",
            "|---|--:|--:|--:|--:|--:|--:|" + "--:|" * len(COUNTS),
            *(_row(figures, way) for way, seeds in figures["ways"].items() if seeds),
            "",
            *(f"Not trained yet: {way}." for way, seeds in figures["ways"].items() if not seeds),
        ]
    )


def _row(figures: dict[str, Any], way: str) -> str:
    seeds = figures["ways"][way]
    cost = forwards(figures["settings"][way], seeds[0])
    plain = forwards(figures["settings"][PLAIN], figures["ways"][PLAIN][0])
    seconds = statistics.mean(sum(stage["seconds"] for stage in stages) for stages in seeds)
    iterations = sum(stage["iterations"] for stage in seeds[0])
    ratios = over_ddim(figures, way)
    cells = " | ".join(_cell(ratios.get(steps, [])) for steps in COUNTS)
    return (
        f"| {way} | {len(seeds)} | {len(seeds[0])} | {iterations} | {cost / 1000:.1f} | {cost / plain:.2f} | {seconds:.0f} "
        f"| {cells} |"
    )


def _cell(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.mean(ratios):.2f}{spread}"
