"""What counts as a checkpoint of a run."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.trainers.storage.files import CHECKSUM_KEY, read_tensors, write_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.starting import _last_good
from test_run import TRAINING, Stopped, distillation, execute, stop_at


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
    run.save_checkpoint(7, {"a": torch.ones(1)}, {})
    write_tensors(run.checkpoints()[0], {"a": torch.ones(1)}, metadata={"fewstep.position": position})
    with pytest.raises(ValueError, match=r"cannot be resumed: the position in 00000007\.safetensors"):
        run.load_checkpoint()
    write_tensors(run.checkpoints()[0], {"a": torch.ones(1)}, metadata={})
    with pytest.raises(ValueError, match=r"cannot be resumed: 00000007\.safetensors is no checkpoint"):
        run.load_checkpoint()


def rewritten(file, change):
    """The file with other tensors or metadata. change: of both, as dicts."""
    tensors, metadata = read_tensors(file)
    metadata.pop(CHECKSUM_KEY)
    change(tensors, metadata)
    write_tensors(file, tensors, metadata=metadata)


def as_of_before(position):
    """A change to a file as it was before it said of which run it is, and had a checksum of what it says."""

    def change(_, metadata):
        said = json.loads(metadata["fewstep.position"]) | position
        said.pop("run")
        metadata.pop("fewstep.position_sha256")
        metadata["fewstep.position"] = json.dumps(said)

    return change


def make_older(run):
    """Its checkpoints are of before."""
    for file in run.checkpoints():
        rewritten(file, as_of_before({}))


@pytest.mark.parametrize("other", [{"training": dataclasses.replace(TRAINING, seed=5)}, {"learning_rate": 2e-3}])
def test_another_runs_checkpoint_is_refused(other, tmp_path):
    """Of the same shapes it was gone on from, and the student said that it had this run's settings."""
    made, another = stopped(tmp_path, 9), distillation(tmp_path, name="other", **other)
    with pytest.raises(Stopped):
        execute(another, [stop_at(11)])
    (there,) = another.run.checkpoints()[-1:]
    kept = {file: file.read_bytes() for file in made.run.path.rglob("*.safetensors")}
    (made.run.path / "checkpoints" / there.name).write_bytes(there.read_bytes())
    name = "training.seed" if "training" in other else "method.learning_rate"
    words = rf"another run's checkpoint, which differs in {name}\. Delete 00000011\.safetensors to go on from 00000009"
    with pytest.raises(ValueError, match=words):
        execute(distillation(tmp_path))
    assert {file: file.read_bytes() for file in kept} == kept
    (made.run.path / "checkpoints" / there.name).unlink()
    execute(distillation(tmp_path))
    assert made.run.finished


def test_a_position_that_is_damaged_is_found(tmp_path):
    """Its file's own checksum is of the tensors alone: a learning rate or a place of another digit was gone on from."""
    made = stopped(tmp_path, 9)
    (newest,) = made.run.checkpoints()[-1:]
    content = newest.read_bytes()
    assert b'\\"stage_iteration\\": 9' in content
    newest.write_bytes(content.replace(b'\\"stage_iteration\\": 9', b'\\"stage_iteration\\": 8'))
    with pytest.raises(ValueError, match=r"00000009\.safetensors is damaged: its position does not match"):
        execute(distillation(tmp_path))


def test_a_checkpoint_of_before_is_gone_on_from(tmp_path):
    made = stopped(tmp_path, 9)
    make_older(made.run)
    assert execute(distillation(tmp_path))[1]
    assert [line["iteration"] for line in made.run.metrics()] == [5, 10, 12, 15, 20, 24]


def lacking_a_weight(tensors, metadata):
    as_of_before({})(tensors, metadata)
    tensors.pop(next(name for name in sorted(tensors) if name.startswith("student.")))


@pytest.mark.parametrize("change", [lacking_a_weight, as_of_before({"optimiser": []})])
def test_what_does_not_fit_is_named(change, tmp_path):
    made = stopped(tmp_path, 9)
    rewritten(made.run.checkpoints()[-1], change)
    with pytest.raises(ValueError, match=r"cannot be resumed: .* Delete 00000009\.safetensors to go on from 00000007"):
        execute(distillation(tmp_path))


def test_a_position_that_is_none_starts_no_other_run(tmp_path):
    """The one before it does."""
    made = stopped(tmp_path, 9)

    def change(_, metadata):
        metadata.pop("fewstep.position_sha256")
        metadata["fewstep.position"] = "[]"

    rewritten(made.run.checkpoints()[-1], change)
    assert _last_good(made.run)[0].stem == "00000007"


def test_a_stages_student_that_does_not_fit_is_named(tmp_path):
    """It is gone on from where there are no checkpoints."""
    made = stopped(tmp_path, 16)
    for checkpoint in made.run.checkpoints():
        checkpoint.unlink()
    (kept,) = made.run.students()
    rewritten(kept, lambda tensors, _: tensors.pop(min(tensors)))
    with pytest.raises(ValueError, match=rf"cannot go on from {kept.name}, the student .* do not fit.* Delete it"):
        execute(distillation(tmp_path))
