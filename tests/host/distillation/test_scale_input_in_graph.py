"""Students that take their guidance scale as an input: taught in the graph, saved, and loaded by the host with our nodes."""

import uuid

import pytest
import torch
from architectures import conditioning, grid, kinds, noise_for, tiny
from test_lora import TRAINING, assert_whole, draw, output, snapshot  # noqa: F401
from test_save_student import Decoder, TextEncoder, small_sd15  # noqa: F401

import comfy.sd  # isort: skip  # architectures made it importable
import comfy.samplers  # isort: skip
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits, digits_model
from comfyui_fewstep.nodes.distillation import distillation, running
from comfyui_fewstep.nodes.distillation.learning import methods, saving, students
from comfyui_fewstep.nodes.sampling import guidance, recipes
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.measures.digits import DIGITS, training_data
from comfyui_fewstep.trainers.objective.guidance_range import GuidanceRange
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_metadata

RANGE = {"guidance_scale": 1.0, "guidance_scale_max": 5.0, "iterations": 8, "learning_rate": 1e-3}
METHODS = {
    "guidance": lambda **changed: methods.GuidanceDistillation().make(**RANGE, steps=2, **changed),
    "consistency": lambda **changed: methods.ConsistencyDistillation().make(
        **RANGE, steps=2, levels=8, scale_input=True, **changed
    ),
    "progressive": lambda **changed: methods.ProgressiveDistillation().make(
        **RANGE, start_steps=4, target_steps=1, weighting="constant", **changed
    ),
}
NEGATIVE = object()


@torch.inference_mode()
def distil(model, kind, method, *, student=None, negative=NEGATIVE, name=None):
    """(the student as MODEL, the run's name), as the graph runs it."""
    name = name or uuid.uuid4().hex
    made, *_ = distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=16)},
        positive=conditioning(kind, seed=2),
        negative=conditioning(kind, seed=5) if negative is NEGATIVE else negative,
        method=METHODS[method]()[0] if isinstance(method, str) else method,
        run_name=name,
        student=student or students.FullWeights(),
        **TRAINING,
    )
    return made, name


@torch.inference_mode()
def at(model, scale):
    """As the guidance-embedding node sets it, of a MODEL that has the input already."""
    cond_proj = host.guidance.embedding_of(model).cond_proj
    return host.guidance.with_guidance_embedding(model, cond_proj, guidance_scale=scale)


def run_file(output, name):  # noqa: F811
    return read_student(output / "fewstep" / "runs" / name / "student.safetensors")


def same(one, other):
    torch.testing.assert_close(one, other, atol=1e-5 * max(10.0, float(other.abs().max())), rtol=1e-4)


def differ(one, other):
    assert (one - other).abs().max() > 1e-3


