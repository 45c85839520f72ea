"""What counts as a checkpoint of a run."""

import errno
import json
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.trainers.storage.files import write_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_run import Stopped, distillation, execute, stop_at


def stopped(root, at):
    made = distillation(root)
    with pytest.raises(Stopped):
        execute(made, [stop_at(at)])
    return made


def test_a_copy_that_somebody_keeps_beside_them_is_none(tmp_path):
    """It would be the newest for ever, and be gone on from; another name of it would be thrown away as the oldest."""
    made = stopped(tmp_path, 7)
    (newest,) = made.run.checkpoints()
    kept = [newest.with_name(name) for name in ("best.safetensors", "00000003 (1).safetensors")]
    for copy in kept:
        copy.write_bytes(newest.read_bytes())
    stopped(tmp_path, 16)
    assert [file.stem for file in made.run.checkpoints()] == ["00000014", "00000016"]
    assert made.run.saved == 16
    assert all(copy.exists() for copy in kept)
    execute(distillation(tmp_path))
    assert [line["iteration"] for line in made.run.metrics()] == [5, 10, 12, 15, 20, 24]


def test_a_checkpoint_that_somebody_copies_on_windows_is_removed_later(tmp_path, monkeypatch):
    """Its training goes on."""
    run, removed, read = RunFolder(tmp_path, "run"), Path.unlink, {"00000001.safetensors"}

    def unlink(self, **options):
        if self.name in read:
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
        removed(self, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    for iteration in range(1, 4):
        run.save_checkpoint(iteration, {"a": torch.ones(1)}, {"stage": 0, "stage_iteration": iteration})
    assert [int(path.stem) for path in run.checkpoints()] == [1, 2, 3]
    read.clear()
    run.save_checkpoint(4, {"a": torch.ones(1)}, {"stage": 0, "stage_iteration": 4})
    assert [int(path.stem) for path in run.checkpoints()] == [3, 4]


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    run = RunFolder(tmp_path, "run")
    for iteration in (99_999_999, 100_000_000):
        run.save_checkpoint(iteration, {"a": torch.ones(1)}, {"stage": 0, "stage_iteration": iteration})
    assert run.saved == 100_000_000


@pytest.mark.parametrize(
    "position", ["[]", "null", "{}", '{"stage": "x", "stage_iteration": 1}', '{"stage": 0, "stage_iteration": -5}']
)
def test_a_position_that_is_none_is_named(position, tmp_path):
    run = RunFolder(tmp_path, "run")
    run.save_checkpoint(7, {"a": torch.ones(1)}, json.loads(position))
    with pytest.raises(ValueError, match=r"cannot be resumed: the position in 00000007\.safetensors"):
        run.load_checkpoint()
    write_tensors(run.checkpoints()[0], {"a": torch.ones(1)}, metadata={})
    with pytest.raises(ValueError, match=r"cannot be resumed: 'fewstep\.position'"):
        run.load_checkpoint()
