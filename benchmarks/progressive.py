"""Progressive distillation of the digits teacher down to one step, halving by halving, against DDIM on the teacher.

Writes benchmarks/results/progressive.md, .json and .png, or with --ablation or --cheaper progressive_ablation.* or
progressive_cheaper.*, see there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ..trainers.measures.charts import picture_grid, quality_chart
from ..trainers.measures.evaluate import Score
from . import progressive_ablation, progressive_cheaper
from .progressive_setup import Bench, Settings, machine

RESULTS = Path(__file__).resolve().parent / "results"
TEACHER_STEPS = (64, 32, 16, 8, 4, 2, 1)


def reports(bench: Bench, settings: Settings, *, seeds: int, known: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
    """All figures so far as JSON values, after each seed. known: the first seeds' figures of an earlier report."""
    teacher = [bench.teacher(steps) for steps in TEACHER_STEPS if steps <= settings.start_steps]
    trained = list(known)
    for seed in range(len(known), seeds):
        with tempfile.TemporaryDirectory() as folder:
            trained.append(bench.distilled(settings, seed=seed, folder=Path(folder)))
        yield {
            "settings": settings.written(),
            "pictures": bench.pictures,
            "machine": machine(),
            "teacher": [dataclasses.asdict(score) for score in teacher],
            "seeds": trained,
        }


def kept(file: Path, settings: Settings, *, pictures: int) -> list[Any]:
    """The seeds of an earlier report. ValueError when it was made otherwise than the one to come."""
    figures = json.loads(file.read_text(encoding="utf-8"))
    made = {name: figures[name] for name in ("settings", "pictures", "machine")}
    made["settings"] = {**Settings().written(), **made["settings"]}  # a report may be older than a setting
    wanted = {"settings": settings.written(), "pictures": pictures, "machine": machine()}
    if made != wanted:
        raise ValueError(f"{file} was made with {made}, but this is {wanted}; its seeds cannot be kept.")
    seeds: list[Any] = figures["seeds"]
    return seeds


