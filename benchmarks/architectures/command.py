"""Every architecture that the host can build tiny: our samplers, LoRA and full-weights training, and what comes back.

Models of the host's own classes with few and random weights, on the CPU in float32; so that this says what runs and is
right, not how well a released model learns. One architecture after the other, each in its own row; what an error ends is a
cell with its words. Writes benchmarks/results/architectures.md and architectures.json after each row, and keeps the rows
that are there already, made in the same ComfyUI and torch by the same code of ours.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..scenes.engine.machine import RESULTS, machine
from . import formats as architectures_formats
from .newer_pictures import NEWER_PICTURES
from .newer_videos import NEWER_VIDEOS
from .parts import PARTS
from .pictures import PICTURES
from .subject import Found, Subject
from .videos import VIDEOS

ARCHITECTURES = PICTURES | NEWER_PICTURES | VIDEOS | NEWER_VIDEOS
ABOUT = {
    "KSampler": "of LCM, Lightning, TCD and Consistency, those that draw in KSampler and SamplerCustom the same bits",
    "Lightning": "largest difference from the host's euler, over the largest value",
    "LCM": "the same from the host's lcm, on one noise",
    "progressive": "one LoRA step: cosine of the gradients of all adapters with those of ordinary float32 weights; guidance "
    "by two prompts",
    "guidance": "the same of guidance distillation",
    "consistency": "the same of consistency distillation",
    "checkpointing": "that of progressive distillation with gradient checkpointing",
    "held": "bytes that wait for backward with gradient checkpointing, as a share of those without, eight blocks deep",
    "let go": "bytes that each training of a LoRA with gradient checkpointing leaves in memory for ever",
    "LoRA file": "after an iteration of the loop: every key is used by the host's loader, whose MODEL differs from the student "
    "by this share",
    "full weights": "the same of all weights, loaded by the host into a network of other weights",
    "base": "what all of this left on the MODEL, loaded and unloaded once more: tensors that differ in a bit, other objects in "
    "their places, hooks",
}
"""What a column's figure is, in plain words."""
FORMATS_OF = "flux"
Row = dict[str, Any]


def measured(name: str, parts: list[str]) -> Row:
    """By part: figure and right, or the error's words. Nothing but a part's own error is caught, and it is in the table."""
    architecture, begin = ARCHITECTURES[name], time.monotonic()
    if not architecture.known():
        return {"lacking": f"this ComfyUI has no {architecture.config}"}
    row: Row = {"cells": {}}
    try:
        subject = Subject(architecture)
    except Exception as error:  # a row with its reason, and not the table's end
        return {"lacking": _words(error)}
    row["weights"] = sum(value.numel() for value in subject.model.model.diffusion_model.parameters())
    for part in parts:
        row["cells"][part] = _cell(subject, part)
    row["seconds"] = round(time.monotonic() - begin, 1)
    return row


def of_format(chosen: architectures_formats.Format) -> Row:
    """The same of a format of weights, on one architecture."""
    try:
        subject = architectures_formats.Held(ARCHITECTURES[FORMATS_OF], chosen)
    except Exception as error:  # a row with its reason, and not the table's end
        return {"lacking": _words(error)}
    parts = architectures_formats.PARTS
    with chosen.holding(subject):
        return {"about": chosen.about, "cells": {name: _cell(subject, name, parts=parts) for name in parts}}


def _cell(subject: Subject, part: str, *, parts: dict[str, Callable[[Any], Found]] = PARTS) -> Row:
    try:
        return dict(parts[part](subject)._asdict())
    except Exception as error:  # a cell with its reason, and not the row's end
        return {"error": _words(error)}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# --- the page --------------------------------------------------------------------------------------------------------


def page(figures: Row, *, command: str) -> str:
    """Markdown: a row for each architecture, and below it what ended the cells that an error ended."""
    host, m = figures["host"], figures["machine"]
    rows = {name: row for name, row in figures["rows"].items() if "cells" in row}
    whole = [name for name, row in rows.items() if all(cell.get("right") for cell in row["cells"].values())]
    lines = [
        "# Architectures",
        "",
        f"`{command}` in ComfyUI {host['comfyui']} with torch {host['torch']}, on {m['platform']}, {m['cores']} CPU cores. "
        "Tiny models of the host's own classes with random weights, float32, on the CPU.",
        "",
        f"{len(whole)} of {len(rows)} are right in every column.",
        "",
        f"| architecture | host's class | {' | '.join(PARTS)} |",
        f"|---|---|{'--:|' * len(PARTS)}",
        *(_line(name, row) for name, row in rows.items()),
        "",
        *(f"- **{part}**: {about}." for part, about in ABOUT.items()),
        "",
    ]
    formats = figures.get("formats", {})
    return "\n".join([*lines, *_reasons(rows), *_lacking(figures["rows"]), *_of_formats(formats)])


