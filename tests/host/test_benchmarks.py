"""The benchmarks at their smallest; that of training in the shapes that are measured on a GPU."""

import json
import re

import pytest
from comfyui_fewstep.benchmarks.architectures import command as architectures
from comfyui_fewstep.benchmarks.architectures import formats as architectures_formats
from comfyui_fewstep.benchmarks.architectures import parts as architectures_parts
from comfyui_fewstep.benchmarks.plan import command as plan
from comfyui_fewstep.benchmarks.training import command as training
from comfyui_fewstep.commands.embedded import import_host


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
    assert all(number > 0 for number in (*times[:5], times[-1], *memories))
    floor, loop, ratio, less, saved = memories
    assert ratio == pytest.approx(loop / floor, rel=0.02)
    assert saved == pytest.approx(less / floor, rel=0.02)


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
