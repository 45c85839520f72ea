"""A run that Write Run made, in a terminal: what it must find there, and what it need not."""

import importlib
import json
import shutil
import sys

import pytest
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

from comfyui_fewstep import nodes
from comfyui_fewstep.nodes.distillation import worker
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.files import read_metadata
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_runs import refused_here, style, trained_here, workflow  # noqa: F401 (fixtures)


@pytest.mark.parametrize("entry", ["data_sha256", "prediction_type", "noise_family"])
def test_a_written_run_with_other_data_is_refused(entry, client, runs, style, name, refused_here):  # noqa: F811
    """Before it has begun nothing else would see that its folder of data is another run's."""
    client.run(workflow(name, "FewStepWriteRun"))
    file = runs / name / "run.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"run": written["run"] | {entry: "x"}}))
    assert f"was written with other data or another teacher: {entry}: there x, here" in refused_here(runs / name)
    file.write_text(json.dumps(written | {"run": written["run"] | {"format": 2}}))
    assert "its format is 2; known here is 1" in refused_here(runs / name)


def test_what_is_written_anew_meanwhile_is_trained(client, runs, style, name, trained_here, monkeypatch):  # noqa: F811
    """A terminal is started as Write Run ends: it trained with the settings of before, and wrote those back."""
    client.run(workflow(name, "FewStepWriteRun"))
    file, hold = runs / name / "run.json", Processes.held_by_first

    def held(processes, lock):
        written = json.loads(file.read_text())
        file.write_text(json.dumps(written | {"run": written["run"] | {"training.seed": 77}}))
        return hold(processes, lock)

    monkeypatch.setattr(Processes, "held_by_first", held)
    trained_here(runs / name)
    assert json.loads(file.read_text())["run"]["training.seed"] == 77
    assert read_metadata(runs / name / "student.safetensors")["fewstep.seed"] == "77"


def test_a_finished_run_wants_neither_teacher_nor_data(client, runs, style, name, trained_here):  # noqa: F811
    client.run(workflow(name, "FewStepWriteRun"))
    first = trained_here(runs / name)
    shutil.rmtree(runs / name / "data")
    content = style.read_bytes()
    try:
        style.unlink()
        assert trained_here(runs / name) == first
    finally:
        style.write_bytes(content)


def test_a_base_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    for command in ("train", "plan"):
        module = importlib.import_module(f"comfyui_fewstep.commands.{command}")
        monkeypatch.setattr(sys, "argv", [command, str(tmp_path / "run"), "--base", str(tmp_path / "gone")])
        with pytest.raises(SystemExit, match=r"--base is '.*gone', which is no folder"):
            module.main()
    assert not (tmp_path / "gone").exists()


def test_the_plan_refuses_what_the_training_does(client, runs, style, name, trained_here):  # noqa: F811
    client.run(workflow(name, "FewStepWriteRun"))
    file = runs / name / "run.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"run": written["run"] | {"training.warmup": 10**6}}))
    classes = {**node_classes(), **nodes.NODE_CLASS_MAPPINGS}
    for work in (trained_here, lambda run: worker.plan_folder(RunFolder(run.parent, run.name), classes=classes)):
        with pytest.raises(ValueError, match="warmup is 1000000, but the stage"):
            work(runs / name)
