"""Distribution matching on the host's own networks: from prompts alone, of any student, and what it refuses."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
from architectures import ALL, conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.data import training_data
from comfyui_fewstep.nodes.distillation.data.data_in_graph import data_in_graph
from comfyui_fewstep.nodes.distillation.learning import matching_method, methods, students
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import LoRAOptions
from comfyui_fewstep.trainers.students.student import probe_writes_in_place
from current_architectures import REFUSED
from current_architectures import kinds as current
from current_architectures import tiny as tiny_of_today
from making_data import TRAINING
from test_lora import assert_whole, snapshot

CHOSEN = {"steps": 2, "iterations": 6, "learning_rate": 1e-3, "guidance_scale": 3.0, "rollout": "deterministic"}
CHOSEN |= {"companion_first": 2, "companion_updates": 2, "companion_learning_rate": 1e-3}


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's output folder, for this test alone."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def prompts(clip, **changed):
    given = {"prompts": "a red fox\n\n a blue house", "negative": "", "width": 48, "height": 32, "clip": clip}
    return training_data.TrainingPrompts().describe(**{**given, **changed})[0]


@torch.inference_mode()
def matched(model, *, name, student=None, layers="linear", changed=(), **inputs):
    """As the graph runs it."""
    (method,) = matching_method.DistributionMatching().make(**{**CHOSEN, **dict(changed)})
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers=layers)
    given = {**TRAINING, "method": method, "run_name": name, "student": student or lora, **inputs}
    return distillation.Distill().distil(model, **given)


def in_graph(kind, model):
    """An empty latent and prompts, as wired for what has frames."""
    one = ALL[kind]
    latents = torch.zeros_like(one.noise(seed=0, batch=2))
    prompt = {"positive": one.conditioning(seed=2, batch=2), "negative": one.conditioning(seed=5, batch=1)}
    return {"latents": {"samples": latents}, **prompt}


@torch.inference_mode()
def euler(model, kind):
    """The host's own sampler and scheduler."""
    one = ALL[kind]
    noise, prompt, negative = (
        one.noise(seed=1, batch=1),
        one.conditioning(seed=2, batch=1),
        one.conditioning(seed=5, batch=1),
    )
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    return comfy.sample.sample_custom(
        *(model, noise, 1.0, sampler, sigmas, prompt, negative, torch.zeros_like(noise)), disable_pbar=True, seed=1
    )


@pytest.mark.parametrize("kind", [*current("sd15", "sd3"), *current("wan")])
def test_the_file_draws_what_the_training_nodes_model_draws(kind, output):
    """By the host's own loader, sampler and scheduler, on UNet, transformer and video; the MODEL is left as it was."""
    model = ALL[kind].model(seed=0)
    before, picture = snapshot(model), euler(model, kind)
    student, *_ = matched(model, name="run", **in_graph(kind, model))
    assert_whole(model, before)
    assert torch.equal(euler(model, kind), picture)
    with torch.inference_mode():
        file = read_tensors(output / "loras" / "fewstep" / "run.safetensors")[0]
        loaded, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
    drawn = euler(student, kind)
    torch.testing.assert_close(euler(loaded, kind), drawn, atol=1e-5, rtol=1e-5)
    assert (drawn - picture).abs().max() > 1e-3
    assert not any("companion" in name for name in file)


@pytest.mark.parametrize(("kind", "which"), [("sd15", "LoRA"), ("sd3", "full")])
def test_a_critic_pulls_through_the_hosts_network_and_leaves_it_as_it_was(kind, which, output):
    """On UNet and transformer, with checkpointing; it is in the checkpoint and in no file."""
    model = tiny(kind)
    before = snapshot(model)
    chosen = {"adversarial_weight": 1.0, "adversarial_from": 1, "critic_learning_rate": 1e-2}
    student = students.FullWeights() if which == "full" else None
    wired = in_graph(kind, model) | {"latents": {"samples": noise_for(model, seed=7, batch=2)}}
    matched(model, name="run", student=student, changed=chosen, gradient_checkpointing=True, log_every=1, **wired)
    assert_whole(model, before)
    run = RunFolder(output / "fewstep" / "runs", "run")
    told = [line["measures"] for line in run.metrics()]
    assert [measures["adversarial"] > 0.0 for measures in told if "adversarial" in measures] == [False] + [True] * 5
    assert all(abs(measures["critic_loss"]) < 10.0 for measures in told)
    kept = read_tensors(run.checkpoints()[-1])[0]
    assert any(key.startswith("companion.critic.") for key in kept)
    assert not any("critic" in key for key in read_tensors(run.student_file)[0])


@pytest.mark.parametrize("kind", current(*(kind for kind in ALL if kind not in REFUSED)))
def test_a_critic_sees_through_every_architecture(kind):
    """Its gradient comes back through what blocks of any shape say, and each sample's is its own."""
    model, x, condition = tiny_of_today(kind)
    with students.student_of(model, LoRAOptions(rank=2, alpha=2.0), seed=0) as student:
        data = TensorData(x0=x, condition=condition)
        student.writes_in_place = probe_writes_in_place(student, data.first(1))
        critic = student.critic(data.first(1), seed=1)
        sigma = torch.full((2,), 0.7)
        found = critic.gradient(x, sigma, **condition)
        assert found.isfinite().all()
        assert all(row.abs().max() > 0.0 for row in found)
        another = torch.cat([x[:1], x[1:] + 1.0])
        with torch.no_grad():
            pairs = zip(*(critic._features(value, sigma, **condition) for value in (x, another)), strict=True)
        for seen, changed in pairs:
            torch.testing.assert_close(changed[0], seen[0], rtol=1e-3, atol=1e-5)
            assert not torch.allclose(changed[1], seen[1], rtol=1e-3, atol=1e-5), "its own rows say it"
        torch.testing.assert_close(critic.gradient(another, sigma, **condition)[0], found[0], rtol=1e-3, atol=1e-9)


