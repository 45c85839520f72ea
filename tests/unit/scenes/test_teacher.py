"""How the scenes' teacher is trained: cut anywhere, gone on from, its rate falling at last, and shipped as its average."""

import dataclasses
import json

import pytest
import torch
from comfyui_fewstep.benchmarks.scenes.model import teacher
from comfyui_fewstep.benchmarks.scenes.model.network import SceneNetwork
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Everything in a folder, a narrow network, few scenes, a look and a checkpoint at every second iteration."""
    data = teacher.training_data(64)
    monkeypatch.setattr(teacher, "training_data", lambda: data)
    monkeypatch.setattr(teacher, "SceneNetwork", lambda: SceneNetwork(width=16))
    monkeypatch.setattr(teacher, "v_error", lambda _: 0.5)
    monkeypatch.setattr(teacher, "LOOK_EVERY", 2)
    options = dataclasses.replace(teacher.OPTIONS, batch_size=4, warmup=1, checkpoint_every=2)
    monkeypatch.setattr(teacher, "OPTIONS", options)

    def at(name):
        monkeypatch.setattr(teacher, "HOME", tmp_path / name)
        monkeypatch.setattr(teacher, "REPORT", tmp_path / name / "report.json")
        monkeypatch.setattr(teacher, "FILE", tmp_path / name / "teacher.safetensors")

    return at


def shipped():
    tensors, metadata = read_tensors(teacher.FILE)
    return tensors, metadata, json.loads(teacher.REPORT.read_text())


def test_a_teacher_that_was_cut_is_the_teacher_that_was_not(place):
    """Bit for bit, whatever the first start was to do; and the report says what was done."""
    place("whole")
    teacher.train_teacher(4, 2)
    whole, metadata, report = shipped()
    assert metadata["iterations"] == report["shipped"] == "4 steady, 2 falling"
    assert (
        report["command"] == metadata["command"] == "python launch.py bench scenes teacher --iterations 4 --falling 2"
    )
    assert [(point["run"], point["iteration"]) for point in report["curve"]] == [
        *(("steady", k) for k in (2, 4)),
        ("falling", 6),
    ]
    place("cut")
    teacher.train_teacher(2, 0)
    first, *_ = shipped()
    teacher.train_teacher(4, 2)
    again, _, report = shipped()
    assert [point["iteration"] for point in report["curve"]] == [2, 4, 6]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(not torch.equal(whole[name], first[name]) for name in whole)
    assert all(value.dtype is torch.float16 for value in whole.values())


def test_what_is_shipped_is_the_average(place):
    place("one")
    teacher.train_teacher(4, 0)
    tensors, *_ = shipped()
    state, _ = RunFolder(teacher.HOME, teacher.STEADY).load_checkpoint()
    names = [name for name, _ in SceneNetwork(width=16).named_parameters()]
    assert all(torch.equal(tensors[name], state[f"average.{i}"].half()) for i, name in enumerate(names))
    seen, _ = read_tensors(teacher.HOME / "at 000004.safetensors")
    assert all(torch.equal(seen[name], tensors[name]) for name in names), "the curve's pictures are of the average too"


def test_nothing_is_shipped_where_nothing_was_trained(place):
    place("nothing")
    with pytest.raises(ValueError, match="holds no checkpoint; train the teacher first"):
        teacher.export()


def test_the_error_of_v_is_none_for_who_knows_and_of_variance_one_for_who_says_nothing():
    """D = x / (1 + sigma^2) says v = 0, and v of unit data and noise has variance 1 at every level."""
    silent = teacher.v_error(lambda x, sigma, y: x / (1.0 + sigma[:, None, None, None] ** 2), count=512)
    assert silent == pytest.approx(1.0, abs=0.05)
    scenes = iter(teacher.to_latents(teacher.drawn(teacher.Split.TUNING, 256)[0]).split(128))
    assert teacher.v_error(lambda *_, **__: next(scenes), count=256) == pytest.approx(0.0, abs=1e-9)
