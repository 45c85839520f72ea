"""The GPU book: sampler overhead, step time and peak memory at true shapes, in bf16 and fp8, with one process and with two.

Wants a CUDA card, and says so where there is none. Each cell runs in a process of its own, is written as it comes and not
measured twice; what an error ends, too little memory say, is a cell with its words. Writes benchmarks/results/gpu.md, gpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from .gpu_parts import PRECISIONS, SHAPES, STEPS
from .scenes.machine import RESULTS
from .scenes.parts import Parts

GIB = 2**30
PROCESSES = (1, 2)
READY = (
    "Ready and not run here, for whoever has the data and the weights: docs/examples.md, CIFAR-10 and an SD1.5 LoRA "
    "(docs/examples/cifar10.json, docs/examples/sd15_lora.json)."
)
Figures = dict[str, Any]


def measured(name: str, precision: str, part: str, *, processes: int) -> Figures:
    """The figures of a cell, or the last words of what ended it."""
    if processes > torch.cuda.device_count():
        return {"error": f"this machine has {torch.cuda.device_count()} card"}
    package = __package__ or ""
    with tempfile.TemporaryDirectory() as folder:
        module = ["-m", f"{package}.gpu_parts", json.dumps([name, precision, part, folder])]
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(many if processes > 1 else []), *module]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": _last_words(done.stderr)}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _last_words(text: str) -> str:
    """The line that names the error, of what a process wrote when it ended."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line or "error" in line]
    return (lines or [text.strip() or "ended without a word"])[-1][:300]


def page(written: Figures, *, card: str) -> str:
    parts = {name: part["figures"] for name, part in written["parts"].items()}
    lines = [
        "# GPU book",
        "",
        f"`{written['command']}` on {card}, torch {torch.__version__}. Random weights at true shapes; batch 1 a process.",
        "",
        f"| model | weights | ms a call | our Lightning over {STEPS} bare calls | our LCM | the host's euler |",
        "|---|---|--:|--:|--:|--:|",
        *(_row(parts, name, precision, "sampling", 1, _sampling) for name in SHAPES for precision in PRECISIONS),
        "",
        "A LoRA's optimiser step of progressive distillation with gradient checkpointing; the most memory that a card held.",
        "",
        "| model | weights | processes | s a step | GiB |",
        "|---|---|--:|--:|--:|",
        *(
            _row(parts, name, f"{precision} | {count}", "training", count, _training, precision=precision)
            for name in SHAPES
            for precision in PRECISIONS
            for count in PROCESSES
        ),
        "",
        *(f"- {name}: {found['error']}" for name, found in parts.items() if "error" in found),
        "",
        READY,
        "",
    ]
    return "\n".join(lines)


def _row(
    parts: Figures, name: str, said: str, part: str, count: int, cells: Any, *, precision: str | None = None
) -> str:
    found = parts.get(_label(name, precision or said, part, count))
    empty = " | ".join(["**error**" if found else "-"] * (4 if part == "sampling" else 2))
    return f"| {name} | {said} | {empty if found is None or 'error' in found else cells(found)} |"


def _sampling(found: Figures) -> str:
    return f"{1000 * found['call']:.1f} | {found['lightning']:.3f} | {found['lcm']:.3f} | {found['euler']:.3f}"


def _training(found: Figures) -> str:
    return f"{found['step']:.3f} | {found['bytes'] / GIB:.2f}"


def _label(name: str, precision: str, part: str, processes: int) -> str:
    return f"{name}, {precision}, {part}, {processes} processes"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA card here, so nothing was measured and nothing is written.")
        return
    card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    command = " ".join(["python launch.py bench gpu", *arguments])
    parts = Parts(options.folder / "gpu.json", command=command, sources=[])
    for name in SHAPES:
        for precision in PRECISIONS:
            for part, counts in {"sampling": (1,), "training": PROCESSES}.items():
                for count in counts:
                    _measure(parts, name, precision, part, count, card=card)
                    (options.folder / "gpu.md").write_text(page(parts.written, card=card), encoding="utf-8")


def _measure(parts: Parts, name: str, precision: str, part: str, count: int, *, card: str) -> None:
    parts.part(
        _label(name, precision, part, count),
        {"card": card, "torch": torch.__version__},
        lambda: measured(name, precision, part, processes=count),
    )
