"""A run whose folder is taken away while it trains, and a disk that takes not even the error."""

import errno
import os
import shutil

import pytest
from comfyui_fewstep.trainers.storage import run_folder
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


def test_a_lock_that_somebody_removes_ends_no_training(tmp_path):
    run = RunFolder(tmp_path, "run")
    with run.locked():
        run.claim({"run": {}})
        (run.path / ".lock").unlink()
        run.log({"iteration": 1})
    assert run.place("metrics.jsonl").exists()


def test_what_ended_a_run_is_told_where_the_disk_takes_no_more(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, "run")
    run.path.mkdir()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomically", refuse)
    with pytest.raises(ValueError, match="the loss is NaN") as told, run.keeping_error(unless=KeyboardInterrupt):
        raise ValueError("the loss is NaN")
    assert isinstance(told.value.__cause__, OSError)
