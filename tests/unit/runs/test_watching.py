"""What a run folder says to whoever looks at it."""

import errno
import json
import os
import threading

import pytest
import torch
from comfyui_fewstep.trainers.runs import known
from comfyui_fewstep.trainers.runs.curves import curves
from comfyui_fewstep.trainers.runs.watching import State, all_runs, lines_after, previews, state_of, summary
from comfyui_fewstep.trainers.storage import reading
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


def line(iteration, *, stage=0, loss=None, bands=(1.0, None)):
    values = {name: float(iteration) for name in ("loss", "x0_error", "gradient_norm", "learning_rate")}
    values["loss"] = values["loss"] if loss is None else loss
    return {"iteration": iteration, "stage": stage, "stage_name": f"s{stage}", "band_errors": list(bands), **values}


def test_curves_of_few_lines_are_the_lines():
    made = curves([line(10), line(20, stage=1, bands=(2.0, 3.0))])
    assert made["iteration"] == [10, 20]
    assert made["stage"] == [0, 1]
    assert made["loss"] == [10.0, 20.0]
    assert made["band_errors"] == [[1.0, 2.0], [None, 3.0]]


def test_many_lines_are_put_together_by_their_means_within_a_stage():
    lines = [line(i, stage=int(i > 5)) for i in range(1, 11)]
    made = curves(lines, most=5)
    assert made["iteration"] == [2, 4, 5, 7, 9, 10], "of each group the last, and no group over two stages"
    assert made["loss"] == [1.5, 3.5, 5.0, 6.5, 8.5, 10.0]
    assert made["stage"] == [0, 0, 0, 1, 1, 1]


def test_a_band_without_a_sample_is_left_out_of_its_mean():
    made = curves([line(1, bands=(1.0, None)), line(2, bands=(None, None))], most=1)
    assert made["band_errors"] == [[1.0], [None]]


def test_measures_are_columns_by_name():
    """Of lines that have none, or something else in their place, there is none; a mean is over those that are known."""
    lines = [line(1), line(2) | {"measures": {"gap": 1.0}}, line(3) | {"measures": {"gap": 3.0, "fake_loss": None}}]
    made = curves([*lines, line(4) | {"measures": "damaged"}])
    assert made["measures"] == {"gap": [None, 1.0, 3.0, None], "fake_loss": [None, None, None, None]}
    assert curves(lines, most=1)["measures"] == {"gap": [2.0], "fake_loss": [None]}


def test_curves_of_nothing():
    assert curves([]) == {
        **{name: [] for name in ("iteration", "stage", "loss", "x0_error", "gradient_norm", "learning_rate")},
        "band_errors": [],
        "measures": {},
    }


def in_another_thread(ask):
    said = []
    thread = threading.Thread(target=lambda: said.append(ask()))
    thread.start()
    thread.join()
    return said[0]


def test_states_of_a_run_in_order(tmp_path):
    run = RunFolder(tmp_path, "run")
    assert state_of(run) is State.ABSENT
    with run.locked():
        assert in_another_thread(lambda: state_of(RunFolder(tmp_path, "run"))) is State.TRAINING
        run.data_folder.mkdir()
        (run.data_folder / "source.json").write_text("{}")
        (run.data_folder / "a.safetensors").touch()
    assert state_of(run) is State.PREPARED
    assert [one.name for one in all_runs(tmp_path)] == ["run"], (
        "which may be deleted there, and is seen while it is drawn"
    )
    with run.locked():
        run.claim({"run": {}})
    assert state_of(run) is State.WRITTEN
    run.save_checkpoint(3, {}, {"stage": 0})
    assert state_of(run) is State.STOPPED
    run.student_file.touch()
    assert state_of(run) is State.FINISHED
    with run.locked():
        assert in_another_thread(lambda: state_of(RunFolder(tmp_path, "run"))) is State.TRAINING


