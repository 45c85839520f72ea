"""The README's tables of the drawn world, and all pages, from the result files.

python launch.py bench scenes pages
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...trainers.storage.files import write_atomically
from . import ablation, students_page
from .engine.machine import RESULTS, ROOT
from .tables import pages
from .tables.trainings import by_training, distance

Figures = dict[str, Any]
FILE = ROOT / "README.md"
BEGIN, END = "<!-- from here by `python launch.py bench scenes pages` -->\n", "<!-- to here -->"
CALLS = (8, 4, 2, 1)
FLOORS = ("real scenes", "real scenes, blurred")
LINKS = "[benchmarks/results/scenes_{0}.md](benchmarks/results/scenes_{0}.md)"


def block(solvers: Figures, students: Figures, trained: Figures | None) -> str:
    """What stands between the marks. trained: what the ablation has found so far, if it was begun."""
    lines = [*_solvers(solvers), "", *_students(solvers["parts"], students["parts"]), ""]
    return "\n".join([*lines, *(_ablation(trained) if trained else [])])


def _ablation(written: Figures) -> list[str]:
    return [
        f"What a model predicts and how its loss is weighed, as table 1 of Salimans and Ho 2022, from {LINKS.format('ablation')} "
        "(`python launch.py bench scenes ablation`), models from scratch and undistilled, each prediction with its best "
        "weighting:",
        "",
        *ablation.in_short(written),
        "",
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _solvers(written: Figures) -> list[str]:
    """The best solver at each number of calls that was allowed, and two floors."""
    rows = pages.by_noise(written["parts"])
    best = {calls: pages.best_of(found) for calls, found in pages.by_allowed(rows).items()}
    floors = [[written["parts"][f"floor: {name}"]] for name in FLOORS]

    def line(title: str, key: str, digits: int) -> str:
        found = [pages.over([part["figures"] for part in parts], key) for parts in [*best.values(), *floors]]
        return _row(title, *(pages.plus_minus(pair, digits=digits) for pair in found))

    seeds = sorted({len(parts) for parts in best.values()})
    return [
        _row("network calls", *map(str, best), *FLOORS),
        "|---|" + "--:|" * (len(best) + len(FLOORS)),
        _row("solver", *(parts[0]["settings"]["setting"][0] for parts in best.values()), *("" for _ in FLOORS)),
        line("Frechet distance at infinity", "frechet", 2),
        line("shows its prompt", "accuracy", 3),
        "",
        f"From {LINKS.format('solvers')} (`python launch.py bench scenes solvers`), the row of least distance at each number of "
        f"calls; noise seeds: {_range(seeds)}. Recall, copies and all floors stand there too.",
    ]


def _students(solvers: Figures, parts: Figures) -> list[str]:
    """Every method at each number of calls, the best solver above them, and how they stand to it."""
    rows, students = pages.by_noise(solvers), by_training(parts)
    best = {calls: pages.best_of(found) for calls, found in pages.by_allowed(rows).items()}
    top = [pages.over([part["figures"] for part in best[n]], "frechet") for n in CALLS]
    lines = [_row("network calls", *map(str, CALLS), "training seeds"), "|---|" + "--:|" * (len(CALLS) + 1)]
    lines.append(_row("teacher, best solver", *map(pages.plus_minus, top), ""))
    for label in sorted({label for label, _ in students}):
        found = {n: of for (other, n), of in students.items() if other == label}
        cells = (pages.plus_minus(distance(found[n])) if n in found else "" for n in CALLS)
        lines.append(_row(label, *cells, str(max(map(len, found.values())))))
    noises = sorted({len(seeds) for of in students.values() for seeds in of.values()})
    minutes = [part["seconds"] / 60 for part in pages.named(parts, "training: ").values()]
    return [
        *lines,
        "",
        f"The same distance, from the rows of these names in {LINKS.format('students')} (`python launch.py bench scenes "
        f"students`), noise seeds: {_range(noises)}. Intervals of 95 %, over training seeds where there are several, for the "
        "prompts and real scenes that all rows share. All had the same training compute, 15,400 passes of the network, what a "
        "student began as counted in, but for what is trained *three* or *four times as long*; at most "
        f"{max(minutes):.0f} minutes by the clock on one core, beside what else the machine did.",
        "",
        *students_page.aims(students, rows),
        "",
        *students_page.uneven(students),
        *students_page.order(students),
        "![Distance over network calls, solvers and students](benchmarks/results/scenes_students.png)",
    ]


def _range(numbers: list[int]) -> str:
    return " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))


def results() -> tuple[Figures, Figures, Figures | None]:
    """Of solvers, students, and the ablation where it was begun."""
    files = [RESULTS / f"scenes_{name}.json" for name in ("solvers", "students", "ablation")]
    *others, last = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else None for file in files)
    return others[0], others[1], last


def written(text: str, made: str) -> str:
    """The README with a block in the place of the one that it has. ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{FILE.name} lacks {(BEGIN if not begin else END).strip()}.")
    return f"{before}{BEGIN}{made}{END}{after}"


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(
        prog="launch.py bench scenes pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    solvers, students, trained = found = results()
    (RESULTS / "scenes_solvers.md").write_text(pages.solvers_page(solvers), encoding="utf-8")
    students_page.write(students)
    if trained:
        (RESULTS / "scenes_ablation.md").write_text(ablation.page(trained), encoding="utf-8")
    write_atomically(FILE, written(FILE.read_text(encoding="utf-8"), block(*found)).encode())
