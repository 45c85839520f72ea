"""start_from of Distill Model and Write Run: a new run begins at another's last good checkpoint, here or in another process."""

import json

import pytest
import torch
from cancelling import cancel_at
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep import nodes
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation import distillation, runs, worker
from comfyui_fewstep.nodes.distillation.learning.students import FullWeights
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from test_lora import output  # noqa: F401 (a fixture)

LORA = LoRAOptions(rank=4, alpha=4.0, layers=LoRALayers.LINEAR_AND_CONV)
GRAPH = {
    "1": {"class_type": "FewStepDemoTeacher", "inputs": {}},
    "2": {"class_type": "FewStepDistill", "inputs": {"model": ["1", 0], "vae": ["1", 1]}},
}


def inputs(name, *, learning_rate=1e-3, start_steps=8, iterations=12, **changed):
    method = ProgressiveOptions(
        start_steps=start_steps,
        target_steps=2,
        iterations=iterations,
        weighting=Weighting.CONSTANT,
        learning_rate=learning_rate,
        guidance_scale=1.0,
    )
    given = {
        "run_name": name,
        "method": method,
        "student": LORA,
        "latents": {"samples": torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0))},
        "positive": digits_model.prompt("0123456789"),
        "batch_size": 4,
        "checkpoint_every": 5,
        "prompt": GRAPH,
        "unique_id": "2",
    }
    return {**given, **changed}


@torch.inference_mode()
def distil(name, **changed):
    return distillation.Distill().distil(digits_model.load_teacher(), **inputs(name, **changed))


@pytest.fixture
def old(output, monkeypatch):  # noqa: F811
    """A run of 24 iterations that was cancelled at iteration 16, in its second stage."""
    with monkeypatch.context() as patch, pytest.raises(host.signals.Cancelled):
        cancel_at(patch, 16, host.signals.Cancelled)
        distil("old")
    return RunFolder(output / "fewstep" / "runs", "old")


def test_a_new_run_goes_on_with_settings_of_its_own(old):
    distil("new", learning_rate=1e-4, seed=5, start_from="old")
    new = RunFolder(old.path.parent, "new")
    logged = new.metrics()
    assert new.finished
    assert [line["iteration"] for line in logged] == [20, 24]
    assert logged[0]["learning_rate"] == pytest.approx(1e-4 * (1 - 7 / 12))
    assert new.description()["started_from"]["run"] == "old"
    assert not old.finished
    before = new.student_file.stat().st_mtime_ns
    distil("new", learning_rate=1e-4, seed=5, start_from="old")
    distil("new", learning_rate=1e-4, seed=5)
    assert new.student_file.stat().st_mtime_ns == before, "the same run, loaded"


def test_a_written_run_begins_there_in_another_process(old):
    """As in this one, bit for bit."""
    with torch.inference_mode():
        runs.WriteRun().write(digits_model.load_teacher(), **inputs("there", learning_rate=1e-4, start_from="old"))
    there, here = (RunFolder(old.path.parent, name) for name in ("there", "here"))
    assert [file.stem for file in there.checkpoints()] == ["00000016"]
    with Processes.from_environment() as processes:
        worker.train_folder(there, classes=nodes.NODE_CLASS_MAPPINGS, processes=processes, say=lambda _: None)
    distil("here", learning_rate=1e-4, start_from="old")
    one, other = (read_tensors(run.student_file)[0] for run in (there, here))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    written = there.place("run.json")
    there.student_file.unlink()
    for file in [*there.checkpoints(), *there.files("stages", ".safetensors")]:
        file.unlink()
    assert json.loads(written.read_text())["started_from"]["checkpoint"] == "00000016"
    with pytest.raises(ValueError, match="lacks the checkpoint that it was to start from; write it again"), processes:
        worker.train_folder(there, classes=nodes.NODE_CLASS_MAPPINGS, processes=Processes(), say=lambda _: None)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"student": FullWeights()}, r"student\.kind: there lora, here full_weights"),
        ({"student": LoRAOptions(rank=2, alpha=4.0, layers=LORA.layers)}, r"student\.rank: there 4, here 2"),
        ({"start_steps": 4}, r"it is in its stage 2 \(4 to 2 steps\); the stages here are 4 to 2 steps"),
        ({"start_from": "gone"}, "there is no run 'gone'"),
        ({"start_from": "../old"}, r"the start_from is '\.\./old'; allowed are"),
        (
            {"run_name": "old", "start_from": "new"},
            r"the run 'old' is there already and was begun at its own beginning",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_no_run(changed, named, old):
    with pytest.raises(ValueError, match=named):
        distil(**{"name": changed.pop("run_name", "new"), "start_from": "old", **changed})
    assert [path.name for path in old.path.parent.iterdir()] == ["old"]


def test_another_models_run_is_no_start(old):
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"teacher_sha256: there .*; the teacher's weights differ"),
    ):
        model = digits_model.load_teacher()
        next(model.model.diffusion_model.parameters()).add_(1.0)
        distillation.Distill().distil(model, **inputs("new", start_from="old"))