# --- quality ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_digits_at_every_scale_in_one_forward(output, monkeypatch):  # noqa: F811
    """Held-out noise, shipped teacher, 300 iterations of 32 pictures, scales from 1 to 4. x0 is of deviation 1.

    Up to scale 2 the rms error of x0 is below 0.25 at every level; from scale 2 on, where guidance does most, which is at
    high noise, it is below half of what guidance changes.
    """
    model = digits_model.load_teacher()
    latents, labels = digits.DigitsData().load()
    with torch.inference_mode():
        (method,) = methods.GuidanceDistillation().make(
            guidance_scale=1.0, guidance_scale_max=4.0, iterations=300, learning_rate=7e-4, steps=16
        )
        student, *_ = distillation.Distill().distil(
            model, latents=latents, positive=labels, negative=digits_model.prompt(""), method=method, run_name="digits",
            student=students.FullWeights(), **{**TRAINING, "batch_size": 32, "checkpoint_every": 1000},
        )  # fmt: skip
    empty = {"y": torch.zeros(1, DIGITS)}
    batch, generator = training_data(unconditional=empty).first(200), torch.Generator().manual_seed(99)
    teacher = digits_model.as_denoiser(host.training.loaded(model))
    forwards = []
    for scale in (1.0, 1.5, 2.0, 4.0):
        for level in (0.1, 1.0, 5.0, 14.0):
            sigma = torch.full((len(batch.x0),), level)
            x = batch.x0 + level * torch.randn(batch.x0.shape, generator=generator)
            with torch.no_grad():
                model.patch_model()
                wanted = guided(teacher, guidance_scale=scale, unconditional=empty)(x, sigma, **batch.condition)
                plain = teacher(x, sigma, **batch.condition)
                network = host.training.loaded(at(student, scale))
                hook = network.diffusion_model.register_forward_hook(lambda *_: forwards.append(1))
                said = digits_model.as_denoiser(network)(x, sigma, **batch.condition)
                hook.remove()
            error, moved = ((one - wanted).square().mean().sqrt() for one in (said, plain))
            assert scale > 2.0 or error < 0.25, (scale, level)
            assert scale < 2.0 or level < 5.0 or error < 0.5 * moved, (scale, level)
    assert len(forwards) == 16, "one each"


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_unets_file_by_the_hosts_loader_with_our_node(method, small_sd15, output):  # noqa: F811
    """And by Apply Recipe, which knows the file, by Load Distilled Student, and in a checkpoint."""
    model = tiny("sd15")
    before = snapshot(model)
    student, name = distil(model, "sd15", method)
    assert_whole(model, before)
    tensors, recipe, metadata = run_file(output, name)
    assert (recipe.guidance_scale, metadata["fewstep.scale_input"]) == (3.0, "1 to 5")
    assert tensors["time_embed.cond_proj.weight"].abs().max() > 1e-4, "it learnt"
    differ(draw(at(student, 1.0), "sd15"), draw(at(student, 5.0), "sd15"))
    with torch.inference_mode():
        bare = comfy.sd.load_unet(str(output / "diffusion_models" / "fewstep" / f"{name}.safetensors"))
        assert host.guidance.embedding_of(bare) is None, "the host drops it"
        for scale in (1.0, 2.5, 5.0):
            (ours,) = guidance.GuidanceEmbedding().patch(bare, f"fewstep/{name}.safetensors", scale)
            same(draw(ours, "sd15"), draw(at(student, scale), "sd15"))
        applied, *_ = recipes.ApplyRecipe().apply(bare, recipes.FROM_FILE, file=f"{name} (run)")
        same(draw(applied, "sd15"), draw(student, "sd15"))
        # what has a scale by another node keeps that
        chosen, *_ = recipes.ApplyRecipe().apply(at(student, 5.0), recipes.FROM_FILE, file=f"{name} (run)")
        same(draw(chosen, "sd15"), draw(at(student, 5.0), "sd15"))
        loaded, *_ = students.LoadStudent().load(model, f"{name} (run)")
        same(draw(loaded, "sd15"), draw(student, "sd15"))
        (guider,) = guidance.GuidanceDistilledGuider().make(loaded, conditioning("sd15", seed=2), 5.0)
        assert host.guidance.embedding_of(guider.model_patcher).guidance_scale == 5.0
        (saved,) = saving.SaveStudentCheckpoint().save(model, TextEncoder(), Decoder(), f"{name} (run)", name)["result"]
        whole, *_ = comfy.sd.load_checkpoint_guess_config(
            str(output / "checkpoints" / saved), output_vae=False, output_clip=False
        )
        (by_node,) = guidance.GuidanceEmbedding().patch(whole, saved, 2.0)
        same(draw(by_node, "sd15"), draw(at(student, 2.0), "sd15"))
    assert read_metadata(output / "checkpoints" / saved)["fewstep.scale_input"] == "1 to 5"


@pytest.mark.parametrize(
    ("method", "kind"),
    grid(["guidance", "consistency"], ["sdxl", "sd3"], gate=lambda *given: given != ("consistency", "sdxl")),
)
def test_other_networks_learn_it_too(method, kind, output):  # noqa: F811
    """A flow model among them."""
    model = tiny(kind)
    student, name = distil(model, kind, method)
    assert any(key.endswith("cond_proj.weight") for key in run_file(output, name)[0])
    with torch.inference_mode():
        loaded, *_ = students.LoadStudent().load(model, f"{name} (run)")
    same(draw(at(loaded, 4.0), kind), draw(at(student, 4.0), kind))
    differ(draw(at(student, 1.0), kind), draw(at(student, 5.0), kind))


