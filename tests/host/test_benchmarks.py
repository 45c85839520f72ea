"""The benchmarks at their smallest; that of training in the shapes that are measured on a GPU."""

import dataclasses
import itertools
import json
import re

import pytest
from comfyui_fewstep.benchmarks import (
    architectures,
    architectures_formats,
    architectures_parts,
    digits_solvers,
    methods,
    plan,
    progressive,
    progressive_ablation,
    progressive_cheaper,
    training,
)
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.trainers.methods.progressive import StudentPrediction
from PIL import Image


@pytest.mark.thorough
def test_the_training_benchmark_measures_time_and_memory(tmp_path):
    small = "--precision bfloat16 --channels 32 --pixels 64 --batch 1 --rounds 1 --iterations 2 --students LoRA"
    training.main([*small.split(), "--methods", "matching", "--folder", str(tmp_path)])
    page = (tmp_path / "training_sd15_64.md").read_text()
    times, memories = (
        [float(number) for number in re.findall(r"[\d.]+", line)]
        for line in page.splitlines()
        if line.startswith("| matching | LoRA")
    )
    assert all(number > 0 for number in (*times[:5], *memories))
    floor, loop, ratio, less, saved, _ = memories
    assert ratio == pytest.approx(loop / floor, rel=0.02)
    assert saved == pytest.approx(less / floor, rel=0.02)


SMALL = "--seeds 2 --pictures 100 --start-steps 4 --iterations 2 --last-iterations 3"


