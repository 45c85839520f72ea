"""Curves of runs of any length: what a point is, and that there are never more than a chart can show."""

import json

import pytest
from comfyui_fewstep.trainers.runs import known
from comfyui_fewstep.trainers.runs.curves import Curves, curves
from comfyui_fewstep.trainers.runs.watching import curves_after
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


def line(iteration, *, stage=0, **measures):
    values = {name: float(iteration) for name in ("x0_error", "gradient_norm", "learning_rate")}
    of_stage = {"stage": stage, "stage_name": f"s{stage}", "iterations": 99999}
    return {
        "iteration": iteration,
        "loss": float(iteration),
        "band_errors": [],
        **of_stage,
        **values,
        "measures": measures,
    }


def lines_of(count, *, stages):
    """Of stages that end anywhere; a measure that comes late, and is missing now and then."""
    for i in range(1, count + 1):
        yield line(i, stage=i * stages // (count + 1), **({"gap": i * 2.0} if i > 20 and i % 3 else {}))


@pytest.mark.parametrize("most", [1, 5, 8, 1000])
@pytest.mark.parametrize("count", [1, 8, 9, 63, 64, 200])
def test_a_point_is_the_mean_of_neighbours_of_its_stage(count, most):
    """As many together as the smallest power of 2 with which there are no more points, but one in each stage."""
    together = next(2**k for k in range(20) if count <= most * 2**k)
    lines = list(lines_of(count, stages=3))
    by_stage = [[one for one in lines if one["stage"] == stage] for stage in range(3)]
    groups = [of[i : i + together] for of in by_stage for i in range(0, len(of), together)]
    made = curves(lines, most=most)
    assert made["iteration"] == [group[-1]["iteration"] for group in groups]
    assert made["stage"] == [group[-1]["stage"] for group in groups]
    assert made["loss"] == pytest.approx([sum(one["loss"] for one in group) / len(group) for group in groups])
    gaps = [[one["measures"]["gap"] for one in group if one["measures"]] for group in groups]
    if count > 20:
        assert made["measures"]["gap"] == [pytest.approx(sum(gap) / len(gap)) if gap else None for gap in gaps]


def test_what_is_held_does_not_grow_with_the_lines():
    made = Curves(most=100)
    for one in lines_of(5000, stages=3):
        made.add(one)
        assert len(made.columns()["iteration"]) <= 103 if one["iteration"] % 97 == 0 else True
    assert len(made.columns()["iteration"]) <= 103


@pytest.fixture
def read(monkeypatch):
    """The numbers of the lines that were read."""
    found, own = [], known.reading.each_line

    def each(*of, **after):
        for one in own(*of, **after):
            found.append(one.number)
            yield one

    monkeypatch.setattr(known.reading, "each_line", each)
    return found


def append(run, lines):
    run.path.mkdir(exist_ok=True)
    with run.place("metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)


def test_of_a_run_that_grows_the_curves_are_those_of_its_whole_file(tmp_path, read):
    run, lines = RunFolder(tmp_path, "run"), list(lines_of(5000, stages=3))
    for begin, end in ((0, 1), (1, 2500), (2500, 2501), (2501, 5000)):
        append(run, lines[begin:end])
        read.clear()
        assert curves_after(run, -1) == curves(lines[:end])
        assert read == list(range(begin + 1, end + 1))
    read.clear()
    assert curves_after(run, -1) == curves(lines)
    assert read == []


def test_curves_of_a_file_that_was_written_anew_are_of_what_is_there(tmp_path):
    run = RunFolder(tmp_path, "run")
    append(run, lines_of(500, stages=1))
    assert curves_after(run, -1)["iteration"][-1] == 500
    run.forget_metrics_after(300)
    append(run, [line(301, gap=1.0)])
    assert curves_after(run, -1) == curves(run.metrics())


def test_curves_are_kept_of_the_runs_that_were_looked_at_last(tmp_path, monkeypatch, read):
    monkeypatch.setattr(known, "_DRAWN", {})
    monkeypatch.setattr(known, "_MOST_DRAWN", 2)
    runs = [RunFolder(tmp_path, f"run {i}") for i in range(3)]
    for run in runs:
        append(run, [line(1)])
    for i, wanted in ((0, [1]), (1, [1]), (0, []), (2, [1]), (0, []), (1, [1])):
        read.clear()
        assert curves_after(runs[i], -1)["iteration"] == [1]
        assert read == wanted, f"run {i}"
        assert len(known._DRAWN) <= 2


def test_without_metrics_there_are_none(tmp_path):
    assert curves_after(RunFolder(tmp_path, "none"), -1) == curves([])