def test_prompts_alone_are_enough(output, clip):
    """Nothing is drawn beforehand: what the run keeps is zeros and prompts, and it goes on without the text encoder."""
    model = tiny("sd15")
    _, losses, name, _ = matched(model, name="run", data=prompts(clip))
    run = RunFolder(output / "fewstep" / "runs", name)
    data = read_data(run.data_folder)
    assert data.x0.shape == (2, 4, 4, 6)
    assert not data.x0.any()
    encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
    for i, text in enumerate(("a red fox", "a blue house")):
        assert torch.equal(data.condition["c_crossattn"][i], encoder.conditioning(text)[0][0][0])
    assert len(losses["loss"]) > 0
    lines = run.metrics()
    assert {"gap", "cosine", "std", "real_std", "fake_loss"} <= lines[-1]["measures"].keys()
    assert any(key.startswith("companion.fake.") for key in read_tensors(run.checkpoints()[-1])[0])
    again = matched(model, name="run", data=prompts(None))
    assert torch.equal(torch.tensor(again[1]["loss"]), torch.tensor(losses["loss"]))


def test_full_weights_learn_beside_a_companion_on_their_teachers_copy(output, clip):
    model = tiny("sd15")
    before = snapshot(model)
    student = students.FullWeights()
    matched(
        model, name="run", student=student, data=prompts(clip), gradient_checkpointing=True, changed={"iterations": 3}
    )
    assert_whole(model, before)
    tensors, recipe, _ = read_student(output / "fewstep" / "runs" / "run" / "student.safetensors")
    own = model.model.diffusion_model.state_dict()
    assert tensors.keys() == own.keys(), "no adapter is in the file"
    assert max(float((tensors[name] - own[name]).abs().max()) for name in own) > 1e-4
    assert (recipe.method, recipe.gamma, recipe.steps) == ("distribution_matching", 0.0, 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: methods.ConsistencyDistillation().make(
                steps=2, iterations=2, learning_rate=1e-3, guidance_scale=1.0
            ),
            r"data is Training Prompts \(No Pictures\), but consistency distillation learns from pictures; connect",
        ),
        (
            lambda: matching_method.DistributionMatching().make(**CHOSEN, consistency_levels=20),
            "but distribution matching learns from pictures; .* Matching with consistency_levels and adversarial_weight at 0",
        ),
        (
            lambda: matching_method.DistributionMatching().make(**CHOSEN, adversarial_weight=0.5),
            "but distribution matching learns from pictures; .* Matching with consistency_levels and adversarial_weight at 0",
        ),
    ],
)
def test_methods_that_look_at_pictures_refuse_prompts_alone(make, said, output, clip):
    with pytest.raises(ValueError, match=said):
        matched(tiny("sd15"), name="run", data=prompts(clip), method=make()[0])
    assert not (output / "fewstep" / "runs" / "run").exists()


@pytest.mark.parametrize("fill", [0.0, 0.0609])
def test_methods_that_look_at_pictures_refuse_empty_latents(fill, output):
    """As Empty Latent Image makes them, and SD3's of earlier hosts; of several, one with a picture is enough."""
    model, data = tiny("sd15"), in_graph("sd15", tiny("sd15"))
    empty = {"samples": torch.full_like(data["latents"]["samples"], fill)}
    (consistency,) = methods.ConsistencyDistillation().make(
        steps=2, iterations=2, learning_rate=1e-3, guidance_scale=1.0
    )
    given = {**data, "latents": empty, "method": consistency}
    with pytest.raises(
        ValueError, match="latents are empty, but consistency distillation learns from pictures; connect lat"
    ):
        matched(model, name="run", **given)
    assert not (output / "fewstep" / "runs" / "run").exists()
    empty["samples"][1] = noise_for(model, batch=1)[0]
    with torch.inference_mode(False):
        assert not data_in_graph(model, empty, data["positive"], None, dropout=0.0).lacking


def test_guidance_without_a_negative_prompt_is_refused_before_work(output):
    model = tiny("sd15")
    latents = {"samples": noise_for(model, batch=2)}
    with pytest.raises(ValueError, match=r"guidance_scale is 3\.0, which needs the empty prompt: connect the negative"):
        matched(model, name="run", latents=latents, positive=conditioning("sd15", seed=2))
    assert not (output / "fewstep" / "runs" / "run").exists()


def test_typed_options_are_checked_before_anything_runs():
    validate = matching_method.DistributionMatching.VALIDATE_INPUTS
    assert validate(4, 1) is True
    assert validate(None, 5) is True
    assert "fewest_steps is 5 and steps is 4" in validate(4, 5)
    data = training_data.TrainingPrompts.VALIDATE_INPUTS
    assert data("a fox") is True
    assert "prompts is empty" in data("")