def test_the_progressive_benchmark_scores_every_halving_of_every_seed(tmp_path):
    """Seeds are kept, and added to when they were made alike."""
    one, results, file = (
        SMALL.replace("--seeds 2", "--seeds 1"),
        ["--folder", str(tmp_path)],
        tmp_path / "progressive.json",
    )
    progressive.main([*one.split(), *results])
    kept = json.loads(file.read_text())["seeds"]
    kept[0][0]["seconds"] = 12345.0
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seeds": kept}))
    progressive.main([*SMALL.split(), "--keep", *results])
    figures = json.loads(file.read_text())
    assert figures["seeds"][0] == kept[0], "not trained again"
    assert [(s["steps"], s["nfe"]) for s in figures["teacher"]] == [(4, 8), (2, 4), (1, 2)]
    first, second = figures["seeds"]
    assert [(s["score"]["steps"], s["score"]["nfe"], s["iterations"]) for s in first] == [(2, 2, 3), (1, 1, 3)]
    assert all(a["score"]["frechet"] != b["score"]["frechet"] for a, b in zip(first, second, strict=True))
    assert all(stage["seconds"] > 0 and stage["score"]["accuracy"] > 0.8 for stage in first + second)
    page = (tmp_path / "progressive.md").read_text()
    mean = sum(stages[1]["score"]["frechet"] for stages in figures["seeds"]) / 2
    assert re.search(rf"\| student \| 1 \| 1 \| {mean:.2f} \(", page)
    assert f"1 steps: {mean / figures['teacher'][0]['frechet']:.2f} times the teacher's at 4 DDIM steps" in page
    assert "--keep" not in page
    for name in ("progressive", "progressive_pictures"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 100
    with pytest.raises(ValueError, match=r"'iterations': 2.* but this is .*'iterations': 9"):
        progressive.main([*SMALL.replace("--iterations 2", "--iterations 9").split(), "--keep", *results])


ALL = StudentPrediction.V_PREDICTION, StudentPrediction.X0, StudentPrediction.X0_AND_EPS, StudentPrediction.EPS
"""Only the first is the teacher's, only x0_and_eps has other output channels."""


@pytest.mark.parametrize(
    "chosen", [(ALL[0], ALL[2]), pytest.param(ALL, marks=pytest.mark.thorough)], ids=["two", "all"]
)
def test_the_ablation_has_a_row_for_each_prediction_and_weighting(chosen, tmp_path, monkeypatch):
    assert progressive_ablation.PREDICTIONS == ALL
    monkeypatch.setattr(progressive_ablation, "PREDICTIONS", chosen)
    small = {"start_steps": 4, "batch_size": 8, "iterations": 1, "last_iterations": 2, "conversion_iterations": 3}
    for name in ("SETTINGS", "CONVERSION"):
        changed = dataclasses.replace(getattr(progressive_ablation, name), **small)
        monkeypatch.setattr(progressive_ablation, name, changed)
    progressive.main(["--ablation", "--seeds", "1", "--pictures", "50", "--folder", str(tmp_path)])
    rows = json.loads((tmp_path / "progressive_ablation.json").read_text())["rows"]
    weightings = ["truncated_snr", "snr_plus_one", "snr", "constant"]
    predictions = [prediction.value for prediction in chosen]
    assert [(row["prediction"], row["weighting"]) for row in rows] == list(itertools.product(predictions, weightings))
    found = {(row["prediction"], row["weighting"]): row["over_teacher"] for row in rows}
    for prediction in predictions:
        steps = ["2", "1"] if prediction == "v_prediction" else ["4", "2", "1"]
        assert all(list(found[prediction, weighting]) == steps for weighting in weightings)
        assert len({found[prediction, weighting].get("4") for weighting in weightings}) == 1, "one conversion for all"
        same = found[prediction, "truncated_snr"] == found[prediction, "constant"]
        assert same, "at the levels of the halvings the SNR is below 1"
        assert len({found[prediction, name]["1"] for name in ("snr_plus_one", "snr", "constant")}) == 3
    assert len({found[prediction, "constant"]["2"] for prediction in predictions}) == len(predictions)
    page = (tmp_path / "progressive_ablation.md").read_text()
    best = min(found, key=lambda pair: found[pair]["1"])
    assert f"- 1 steps: least with {best[0]} and {best[1]} ({found[best]['1']:.2f})" in page
    assert min(Image.open(tmp_path / "progressive_ablation.png").size) > 100


def test_the_cheaper_ways_are_told_with_their_cost(tmp_path, monkeypatch):
    plain = dataclasses.replace(progressive_cheaper.WAYS["plain"], start_steps=8, iterations=1, last_iterations=2)
    merged = dataclasses.replace(plain, merged_steps=4)
    monkeypatch.setattr(progressive_cheaper, "WAYS", {"plain": plain, "merged": merged})
    small = ["--seeds", "2", "--pictures", "50", "--folder", str(tmp_path)]
    progressive.main([*small, *["--start-steps", "8", "--iterations", "1", "--last-iterations", "2"]])
    plainly = json.loads((tmp_path / "progressive.json").read_text())["seeds"]
    progressive.main(["--cheaper", *small])
    figures = json.loads((tmp_path / "progressive_cheaper.json").read_text())
    counted = {
        way: [(stage["score"]["steps"], stage["iterations"]) for stage in seeds[0]]
        for way, seeds in figures["ways"].items()
    }
    assert figures["ways"]["plain"] == plainly
    assert counted == {"plain": [(4, 1), (2, 2), (1, 2)], "merged": [(2, 2), (1, 2)]}
    # guided 2 * 2 + 3, then 2 + 3 twice; guided 2 * 4 + 3, then 2 + 3
    costs = {"plain": 1 * 7 + 2 * 5 + 2 * 5, "merged": 2 * 11 + 2 * 5}
    for way, cost in costs.items():
        assert progressive_cheaper.forwards(figures["settings"][way], figures["ways"][way][0]) == cost
    page = (tmp_path / "progressive_cheaper.md").read_text()
    assert "| plain | 2 | 3 | 5 | 0.0 | 1.00 |" in page
    mean = sum(stages[-1]["score"]["frechet"] for stages in figures["ways"]["merged"]) / 2 / figures["best"]
    assert re.search(rf"\| merged \| 2 \| 2 \| 4 \| 0.0 \| {32 / 27:.2f} \| .* \| - \| .* \| {mean:.2f} \(", page)
    assert min(Image.open(tmp_path / "progressive_cheaper.png").size) > 100


def test_the_methods_benchmark_scores_every_method_and_goes_on(tmp_path):
    """Every label at its steps; a second start trains only what is missing."""
    small = ["--pictures", "100", "--iterations", "2", "--folder", str(tmp_path)]
    methods.main(["--seeds", "1", "--methods", "guidance-distilled", "LCD", "iCT", *small])
    first = json.loads((tmp_path / "methods.json").read_text())
    scored = {
        found["settings"]["label"]: [(s["steps"], s["nfe"]) for s in found["seeds"][0]["scores"]]
        for found in first["trials"]
        if found["seeds"]
    }
    assert set(scored) == {"guidance-distilled", "LCD", "iCT"}
    assert scored["guidance-distilled"] == [(n, n) for n in (64, 32, 16, 8, 4)], "one forward a step"
    assert scored["LCD"] == [(4, 4), (2, 2), (1, 1)]
    assert scored["iCT"] == [(2, 2), (1, 1)]
    assert [(s["steps"], s["nfe"]) for s in first["teacher"]][:2] == [(64, 128), (32, 64)]
    methods.main(["--seeds", "2", "--methods", "LCD", "iCT", *small])
    second = json.loads((tmp_path / "methods.json").read_text())
    for before, after in zip(first["trials"], second["trials"], strict=True):
        assert after["seeds"][:1] == before["seeds"]
        assert len(after["seeds"]) == {"LCD": 2, "iCT": 2, "guidance-distilled": 1}.get(after["settings"]["label"], 0)
    page = (tmp_path / "methods.md").read_text()
    assert "| progressive | 1 | 1 | 1." in page
    assert re.search(r"- LCD, 4 steps: [\d.]+ times the teacher's at 64 steps; the aim of 1\.3 is", page)
    assert min(Image.open(tmp_path / "methods_pictures.png").size) > 100


def test_the_better_solvers_have_a_row_each_and_go_on(tmp_path, monkeypatch):
    """Few pictures, of which DDIM's are those of the older benchmarks."""
    monkeypatch.setattr(digits_solvers, "ROWS", (("DDIM", 4), ("Heun", 4), ("DPM++ 2M", 4)))
    small = ["--pictures", "100", "--folder", str(tmp_path), "--noise-seeds"]
    digits_solvers.main([*small, "1"])
    first = json.loads((tmp_path / "digits_solvers.json").read_text())["parts"]
    ddim = digits_solvers.Digits(guidance_scale=digits_solvers.SCALE, pictures=100).teacher(4)
    assert first["DDIM, 4, noise 0"]["figures"]["frechet"] == pytest.approx(ddim.frechet, rel=1e-4)
    assert [part["settings"]["calls"] for part in first.values()] == [8, 14, 8]
    digits_solvers.main([*small, "2"])
    second = json.loads((tmp_path / "digits_solvers.json").read_text())["parts"]
    assert first.items() <= second.items()
    one, two = (second[f"Heun, 4, noise {seed}"]["figures"]["frechet"] for seed in range(2))
    page = (tmp_path / "digits_solvers.md").read_text()
    assert re.search(rf"\| Heun \| 4 \| 14 \| {(one + two) / 2:.2f} \+- [\d.]+ \| [\d.]+ \| 2 \|", page)


def test_the_architectures_benchmark_ends_at_no_error_and_goes_on(tmp_path, monkeypatch):
    """Two architectures, in one of which a part fails; a second start measures what is missing."""
    first, second = ["--folder", str(tmp_path), "--only", "sd15"], ["--folder", str(tmp_path)]
    file, page = tmp_path / "architectures.json", tmp_path / "architectures.md"
    architectures.main(first)
    row = json.loads(file.read_text())["rows"]["sd15"]
    assert row["cells"].keys() == architectures.PARTS.keys() == architectures.ABOUT.keys()
    assert all(cell["right"] for cell in row["cells"].values()), row
    assert "1 of 1 are right in every column" in page.read_text()

    def breaks(subject):
        raise ValueError(f"not with {subject.architecture.config}")

    monkeypatch.setitem(architectures_parts.PARTS, "guidance", breaks)
    architectures.main([*second, "--only", "sd15", "sd3"])
    rows = json.loads(file.read_text())["rows"]
    assert rows["sd15"] == row, "not measured again"
    assert rows["sd3"]["cells"]["guidance"] == {"error": "ValueError: not with SD3"}
    assert all(cell["right"] for part, cell in rows["sd3"]["cells"].items() if part != "guidance")
    assert "- sd3 (guidance): ValueError: not with SD3" in page.read_text()
    assert "1 of 2 are right in every column" in page.read_text()


def test_the_table_of_formats_has_a_row_for_each_way_of_holding_weights(monkeypatch):
    import_host()
    monkeypatch.setattr(architectures, "FORMATS_OF", "sd3")
    known = architectures_formats.known()
    rows = {name: architectures.of_format(known[name]) for name in ("float32", "lowvram")}
    rows["broken"] = architectures.of_format(architectures_formats.Format("none", lambda _: 1 / 0))
    assert all(cell["right"] for cell in rows["float32"]["cells"].values()), rows
    learnt = [rows["lowvram"]["cells"][part] for part in ("gradient", "checkpointing")]
    assert all(cell["right"] for cell in learnt), "the host of 2024 adds LoRAs into what is on the device already"
    assert rows["float32"]["cells"].keys() == architectures_formats.ABOUT.keys()
    figures = {"host": {"comfyui": "0", "torch": "0"}, "machine": {"platform": "here", "cores": 1}, "rows": {}}
    page = architectures.page({**figures, "formats": rows}, command="bench")
    assert "| lowvram | float32 that the host keeps elsewhere, and lends layer by layer | 1.000000 | 1.000000 |" in page
    assert "- broken: ZeroDivisionError: division by zero" in page


def test_the_plans_have_a_row_for_each_case_and_go_on(tmp_path, monkeypatch):
    """The parts themselves are the plan's and the run's, each in a process of its own."""
    asked = []

    def alone(part, case):
        asked.append((part, case.name))
        return (
            {"pairs": [(9.0, 10.0), (6.0, 10.0), (11.0, 10.0)]}
            if part == "times"
            else {"planned": 2**20, "held": 2**21}
        )

    monkeypatch.setattr(plan.plan_parts, "alone", alone)
    chosen = ["--models", "digits", "--methods", "progressive", "--folder", str(tmp_path)]
    plan.main(chosen)
    plan.main(chosen)
    assert asked == [
        (part, f"digits, progressive, {student}") for student in ("LoRA", "full") for part in ("times", "memory")
    ]
    page = (tmp_path / "plan.md").read_text()
    assert "| digits | progressive | full | 10.00 s | 0.90 | 0.60 to 1.10 | 2.0 | 0.50 |" in page
    assert "Within 15%: 2 of 2 in time (the ratio in the middle), 0 of 2 in memory" in page
