"""Every method on the host's real architectures: a LoRA learns, is broken off and goes on, and its file says how to draw."""

import inspect
import json
import uuid

import pytest
import torch
from architectures import conditioning, grid, noise_for, tiny
from cancelling import cancel_at
from test_checkpoint_files import make_older
from test_lora import TRAINING, assert_whole, draw, read_student_of, snapshot

import comfy.sample  # isort: skip  # architectures made it importable
import comfy.sd  # isort: skip
import folder_paths  # isort: skip
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation, running
from comfyui_fewstep.nodes.distillation.learning import matching_method, methods, students
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.nodes.sampling import recipes
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.trainers.methods import METHODS, read_method
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.distillation import Recorded

GUIDANCE = {"guidance_scale": 3.0, "iterations": 4, "learning_rate": 1e-3, "steps": 4, "weighting": "constant"}
CONSISTENCY = {"guidance_scale": 3.0, "iterations": 4, "learning_rate": 1e-3, "steps": 4, "guidance_scale_max": 5.0}
TRAINED = {"iterations": 4, "learning_rate": 1e-3, "steps": 2, "first_levels": 4, "last_levels": 8}
MATCHING = {"guidance_scale": 3.0, "iterations": 4, "learning_rate": 1e-3, "steps": 2}
MATCHING |= {"companion_first": 2, "companion_updates": 2, "companion_learning_rate": 1e-3, "companion_rank": 6}
CHOSEN = {
    "consistency_training": (methods.ConsistencyTraining, TRAINED),
    "guidance_distillation": (methods.GuidanceDistillation, GUIDANCE),
    "consistency_distillation": (methods.ConsistencyDistillation, {**CONSISTENCY, "target_decay": 0.9}),
    "distribution_matching": (matching_method.DistributionMatching, MATCHING),
}
KINDS = ("sd15", "sd2_v", "sdxl", "sd3", "flux")
UNETS = {"consistency_training": "sd15", "guidance_distillation": "sdxl", "consistency_distillation": "sd2_v"}
UNETS |= {"distribution_matching": "sdxl"}
"""The UNet that the gate takes for a method, beside the transformers."""
SEED = 11


@torch.inference_mode()
def distil(model, kind, method, *, name=None, layers="linear", training=(), **changed):
    """As the graph runs it."""
    node, chosen = CHOSEN[method]
    (made,) = node().make(**{**chosen, **changed})
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers=layers)
    return distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=16)},
        positive=conditioning(kind, seed=2),
        negative=conditioning(kind, seed=5),
        method=made,
        run_name=name or uuid.uuid4().hex,
        student=lora,
        **{**TRAINING, **dict(training)},
    )


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's output folder, for this test alone."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def file_of(output, name):
    return output / "fewstep" / "runs" / name / "student.safetensors"


@pytest.mark.parametrize(
    ("method", "kind"),
    grid(CHOSEN, KINDS, gate=lambda method, kind: kind in (UNETS[method], "sd3", "flux")),
)
def test_a_lora_learns_and_its_file_draws_the_same(method, kind, output):
    """The MODEL of the training node; and the file by the host's LoRA loader, with what Apply Recipe reads in it."""
    model = tiny(kind)
    before, picture = snapshot(model), draw(model, kind)
    student, losses, name, lora = distil(model, kind, method)
    assert_whole(model, before)
    assert torch.equal(draw(model, kind), picture)
    assert all(torch.isfinite(torch.tensor(losses["loss"])))
    assert max(value.abs().max() for key, value in lora.items() if "lora_up" in key) > 0
    tensors, recipe, metadata = read_student(file_of(output, name))
    assert tensors.keys() == lora.keys()
    assert (recipe.method, recipe.prediction_type) == (
        method,
        host.models.prediction_type(host.models.model_sampling_of(model)),
    )
    assert metadata["fewstep.iterations"] == str(CHOSEN[method][1]["iterations"])
    with torch.inference_mode():
        file = read_tensors(output / "loras" / "fewstep" / f"{name}.safetensors")[0]
        by_loader, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
        folders.list_own_models()
        applied, sampler, sigmas, cfg, *_ = recipes.ApplyRecipe().apply(
            by_loader, recipes.FROM_FILE, file=f"{name} (run)"
        )
    assert cfg == 1.0
    assert tuple(sigmas.tolist()) == recipe.sigmas
    own = host.models.sampler(sample_few_step, gamma=recipe.gamma)
    drawn = sampled(student, kind, own, torch.tensor(recipe.sigmas))
    torch.testing.assert_close(sampled(applied, kind, sampler, sigmas), drawn, atol=1e-4, rtol=1e-4)
    assert (drawn - sampled(model, kind, own, sigmas)).abs().max() > 1e-3


