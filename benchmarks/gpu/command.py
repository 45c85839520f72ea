"""The GPU book: sampler overhead, step time, memory and gradients at true shapes, with weights in pages and without.

Wants a CUDA card, and says so where there is none; COMFYUI_PATH and COMFYUI_PYTHON name a current ComfyUI, which is set up as its
own server is. Each cell is written as it comes and not measured twice; what an error ends, too little memory say, is a cell with
its words, which the next start tries again. Rooms of less than the card are made by another process that holds the rest of it.
Writes benchmarks/results/gpu.md, gpu.json.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..scenes.engine.machine import RESULTS
from ..scenes.engine.parts import Parts
from .cells import MARK
from .gradients import ROOMS
from .parts import PARTS, STEPS
from .room import GIB
from .shapes import SHAPES
from .subject import PRECISIONS

PROCESSES = (1, 2)
CARDS = (0, 24, 16, 12, 8)
"""GiB of a card that are there; 0 for all of it."""
STEPPING = {
    "training": "progressive distillation",
    "matching": "distribution matching, with an update of the companion and the teacher's guidance",
    "critic": "the same with a critic, and an update of it",
}
"""Parts of which the page has a table over cards, and what an optimiser step is one of."""
GRADIENTS = {"gradients": "a LoRA", "pulls": "a critic"}
"""Parts that hold gradients against those of weights on the card, and whose."""
HOLDING = {"pages": [], "no pages": ["--disable-dynamic-vram"]}
"""Options of the host by how it holds weights."""
FIRST = 3
"""So many that end alike at the beginning end the benchmark: a card's time is dear."""
READY = (
    "Ready and not run here, for whoever has the data and the weights: docs/examples.md, CIFAR-10 and an SD1.5 LoRA "
    "(docs/examples/cifar10.json, docs/examples/sd15_lora.json)."
)
Figures = dict[str, Any]


class Cell(NamedTuple):
    """card: of CARDS."""

    model: str
    precision: str
    part: str
    card: int
    holding: str
    processes: int = 1

    @property
    def label(self) -> str:
        card = f", {self.card} GiB" if self.card else ""
        many = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.model}, {self.precision}, {self.part}, {self.holding}{card}{many}"


def cells() -> list[Cell]:
    """In the order in which they are measured: those of one process and one model stand together."""
    found = []
    for holding, model, precision in itertools.product(HOLDING, SHAPES, PRECISIONS):
        if holding == "pages":
            found += [Cell(model, precision, part, 0, holding) for part in (*GRADIENTS, "plan")]
        found += [Cell(model, precision, part, card, holding) for part in STEPPING for card in CARDS]
        found += [Cell(model, precision, "sampling", 0, holding)]
    found += [Cell(model, precision, "training", 0, "no pages", 2) for model in SHAPES for precision in PRECISIONS]
    return found


class Child:
    """A process that measures cells one after the other; when one ends it, another goes on behind that one."""

    def __init__(self, wanted: list[Cell]) -> None:
        self._wanted = wanted
        self._process: subprocess.Popen[str] | None = None
        self._kind: tuple[str, int] | None = None
        self._said = ""
        self._folder = tempfile.TemporaryDirectory()

    def figures(self, cell: Cell) -> Figures:
        """Of a cell: the next of the wanted ones, for what comes before it is not asked for again."""
        if cell.processes > torch.cuda.device_count():
            return {"error": f"this machine has {torch.cuda.device_count()} card"}
        if self._process is None or self._kind != (cell.holding, cell.processes):
            self._start(cell)
        for line in self._process.stdout if self._process and self._process.stdout else ():
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        self.end()
        return {"error": _last_words(self._said)}

    def _start(self, cell: Cell) -> None:
        self.end()
        self._kind = (cell.holding, cell.processes)
        coming = self._wanted[self._wanted.index(cell) :]
        mine = [list(one[:4]) for one in coming if (one.holding, one.processes) == self._kind]
        asked = {"cells": mine, "folder": self._folder.name, "options": HOLDING[cell.holding]}
        module = ["-m", f"{__package__ or ''}.cells", json.dumps(asked)]
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cell.processes)]
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), *(many if cell.processes > 1 else []), *module]
        self._said = ""
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr or ():
            self._said = self._said[-20_000:] + line

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._listener.join()
            self._process = None


