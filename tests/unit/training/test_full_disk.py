"""A disk that is full stops a run with the file named, and what was saved before is what the run goes on from."""

import errno
import os
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.trainers.storage.files import write_atomically
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_training import Stopped, Trained, stop_at


class Disk:
    """Full from the moment that an observer says so: what is written then exists in part and cannot be made whole."""

    def __init__(self, monkeypatch, *, full_at):
        self.full, self._full_at, sync = False, full_at, os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: self.refuse() if self.full else sync(handle))

    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def __call__(self, metrics):
        self.full = metrics.iteration >= self._full_at


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_checkpoint_that_does_not_fit_stops_the_run_and_leaves_the_one_before(cancelled, tmp_path, monkeypatch):
    """At the checkpoint of iteration 8, or at the save on a cancel at 6; afterwards the run ends as if unbroken."""
    unbroken = Trained(tmp_path / "a", checkpoint_every=4)
    disk = Disk(monkeypatch, full_at=5)
    observers = [disk, *([stop_at(6)] if cancelled else [])]
    wanted = tmp_path / "b" / "run" / "checkpoints" / f"{6 if cancelled else 8:08d}.safetensors"
    with pytest.raises(OSError, match="could not be written: No space left on device") as stopped:
        Trained(tmp_path / "b", checkpoint_every=4, observers=observers)
    assert stopped.value.errno == errno.ENOSPC
    assert str(wanted) in str(stopped.value)
    assert isinstance(stopped.value.__cause__.__context__, Stopped) == cancelled
    assert [path.name for path in wanted.parent.iterdir()] == ["00000004.safetensors"]
    monkeypatch.undo()
    resumed = Trained(tmp_path / "b", checkpoint_every=4)
    assert all(torch.equal(value, unbroken.weights()[name]) for name, value in resumed.weights().items())
    assert resumed.run.metrics() == unbroken.run.metrics()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_the_kind_of_the_error_stays(code, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    kind = PermissionError if code == errno.EACCES else OSError
    with pytest.raises(kind, match=f"metrics.jsonl could not be written: {os.strerror(code)}"):
        RunFolder(tmp_path, "run").log({"iteration": 1})
    with pytest.raises(kind, match=f"file could not be written: {os.strerror(code)}"):
        write_atomically(tmp_path / "file", b"new")
