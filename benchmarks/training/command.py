"""What our training step costs beside its bare parts, in time and in memory, and what gradient checkpointing saves.

A UNet with random weights: of Stable Diffusion 1.5's kind with fewer channels, or with --channels 320 the true shapes of
--architecture. For time, every round trains a few iterations with the loop and does the same forwards, backward pass and
optimiser step bare, one after the other; a ratio is the median over rounds of that round's ratio. With gradient checkpointing
the bare step is timed in as many rounds, after the others. For memory, each part runs alone in a process, and what counts is
its peak beyond what was held before the first step. Writes
benchmarks/results/training.md, or one named after the shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from ...trainers.students.student import Student
from ...trainers.training.optimisation.options import PRECISIONS
from ..scenes.engine.machine import RESULTS
from .parts import bare, loop, memory
from .setup import METHODS, UNETS, Setup, in_one_step, learning

MIB = 2**20


def measure_time(setup: Setup, *, rounds: int, iterations: int) -> dict[str, Any]:
    with learning(setup) as (student, data, table):
        method = in_one_step(setup.method, table, iterations=iterations)
        held = _teacher_bytes(student)
        bare(student, data, method, setup=setup)
        ratios, plain, waiting = [], [], []
        for turn in range(rounds):
            first, second = (loop, bare) if turn % 2 else (bare, loop)
            found = {part: part(student, data, method, setup=setup) for part in (first, second)}
            ratios.append(found[loop][0] / found[bare][0])
            plain.append(found[bare][0])
            waiting.append(found[loop][1])
        measured = {
            "ratios": sorted(ratios),
            "seconds": statistics.median(plain),
            "waiting": statistics.median(waiting),
            "held at first": held,
            "held later": _teacher_bytes(student),
            "learning": sum(value.numel() for value in student.parameters()),
        }
    return measured | {"checkpointed": _checkpointed(setup, rounds=rounds, iterations=iterations)}


def _checkpointed(setup: Setup, *, rounds: int, iterations: int) -> float:
    """Seconds of a bare step with gradient checkpointing, the median over rounds."""
    with learning(dataclasses.replace(setup, gradient_checkpointing=True)) as (student, data, table):
        method = in_one_step(setup.method, table, iterations=iterations)
        bare(student, data, method, setup=setup)
        return statistics.median(bare(student, data, method, setup=setup)[0] for _ in range(rounds))


def _teacher_bytes(student: Student) -> int:
    tensors = [value for name, value in student.state_dict().items() if name.startswith("teacher.")]
    return sum(value.numel() * value.element_size() for value in tensors)


def time_row(setup: Setup, *, rounds: int, iterations: int) -> str:
    found = measure_time(setup, rounds=rounds, iterations=iterations)
    ratios = found["ratios"]
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    return (
        f"| {setup.method} | {setup.student} | {found['learning'] / 1e6:.1f} M | {1000 * found['seconds']:.0f} ms "
        f"| {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} | {100 * found['waiting']:.3f} % "
        f"| {found['held at first'] / MIB:.1f} | {found['held later'] / MIB:.1f} "
        f"| {found['checkpointed'] / found['seconds']:.2f} |"
    )


def memory_row(setup: Setup, *, iterations: int) -> str:
    less = dataclasses.replace(setup, gradient_checkpointing=True)
    floor, ours, saved = (
        memory(part, which, iterations=iterations) for part, which in (("bare", setup), ("loop", setup), ("bare", less))
    )
    return (
        f"| {setup.method} | {setup.student} | {floor['bytes'] / MIB:.1f} | {ours['bytes'] / MIB:.1f} "
        f"| {ours['bytes'] / floor['bytes']:.3f} | {saved['bytes'] / MIB:.1f} "
        f"| {saved['bytes'] / floor['bytes']:.3f} |"
    )


def page(said: str, *, times: list[str], memories: list[str], setup: Setup, rounds: int) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    latent = setup.pixels // 8
    return "\n".join(
        [
            "# What a training step costs beside its bare parts",
            "",
            f"`{said}`: a halving of progressive distillation, and distribution matching in "
            f"one step with two updates of its companion, latents of {latent} x {latent}, on "
            f"{platform.platform()}, {os.cpu_count()} CPU cores ({torch.get_num_threads()} threads), {gpu}, "
            f"{datetime.date.today().isoformat()}; medians over {rounds} rounds.",
            "",
            "| method | student | learns | bare step | loop over bare | middle half | of it waiting for data "
            "| MiB for the teacher, first halving | later | bare step with checkpointing over without |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *times,
            "",
            "Checkpointing computes a forward again for each backward pass: counted in forwards, a backward pass as two, 6 for 5 "
            "of a halving and 15 for 12 of distribution matching.",
            "",
            "Peak memory in MiB beyond what was held before the first step, each part alone in a process; with gradient "
            "checkpointing the bare step.",
            "",
            "| method | student | bare step | loop | loop over bare | checkpointing | over bare |",
            "|---|---|--:|--:|--:|--:|--:|",
            *memories,
            "",
        ]
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", choices=UNETS, default="SD15")
    parser.add_argument("--channels", type=int, default=64, help="of the UNet's first level; in truth 320")
    parser.add_argument("--pixels", type=int, default=128, help="side of the pictures")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--students", nargs="+", choices=["LoRA", "full"], default=["LoRA", "full"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the page is written")
    options = vars(parser.parse_args(arguments))
    rounds, iterations, folder = (options.pop(name) for name in ("rounds", "iterations", "folder"))
    methods, students = options.pop("methods"), options.pop("students")
    setups = [Setup(student=student, method=method, **options) for method in methods for student in students]
    made = page(
        " ".join(["python launch.py bench training", *arguments]),
        times=[time_row(setup, rounds=rounds, iterations=iterations) for setup in setups],
        memories=[memory_row(setup, iterations=iterations) for setup in setups],
        setup=setups[0],
        rounds=rounds,
    )
    usual = all(
        options[name] == parser.get_default(name) for name in ("architecture", "channels", "pixels", "precision")
    )
    name = "training.md" if usual else f"training_{options['architecture'].lower()}_{options['pixels']}.md"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(made, encoding="utf-8")
    print(made)
