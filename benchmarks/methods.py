"""Guidance and consistency distillation and consistency training of the digits teacher, beside progressive distillation.

Writes benchmarks/results/methods.md, methods.json and methods_pictures.png. What is there already of the same settings is
kept, so that it may be stopped, and seeds and methods added.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..trainers.measures.charts import picture_grid
from .methods_setup import SCALE, TRIALS, MethodsBench, Trial
from .progressive_setup import machine

RESULTS = Path(__file__).resolve().parent / "results"
TRIED = (
    "What was tried, one seed each where nothing else is said. CD with constant weighting, as first published, on 18 levels "
    "of EDM's spacing, 1200 iterations: 15.12, 12.67 and 6.48 at 4, 2 and 1 steps; with the weight max(SNR, 1), which "
    "counts errors at low noise more, 1.45, 1.75 and 2.77 (three seeds). What the table has for CD, but taught by the "
    "student itself and not by its moving average: 1.44, 1.27 and 1.56. LCD in 3200 iterations: 1.32, 1.39 and 2.20 on 64 "
    "levels; 1.34, 1.48 and 2.20 on 32 levels with a moving average of 0.95; 1.40, 1.43 and 1.86 on 16 levels with the "
    "weight SNR + 1. LCD follows its teacher's DDIM, which on 16 levels comes to 1.81, and that is what a perfect student "
    "of it would draw in one step; on more levels it wanted more iterations than these. Heun's steps on the same 16 levels, "
    "which CD takes, are nearer to the teacher's path. CT and iCT are no measure of their papers: iCT's choice of levels and "
    "pseudo-Huber constant are for data of deviation 0.5, these latents have 1, and CT's moving average does not grow with the "
    "levels as the paper's does."
)
"""Of settings that are no longer in the table, in plain words."""
TEACHER_STEPS = (64, 32, 16, 8, 4, 2, 1)
Figures = dict[str, Any]


def reports(
    bench: MethodsBench, trials: Sequence[Trial], *, labels: Sequence[str], seeds: int, known: Figures
) -> Iterator[Figures]:
    """All figures so far as JSON values, after each training. labels: of what to train. known: an earlier report, or nothing."""
    figures: Figures = {
        "pictures": bench.pictures,
        "machine": machine(),
        "teacher": [dataclasses.asdict(bench.teacher(steps)) for steps in TEACHER_STEPS],
        "trials": [
            {"settings": trial.settings(), "seeds": _kept(known, trial, pictures=bench.pictures)} for trial in trials
        ],
    }
    yield figures
    for seed in range(seeds):
        for trial, found in zip(trials, figures["trials"], strict=True):
            if trial.label in labels and len(found["seeds"]) <= seed:
                found["seeds"].append(bench.trained(trial, seed=seed))
                yield figures


def _kept(known: Figures, trial: Trial, *, pictures: int) -> list[Any]:
    same = [found["seeds"] for found in known.get("trials", []) if found["settings"] == trial.settings()]
    return same[0] if same and known["pictures"] == pictures else []


def page(figures: Figures, *, progressive: Figures | None, command: str) -> str:
    """The Markdown page. progressive: the figures of that benchmark, for its rows."""
    m, reference = figures["machine"], figures["teacher"][0]["frechet"]
    lines = [
        "# Guidance distillation, consistency distillation and consistency training",
        "",
        f"`{command}` on {m['platform']}, {m['cores']} CPU cores ({m['threads']} threads), beside other work, so that times "
        f"are rough. {figures['pictures']} pictures a row, all from the same noise.",
        "",
        f"Full weights of the digits teacher (v-prediction), guidance {SCALE:g}, Adam falling linearly to 0. One student of "
        "each method is sampled at all of its step counts, by DDIM (guidance) or with all noise fresh at each step "
        "(consistency). CT and iCT learn from the real digits, without guidance.",
        "",
        "The teacher is sampled by DDIM; better solvers of it stand in digits_solvers.md. Frechet distance to the real digits, "
        "on the features of a small classifier (this is not FID); PSNR to the teacher's "
        "picture at 64 steps of the same noise, which fresh noise leads away from; forwards of the network for one picture, "
        "two for each step of guidance.",
        "",
        "| model | steps | forwards | Frechet distance (range) | over 64 DDIM steps | accuracy (least) | PSNR | seeds | "
        "seconds of training |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row([score], reference=reference) for score in figures["teacher"]),
    ]
    for found in figures["trials"]:
        seconds = [seed["seconds"] for seed in found["seeds"]]
        lines += [_row(scores, reference=reference, seconds=seconds) for scores in _by_steps(found)]
    if progressive:
        for stages in zip(*progressive["seeds"], strict=True):
            scores = [{**stage["score"], "model": "progressive"} for stage in stages]
            lines.append(_row(scores, reference=progressive["teacher"][0]["frechet"]))
    lines += ["", "| model | iterations | settings |", "|---|--:|---|"]
    lines += [_settings(found["settings"]) for found in figures["trials"] if found["seeds"]]
    return "\n".join([*lines, "", *_aims(figures, progressive), "", TRIED, ""])


def _by_steps(found: Figures) -> list[tuple[Any, ...]]:
    return list(zip(*(seed["scores"] for seed in found["seeds"]), strict=True))


def _row(scores: Sequence[Any], *, reference: float, seconds: Sequence[float] = ()) -> str:
    first, distances = scores[0], [score["frechet"] for score in scores]
    mean = statistics.mean(distances)
    spread = f" ({min(distances):.2f} to {max(distances):.2f})" if len(distances) > 1 else ""
    decibel = "-" if first["psnr"] is None else f"{statistics.mean(score['psnr'] for score in scores):.1f} dB"
    trained = f"{statistics.mean(seconds):.0f}" if seconds else "-"
    return (
        f"| {first['model']} | {first['steps']} | {first['nfe']} | {mean:.2f}{spread} | {mean / reference:.2f} "
        f"| {min(score['accuracy'] for score in scores):.3f} | {decibel} | {len(scores)} | {trained} |"
    )


def _settings(settings: Figures) -> str:
    options = {name: value for name, value in settings["options"].items() if name not in ("iterations", "steps")}
    said = [*(f"{name} {value}" for name, value in options.items()), f"batch {settings['batch_size']}"]
    if settings["ema_decay"]:
        said.append(f"moving average {settings['ema_decay']:g}")
    return f"| {settings['label']} | {settings['options']['iterations']} | {', '.join(said)} |"


def _mean_distance(figures: Figures, label: str, steps: int) -> float | None:
    """The mean over seeds; None where nothing of the label was scored at these steps."""
    for found in figures["trials"]:
        for scores in _by_steps(found) if found["settings"]["label"] == label else []:
            if scores[0]["steps"] == steps:
                return statistics.mean(score["frechet"] for score in scores)
    return None


def _aims(figures: Figures, progressive: Figures | None) -> list[str]:
    """Whether each aim was reached in the mean, in plain words."""
    teacher = {score["steps"]: score["frechet"] for score in figures["teacher"]}
    aims = [
        ("guidance-distilled", n, teacher[n], 1.05, f"the guided teacher's at {n} steps") for n in (64, 32, 16, 8, 4)
    ]
    aims.append(("LCD", 4, teacher[64], 1.3, "the teacher's at 64 steps"))
    if progressive:
        stages = next(s for s in zip(*progressive["seeds"], strict=True) if s[0]["score"]["steps"] == 1)
        own = statistics.mean(stage["score"]["frechet"] for stage in stages)
        aims += [(label, 1, own, 1.0, "progressive distillation's at 1 step") for label in ("LCD", "CD")]
    lines = []
    for label, steps, reference, aim, what in aims:
        found = _mean_distance(figures, label, steps)
        if found is not None:
            said = "reached" if found <= aim * reference else "not reached"
            lines.append(
                f"- {label}, {steps} steps: {found / reference:.2f} times {what}; the aim of {aim:g} is {said}."
            )
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch.py bench methods", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000, help="for each row (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=[trial.label for trial in TRIALS], metavar="NAME")
    parser.add_argument("--iterations", type=int, help="of each training, in place of its own number")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    trials = [_shortened(trial, options.iterations) for trial in TRIALS]
    known, progressive = _read(options.folder / "methods.json"), _read(RESULTS / "progressive.json")
    command = " ".join(["python launch.py bench methods", *arguments])
    bench = MethodsBench(guidance_scale=SCALE, pictures=options.pictures)
    for figures in reports(bench, trials, labels=options.methods, seeds=options.seeds, known=known or {}):
        (options.folder / "methods.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        text = page(figures, progressive=progressive, command=command)
        (options.folder / "methods.md").write_text(text, encoding="utf-8")
    _save(picture_grid(bench.rows), options.folder / "methods_pictures.png")
    print(text)


def _read(file: Path) -> Figures | None:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _shortened(trial: Trial, iterations: int | None) -> Trial:
    if iterations is None:
        return trial
    return dataclasses.replace(trial, options={**trial.options, "iterations": iterations})


def _save(picture: Any, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture.mul(255).byte().numpy()).save(path)
