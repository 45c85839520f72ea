"""The README's figures are those of the result files, and every result file that it names is there."""

import json
import re
import statistics
from pathlib import Path

import pytest
from comfyui_fewstep.benchmarks.scenes import pages
from comfyui_fewstep.benchmarks.scenes.students_page import by_training

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
TEXT = " ".join(README.split())
"""In one line, so that a sentence is found wherever its lines break."""


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_files_that_it_names_are_there():
    assert all((ROOT / name).exists() for name in re.findall(r"\]\(([\w/.-]+)\)", README))


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        ("samplers", r"our Lightning over bare model calls \| ([\d.]+)", "our samplers took {:.2f} and"),
        ("samplers", r"our LCM over bare model calls \| ([\d.]+)", "and {:.2f} times the bare model calls"),
        ("training", r"\| LoRA \| [\d.]+ M \| \d+ ms \| ([\d.]+)", "A training step took {} (LoRA)"),
        ("training", r"\| full \| [\d.]+ M \| \d+ ms \| ([\d.]+)", "and {} (full weights)"),
    ],
)
def test_what_things_cost_is_what_was_measured(file, row, said):
    page = (RESULTS / f"{file}.md").read_text(encoding="utf-8")
    assert said.format(float(re.search(row, page)[1])) in TEXT


def test_architectures_are_counted_as_their_table_does():
    rows = [row for row in result("architectures")["rows"].values() if "cells" in row]
    whole = sum(all(cell.get("right") for cell in row["cells"].values()) for row in rows)
    assert f"{len(rows)} tiny models" in TEXT
    assert f"[{whole} are right throughout]" in TEXT


def _solvers_by_calls(parts):
    rows = {}
    for label, seeds in pages.by_noise(parts).items():
        rows.setdefault(int(label.rpartition(", ")[2].split()[0]), []).append(seeds)
    return rows


def test_the_drawn_worlds_table_is_the_solvers():
    """The solver of least mean distance at each number of calls that is there, and two floors."""
    parts = result("scenes_solvers")["parts"]
    best = {calls: pages.best_of(found) for calls, found in sorted(_solvers_by_calls(parts).items())}
    floors = [parts[f"floor: real scenes{said}"]["figures"] for said in ("", ", blurred")]

    def line(name, key, digits):
        means = [statistics.mean(part["figures"][key][0] for part in seeds) for seeds in best.values()]
        means += [floor[key][0] for floor in floors]
        return f"| {name} | {' | '.join(f'{round(x, digits) + 0.0:.{digits}f}' for x in means)} |"

    assert f"| network calls | {' | '.join(map(str, best))} | real scenes | blurred |" in README
    assert f"| solver | {' | '.join(seeds[0]['settings']['setting'][0] for seeds in best.values())} | | |" in README
    assert line("Frechet distance at infinity", "frechet", 2) in README
    assert line("shows its prompt", "accuracy", 3) in README
    steady, _, falling, _ = result("scenes_teacher")["shipped"].replace(",", "").split()
    assert f"The teacher learnt for {steady} iterations and {falling} more" in TEXT


def test_the_drawn_worlds_students_are_those_of_their_table():
    """Means over noise seeds of one training each, beside the best solver at as many calls."""
    students, solvers = by_training(result("scenes_students")["parts"]), result("scenes_solvers")["parts"]
    best = {calls: pages.best_of(found) for calls, found in _solvers_by_calls(solvers).items()}
    counts = (8, 4, 2, 1)

    def line(name, values):
        return f"| {name} | {' | '.join('' if value is None else f'{value:.2f}' for value in values)} |"

    def mean(figures):
        return None if figures is None else statistics.mean(one["frechet"][0] for one in figures)

    assert line("teacher, best solver", [mean([part["figures"] for part in best[n]]) for n in counts]) in README
    assert {len(of) for of in students.values()} == {1}, "README says one training seed"
    for label in {label for label, _ in students}:
        values = [mean(students[label, n][0] if (label, n) in students else None) for n in counts]
        assert line(label, values) in README
