"""Tables in parts: what is kept, what is made again; and what a row says."""

import json

import pytest
import torch
from comfyui_fewstep.benchmarks.scenes import ablation, diversity, readme, students_page
from comfyui_fewstep.benchmarks.scenes.engine import machine
from comfyui_fewstep.benchmarks.scenes.engine.parts import Parts
from comfyui_fewstep.benchmarks.scenes.tables import pages, trainings


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "teacher"
    file.write_bytes(b"first")
    return file


def table(tmp_path, source):
    return Parts(tmp_path / "results" / "table.json", command="python launch.py bench x", sources=[source])


def test_a_part_is_made_once_and_written_before_the_next(tmp_path, source):
    first = table(tmp_path, source)
    assert first.part("one", {"pictures": 1}, lambda: {"distance": 2.0}) == {"distance": 2.0}
    with pytest.raises(RuntimeError, match="cut"):
        first.part("two", {}, lambda: (_ for _ in ()).throw(RuntimeError("cut")))
    again = table(tmp_path, source)
    assert again.part("one", {"pictures": 1}, pytest.fail) == {"distance": 2.0}
    written = json.loads((tmp_path / "results" / "table.json").read_text())
    assert written["command"] == "python launch.py bench x"
    assert written["parts"].keys() == {"one"}
    assert written["parts"]["one"].keys() == {"settings", "figures", "seconds", "date", "machine"}


def test_a_table_says_what_its_networks_learn_in_and_one_that_trains_none_times_nothing(tmp_path, source, monkeypatch):
    monkeypatch.setattr(machine, "_seconds_of_a_layer", pytest.fail)
    said = {"command": "x", "sources": [source]}
    for learning_in, told in ((None, None), (torch.bfloat16, None), (torch.float32, "float32")):
        parts = Parts(tmp_path / f"{learning_in}.json", **said, learning_in=learning_in)
        parts.part("one", {}, dict)
        assert parts.written["parts"]["one"]["machine"].get("learning_in") == told


def test_other_settings_or_another_source_are_made_again(tmp_path, source):
    table(tmp_path, source).part("one", {"pictures": 1}, lambda: {"distance": 2.0})
    assert table(tmp_path, source).part("one", {"pictures": 2}, lambda: {"distance": 3.0}) == {"distance": 3.0}
    source.write_bytes(b"second")
    assert table(tmp_path, source).written["parts"] == {}


def figures(distance, margin=0.1):
    pairs = {key: [distance, margin] for key in ("frechet", "frechet_random", "kernel", "accuracy", "copied")}
    return pairs | dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)


def test_intervals_are_over_seeds_and_of_one_seed_its_own():
    """Student's t of 1, 2, 3: 4.303 / root 3. Trainings first become their means over noise seeds."""
    assert pages.over([figures(2.0, 0.7)], "frechet") == [2.0, 0.7]
    assert pages.over([figures(x) for x in (1.0, 2.0, 3.0)], "frechet") == pytest.approx([2.0, 2.484], rel=1e-3)
    seeds = {0: [figures(1.0), figures(3.0)], 1: [figures(4.0), figures(6.0)]}
    means = trainings.over_trainings(seeds)
    assert [one["frechet"][0] for one in means] == [2.0, 5.0]
    assert pages.over(means, "frechet")[1] == pytest.approx(12.706 * 3 / 2, rel=1e-3)
    assert trainings.over_trainings({0: seeds[0]}) == seeds[0]


def test_the_ratio_of_two_figures_has_the_spread_of_both():
    nothing = trainings.ratio([0.0, 0.3], [2.0, 0.1])
    assert (nothing.value, nothing.margin) == (0.0, pytest.approx(0.15)), "a distance may come out at 0"
    found = trainings.ratio([3.0, 0.3], [2.0, 0.1])
    assert found.value == 1.5
    assert found.margin == pytest.approx(1.5 * (0.1**2 + 0.05**2) ** 0.5)