def _of_formats(rows: dict[str, Row]) -> list[str]:
    if not rows:
        return []
    parts = architectures_formats.PARTS
    built = {name: row for name, row in rows.items() if "cells" in row}
    lines = [
        "## Weights",
        "",
        f"A LoRA on `{FORMATS_OF}`, its linear layers in a format, or all its weights held in a way.",
        "",
        f"| format | what it is | {' | '.join(parts)} |",
        f"|---|---|{'--:|' * len(parts)}",
        *(
            f"| {name} | {row['about']} | {' | '.join(_shown(row['cells'][part]) for part in parts)} |"
            for name, row in built.items()
        ),
        "",
        *(f"- **{part}**: {about}." for part, about in architectures_formats.ABOUT.items()),
        "",
    ]
    return [*lines, *_reasons(built), *_lacking(rows)]


def _line(name: str, row: Row) -> str:
    cells = " | ".join(_shown(row["cells"].get(part)) for part in PARTS)
    return f"| {name} | {ARCHITECTURES[name].config} | {cells} |"


def _shown(cell: Row | None) -> str:
    if cell is None:
        return "-"
    if "error" in cell:
        return "**error**"
    figure = cell["figure"]
    said = f"{figure:.0f}" if figure == int(figure) else f"{figure:.6f}" if figure > 0.5 else f"{figure:.0e}"
    return said if cell["right"] else f"**{said}**"


def _reasons(rows: dict[str, Row]) -> list[str]:
    """Each error once, with the cells that it ended."""
    ended: dict[str, dict[str, list[str]]] = {}
    for name, row in rows.items():
        for part, cell in row["cells"].items():
            if "error" in cell:
                ended.setdefault(cell["error"], {}).setdefault(name, []).append(part)
    lines = []
    for error, cells in ended.items():
        where = "; ".join(f"{name} ({', '.join(parts)})" for name, parts in cells.items())
        lines.append(f"- {where}: {error}")
    return ["## Errors", "", *lines, ""] if lines else []


def _lacking(rows: dict[str, Row]) -> list[str]:
    lines = [f"- {name}: {row['lacking']}" for name, row in rows.items() if "lacking" in row]
    return ["## Not built", "", *lines, ""] if lines else []


# --- the command -----------------------------------------------------------------------------------------------------


def _host() -> Row:
    """What the figures depend on, beside the machine."""
    from ...launch import ROOT

    code = hashlib.sha256()
    for room in ("benchmarks", "nodes", "samplers", "trainers"):
        for file in sorted((ROOT / room).rglob("*.py")):
            code.update(file.read_bytes())
    return {"comfyui": version_of_comfyui(), "torch": torch.__version__, "code": code.hexdigest()[:12]}


def version_of_comfyui() -> str:
    if os.environ.get("COMFYUI_PATH"):
        import comfyui_version

        return str(comfyui_version.__version__)
    return importlib.metadata.version("comfyui")


def _kept(file: Path, host: Row) -> dict[str, dict[str, Row]]:
    """Rows of an earlier start that are still true, of architectures and of formats."""
    if not file.exists():
        return {}
    earlier = json.loads(file.read_text(encoding="utf-8"))
    return earlier if earlier["host"] == host else {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench architectures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=ARCHITECTURES, metavar="NAME", help="these alone, without the table of formats"
    )
    parser.add_argument("--again", action="store_true", help="keep no rows of an earlier start")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    options = parser.parse_args(arguments)
    from ...commands.embedded import import_host

    import_host(
        "--use-pytorch-cross-attention"
    )  # what GPUs use; the host's own for CPUs takes no masks of several rows
    from ... import nodes  # noqa: F401  # puts our samplers into the menus

    options.folder.mkdir(parents=True, exist_ok=True)
    file, host = options.folder / "architectures.json", _host()
    kept = {} if options.again else _kept(file, host)
    rows, formats = kept.get("rows", {}), kept.get("formats", {})

    def write() -> None:
        ordered = {known: rows[known] for known in ARCHITECTURES if known in rows}
        figures = {"host": host, "machine": machine(), "rows": ordered, "formats": formats}
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        text = page(figures, command=" ".join(["python launch.py bench architectures", *arguments]))
        (options.folder / "architectures.md").write_text(text, encoding="utf-8")

    for name in options.only or ARCHITECTURES:
        if name not in rows:
            rows[name] = measured(name, list(PARTS))
            print(f"{name}: {_brief(rows[name])}", flush=True)
            gc.collect()
        write()
    for name, chosen in ({} if options.only else architectures_formats.known()).items():
        if name not in formats:
            formats[name] = of_format(chosen)
            print(f"weights in {name}: {_brief(formats[name])}", flush=True)
        write()


def _brief(row: Row) -> str:
    if "lacking" in row:
        return str(row["lacking"])
    wrong = [part for part, cell in row["cells"].items() if not cell.get("right")]
    return f"not right: {', '.join(wrong)}" if wrong else "all right"
