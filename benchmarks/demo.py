"""The demo over several seeds: what four halvings buy. Writes benchmarks/results/demo.md and demo.json."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ..commands.demo import run_demo

RESULTS = Path(__file__).resolve().parent / "results"


def frechet(report: dict[str, Any], model: str, steps: int) -> float:
    return next(s["frechet"] for s in report["scores"] if (s["model"], s["steps"]) == (model, steps))


def summary(reports: list[dict[str, Any]]) -> str:
    """A Markdown page: one row for each model and step count, mean and range over seeds."""
    first = reports[0]
    machine = first["machine"]
    lines = [
        "# The demo, over seeds",
        "",
        f"`python launch.py bench demo --seeds {len(reports)}`: training seeds 0 to {len(reports) - 1}, "
        f"{first['pictures']} pictures a row, on {machine['platform']}, {machine['cores']} CPU cores.",
        "",
        "| model | steps | forwards | Frechet distance (range) | accuracy (least) | PSNR to teacher |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for k, score in enumerate(first["scores"]):
        rows = [report["scores"][k] for report in reports]
        distances = [row["frechet"] for row in rows]
        decibel = "-" if score["psnr"] is None else f"{statistics.mean(row['psnr'] for row in rows):.1f} dB"
        lines.append(
            f"| {score['model']} | {score['steps']} | {score['nfe']} | {statistics.mean(distances):.2f} "
            f"({min(distances):.2f} to {max(distances):.2f}) | {min(row['accuracy'] for row in rows):.3f} | {decibel} |"
        )
    to_few = [frechet(r, "student", 4) / frechet(r, "teacher", 4) for r in reports]
    to_many = [frechet(r, "student", 4) / frechet(r, "teacher", 64) for r in reports]
    seconds = [report["seconds"] for report in reports]
    lines += [
        "",
        f"Student at 4 steps over teacher at 4 steps: {', '.join(f'{x:.2f}' for x in to_few)}.",
        f"Student at 4 steps over teacher at 64 steps: {', '.join(f'{x:.2f}' for x in to_many)}.",
        f"Seconds from start of the server to the report: {', '.join(f'{s:.0f}' for s in seconds)}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch.py bench demo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    reports = [run_demo(seed=seed, iterations=None, again=True) for seed in range(options.seeds)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    page = summary(reports)
    (RESULTS / "demo.md").write_text(page, encoding="utf-8")
    print(page)
