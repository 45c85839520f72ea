"""What the plan of a run says before it begins, against what the run then takes: time, and memory beside the MODEL.

The digits, and tiny shapes of the host's UNet and of a DiT, each method with a LoRA and with full weights. Plan and run follow
each other at once, several times over, and the ratio in the middle counts; on a CPU time is that of this process, without what
other work on the machine takes from it. Memory is
the process's own peak on Linux, in a process of its own, or the GPU's. Writes benchmarks/results/plan.md and plan.json part by
part, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..scenes.engine.machine import RESULTS
from ..scenes.engine.parts import Figures, Parts
from . import parts as plan_parts
from .parts import METHODS, PARTS, Case


class Sizes(NamedTuple):
    """iterations: of about half a run. batch, large: see Case."""

    iterations: int
    batch: int
    large: int


MODELS = {"digits": Sizes(40, 64, 512), "sd15": Sizes(12, 4, 4), "flux": Sizes(24, 4, 32)}
"""By the name of the digits or of an architecture."""
STUDENTS = ("LoRA", "full")
CLOSE = 0.15
MIB = 2**20


def cases(models: Sequence[str], methods: Sequence[str], *, rounds: int, share: float) -> list[Case]:
    """share: of the usual iterations."""
    return [
        Case(
            model=model,
            method=method,
            student=student,
            iterations=max(1, round(share * MODELS[model].iterations)),
            batch=MODELS[model].batch,
            large=MODELS[model].large,
            rounds=rounds,
        )
        for model, method, student in itertools.product(models, methods, STUDENTS)
    ]


def measured(parts: Parts, wanted: Sequence[Case]) -> Iterator[tuple[Case, Figures]]:
    """Each case with its figures so far, as they come."""
    for case in wanted:
        found = {
            part: parts.part(
                f"{case.name}, {part}", case.written(), lambda part=part, case=case: plan_parts.alone(part, case)
            )
            for part in PARTS
        }
        yield case, found


def row(case: Case, found: Figures) -> str:
    pairs, memory = found["times"]["pairs"], found["memory"]
    ratios = sorted(planned / taken for planned, taken in pairs)
    ratio = statistics.median(ratios)
    return (
        f"| {case.model} | {case.method} | {case.student} | {statistics.median(taken for _, taken in pairs):.2f} s | {ratio:.2f} "
        f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | {memory['held'] / MIB:.1f} | {memory['planned'] / memory['held']:.2f} |"
    )


def page(found: Sequence[tuple[Case, Figures]], *, command: str, about: dict[str, Any]) -> str:
    """Markdown."""
    times = [statistics.median(a / b for a, b in figures["times"]["pairs"]) for _, figures in found]
    memories = [figures["memory"]["planned"] / figures["memory"]["held"] for _, figures in found]
    larger = ", ".join(f"{name} {sizes.large}" for name, sizes in MODELS.items() if sizes.large > sizes.batch)
    within = [sum(abs(ratio - 1.0) <= CLOSE for ratio in ratios) for ratios in (times, memories)]
    return "\n".join(
        [
            "# The plan of a run against the run",
            "",
            f"`{command}` on {about['machine']['platform']}, {about['machine']['cores']} CPU cores "
            f"({about['machine']['threads']} threads), {about['date']}, in processor time on a CPU.",
            "",
            f"Within {CLOSE:.0%}: {within[0]} of {len(found)} in time (the ratio in the middle), {within[1]} of {len(found)} in "
            f"memory. Memory is that of larger batches where a batch holds little ({larger}): the process's own "
            "accounting is in pages, which count beside little.",
            "",
            "| model | method | student | run | plan over run | least to most | MiB held | plan over held |",
            "|---|---|---|--:|--:|--:|--:|--:|",
            *(row(case, figures) for case, figures in found),
            "",
        ]
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="of plan and run, for the times (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual iterations (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the page is written")
    options = parser.parse_args(arguments)
    command = " ".join(["python launch.py bench plan", *arguments])
    trainers = Path(__file__).resolve().parents[2] / "trainers" / "training"
    sources = [trainers / "trial.py", trainers / "plan.py", Path(plan_parts.__file__)]
    parts = Parts(options.folder / "plan.json", command=command, sources=sources)
    found: list[tuple[Case, Figures]] = []
    for case in measured(parts, cases(options.models, options.methods, rounds=options.rounds, share=options.share)):
        found.append(case)
        about = next(reversed(parts.written["parts"].values()))
        text = page(found, command=command, about=about)
        (options.folder / "plan.md").write_text(text, encoding="utf-8")
    print(text)