def page(figures: dict[str, Any], *, command: str) -> str:
    """The Markdown page: one row for each step count; of the student the mean over seeds and its range."""
    s, m = figures["settings"], figures["machine"]
    first = figures["teacher"][0]
    lines = [
        "# Progressive distillation, halving by halving",
        "",
        f"`{command}` on {m['platform']}, {m['cores']} CPU cores ({m['threads']} threads), beside other work, so that times "
        f"are rough. {len(figures['seeds'])} training seeds from 0, {figures['pictures']} pictures a row, all from the same "
        "noise.",
        "",
        f"Full weights of the digits teacher (v-prediction), from {s['start_steps']} steps, guidance "
        f"{s['guidance_scale']:g} baked in, weighting {s['weighting']}, Adam at {s['learning_rate']:g} falling linearly to 0 "
        f"in each halving, batch {s['batch_size']}, {s['iterations']} iterations a halving and {s['last_iterations']} for "
        f"those to 2 steps and to 1{_average(s['ema_decay'])}.",
        "",
        "The teacher is sampled by DDIM; better solvers of it stand in digits_solvers.md. Frechet distance to the real digits, "
        "on the features of a small classifier (this is not FID); PSNR to the teacher's "
        f"picture at {first['steps']} steps of the same noise; forwards of the network for one picture, two for each "
        "step of guidance.",
        "",
        "| model | steps | forwards | Frechet distance (range) | over 64 DDIM steps | accuracy (least) | PSNR | ms a picture "
        "| iterations | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for score in figures["teacher"]:
        lines.append(_row(score["model"], [score], reference=first["frechet"]))
    for stages in zip(*figures["seeds"], strict=True):
        row = _row("student", [stage["score"] for stage in stages], reference=first["frechet"])
        seconds = statistics.mean(stage["seconds"] for stage in stages)
        lines.append(f"{row.removesuffix('- | - |')}{stages[0]['iterations']} | {seconds:.0f} |")
    totals = [sum(stage["seconds"] for stage in stages) for stages in figures["seeds"]]
    return "\n".join(
        [*lines, "", f"Seconds of training: {', '.join(f'{t:.0f}' for t in totals)}.", *_aims(figures), ""]
    )


def _average(decay: float) -> str:
    return f", moving average {decay:g}" if decay else ""


def _row(model: str, scores: Sequence[dict[str, Any]], *, reference: float) -> str:
    first, distances = scores[0], [score["frechet"] for score in scores]
    spread = f" ({min(distances):.2f} to {max(distances):.2f})" if len(distances) > 1 else ""
    mean = statistics.mean(distances)
    decibel = "-" if first["psnr"] is None else f"{statistics.mean(score['psnr'] for score in scores):.1f} dB"
    return (
        f"| {model} | {first['steps']} | {first['nfe']} | {mean:.2f}{spread} | {mean / reference:.2f} "
        f"| {min(score['accuracy'] for score in scores):.3f} | {decibel} "
        f"| {1000 * statistics.mean(score['seconds_per_picture'] for score in scores):.2f} | - | - |"
    )


AIMS = {4: 1.05, 2: 1.2, 1: 1.5}
"""Steps to the distance over the teacher's at its most DDIM steps that the settings were chosen for."""


def _aims(figures: dict[str, Any]) -> list[str]:
    """Whether each aim was reached in the mean, in plain words."""
    reference, lines = figures["teacher"][0]["frechet"], [""]
    for stages in zip(*figures["seeds"], strict=True):
        steps = stages[0]["score"]["steps"]
        if steps in AIMS:
            found = statistics.mean(stage["score"]["frechet"] for stage in stages) / reference
            said = "reached" if found <= AIMS[steps] else "not reached"
            lines.append(
                f"- {steps} steps: {found:.2f} times the teacher's at {figures['teacher'][0]['steps']} DDIM steps; the aim of "
                f"{AIMS[steps]} is {said}."
            )
    return lines


def mean_scores(figures: dict[str, Any]) -> list[Score]:
    """For the chart: the teacher's scores and the means of the student's."""
    scores = [Score(**score) for score in figures["teacher"]]
    for stages in zip(*figures["seeds"], strict=True):
        found = [stage["score"] for stage in stages]
        means = {name: statistics.mean(score[name] for score in found) for name in ("frechet", "accuracy")}
        scores.append(Score(**{**found[0], **means}))
    return scores


def _save(picture: Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture.mul(255).byte().numpy()).save(path)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch.py bench progressive", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000, help="for each row (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="the seeds that the folder's results have, and add to them")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--ablation", action="store_true", help="predictions and weightings instead, at small settings")
    other.add_argument("--cheaper", action="store_true", help="shorter ways instead, after a report of the plain one")
    parser.add_argument("--start-steps", type=int, default=Settings.start_steps)
    parser.add_argument("--iterations", type=int, default=Settings.iterations, help="of a halving")
    parser.add_argument("--last-iterations", type=int, default=Settings.last_iterations, help="to 2 steps and to 1")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python launch.py bench progressive", *(a for a in arguments if a != "--keep")])
    report = options.folder / "progressive.json"
    if options.ablation:
        found = progressive_ablation.reports(seeds=options.seeds, pictures=options.pictures)
        _write_all(options.folder, progressive_ablation, found, command=command)
        return
    if options.cheaper:
        plain = kept(report, progressive_cheaper.WAYS[progressive_cheaper.PLAIN], pictures=options.pictures)
        found = progressive_cheaper.reports(plain=plain[: options.seeds], pictures=options.pictures)
        _write_all(options.folder, progressive_cheaper, found, command=command)
        return
    settings = Settings(
        start_steps=options.start_steps, iterations=options.iterations, last_iterations=options.last_iterations
    )
    known = kept(report, settings, pictures=options.pictures) if options.keep else []
    bench = Bench(guidance_scale=settings.guidance_scale, pictures=options.pictures)
    for figures in reports(bench, settings, seeds=options.seeds, known=known):
        _save(quality_chart(mean_scores(figures)), options.folder / "progressive.png")
        _save(picture_grid(bench.rows), options.folder / "progressive_pictures.png")
        _write(options.folder, "progressive", figures, page(figures, command=command))


def _write_all(folder: Path, benchmark: ModuleType, found: Iterator[dict[str, Any]], *, command: str) -> None:
    """After each report what a benchmark of its own module makes of it."""
    for figures in found:
        _save(benchmark.chart(figures), folder / f"{benchmark.NAME}.png")
        _write(folder, benchmark.NAME, figures, benchmark.page(figures, command=command))


def _write(folder: Path, name: str, figures: dict[str, Any], text: str) -> None:
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