def test_aims_are_held_interval_and_all():
    made = {"settings": {"setting": ["DDIM", 4, 1.0, "trailing"], "calls": 4}}
    rows = {
        "DDIM, 4 calls": [made | {"figures": figures(10.0, 0.0)}],
        "Heun, 32 calls": [
            made | {"settings": {"setting": ["Heun", 16, 1.0, "edm"], "calls": 31}, "figures": figures(5.0, 0.0)}
        ],
    }
    near = students_page.aims({("progressive", 4): {0: [figures(5.0, 0.2)]}}, rows)[2]
    assert "1.00 +- 0.04 times (aim 1.05: reached) the teacher's best" in near
    assert "0.50 +- 0.02 times (aim 0.75: reached) the best solver" in near
    wide = students_page.aims(
        {("progressive", 4): {0: [figures(5.0, 0.3)]}, ("guidance", 4): {0: [figures(9.0)]}}, rows
    )[2]
    assert "4 calls, progressive (1 training): 1.00 +- 0.06 times (aim 1.05: not reached)" in wide


def test_each_judge_has_the_student_and_the_solvers_that_are_best_by_it():
    """Of the one judge progressive and DDIM in 4 steps, of the other guidance and Heun in 31 calls."""

    def solver(name, calls, **distances):
        pairs = {key: [value, 0.0] for key, value in distances.items()}
        setting = {"setting": [name, 4, 1.0, "trailing"], "calls": calls}
        return [{"settings": setting, "figures": figures(1.0, 0.0) | pairs}]

    rows = {
        "DDIM, 4 calls": solver("DDIM", 4, frechet=1.0, frechet_random=8.0),
        "Heun, 32 calls": solver("Heun", 31, frechet=2.0, frechet_random=4.0),
    }
    students = {
        ("progressive", 4): {0: [figures(0.9, 0.0) | {"frechet_random": [9.0, 0.0]}]},
        ("guidance", 4): {0: [figures(3.0, 0.0) | {"frechet_random": [6.0, 0.0]}]},
    }
    _, _, by_reader, by_random = students_page.aims(students, rows)
    assert "4 calls, progressive (1 training): 0.90 +- 0.00 times (aim 1.05: reached) the teacher's best" in by_reader
    assert "right 0.900" in by_reader
    assert by_random.startswith(
        "- By random features, 4 calls, guidance (1 training): 1.50 +- 0.00 times (aim 1.05: not"
    )
    assert "0.75 +- 0.00 times (aim 0.75: reached) the best solver at equal calls" in by_random


def test_a_page_names_its_command_its_days_and_its_machine():
    part = {"machine": {"platform": "P", "cores": 2, "threads": 1}, "figures": figures(1.0)}
    written = {
        "command": "python launch.py bench scenes solvers",
        "parts": {
            "floor: real scenes": part | {"date": "2026-01-01"},
            "DDIM, 4 calls, noise 0": part
            | {"date": "2026-01-02", "settings": {"setting": ["DDIM", 4, 1.0, "trailing"], "calls": 4}},
        },
    }
    page = pages.solvers_page(written)
    assert "`python launch.py bench scenes solvers`, 2026-01-01 to 2026-01-02, on P, 2 cores, 1 thread." in page
    assert "| real scenes | - | 1.00 +- 0.10 |" in page
    assert "| DDIM, 4 steps, guidance 1, trailing | 4 | 1.00 +- 0.10 |" in page
    assert "- 4 calls: 1.00 +- 0.10 with DDIM, 1.00 times the teacher's best." in page
    assert "Not measured yet: 1, 2, 8, 16, 32 calls." in page


@pytest.mark.parametrize(
    ("bfloat16", "chosen", "said"), [(1.0, torch.bfloat16, ""), (20.0, torch.float32, ", learning in float32")]
)
def test_networks_learn_in_what_this_machine_is_fast_in_and_its_page_says_so(bfloat16, chosen, said, monkeypatch):
    seconds = {torch.bfloat16: bfloat16, torch.float32: 2.0}
    monkeypatch.setattr(machine, "_seconds_of_a_layer", lambda precision, on: seconds[precision])
    machine.faster_precision.cache_clear()
    try:
        assert machine.learning_precision() is chosen
        made = {"command": "x", "parts": {"one": {"machine": machine.machine(chosen), "date": "2026-01-01"}}}
        assert pages.made(made).endswith(f"thread{'s' * (torch.get_num_threads() > 1)}{said}.")
    finally:
        machine.faster_precision.cache_clear()


def test_a_layer_is_timed_in_either_precision():
    assert all(
        0.0 < machine._seconds_of_a_layer(one, torch.device("cpu")) < 60.0 for one in (torch.float32, torch.bfloat16)
    )