def _last_words(text: str) -> str:
    """The line that names the error, of what a process wrote when it ended."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line or "error" in line]
    return (lines or [text.strip() or "ended without a word"])[-1][:300]


# --- the page --------------------------------------------------------------------------------------------------------


def page(written: Figures) -> str:
    marks = _marks(written)
    parts = {name: {**part["figures"], "mark": marks[_where(part)]} for name, part in written["parts"].items()}
    places = "; on ".join(f"{where}{f', marked {mark}' if mark else ''}" for where, mark in marks.items())
    lines = [
        "# GPU book",
        "",
        f"`{written['command']}` on {places}. Random weights at true shapes; batch 1 a process. *Pages*: "
        "the host's dynamic VRAM, its default; *no pages*: `--disable-dynamic-vram`.",
        "",
        f"| model | weights | held in | ms a call | our Lightning over {STEPS} bare calls | our LCM | the host's euler |",
        "|---|---|---|--:|--:|--:|--:|",
        *_rows(parts, "sampling", _sampling),
        "",
        "*GiB* below: the most that torch held on the whole card, weights that lie in pages not counted; *of weights*: what the "
        "host had on it then.",
        "",
        *itertools.chain.from_iterable(_stepping(parts, part) for part in STEPPING),
        "The plan before a run over the run: progressive distillation with gradient checkpointing, on the whole card.",
        "",
        "| model | weights | held in | seconds a step | plan over run | GiB | plan over run |",
        "|---|---|---|--:|--:|--:|--:|",
        *_rows(parts, "plan", _plan),
        "",
        "The least cosine of the gradients of a LoRA, and of a critic on what it sees, with those of weights that lie on the "
        "card whole, with checkpointing and without, just loaded and after a drawing (a critic's: just loaded); and the share of "
        "the weights that was on the card.",
        "",
        "| model | weights | of | the same again | " + " | ".join(f"room for {room}" for room in ROOMS) + " |",
        "|---|---|---|--:|" + "--:|" * len(ROOMS),
        *itertools.chain.from_iterable(_rows(parts, part, _gradients) for part in GRADIENTS),
        "",
        *(f"- {name}: {found['error']}" for name, found in parts.items() if "error" in found),
        "",
        READY,
        "",
    ]
    return "\n".join(lines)


def _marks(written: Figures) -> dict[str, str]:
    """By where parts were measured, in the order in which they are written: nothing, then * and so on."""
    return {where: "*" * number for number, where in enumerate(dict.fromkeys(map(_where, written["parts"].values())))}


def _where(part: Figures) -> str:
    settings = part["settings"]
    return f"{settings['card']}, torch {settings['torch']}, {settings['host']}"


def _card(card: int) -> str:
    return f"{card} GiB" if card else "whole card"


def _rows(parts: Figures, part: str, said: Any) -> Iterator[str]:
    for cell in cells():
        found = parts.get(cell.label)
        if cell.part == part and found is not None:
            told = "**error**" if "error" in found else said(found)
            yield f"| {cell.model} | {cell.precision} | {GRADIENTS.get(part, cell.holding)}{found['mark']} | {told} |"


def _sampling(found: Figures) -> str:
    return f"{1000 * found['call']:.1f} | {found['lightning']:.3f} | {found['lcm']:.3f} | {found['euler']:.3f}"


def _gradients(found: Figures) -> str:
    told = [f"{found['same']:.6f}"]
    for room in ROOMS:
        mine = [value for name, value in found.items() if name.split(", ")[0] == room]
        if not mine:
            told.append("-")
            continue
        shares = [f"{bound(value['weights'] for value in mine):.2f}" for bound in (min, max)]
        told.append(f"{min(value['cosine'] for value in mine):.6f} ({' to '.join(dict.fromkeys(shares))})")
    return " | ".join(told)


def _plan(found: Figures) -> str:
    steps = ", ".join(f"{planned / step:.2f}" for planned, step in found["pairs"])
    held = found["planned bytes"] / found["bytes"]
    return f"{found['step']:.2f} | {steps} | {found['bytes'] / GIB:.2f} | {held:.2f}"


def _stepping(parts: Figures, part: str) -> Iterator[str]:
    """The table of one of STEPPING."""
    yield f"Seconds of a LoRA's optimiser step of {STEPPING[part]}, gradient checkpointing, rank 16, on so much of the card:"
    yield ""
    yield "| model | weights | held in | GiB | of weights | " + " | ".join(_card(card) for card in CARDS) + " |"
    yield "|---|---|---|--:|--:|" + "--:|" * len(CARDS)
    for model, precision, holding, processes in itertools.product(SHAPES, PRECISIONS, HOLDING, PROCESSES):
        row = [parts.get(Cell(model, precision, part, card, holding, processes).label) for card in CARDS]
        if any(row):
            whole = row[0] or {}
            held = " | ".join(
                f"{whole[key] / GIB:.2f}{whole['mark']}" if key in whole else "-" for key in ("bytes", "weights")
            )
            many = f", {processes} processes" if processes > 1 else ""
            yield f"| {model} | {precision} | {holding}{many} | {held} | {' | '.join(map(_seconds, row))} |"
    yield ""


def _seconds(found: Figures | None) -> str:
    if not found:
        return "-"
    return ("**error**" if "error" in found else f"{found['step']:.2f}") + found["mark"]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--weights", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--holding", nargs="+", choices=HOLDING, default=list(HOLDING))
    parser.add_argument("--cards", nargs="+", type=int, choices=CARDS, default=list(CARDS), help="GiB; 0 for all of it")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA card here, so nothing was measured and nothing is written.")
        return
    command = " ".join(["python launch.py bench gpu", *arguments])
    chosen = (options.models, options.weights, options.parts, options.cards, options.holding)
    wanted = [cell for cell in cells() if all(value in among for value, among in zip(cell, chosen, strict=False))]
    measure(wanted, options.folder, command=command)


def measure(wanted: list[Cell], folder: Path, *, command: str) -> None:
    """Those that folder's gpu.json does not have yet, in their order."""
    parts = Parts(folder / "gpu.json", command=command, sources=[])
    card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    settings = {"card": card, "torch": torch.__version__, "host": _host()}
    known = parts.written["parts"]
    done = {label for label, part in known.items() if "error" not in part["figures"]}
    wanted = [cell for cell in wanted if cell.label not in done]
    for cell in wanted:
        known.pop(cell.label, None)
    child, errors = Child(wanted), []
    try:
        for cell in wanted:
            found = parts.part(cell.label, settings, functools.partial(child.figures, cell))
            (folder / "gpu.md").write_text(page(parts.written), encoding="utf-8")
            errors += [found.get("error")] * (cell.processes == 1)  # of several a machine of one card tells at once
            if len(errors) == FIRST and errors[0] and len(set(errors)) == 1:
                sys.exit(f"The first {FIRST} cells all ended with: {errors[0]} Nothing more was tried.")
    finally:
        child.end()


def _host() -> str:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        return "the embedded ComfyUI"
    version = (Path(path) / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]
    return f"ComfyUI {version}"
