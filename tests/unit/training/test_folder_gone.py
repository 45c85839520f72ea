"""A run whose folder is taken away while it trains, and a disk that takes not even the error."""

import errno
import os
import shutil

import pytest
from comfyui_fewstep.trainers.runs.watching import preview_file
from comfyui_fewstep.trainers.storage import run_folder
from comfyui_fewstep.trainers.storage.files import write_atomically, write_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_training import Trained


def moved(folder):
    folder.rename(folder.parent / "elsewhere")


def taken_away(folder, how, *, at):
    """An observer that takes the folder away in an iteration."""

    def observe(metrics):
        if metrics.iteration == at:
            how(folder)

    return observe


@pytest.mark.skipif(os.name == "nt", reason="Windows takes no folder away in which a file is open")
@pytest.mark.parametrize("how", [moved, shutil.rmtree])
@pytest.mark.parametrize("at", [3, 4], ids=["before a line of metrics", "before a checkpoint"])
def test_a_training_ends_where_its_folder_goes(at, how, tmp_path):
    """It went on for hours in a folder without a lock and a run.json, and nothing could go on from what it left there."""
    run = RunFolder(tmp_path, "run")
    with run.locked(), pytest.raises(ValueError, match="folder of the run 'run' was moved or deleted"):
        run.claim({"run": {}})
        Trained(tmp_path, observers=[taken_away(run.path, how, at=at)], checkpoint_every=4, run=run)
    assert not run.path.exists()


WRITES = {
    "a line": lambda run: run.log({"iteration": 1}),
    "checkpoint": lambda run: run.save_checkpoint(1, {}, {"stage": 0}),
    "preview": lambda run: write_atomically(preview_file(run, 1), b""),
    "student": lambda run: write_tensors(run.stage_file(4), {}, metadata={}),
    "comparison": lambda run: run.keep_comparison({"steps": 4}),
    "workflow": lambda run: run.keep_workflow({}),
    "result": lambda run: write_tensors(run.student_file, {}, metadata={}),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows takes no folder away in which a file is open")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_that_a_training_writes_makes_its_folder_anew(write, tmp_path):
    """A picture or a comparison takes a minute, and the new folder stood in the way of who puts the run back."""
    run = RunFolder(tmp_path, "run")
    with run.locked():
        run.claim({"run": {}})
        moved(run.path)
        with pytest.raises(ValueError, match="folder of the run 'run' was moved or deleted"):
            write(run)
    assert not run.path.exists()


def begin(folder):
    with RunFolder(folder.parent, folder.name).locked():
        pytest.fail("a second process trains it")


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is open")
def test_a_lock_that_somebody_removes_is_held_on(tmp_path):
    """Another process began to train the same run."""
    run = RunFolder(tmp_path, "run")
    with run.locked():
        run.claim({"run": {}})
        (run.path / ".lock").unlink()
        run.log({"iteration": 1})
        with pytest.raises(ValueError, match="is being trained by another process"):
            begin(run.path)
    assert not run.busy
    assert run.place("metrics.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is open")
def test_of_two_that_train_one_run_since_its_lock_was_removed_the_first_ends(tmp_path):
    run, other = (RunFolder(tmp_path, "run") for _ in range(2))
    with run.locked():
        run.claim({"run": {}})
        (run.path / ".lock").unlink()
        with other.locked():
            with pytest.raises(
                ValueError, match=r"\.lock, which kept .* from the run 'run', was deleted, and another one"
            ):
                run.log({"iteration": 1})
            other.log({"iteration": 2})
            with pytest.raises(ValueError, match="is being trained by another process"):
                begin(run.path)
    assert not run.busy
    assert len(run.place("metrics.jsonl").read_bytes().splitlines()) == 1


def test_what_ended_a_run_is_told_where_the_disk_takes_no_more(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, "run")
    run.path.mkdir()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomically", refuse)
    with pytest.raises(ValueError, match="the loss is NaN") as told, run.keeping_error(unless=KeyboardInterrupt):
        raise ValueError("the loss is NaN")
    assert isinstance(told.value.__cause__, OSError)