def _book():
    """Results of one solver, and of two methods, of which one was trained twice."""
    part = {"machine": {"platform": "P", "cores": 2, "threads": 1}, "date": "2026-01-01", "seconds": 600.0}

    def row(distance, **settings):
        return part | {"settings": settings, "figures": figures(distance)}

    solver = {"setting": ["DDIM", 4, 1.0, "trailing"]}
    solvers = {f"DDIM, {n} calls, noise 0": row(8.0 / n, calls=n, **solver) for n in (1, 2, 4, 8)}
    solvers |= {f"floor: {name}": row(0.0) for name in readme.FLOORS}
    students = {
        f"{label}, 1 calls, training {seed}, noise {k}": row(value + k, calls=1)
        for label, seed, value in (("progressive", 0, 2.0), ("progressive", 1, 4.0), ("consistency", 0, 1.0))
        for k in range(2)
    }
    options = {"method": "m", "passes": "p", "options": {}}
    students |= {f"training: {name}": row(0.0, **options) for name in ("progressive, 0", "consistency, 0")}
    return {"command": "solvers", "parts": solvers}, {"command": "students", "parts": students}


def test_the_readmes_tables_follow_the_number_of_trainings():
    """Of two trainings the interval is over their means, 2.5 and 4.5; of one over its noise seeds, 1 and 2."""
    block = readme.block(*_book(), None)
    assert f"| progressive |  |  |  | 3.50 +- {12.706:.2f} | 2 |" in block
    assert "| consistency |  |  |  | 1.50 +- 6.35 | 1 |" in block
    assert "| teacher, best solver | 1.00 +- 0.10 | 2.00 +- 0.10 | 4.00 +- 0.10 | 8.00 +- 0.10 |  |" in block
    assert "- 1 call, consistency (1 training): 1.50 +- 6.35 times" in block
    assert "some intervals overlap" in block
    assert "after far more training: consistency 6.20, progressive 15.39; the same order." in block


def test_a_block_takes_the_place_of_the_one_before_and_a_missing_mark_is_named():
    text = f"before\n{readme.BEGIN}old\n{readme.END}\nafter\n"
    assert readme.written(text, "new\n") == text.replace("old", "new")
    with pytest.raises(ValueError, match=r"README.md lacks <!-- to here -->"):
        readme.written(f"before\n{readme.BEGIN}old\n", "new\n")


def test_the_page_tells_the_methods_order_in_one_call():
    solvers, students = _book()
    page = students_page.page(students, solvers)
    assert "In one call, from the best: consistency 1.50 +- 6.35, progressive 3.50 +- 12.71" in page
    assert "| progressive, 2 trainings | 1 | 3.50 +- 12.71 |" in page
    assert students_page.chart(students, solvers).std() > 0.02


def test_the_spread_is_between_the_pictures_of_one_prompt():
    """Two prompts far apart, whose two pictures lie at 2 and at 4 from each other: 3 in the mean, by Student's t of both."""
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [100.0, 0.0], [100.0, 4.0]])
    found = diversity.spread(features, each=2)
    assert found.value == 3.0
    assert found.margin == pytest.approx(12.706, rel=1e-3)


def test_the_page_has_each_students_diversity_over_the_teachers():
    solvers, students = _book()
    assert "over the teacher's by its best solver" not in students_page.page(students, solvers)
    part = students["parts"]["progressive, 1 calls, training 0, noise 0"]
    spreads = {"teacher": 4.0, "progressive, 1 calls, training 0": 3.0, "progressive, 1 calls, training 1": 3.0}
    students["parts"] |= {
        f"{diversity.BEGINNING}{name}": part | {"figures": {"spread": [value, 0.4]}} for name, value in spreads.items()
    }
    page = students_page.page(students, solvers)
    assert "| progressive | 1 | 0.75 +- 0.08 | 1.000 +- inf | 2 |" in page, "the teacher has one seed here"
    assert "| consistency | 1 |" not in page, "no spread of it was measured"
    assert "| progressive, 2 trainings | 1 | 3.50 +- 12.71 |" in page, "a spread is no row of its own"


def test_recall_over_the_teachers_is_as_unsure_as_both():
    """The student's is 0.9 in both trainings; the teacher's 0.8 and 1.0, so 0.9 +- 12.7 * 0.1 by Student's t of two."""
    named = {"teacher": [4.0, 0.4], "progressive, 1 calls, training 0": [3.0, 0.4]}
    spreads = {f"{diversity.BEGINNING}{name}": {"figures": {"spread": value}} for name, value in named.items()}
    students = {("progressive", 1): {seed: [{"recall": 0.9}] for seed in (0, 1)}}
    lines = diversity.table(spreads, students, [{"recall": 0.8}, {"recall": 1.0}])
    assert "| 1.000 +- 1.412 | 1 |" in lines[-2]


