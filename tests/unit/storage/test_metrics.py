"""metrics.jsonl of runs of days: what a resumed run keeps of it, without all of it in memory, and without writing it again."""

import json

import pytest
from comfyui_fewstep.trainers.storage import metrics, reading
from comfyui_fewstep.trainers.storage.run_folder import RunFolder

LINES = 200


def logged(iteration):
    figures = dict.fromkeys(("loss", "x0_error", "gradient_norm", "learning_rate"), 0.5)
    return {"iteration": iteration, "iterations": LINES, "stage": 0, "stage_name": "s", "band_errors": []} | figures


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path, "run")
    for iteration in range(1, LINES + 1):
        made.log(logged(iteration))
    return made


def iterations(run):
    return [line["iteration"] for line in run.metrics()]


def file_of(run):
    return run.place("metrics.jsonl")


def test_a_file_of_which_nothing_goes_is_not_written_again(run):
    before = file_of(run).stat()
    run.forget_metrics_after(LINES)
    after = file_of(run).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("cut", ["", '{"iteration": 201, "lo'])
@pytest.mark.parametrize("kept", [0, 120, LINES])
def test_what_was_logged_later_goes_and_so_does_what_a_crash_cut(cut, kept, run):
    with file_of(run).open("a") as file:
        file.write(cut)
    run.forget_metrics_after(kept)
    assert iterations(run) == list(range(1, kept + 1))
    run.log(logged(kept + 1))
    assert iterations(run) == list(range(1, kept + 2))


def test_a_run_without_metrics_gets_the_file(tmp_path):
    """By which its folder is known as one where training began."""
    run = RunFolder(tmp_path, "run")
    run.forget_metrics_after(0)
    assert file_of(run).read_bytes() == b""


def test_no_more_than_a_line_is_held(run, monkeypatch):
    """A line is a kilobyte of objects: those of a million iterations would take the memory that training wants."""
    events = []

    def heard(value, **_):
        events.append("written")
        return json.JSONEncoder().encode(value)

    reading_one = reading.read_line
    monkeypatch.setattr(metrics.json, "dumps", heard)
    monkeypatch.setattr(reading, "read_line", lambda *args, **kw: events.append("read") or reading_one(*args, **kw))
    run.forget_metrics_after(LINES - 1)
    rewriting = events[LINES:]
    assert rewriting == ["read", "written"] * (LINES - 1) + ["read"]


def test_a_damaged_line_is_named_and_nothing_is_dropped(run):
    with file_of(run).open("a") as file:
        file.write("no JSON\n")
    before = file_of(run).read_bytes()
    with pytest.raises(
        ValueError, match=f"the run 'run' is damaged: line {LINES + 1} of metrics.jsonl is no JSON text"
    ):
        run.forget_metrics_after(10)
    assert file_of(run).read_bytes() == before
