"""How much of the few-step sampling in ComfyUI's official workflow templates a recipe of ours covers.

Reads the template package that is installed (comfyui-workflow-templates-json, or an older one with the graphs in it); where
there is none, says so and ends well. A few-step use is a sampling node of a template that takes at most 12 steps without
guidance (cfg 1 or less), subgraphs and every position of the graph's switches included, equal ones counted once. It is
covered where a recipe that its file names propose has the same sampler, the same noise levels to a thousandth (the host's
simple scheduler rounds to its table), the same cfg, guidance and shift of sound, and begins anew at the same step where a
list is split. What could not be read is listed and counts as no use. Not compared: LoRA strengths and the nodes around.
Weighed by the template's own counter of uses, which says nothing of users who keep their own graphs. Writes
benchmarks/results/templates.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...samplers.presets import PRESETS
from ...samplers.presets.preset import TEMPLATES
from ..architectures.command import version_of_comfyui
from ..scenes.engine.machine import RESULTS
from .graph import Graph
from .judge import covered_by
from .samplings import Sampling, samplings

PACKAGES = ("comfyui_workflow_templates_json", "comfyui_workflow_templates")
MOST_STEPS = 12


@dataclass(frozen=True)
class Use:
    """A sampling of a template. saved: whether the graph runs it as it is saved. recipe: what covers it; else why not."""

    template: str
    usage: int
    sampling: Sampling
    saved: bool
    recipe: str | None
    why: str = ""


def folder_of_templates() -> Path | None:
    """Where the installed package keeps its graphs."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        folder = Path(found.origin).parent / "templates" if found and found.origin else None
        if folder and (folder / "index.json").is_file():
            return folder
    return None


def uses_in(folder: Path) -> tuple[list[Use], int, list[str]]:
    """(few-step uses, templates with a graph, what could not be read)"""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    templates = {one["name"]: int(one.get("usage") or 0) for group in index for one in group["templates"]}
    uses, unread, read = [], [], 0
    for name, usage in templates.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        read += 1
        graph = Graph(json.loads(file.read_text(encoding="utf-8")))
        found: dict[Sampling, bool] = {}
        for number, switches in enumerate(graph.positions()):
            for one in samplings(graph, switches):
                if isinstance(one, str):
                    unread.append(f"{name}: {one}")
                elif is_few_step(one):
                    found[one] = found.get(one, False) or number == 0
        uses += [Use(name, usage, one, saved, *covered_by(one)) for one, saved in found.items()]
    return uses, read, sorted(set(unread))


def is_few_step(one: Sampling) -> bool:
    return one.steps <= MOST_STEPS and one.cfg is not None and one.cfg <= 1.0


# --- the page --------------------------------------------------------------------------------------------------------


def page(uses: list[Use], *, read: int, unread: list[str], versions: str, command: str) -> str:
    lines = [
        "# Recipes and ComfyUI's workflow templates",
        "",
        f"`{command}`: {versions}. {read} graphs.",
        "",
        *" ".join(str(__doc__).split("\n\n", 1)[1].split()).replace(". ", ".\n").splitlines(),
        "",
        "| few-step use that a recipe covers | by use | by number |",
        "|---|--:|--:|",
        _share("samplings, every position of a switch", uses),
        _share("samplings that run as a template is saved", [use for use in uses if use.saved]),
        _share("templates, all of whose few-step samplings are covered", _whole_templates(uses)),
        _share("samplings, by recipes that are not made after these templates", [_without_theirs(use) for use in uses]),
        "",
        "## Covered",
        "",
        "| recipe | uses | samplings |",
        "|---|--:|--:|",
        *_by(uses, lambda use: use.recipe),
        "",
        "## Not covered",
        "",
        "| files, sampler, schedule | uses | why |",
        "|---|--:|---|",
        *_uncovered(uses),
        "",
    ]
    if unread:
        lines += ["## Not read", "", *(f"- {one}" for one in unread), ""]
    return "\n".join(lines)


def _whole_templates(uses: list[Use]) -> list[Use]:
    """One for each template, covered where all of its are."""
    last: dict[str, Use] = {}
    for use in uses:
        if use.template not in last or use.recipe is None:
            last[use.template] = use
    return list(last.values())


def _without_theirs(use: Use) -> Use:
    return replace(use, recipe=None) if use.recipe and PRESETS[use.recipe].source == TEMPLATES else use


def share(uses: list[Use]) -> tuple[float, float]:
    """(of all use, of all samplings) what is covered, in percent."""
    mine = [use for use in uses if use.recipe is not None]
    weight = sum(use.usage for use in uses)
    return 100 * sum(use.usage for use in mine) / max(weight, 1), 100 * len(mine) / max(len(uses), 1)


def _share(name: str, uses: list[Use]) -> str:
    by_use, by_number = share(uses)
    return f"| {name} | {by_use:.1f} % of {sum(use.usage for use in uses)} | {by_number:.1f} % of {len(uses)} |"


def _by(uses: list[Use], key: Any) -> list[str]:
    rows: dict[str, list[Use]] = {}
    for use in uses:
        if use.recipe is not None:
            rows.setdefault(key(use), []).append(use)
    weighed = sorted(((sum(use.usage for use in of), name, len(of)) for name, of in rows.items()), reverse=True)
    return [f"| {name} | {usage} | {number} |" for usage, name, number in weighed]


def _uncovered(uses: list[Use]) -> list[str]:
    rows: dict[tuple[str, str], int] = {}
    for use in uses:
        if use.recipe is None:
            rows[_said(use.sampling), use.why] = rows.get((_said(use.sampling), use.why), 0) + use.usage
    return [f"| {said} | {usage} | {why} |" for (said, why), usage in sorted(rows.items(), key=lambda row: -row[1])]


def _said(one: Sampling) -> str:
    def words(node: tuple[str, tuple[tuple[str, Any], ...]]) -> str:
        return f"{node[0]} {' '.join(str(value) for _, value in node[1])}"

    shift = f", {words(one.shift)}" if one.shift else ""
    return f"{' + '.join(one.files) or 'a file that is computed'}; {words(one.sampler)}; {words(one.schedule)}{shift}"


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench templates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    folder = folder_of_templates()
    if folder is None:
        print(
            f"Not run: none of {' or '.join(PACKAGES)} is installed here (pip install comfyui-workflow-templates-json)."
        )
        return
    from ...commands.embedded import import_host

    import_host()
    uses, read, unread = uses_in(folder)
    versions = f"{folder.parent.name} {_version(folder.parent.name)}, levels of ComfyUI {version_of_comfyui()}"
    command = " ".join(["python launch.py bench templates", *arguments])
    options.folder.mkdir(parents=True, exist_ok=True)
    text = page(uses, read=read, unread=unread, versions=versions, command=command)
    (options.folder / "templates.md").write_text(text, encoding="utf-8")
    print(_share("covered", uses))


def _version(package: str) -> str:
    return importlib.metadata.version(package.replace("_", "-"))
