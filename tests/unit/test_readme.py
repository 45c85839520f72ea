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


def means(seeds):
    """(mean, least, most) of each row over training seeds."""
    return [(statistics.mean(row), min(row), max(row)) for row in zip(*seeds, strict=True)]


def test_the_files_that_it_names_are_there():
    assert all((ROOT / name).exists() for name in re.findall(r"\]\(([\w/.-]+)\)", README))


def test_the_demos_table_is_the_demos():
    reports = result("demo")
    first = reports[0]["scores"]
    distances = means([[score["frechet"] for score in report["scores"]] for report in reports])
    for score, (mean, least, most) in zip(first, distances, strict=True):
        begin = f"| {score['model']} | {score['steps']} | {score['nfe']} | {mean:.2f} ({least:.2f} to {most:.2f}) |"
        assert begin in README
    by = [{(s["model"], s["steps"]): s["frechet"] for s in report["scores"]} for report in reports]
    few = [one["student", 4] / one["teacher", 4] for one in by]
    many = [one["student", 4] / one["teacher", 64] for one in by]
    assert f"has {statistics.mean(few):.2f} times the teacher's distance at 4 steps" in TEXT
    assert f"{min(many):.2f} to {max(many):.2f} times its distance at 64 steps, both by DDIM" in TEXT
    seconds = [report["seconds"] for report in reports]
    assert f"the demo took {min(seconds):.0f} to {max(seconds):.0f} seconds" in TEXT


def test_the_halvings_are_the_benchmarks():
    figures = result("progressive")
    teacher = " | ".join(f"{score['frechet']:.2f}" for score in figures["teacher"])
    student = means([[stage["score"]["frechet"] for stage in stages] for stages in figures["seeds"]])
    assert f"| teacher by DDIM, Frechet distance | {teacher} |" in README
    assert f"| student, mean of three seeds | | {' | '.join(f'{mean:.2f}' for mean, *_ in student)} |" in README


def test_the_other_methods_are_the_benchmarks():
    figures = result("methods")
    ddim = {score["steps"]: score["frechet"] for score in figures["teacher"]}
    by = {}
    for found in figures["trials"]:
        rows = zip(*(seed["scores"] for seed in found["seeds"]), strict=True)
        by[found["settings"]["label"]] = {row[0]["steps"]: statistics.mean(s["frechet"] for s in row) for row in rows}
    guidance = [distance / ddim[steps] for steps, distance in by["guidance-distilled"].items()]
    assert f"keeps {min(guidance):.2f} to {max(guidance):.2f} times the guided teacher's distance" in TEXT
    (cd4, cd2, cd1), (lcd4, lcd2, lcd1) = (
        [f"{by[label][steps] / ddim[64]:.2f}" for steps in (4, 2, 1)] for label in ("CD", "LCD")
    )
    assert f"draws at {cd4}, {cd2} and {cd1} times the distance of 64 DDIM steps" in TEXT
    assert f"its latent form at {lcd4}, {lcd2} and {lcd1}" in TEXT


def test_the_better_solvers_are_the_benchmarks():
    found = {}
    for part in result("digits_solvers")["parts"].values():
        solver, steps, *_ = part["settings"]["setting"]
        found.setdefault((solver, steps), []).append(part["figures"]["frechet"])
    mean = {row: f"{statistics.mean(values):.2f}" for row, values in found.items()}
    assert f"DPM++ 2M on Karras' levels comes to {mean['DPM++ 2M', 8]} in 8 steps (16 forwards)" in TEXT
    assert f"where DDIM has {mean['DDIM', 8]} in as many and {mean['DDIM', 64]} in 64" in TEXT


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