@torch.inference_mode()
def sampled(model, kind, sampler, sigmas, *, cfg=1.0):
    noise, prompt, negative = noise_for(model), conditioning(kind, seed=2), conditioning(kind, seed=5)
    return comfy.sample.sample_custom(
        *(model, noise, cfg, sampler, sigmas, prompt, negative, torch.zeros_like(noise)), disable_pbar=True, seed=SEED
    )


@pytest.mark.parametrize(
    ("method", "kind"),
    grid(
        CHOSEN,
        ["sd15", "sdxl", "sd3"],
        gate=lambda method, kind: kind == "sd3" or (method, kind) == ("guidance_distillation", "sd15"),
    ),
)
def test_a_cancelled_run_goes_on_bit_for_bit(method, kind, output, monkeypatch):
    model = tiny(kind)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cancel_at(patch, 3, KeyboardInterrupt)
        distil(model, kind, method, name="stopped")
    whole = read_student_of(output, distil(model, kind, method, name="whole")[2])
    resumed = read_student_of(output, distil(model, kind, method, name="stopped")[2])
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("method", CHOSEN)
def test_another_process_reads_the_method_from_the_run(method, output):
    """run.json holds all of it, so the worker makes the very same method on the very same model."""
    model = tiny("sd3")
    name = distil(model, "sd3", method)[2]
    run = RunFolder(folders.runs_root(), name)
    recorded = Recorded.of(run)
    chosen = students.recorded_of(run)[0].chosen  # as the worker reads it
    with torch.inference_mode(False):
        made = running.method_on(model, chosen, empty_prompt=True)
    assert made.options() == recorded.method_options
    assert type(chosen) is METHODS[method]


def test_guidance_at_a_fixed_scale_is_learnt(output):
    """On noise that it never saw, at cfg 1, the student is nearer to the teacher at the scale than the bare model is."""
    model = tiny("sd15")
    student, _, name, _ = distil(
        model,
        "sd15",
        "guidance_distillation",
        iterations=80,
        learning_rate=4e-3,
        weighting="snr",
        layers="linear_and_conv",
        training={"checkpoint_every": 100},
    )
    recipe = read_student(file_of(output, name))[1]
    assert recipe.guidance_scale == 3.0
    sampler, sigmas = host.models.sampler(sample_few_step, gamma=0.0), torch.tensor(recipe.sigmas)
    wanted = sampled(model, "sd15", sampler, sigmas, cfg=3.0)
    far, near = (sampled(one, "sd15", sampler, sigmas) for one in (model, student))
    assert (near - wanted).square().mean() < 0.85 * (far - wanted).square().mean()


def test_guidance_needs_a_negative_prompt(output):
    model = tiny("sd15")
    (made,) = methods.GuidanceDistillation().make(**GUIDANCE)
    inputs = {"latents": {"samples": noise_for(model, seed=1, batch=4)}, "positive": conditioning("sd15", seed=2)}
    with torch.inference_mode(), pytest.raises(ValueError, match="connect the negative conditioning"):
        distillation.Distill().distil(model, method=made, run_name="none", **inputs, **TRAINING)


@pytest.mark.parametrize("method", CHOSEN)
def test_bad_values_are_refused_before_anything_runs(method):
    node, chosen = CHOSEN[method]
    known = inspect.getfullargspec(node.VALIDATE_INPUTS).args[1:]  # as hosts ask
    typed = {name: chosen[name] for name in known if name in chosen}
    assert node.VALIDATE_INPUTS(**typed) is True
    assert node.VALIDATE_INPUTS(**dict.fromkeys(typed)) is True, "linked: known later"
    with pytest.raises(ValueError, match="iterations is 0"):  # by its declared limits, on that input alone
        host.limits.require(node.INPUT_TYPES(), {"iterations": 0})


def test_a_run_that_was_begun_without_a_last_phase_is_gone_on_with_by_its_own_graph(output, monkeypatch):
    """And given back by it when it is finished: no input says what is missing in its run.json."""
    model, name = tiny("sd15"), uuid.uuid4().hex
    uneven = {"first_levels": 4, "last_levels": 7}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cancel_at(patch, 3, KeyboardInterrupt)
        distil(model, "sd15", "consistency_training", name=name, **uneven)
    run = folders.run_named(name)
    said = json.loads(run.place("run.json").read_text())
    del said["run"]["method.reaches_last"]
    run.place("run.json").write_text(json.dumps(said))
    make_older(run)
    distil(model, "sd15", "consistency_training", name=name, **uneven)
    assert run.finished
    recorded = Recorded.of(run)
    assert read_method(recorded.method, recorded.method_options).reaches_last is False
    distil(model, "sd15", "consistency_training", name=name, **uneven)
    with pytest.raises(ValueError, match=r"method\.last_levels: there 7, here 6"):
        distil(model, "sd15", "consistency_training", name=name, **{**uneven, "last_levels": 6})