def test_several_that_look_at_once_see_nobody_training(tmp_path):
    """Each takes the lock for a moment, and none may take another for whoever trains."""
    run, found = RunFolder(tmp_path, "run"), []
    with run.locked():
        pass
    looks = [lambda: [found.append(RunFolder(tmp_path, "run").busy) for _ in range(500)]] * 3
    threads = [threading.Thread(target=look) for look in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1500 and not any(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no folders of others in this way")
def test_a_run_that_may_only_be_read_is_what_it_is(tmp_path, monkeypatch):
    """Of another user, or on a disk that is only read: it was listed as damaged."""
    run = RunFolder(tmp_path, "run")
    with run.locked():
        run.claim({"run": {"method": "m", "teacher_sha256": "ab"}})
    own = os.open

    def refusing(path, flags, *rest, **named):
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return own(path, flags, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        told = summary(run)
        assert (told["state"], told.get("error")) == ("written", None)
    with run.locked():
        monkeypatch.setattr(os, "open", refusing)
        assert in_another_thread(lambda: state_of(run)) == State.TRAINING


def test_looking_never_keeps_a_run_from_its_trainer(tmp_path):
    run, stop = RunFolder(tmp_path, "run"), threading.Event()
    with run.locked():
        pass

    def look():
        while not stop.is_set():
            _ = RunFolder(tmp_path, "run").busy

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            with run.locked():
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_stop_is_for_the_process_that_trains_now(tmp_path):
    run = RunFolder(tmp_path, "run")
    with pytest.raises(ValueError, match="nobody trains the run 'run' now"):
        run.ask_to_stop()
    assert not run.path.exists(), "asking about a run makes none"
    with run.locked():
        in_another_thread(RunFolder(tmp_path, "run").ask_to_stop)
        assert (run.stop_asked, run.cancel_asked) == (True, False)
        in_another_thread(lambda: RunFolder(tmp_path, "run").ask_to_stop(now=True))
        assert run.cancel_asked
    with run.locked():
        assert (run.stop_asked, run.cancel_asked) == (False, False)


def test_previews_are_told_in_order(tmp_path):
    run = RunFolder(tmp_path, "run")
    folder = run.path / "previews"
    folder.mkdir(parents=True)
    for name in ("00000020.png", "00000003.png", ".00000004.png.7.part", "note.txt"):
        (folder / name).touch()
    assert previews(run) == [3, 20]


def described(tmp_path, name, **more):
    run = RunFolder(tmp_path, name)
    with run.locked():
        said = {
            "method": "progressive",
            "method.start_steps": 8,
            "student.kind": "lora",
            "teacher_sha256": "ab",
            **more,
        }
        run.claim({"run": said})
    return run


def test_runs_are_listed_with_what_they_are(tmp_path):
    older, newer = described(tmp_path, "older"), described(tmp_path, "newer")
    newer.log({**line(10), "iterations": 20})
    os.utime(older.path / "run.json", (1, 1))
    os.utime(older.path / ".lock", (1, 1))
    os.utime(older.path, (1, 1))
    (tmp_path / "no run").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "run.json").write_text("{}")
    assert [run.name for run in all_runs(tmp_path)] == ["newer", "older"]
    told = summary(newer)
    assert (told["method"], told["options"], told["student"]) == ("progressive", {"start_steps": 8}, {"kind": "lora"})
    assert (told["state"], told["iteration"], told["iterations"], told["loss"]) == ("written", 10, 20, 10.0)
    assert (told["stages"], told["scores"], told["preview"], told["has_workflow"]) == ([], [], None, False)


@pytest.mark.parametrize("logged", [10, 30], ids=["stopped between two logs", "killed after its checkpoint"])
def test_a_run_goes_on_where_it_was_saved(logged, tmp_path):
    run = described(tmp_path, "run")
    assert summary(run)["saved"] is None
    run.log({**line(logged), "iterations": 40})
    for iteration in (8, 17):
        run.save_checkpoint(iteration, {"weight": torch.zeros(1)}, {})
    told = summary(run)
    assert (told["state"], told["saved"], told["iteration"]) == ("stopped", 17, logged)


def test_a_damaged_run_is_listed_with_its_damage(tmp_path):
    run = described(tmp_path, "run")
    (run.path / "run.json").write_text("{")
    assert "damaged" in summary(run)["error"]


def test_a_workflow_is_kept_as_it_is(tmp_path):
    run = described(tmp_path, "run")
    with pytest.raises(ValueError, match="keeps no workflow"):
        run.workflow()
    run.keep_workflow({"nodes": [{"id": 1}]})
    assert run.workflow() == {"nodes": [{"id": 1}]}
    assert summary(run)["has_workflow"]


def test_deleting_removes_the_run_and_nothing_that_it_points_to(tmp_path):
    run = described(tmp_path, "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (run.path / "link").symlink_to(outside, target_is_directory=True)
    run.save_checkpoint(1, {}, {"stage": 0})
    run.delete()
    assert not run.path.exists()
    assert (outside / "kept").exists()
    with pytest.raises(ValueError, match="there is no run 'run'"):
        run.delete()
    assert not run.path.exists()


def test_what_is_trained_now_is_not_deleted(tmp_path):
    run = described(tmp_path, "run")
    with run.locked(), pytest.raises(ValueError, match="being trained by another process"):
        in_another_thread(lambda: raised(RunFolder(tmp_path, "run").delete))()
    assert (run.path / "run.json").exists()


def raised(action):
    """A function that does what action did: its exception crosses a thread."""
    try:
        action()
    except ValueError as error:
        caught = error

        def again():
            raise caught

        return again
    return lambda: None


# --- metrics that grow -----------------------------------------------------------------------------------------------


def logged(iteration, **changed):
    return json.dumps({**line(iteration, **changed), "iterations": 9999}) + "\n"


@pytest.fixture
def parsed(monkeypatch):
    """What was parsed, by what it was called."""
    found, own = [], reading.parsed

    def counting(content, *, what):
        found.append(what)
        return own(content, what=what)

    monkeypatch.setattr(reading, "parsed", counting)
    return found


@pytest.fixture
def long_run(tmp_path):
    run = RunFolder(tmp_path, "long")
    run.path.mkdir()
    run.place("metrics.jsonl").write_text("".join(logged(i, stage=i // 2000) for i in range(1, 3001)))
    return run


def append(run, text):
    with run.place("metrics.jsonl").open("a") as file:
        file.write(text)


def test_a_look_reads_what_is_new_alone(long_run, parsed):
    """It is in the process that trains, once a second."""
    assert summary(long_run)["iteration"] == 3000
    append(long_run, logged(3001, stage=2))
    parsed.clear()
    told = summary(long_run)
    assert (told["iteration"], told["stage_names"]) == (3001, {0: "s0", 1: "s1", 2: "s2"})
    assert parsed == ["line 3001 of metrics.jsonl"]
    parsed.clear()
    assert [one["iteration"] for one in lines_after(long_run, 2999)] == [3000, 3001]
    assert len(parsed) < 100, "of some KiB at the end"


@pytest.mark.parametrize("after", [-1, 0, 1, 1499, 2998, 2999, 3000, 4000])
def test_lines_after_an_iteration_are_those_of_the_whole_file(after, long_run):
    whole = [one for one in long_run.metrics() if one["iteration"] > after]
    assert lines_after(long_run, after) == whole


def test_a_long_list_reads_no_metrics_twice(tmp_path, parsed):
    for i in range(300):
        (tmp_path / f"run {i}").mkdir()
        (tmp_path / f"run {i}" / "metrics.jsonl").write_text(logged(1))
    runs = all_runs(tmp_path)
    for run in runs:
        summary(run)
    parsed.clear()
    assert [summary(run)["iteration"] for run in runs] == [1] * 300
    assert parsed == []


def test_a_line_that_is_being_written_is_read_when_it_is_whole(long_run):
    summary(long_run)
    text = logged(3001)
    append(long_run, text[:50])
    assert summary(long_run)["iteration"] == 3000
    assert lines_after(long_run, 3000) == []
    append(long_run, text[50:])
    told = summary(long_run)
    assert (told["iteration"], told.get("error")) == (3001, None)
    assert [one["iteration"] for one in lines_after(long_run, 3000)] == [3001]


def test_what_is_wrong_is_said_once_and_by_its_line(long_run):
    append(long_run, "{\n")
    assert "line 3001 of metrics.jsonl" in summary(long_run)["error"]
    append(long_run, logged(3002) + "nothing\n")
    told = summary(long_run)
    assert "line 3001 of metrics.jsonl" in told["error"]
    assert "and 1 lines more" in told["error"]
    assert told["iteration"] == 3002
    assert [one["iteration"] for one in lines_after(long_run, 2999)] == [3000, 3002]


def test_a_line_that_is_longer_than_what_is_read_first_is_found(long_run):
    """Of a method with many measures."""
    many = {f"measure {i}": 0.1 for i in range(2000)}
    append(long_run, json.dumps({**line(3001), "iterations": 9999, "measures": many}) + "\n" + logged(3002))
    assert [one["iteration"] for one in lines_after(long_run, 3000)] == [3001, 3002]
    assert [one["iteration"] for one in lines_after(long_run, 3002)] == []


def test_a_line_that_is_damaged_where_it_is_and_mended_there_is_told_as_it_is(long_run):
    """As an editor of text files writes: of the same length, and far from the end."""
    summary(long_run)
    file = long_run.place("metrics.jsonl")
    whole = file.read_bytes()
    for content, said in (
        (whole.replace(b'{"iteration": 7,', b'#"iteration": 7,'), "line 7 of metrics.jsonl"),
        (whole, None),
    ):
        file.write_bytes(content)
        changed = file.stat().st_mtime_ns + 10**9 * (said is None)
        os.utime(file, ns=(changed, changed))  # a second later, whatever the clock of the disk tells apart
        error = summary(long_run).get("error")
        assert error is None if said is None else said in error


def test_what_is_known_of_runs_is_bounded_and_a_look_at_a_known_one_forgets_no_other(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(known, "_KNOWN", kept)
    monkeypatch.setattr(known, "_MOST_KNOWN", 3)
    runs = [RunFolder(tmp_path, f"run {i}") for i in range(4)]
    for run in runs:
        run.path.mkdir()
        append(run, logged(1))
        summary(run)
    assert list(kept) == [run.path for run in runs[1:]]
    append(runs[2], logged(2))
    assert summary(runs[2])["iteration"] == 2
    assert set(kept) == {run.path for run in runs[1:]}


@pytest.mark.parametrize("kept", [1, 2999], ids=["shorter", "as long"])
def test_a_file_that_was_written_anew_is_read_anew(kept, long_run):
    """As a resume does, which drops what was logged after its checkpoint."""
    summary(long_run)
    long_run.forget_metrics_after(kept)
    append(long_run, logged(kept + 1, loss=30000.25))
    told = summary(long_run)
    assert (told["iteration"], told["loss"]) == (kept + 1, 30000.25)
    assert told["stage_names"][0] == "s0"
    assert lines_after(long_run, kept)[-1]["loss"] == 30000.25