@pytest.mark.parametrize("kind", kinds("sd15", "sd3"))
def test_the_student_while_it_learns_is_what_is_loaded(kind, output):  # noqa: F811
    """At a scale of each sample's own; and its state is all that going on needs."""
    model, scales = tiny(kind), torch.tensor([1.0, 4.5])
    with torch.inference_mode(False):
        x, sigma = noise_for(model), torch.tensor([0.4, 0.9])
        prompt = conditioning(kind, seed=2, batch=2)
        condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
        with students.student_of(model, students.FullWeights(), seed=0, scale_input=GuidanceRange(1.0, 5.0)) as student:
            begun = student.denoiser(x, sigma, guidance_scale=scales, **condition)
            same(begun, student.teacher(x, sigma, **condition))
            for value in student.parameters():
                value.data += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
            learning = student.denoiser(x, sigma, guidance_scale=scales, **condition).detach()
            tensors = {name: value.clone() for name, value in student.exported().items()}
            student.promote()
            assert torch.equal(student.teacher(x, sigma, guidance_scale=scales, **condition), learning)
        differ(learning, begun)
        kind = running.teacher_kind(host.models.model_sampling_of(model), empty_prompt=True)
        recipe = METHODS["guidance"]()[0].on(kind).recipe(stage=0, prediction_type=kind.prediction_type)
        made = students.with_student(model, tensors, lora=False, recipe=recipe)
        for row, scale in enumerate(scales.tolist()):
            denoiser = host.training.as_denoiser(host.training.loaded(at(made, scale)))
            with torch.no_grad():
                same(denoiser(x, sigma, **condition)[row], learning[row])


# --- a teacher that takes its scale as an input ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_stage_two_asks_its_teacher_once_a_step_and_wants_no_negative(method, output, monkeypatch):  # noqa: F811
    model = tiny("sd15")
    first, _ = distil(model, "sd15", "guidance")
    student, name = distil(first, "sd15", method, negative=None)
    assert run_file(output, name)[0]["time_embed.cond_proj.weight"].shape == (32, 256)
    differ(draw(at(student, 1.0), "sd15"), draw(at(student, 5.0), "sd15"))
    with torch.inference_mode():
        loaded, *_ = students.LoadStudent().load(model, f"{name} (run)")
    same(draw(at(loaded, 2.0), "sd15"), draw(at(student, 2.0), "sd15"))


@pytest.mark.parametrize("learns", ["lora", "full"])
def test_one_scale_of_such_a_teacher_can_be_distilled(learns, output):  # noqa: F811
    """With full weights the scale is in them, so that they need no embedding any more; a LoRA is beside the embedding."""
    model = tiny("sd15")
    guided_model = at(distil(model, "sd15", "guidance")[0], 4.0)
    (method,) = methods.ConsistencyDistillation().make(**{**RANGE, "guidance_scale_max": 0.0}, steps=2, levels=8)
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear")
    chosen = {"lora": lora, "full": students.FullWeights()}[learns]
    student, name = distil(guided_model, "sd15", method, student=chosen, negative=None)
    with torch.inference_mode():
        onto = guided_model if learns == "lora" else model
        loaded, *_ = students.LoadStudent().load(onto, f"{name} (run)")
    same(draw(loaded, "sd15"), draw(student, "sd15"))
    assert (host.guidance.embedding_of(student) is None) == (learns == "full")
    with pytest.raises(ValueError, match="teacher_sha256"):
        distil(at(guided_model, 2.0), "sd15", method, student=chosen, negative=None, name=name)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_lora_is_refused_before_any_work(output):  # noqa: F811
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear")
    with pytest.raises(ValueError, match="scale of 1 to 5 as an input, which no LoRA file holds; connect Full-Weights"):
        distil(tiny("sd15"), "sd15", "guidance", student=lora)
    assert not list((output / "fewstep" / "runs").glob("*/run.json"))


@pytest.mark.parametrize("kind", kinds("flux"))
def test_a_network_with_its_own_guidance_input_is_refused(kind, output):  # noqa: F811
    with pytest.raises(ValueError, match="knows a place in UNets and in networks of SD3's kind"):
        distil(tiny(kind), kind, "guidance")


def test_a_range_that_is_upside_down_is_refused_before_anything_runs():
    said = methods.GuidanceDistillation.VALIDATE_INPUTS(guidance_scale=5.0, guidance_scale_max=2.0)
    assert "guidance_scale is 5.0 and guidance_scale_max is 2.0" in said