def test_trials_that_are_no_method_of_their_own_stand_in_no_order_of_methods():
    solvers, students = _book()
    others = {
        name.replace("progressive", f"progressive {other}"): part | {"figures": figures(0.1)}
        for name, part in students["parts"].items()
        for other in ("three times as long", "then matching in 1")
        if name.startswith("progressive")
    }
    students["parts"] |= others
    page = students_page.page(students, solvers)
    assert "- 1 call, progressive three times as long (2 trainings): 0.10" in page
    assert "In one call, from the best: consistency 1.50 +- 6.35, progressive 3.50 +- 12.71" in page


def test_the_ablations_page_has_the_papers_table_beside_ours():
    """A pair that diverged in one training has no figure, and stands in no order."""
    part = {"machine": {"platform": "P", "cores": 2, "threads": 1}, "date": "2026-01-01"}
    drawn = {"v_prediction, snr": (3.0, 1.0), "x0, truncated_snr": (2.0, 2.0), "eps, truncated_snr": (1.0, 1.0)}
    parts = {
        f"{pair}, training {seed}": part | {"figures": {"32": figures(many + seed), "4": figures(few + seed)}}
        for pair, (many, few) in drawn.items()
        for seed in range(2)
    }
    parts["eps, truncated_snr, training 1"]["figures"] = {"diverged": "the loss became nan"}
    written = {"command": "python launch.py bench scenes ablation", "parts": parts}
    page = ablation.page(written)
    assert "| v_prediction | snr | 3.50 +- 6.35 | 3.500 +- 6.353 | 1.50 +- 6.35 | 1.500 +- 6.353 | 2 | 3.05 |" in page
    assert "| eps | truncated_snr | diverged | - | diverged | - | 2 | diverged |" in page
    assert "- 32 steps, from the least distance: x0 with truncated_snr 2.50, v_prediction with snr 3.50." in page
    assert "- 4 steps, from the least distance: v_prediction with snr 1.50, x0 with truncated_snr 2.50." in page
    short = ablation.in_short(written)
    assert "\n".join(short) in readme.block(*_book(), written)
    assert short[2].endswith("x0 2.51, v_prediction 2.75, x0_and_eps 2.76, eps 2.91.")


def test_in_short_each_prediction_stands_with_its_best_weighting():
    part = {"machine": {"platform": "P", "cores": 2, "threads": 1}, "date": "2026-01-01"}
    drawn = {"x0, snr": 3.0, "eps, snr": 2.0, "x0, truncated_snr": 1.0, "eps, truncated_snr": 4.0}
    parts = {
        f"{pair}, training 0": part | {"figures": {"32": figures(value), "4": figures(9.0 - value)}}
        for pair, value in drawn.items()
    }
    lines = ablation.in_short({"command": "c", "parts": parts})
    assert lines[0] == "- 32 steps, from the least distance: x0 with truncated_snr 1.00, eps with snr 2.00."
    assert lines[1] == "- 4 steps, from the least distance: eps with truncated_snr 5.00, x0 with snr 6.00."


def test_calibration_says_what_the_judges_saw():
    """Beyond both intervals: 5.0 +- 0.1 for 1.0 +- 0.1 is, 1.15 +- 0.1 is not."""
    floors = {"real scenes": 1.0, "real scenes, blurred": 5.0, "real scenes of one thing alone": 1.15}
    lines = pages.calibration({f"floor: {name}": {"figures": figures(value)} for name, value in floors.items()})
    assert lines[2:] == [
        "- real scenes of one thing alone: Frechet at infinity 1.150 +- 0.100 for 1.000 +- 0.100, not seen.",
        "- real scenes, blurred: Frechet at infinity 5.000 +- 0.100 for 1.000 +- 0.100, seen.",
    ]


def test_trainings_that_came_out_apart_are_named():
    trainings = {0: [figures(1.0), figures(2.0)], 1: [figures(4.0), figures(5.0)]}
    students = {("matching", 1): trainings, ("progressive", 1): {0: [figures(1.0)], 1: [figures(1.9)]}}
    assert students_page.uneven(students) == ["- matching, 1 call: its trainings came out apart, at 1.50, 4.50.", ""]
    assert students_page.uneven({("progressive", 1): students["progressive", 1]}) == []
