"""The README's figures are those of the result files, and every result file that it names is there."""

import json
import re
import statistics
from pathlib import Path

import pytest
from comfyui_fewstep.benchmarks.scenes import readme
from comfyui_fewstep.benchmarks.scenes.tables import pages
from comfyui_fewstep.benchmarks.scenes.tables.trainings import by_training, distance, over_trainings
from scipy import stats

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
        ("training", r"\| matching \| LoRA \| [\d.]+ M \| \d+ ms \| ([\d.]+)", "one of distribution matching {}"),
        ("training", r"\| matching \| full \| [\d.]+ M \| \d+ ms \| ([\d.]+)", "and {} times, medians of eight rounds"),
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


def test_the_demo_wants_the_same_libraries_wherever_it_is_said():
    declared = re.search(r"^demo = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    said = re.findall(r"`python -m pip install ([^`]*\bmatplotlib\b[^`]*)`", TEXT)
    assert len(said) == 2
    assert all(sorted(names.split()) == json.loads(declared[1]) for names in said)


def on_the_card():
    return {name: part["figures"] for name, part in result("gpu")["parts"].items()}


def starred():
    """What was measured on another card than the first."""
    parts = result("gpu")["parts"]
    first = next(iter(parts.values()))["settings"]["card"]
    assert "H100" in first
    assert {part["settings"]["card"] for part in parts.values()} == {first, "1 x NVIDIA H200"}
    return {label for label, part in parts.items() if part["settings"]["card"] != first}


METHODS_ON_THE_CARD = {"training": "progressive", "matching": "matching", "critic": "matching with a critic"}


def test_what_a_card_held_is_what_was_measured():
    """Every model, precision and method of which the whole card was measured has its row."""
    parts, stars, rows = on_the_card(), starred(), 0
    for label in parts:
        found = re.fullmatch(rf"(.*), (.*), ({'|'.join(METHODS_ON_THE_CARD)}), pages", label)
        if found:
            (model, precision, part), whole, rows = found.groups(), parts[label], rows + 1
            held = [f"{whole[key] / 2**30:.2f} GiB{'*' * (label in stars)}" for key in ("weights", "bytes")]
            cells = [label + card for card in ("", ", 24 GiB", ", 16 GiB", ", 12 GiB", ", 8 GiB")]
            steps = [_step(parts.get(cell)) + "*" * (cell in stars) for cell in cells]
            name = f"{model.split(',')[0]}, {precision}, {METHODS_ON_THE_CARD[part]}"
            assert f"| {name} | {' | '.join(held + steps)} |" in TEXT
    assert rows == sum("beside them" not in line for line in _table_of("held beside them"))


def test_the_plan_came_as_near_to_the_run_as_is_said():
    parts = {name: part["figures"] for name, part in result("plan")["parts"].items()}
    times = [statistics.median(a / b for a, b in found["pairs"]) for found in parts.values() if "pairs" in found]
    memories = [found["planned"] / found["held"] for found in parts.values() if "held" in found]
    assert len(times) == len(memories) == 3 * 5 * 2
    assert all(abs(ratio - 1.0) <= 0.15 for ratio in times + memories)
    assert "were within 15 % of each other, in time and in memory, for five methods" in TEXT
    on_card = [on_the_card()[f"{model}, 1024 px, bf16, plan, pages"] for model in ("SDXL", "Z-Image")]
    memory = [found["planned bytes"] / found["bytes"] for found in on_card]
    times = [planned / step for found in on_card for planned, step in found["pairs"]]
    steps = [f["step"] for label, f in on_the_card().items() if re.match("SDXL.*(training|plan), pages", label)]
    said = (
        "the plan's memory was {:.2f} (SDXL) and {:.2f} (Z-Image) of the run's, its time {:.2f} and {:.2f} (SDXL, two pairs, "
        "whose steps took from {:.1f} to {:.1f} s there) and {:.2f}."
    )
    assert said.format(*memory, *times[:2], min(steps), max(steps), *times[2:]) in TEXT


def test_the_forwards_of_make_it_fast_are_its_methods():
    """For one picture in one iteration as the tests of plans have them: (forwards, backward passes)."""
    guided, halving, consistency, matching, lead = (5, 1), (3, 1), (4, 1), (10.5, 5), (6.5, 4)
    runs = {
        "closest to my model": (480 * 32 * 2, [(400, guided), (800, halving)]),
        "cheapest to train": (480 * 32 * 2, [(1500, consistency)]),
        "sharpest": (0, [(1500, matching), (100, lead)]),
    }
    for goal, (drawn, parts) in runs.items():
        forwards, backwards = (sum(16 * count * one[which] for count, one in parts) for which in (0, 1))
        assert f"| {goal} | {drawn:,} | {forwards:,.0f} | {backwards:,} |" in TEXT
        assert (
            f"about {_hours(drawn, forwards, backwards)} hours" in TEXT
            or f" {_hours(drawn, forwards, backwards)} for the" in TEXT
        )
    more = [sum(16 * count * one[which] for count, one in ((400, matching), (100, lead))) for which in (0, 1)]
    assert f"400 iterations, about {_hours(0, *more)} hours more" in TEXT


def _hours(drawn, forwards, backwards):
    """At five pictures a second."""
    return round((drawn + forwards + 2 * backwards) / 5 / 3600)


def _table_of(column):
    """The lines of README's table that has such a column, without the one below its head."""
    (table,) = [block for block in README.split("\n\n") if f"| {column} |" in block]
    return [line for line in table.splitlines() if not line.startswith("|---")]


def _step(found):
    if found and "OutOfMemoryError" in found.get("error", ""):
        return "too little"
    return f"{found['step']:.2f} s" if found and "step" in found else "-"


WITHOUT_PAGES = {
    "SDXL, 1024 px, bf16": 8,
    "SDXL, 1024 px, fp8": 8,
    "Z-Image, 1024 px, bf16": 8,
    "Z-Image, 1024 px, fp8 scaled": 12,
    "Wan 1.3B, 832 x 480, 81 frames, bf16": 0,
}
"""GiB of the least card on which a step was measured; 0 for the whole."""


def test_gradients_on_a_card_are_what_was_measured():
    cells = {label: found for label, found in on_the_card().items() if ", gradients, " in label}
    assert {label.split(",")[0] for label in cells} == {"SDXL", "Z-Image", "Wan 1.3B", "Flux"}
    assert all(found["paged"] for found in cells.values())
    least = {
        label: min(one["cosine"] for one in found.values() if isinstance(one, dict)) for label, found in cells.items()
    }
    flux = least.pop("Flux, 1024 px, bf16, gradients, pages")
    again = cells["Flux, 1024 px, bf16, gradients, pages"]["same"]
    assert {f"{cosine:.6f}" for cosine in least.values()} == {"1.000000"}
    assert f"1.000000 each time, of Flux at least {flux:.6f}, where the same pass done twice has {again:.6f}" in TEXT
    assert flux > 0.9999
    pulls = [found for label, found in on_the_card().items() if ", pulls, " in label]
    assert all(found["paged"] for found in pulls)
    least = [min(one["cosine"] for one in found.values() if isinstance(one, dict)) for found in pulls]
    assert "SDXL {:.6f}, Z-Image {:.6f}, as the same pass done twice".format(*least) in TEXT
    assert [f"{found['same']:.6f}" for found in pulls] == [f"{cosine:.6f}" for cosine in least]


def test_what_torch_held_without_pages_is_what_was_measured():
    parts = {label: found for label, found in on_the_card().items() if ", training, no pages" in label}
    held = [parts[f"{model}, training, no pages"]["bytes"] / 2**30 for model in WITHOUT_PAGES]
    said = "{:.2f} GiB for SDXL in bf16 and {:.2f} in fp8, {:.2f} for Z-Image in bf16 and {:.2f} in scaled fp8, {:.2f} for Wan"
    assert said.format(*held) in TEXT
    for model, least in WITHOUT_PAGES.items():
        rooms = [
            card for card in (8, 12, 16, 24) if "step" in parts.get(f"{model}, training, no pages, {card} GiB", {})
        ]
        assert min(rooms, default=0) == least
    assert parts["Z-Image, 1024 px, bf16, training, no pages, 8 GiB"]["weights"] < 4 * 2**30  # of 11.5
    assert "OutOfMemoryError" in parts["Z-Image, 1024 px, fp8 scaled, training, no pages, 8 GiB"]["error"]
    assert "OutOfMemoryError" in parts["Wan 1.3B, 832 x 480, 81 frames, bf16, training, no pages, 12 GiB"]["error"]


def test_the_drawn_worlds_tables_are_what_the_result_files_make():
    assert readme.block(*readme.results()) in README
    steady, _, falling, _ = result("scenes_teacher")["shipped"].replace(",", "").split()
    assert f"The teacher learnt for {steady} iterations and {falling} more" in TEXT


def test_the_judges_see_what_is_wrong_with_real_scenes():
    """In the results themselves, of 2,048 pictures: each figure moves beyond both intervals."""
    lines = pages.calibration(result("scenes_solvers")["parts"])[2:]
    assert len(lines) == len(pages.CALIBRATION) == 4
    assert all(line.endswith(", seen.") for line in lines)
    assert all(line in (RESULTS / "scenes_solvers.md").read_text(encoding="utf-8") for line in lines)


TRAINED_AS = {
    "progressive, a student for each": ["progressive"] * 3,
    "progressive, then matching by `landings`, a student for each": [
        *(f"progressive then matching in {calls}" for calls in (4, 2)),
        "half progressive then matching in 1",
    ],
    "the same with a critic": [
        "progressive then matching with a critic in 4",
        "half progressive then matching with a critic in 2",
        "half progressive then matching with a critic in 1",
    ],
    "matching by `landings`, one student for 1 to 4": ["matching in 1 to 4 by landings"] * 3,
    "the same, decoupled": ["decoupled matching in 1 to 4"] * 3,
    "rCM, one student for all": ["rCM"] * 3,
}


def test_what_the_choice_of_a_method_says_of_matching_is_in_the_table():
    """With three trainings of each; what begins as another's student is better in 2 steps and in 1, intervals and all.

    With a critic in 4 too, but no better than without one; on features that were never trained it is in each.
    """
    text = " ".join((ROOT / "docs" / "choose-a-method.md").read_text(encoding="utf-8").split())
    trainings = by_training(result("scenes_students")["parts"])
    rows = {key: distance(of) for key, of in trainings.items()}
    for name, labels in TRAINED_AS.items():
        keys = list(zip(labels, (4, 2, 1), strict=True))
        assert [len(trainings[key]) for key in keys] == [3, 3, 3]
        assert re.search(rf"\| {name} \| [a-z ,]+ \| {' [|] '.join(f'{rows[key][0]:.2f}' for key in keys)} \|", text)
    for calls, then in zip(
        (4, 2, 1), TRAINED_AS["progressive, then matching by `landings`, a student for each"], strict=True
    ):
        (own, margin), (other, beside) = rows[then, calls], rows["progressive", calls]
        assert (own + margin < other - beside) == (calls < 4)
    on_random = []
    for calls, then, critic in zip(
        (4, 2, 1),
        TRAINED_AS["progressive, then matching by `landings`, a student for each"],
        TRAINED_AS["the same with a critic"],
        strict=True,
    ):
        (own, margin), (other, beside) = rows[critic, calls], rows[then, calls]
        assert own + margin < rows["progressive", calls][0] - rows["progressive", calls][1]
        assert own + margin > other - beside
        (own, margin), (other, beside) = (
            pages.over(over_trainings(trainings[label, calls]), "frechet_random") for label in (critic, then)
        )
        on_random.append(f"{own:.2f} and {other:.2f}")
        assert own < other
    four, two, one = on_random
    assert f"never trained it was: {four} without it in 4 steps, {two} in 2, {one} in 1" in text
    others = ("matching", "decoupled matching", "rCM", "consistency", "guidance")
    same = [(calls, pair) for (label, calls), pair in rows.items() if label.startswith(others) and calls < 8]
    assert all(sum(pair) > rows["progressive", calls][0] - rows["progressive", calls][1] for calls, pair in same)
    assert (
        "Better than progressive distillation alone, by the intervals, was only what began as its student: in 2 steps and in 1 "
        "with a critic and without, in 4 with one" in text
    )
    longer = [f"{rows['progressive three times as long', calls][0]:.2f}" for calls in (4, 2, 1)]
    count = pages.count(len(trainings["progressive three times as long", 4]), "training")
    assert f"three times as long, came to {longer[0]}, {longer[1]} and {longer[2]} ({count})" in text
    (start, _), (noisy, margin) = (
        rows[label, 4] for label in ("progressive", "progressive then matching in 4 with fresh noise")
    )
    assert f"matched with it came to {noisy:.2f} in 4 steps, no better than it began" in text
    assert noisy + margin > start
    alone = ("matching in 4 with fresh noise", "matching in 4 by landings", "decoupled matching in 4")
    said = "`fresh_noise` came to {:.2f}, `landings` to {:.2f}, `landings` with `decoupled` to {:.2f}, three trainings each"
    assert said.format(*(rows[label, 4][0] for label in alone)) in text
    assert {len(trainings[label, 4]) for label in alone} == {3}
    best = pages.best_of(pages.by_noise(result("scenes_solvers")["parts"]).values())
    drawn = [part["figures"] for part in best]
    kept = _mean_recall(_over_seeds(trainings["rCM", 1])) / _mean_recall(drawn)
    assert f"rCM kept {kept:.2f} of the teacher's recall in 1 step" in text
    labels = (*alone, "matching in 1 to 4 by landings", "progressive")
    *students, halved = (_over_seeds(trainings[label, 4]) for label in labels)
    right = [statistics.mean(seed["accuracy"][0] for seed in seeds) for seeds in (*students, drawn, halved)]
    said = (
        "Of their pictures {:.2f}, {:.2f} and {:.2f} show what the prompt says, of those of the student for 1 to 4 steps {:.2f}; "
        "the teacher's best solver has {:.2f}, progressive {:.2f}."
    )
    assert said.format(*right) in text
    card = on_the_card()
    step, held = (
        [card[f"SDXL, 1024 px, bf16, {part}, pages"][key] for part in ("matching", "training")]
        for key in ("step", "bytes")
    )
    said = "took {:.2f} s where one of progressive distillation without guidance took {:.2f}, and held "
    assert (said + "{:.2f} GiB beside the weights for {:.2f}").format(*step, *(size / 2**30 for size in held)) in text


LONG = " four times as long"


def test_what_a_critic_brought_is_in_the_table():
    trainings = by_training(result("scenes_students")["parts"])

    def of(label, calls, key="frechet"):
        return f"{pages.over(over_trainings(trainings[label, calls]), key)[0]:.2f}"

    ones, twos, fours = (
        f"{half}progressive then matching with a critic in {n}{LONG}"
        for half, n in (("half ", 1), ("half ", 2), ("", 4))
    )
    slower, begun, random = (f"{fours} at half that rate", 4), ("progressive", 4), "frechet_random"
    assert f"nearer in 1 call, from {of(ones.removesuffix(LONG), 1)} to {of(ones, 1)}" in TEXT
    assert f"and in 2 to {of(twos, 2)} from {of(twos.removesuffix(LONG), 2)}, no difference" in TEXT
    assert f"in 4 calls to {of(fours, 4)}, and at half the rate to {of(*slower)}, farther than the {of(*begun)}" in TEXT
    assert f"from {of(*begun, random)} to {of(fours, 4, random)} and {of(*slower, random)}." in TEXT
    for calls, without in ((2, "progressive then matching in 2"), (1, "half progressive then matching in 1")):
        critic = f"half progressive then matching with a critic in {calls}"
        assert f"from {of(without, calls, random)} to {of(critic, calls, random)} in {calls}" in TEXT
    critics = (
        "progressive then matching with a critic in 4",
        *(f"half progressive then matching with a critic in {n}" for n in (2, 1)),
    )
    near = [of(label, calls, random) for label, calls in zip(critics, (4, 2, 1), strict=True)]
    solvers = pages.by_noise(result("scenes_solvers")["parts"]).values()
    drawn = pages.over([part["figures"] for part in pages.best_of(solvers, random)], random)[0]
    assert f"{near[0]}, {near[1]} and {near[2]} in 4, 2 and 1 calls for the teacher's {drawn:.2f}" in TEXT
    assert all(float(one) < drawn for one in near)


def test_how_near_students_of_the_digits_came_is_what_was_measured():
    parts = result("digits")["parts"]
    trainings = by_training({name: part for name, part in parts.items() if not name.startswith("solver, ")})

    def said(label):
        assert [len(trainings[label, calls]) for calls in (4, 2, 1)] == [3, 3, 3]
        values = [round(distance(trainings[label, calls])[0], 2) + 0.0 for calls in (4, 2, 1)]
        return "{:.2f}, {:.2f} and {:.2f}".format(*values)

    other = pages.plus_minus(parts["floor: the teacher, other noise"]["figures"]["frechet"])
    assert f"other pictures of the teacher have {other})" in TEXT
    assert f"progressive distillation {said('progressive')} in 4, 2 and 1 calls, consistency" in TEXT
    assert (
        f"consistency distillation {said('consistency')}, and distribution matching, whose settings do not suit, "
        in TEXT
    )
    decoupled, rcm = said("decoupled matching in 1 to 4"), said("rCM")
    assert f"suit, {said('matching in 1 to 4 by landings')} (decoupled {decoupled}, rCM {rcm})." in TEXT


def _over_seeds(trainings):
    return [seed for seeds in trainings.values() for seed in seeds]


def _mean_recall(seeds):
    return statistics.mean(seed["recall"] for seed in seeds)


def _cells(name, *, table):
    """Of a row, of the tables of the drawn world by number."""
    block = README.partition(readme.BEGIN)[2].partition(readme.END)[0].split("\n\n")
    tables = [part for part in block if part.startswith("|")]
    (line,) = [line for line in tables[table].splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_solvers_row_has_the_least_distance_at_each_number_of_calls():
    found = {}
    for name, part in result("scenes_solvers")["parts"].items():
        if "noise seed" in part["settings"]:
            solver, calls, _ = name.split(", ")
            found.setdefault(int(calls.split()[0]), {}).setdefault(solver, []).append(part["figures"]["frechet"][0])
    least = [min(statistics.mean(seeds) for seeds in solvers.values()) for _, solvers in sorted(found.items())]
    cells = _cells("Frechet distance at infinity", table=0)
    assert [cell.split()[0] for cell in cells[: len(least)]] == [f"{value:.2f}" for value in least]
    assert [_cells("teacher, best solver", table=1)[i] for i in (3, 2, 1)] == cells[:3]


def test_the_students_rows_are_means_and_intervals_over_their_seeds():
    """Of one training over its noise seeds, of several over the trainings' means, by Student's t."""
    seeds = {}
    for name, part in result("scenes_students")["parts"].items():
        if ", noise " in name:
            label, calls, training, _ = name.split(", ")
            row = seeds.setdefault((label, calls.split()[0]), {})
            row.setdefault(training, []).append(part["figures"]["frechet"][0])
    for (label, calls), trainings in seeds.items():
        means = [statistics.mean(noises) for noises in trainings.values()]
        values = means if len(means) > 1 else next(iter(trainings.values()))
        margin = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        cells = _cells(label, table=1)
        assert cells[["8", "4", "2", "1"].index(calls)] == f"{statistics.mean(values):.2f} +- {margin:.2f}"
        assert int(cells[-1]) >= len(means)
