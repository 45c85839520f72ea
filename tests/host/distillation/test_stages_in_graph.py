"""Stages of a run in the graph: their students are loaded by name, a run is extended, and a stage's student is a teacher."""

import uuid

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, saving, students
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_lora import TRAINING, draw, output  # noqa: F401

KIND = "sd15"
LEARNS = ["lora", pytest.param("full", marks=pytest.mark.thorough)]


@torch.inference_mode()
def distil(model, learns, name, **method):
    """As the graph runs it: from 4 steps, with guidance, unless said otherwise. The student MODEL."""
    chosen = {"start_steps": 4, "target_steps": 1, "iterations": 3, "weighting": "constant", "learning_rate": 1e-3}
    (made,) = methods.ProgressiveDistillation().make(**{**chosen, "guidance_scale": 1.5, **method})
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=2.0, layers="linear")
    student, *_ = distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=16)},
        positive=conditioning(KIND, seed=2),
        negative=conditioning(KIND, seed=5),
        method=made,
        run_name=name,
        student=lora if learns == "lora" else students.FullWeights(),
        **TRAINING,
    )
    return student


@pytest.fixture
def name():
    return uuid.uuid4().hex


def run_of(name):
    return RunFolder(folders.runs_root(), name)


def load(model, student):
    with torch.inference_mode():
        return students.LoadStudent().load(model, student)


@pytest.mark.parametrize("learns", LEARNS)
def test_the_students_of_all_stages_are_listed_and_load(learns, name, output):  # noqa: F811
    model = tiny(KIND)
    finished = distil(model, learns, name)
    both = [f"{name} (run)", f"{name}, 1 steps (run)", f"{name}, 2 steps (run)"]
    for node in (students.LoadStudent, saving.SaveStudentCheckpoint):
        assert [file for file in node.INPUT_TYPES()["required"]["student"][0] if name in file] == both
    last, _, one_step = load(model, both[1])
    half, _, two_steps = load(model, both[2])
    assert (len(one_step), len(two_steps)) == (2, 3)
    assert torch.equal(draw(last, KIND), draw(finished, KIND))
    assert (draw(half, KIND) - draw(last, KIND)).abs().max() > 1e-3
    assert students.LoadStudent.IS_CHANGED(both[2]) == run_of(name).stage_file(2).stat().st_mtime


@pytest.mark.parametrize("learns", [pytest.param("lora", marks=pytest.mark.thorough), "full"])
def test_a_run_is_extended_in_the_graph(learns, name, output):  # noqa: F811
    """With the host's networks and its UNets that write in place: the run that was asked for at once, bit for bit."""
    model = tiny(KIND)
    distil(model, learns, name, target_steps=2)
    first = draw(load(model, f"{name} (run)")[0], KIND)
    extended = distil(model, learns, name)
    distil(model, learns, f"{name}-at-once")
    for steps in (2, 1):
        one, other = (read_student(run_of(run).stage_file(steps))[0] for run in (name, f"{name}-at-once"))
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert torch.equal(draw(load(model, f"{name}, 2 steps (run)")[0], KIND), first), (
        "the earlier student is still there"
    )
    folder = output / ("loras" if learns == "lora" else "diffusion_models") / "fewstep"
    assert read_student(folder / f"{name}.safetensors")[1].steps == 1
    assert torch.equal(draw(load(model, f"{name} (run)")[0], KIND), draw(extended, KIND))


@pytest.mark.parametrize("learns", LEARNS)
def test_a_stages_student_is_the_teacher_of_another_run(learns, name, output):  # noqa: F811
    """Loaded as the MODEL, at its own steps and without guidance, which it has learnt: it draws as it did in its run.

    There the teacher of the second halving drew from the same noise at the same levels, to be compared with.
    """
    model = tiny(KIND)
    distil(model, learns, name)
    teacher, _, sigmas = load(model, f"{name}, 2 steps (run)")
    distil(teacher, learns, f"{name}-on", start_steps=2, guidance_scale=1.0)
    (found,) = run_of(f"{name}-on").comparisons()
    wanted = run_of(name).comparisons()[1]
    assert (found["steps"], found["teacher_steps"]) == (wanted["steps"], wanted["teacher_steps"]) == (1, 2)
    assert found["teacher_mean_square"] == pytest.approx(wanted["teacher_mean_square"], rel=1e-5)
    assert run_of(name).comparisons()[0]["teacher_mean_square"] != pytest.approx(
        wanted["teacher_mean_square"], rel=1e-3
    )
    recipes = [read_student(run_of(run).stage_file(1))[1] for run in (name, f"{name}-on")]
    assert recipes[0].sigmas == recipes[1].sigmas
    assert float(sigmas[0]) == recipes[0].sigmas[0]
