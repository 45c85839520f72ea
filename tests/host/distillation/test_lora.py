"""LoRA students on the host's real architectures: they learn, the MODEL stays whole, and the file is a LoRA like any other."""

import dataclasses
import uuid

import pytest
import torch
from cancelling import cancel_at
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.lora
import comfy.sample
import comfy.sd
import folder_paths
from architectures import ARCHITECTURES, conditioning, grid, kinds, noise_for, tiny
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.nodes.sampling import samplers, schedules
from comfyui_fewstep.trainers.storage.export import LORA, read_student
from comfyui_fewstep.trainers.storage.files import read_tensors, write_tensors
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRALayers, LoRAOptions, lora_file
from diffusers import StableDiffusionPipeline
from test_guidance import SHAPES, diffusers_unet, host_model, labels_for

TRAINING = {
    "seed": 3,
    "batch_size": 4,
    "optimiser": "adam",
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "checkpoint_every": 20,
}


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's output folder, for this test alone."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@torch.inference_mode()
def distil(model, kind, *, iterations=10, layers="linear", student=None, name=None, method=None, **changed):
    """As the graph runs it: start_steps 4 to target_steps 1, two halvings, unless a method is given."""
    (halvings,) = methods.ProgressiveDistillation().make(
        start_steps=4,
        target_steps=1,
        iterations=iterations,
        weighting="constant",
        learning_rate=1e-3,
        guidance_scale=1.5,
    )
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers=layers)
    latents = {"samples": noise_for(model, seed=1, batch=16)}
    return distillation.Distill().distil(
        model,
        latents=latents,
        positive=conditioning(kind, seed=2),
        method=method or halvings,
        run_name=name or uuid.uuid4().hex,
        negative=conditioning(kind, seed=5),
        student=student or lora,
        **{**TRAINING, **changed},
    )


@torch.inference_mode()
def draw(model, kind, steps=2, cfg=1.0):
    noise, prompt, negative = noise_for(model), conditioning(kind, seed=2), conditioning(kind, seed=5)
    (sampler,) = samplers.LightningSampler().make()
    (sigmas,) = schedules.Schedule().make(model, "trailing", steps)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, prompt, negative, torch.zeros_like(noise), disable_pbar=True, seed=1
    )


def snapshot(model):
    """Every weight's own object and what it holds; unpatched, as the host keeps it."""
    model.unpatch_model()
    network = model.model
    held = {n: p for n, p in [*network.named_parameters(), *network.named_buffers()]}
    return held, {name: value.clone() for name, value in held.items()}


def assert_whole(model, before):
    held, values = snapshot(model)
    assert held.keys() == before[0].keys()
    assert all(held[name] is before[0][name] for name in held), "the host's own objects are back in place"
    assert all(torch.equal(values[name], before[1][name]) for name in values)
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("kind", kinds(thorough=["sd2_v", "sdxl"]))
def test_a_lora_learns_and_the_model_stays_whole(kind, output):
    model = tiny(kind)
    before, picture = snapshot(model), draw(model, kind)
    student, losses, name, lora = distil(model, kind, iterations=12, layers="linear_and_conv")
    assert_whole(model, before)
    assert torch.equal(draw(model, kind), picture)
    assert losses["loss"][3] < 0.95 * losses["loss"][2], "the last halving, at one noise level"
    teacher, bare, learnt = draw(model, kind, 4, cfg=1.5), draw(model, kind, 1), draw(student, kind, 1)
    assert (learnt - teacher).square().mean() < 0.98 * (bare - teacher).square().mean(), "on noise that it never saw"
    tensors, recipe, metadata = read_student(output / "fewstep" / "runs" / name / "student.safetensors")
    assert (metadata["fewstep.kind"], metadata["ss_network_dim"], recipe.steps) == (LORA, "4", 1)
    assert lora.keys() == tensors.keys()

    known = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(tensors, known)
    assert len(loaded) == len(tensors) / 3, "the host's loader uses every key"
    with torch.inference_mode():
        file = read_tensors(output / "loras" / "fewstep" / f"{name}.safetensors")[0]
        by_loader, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
    drawn = draw(student, kind)
    torch.testing.assert_close(drawn, draw(by_loader, kind), atol=1e-5, rtol=1e-5)
    assert (drawn - picture).abs().max() > 0.01
    half, _ = comfy.sd.load_lora_for_models(model, None, file, 0.5, 0.0)
    assert not torch.equal(draw(half, kind), drawn), "a strength scales it"


@pytest.mark.parametrize("kind", kinds())
def test_the_student_while_it_learns_is_the_model_with_the_lora(kind, output):
    """Through the adapters' hooks, and through the host's own patching of the weights."""
    model = tiny(kind)
    layers = LoRALayers.LINEAR_AND_CONV
    options = LoRAOptions(rank=4, alpha=2.0, layers=layers)
    x, sigma = noise_for(model, batch=1), torch.tensor([0.6])
    ((text, given),) = conditioning(kind, seed=2)
    with torch.inference_mode(False):
        condition = students.host.inputs.condition_for_training(model, [[text, given]], latents=x, name="positive")
        with students.student_of(model, options, seed=0) as student:
            for value in student.parameters():
                value.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
            learning = student.denoiser(x, sigma, **condition).detach()
            bare = student.teacher(x, sigma, **condition)
            tensors = student.exported()
        finished = students.host.training.with_lora(model, tensors)
        network = students.host.training.loaded(finished)
        with torch.no_grad():
            patched = students.host.training.as_denoiser(network)(x, sigma, **condition)
        finished.unpatch_model()
    torch.testing.assert_close(learning, patched, atol=1e-4, rtol=1e-4)
    assert (learning - bare).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "dtype"), [("sd15", torch.float16), ("sd3", torch.bfloat16)])
def test_a_lora_learns_beside_weights_of_half_precision(kind, dtype, output):
    """As a GPU's host loads a checkpoint. The LoRA itself is float32, and near what full precision gives."""
    model = tiny(kind)
    with torch.inference_mode():
        model.model.diffusion_model.to(dtype)
        model.model.diffusion_model.dtype = dtype
        model.model.model_config.set_inference_dtype(dtype, None)
    before = snapshot(model)
    student, losses, _, lora = distil(model, kind, iterations=2)
    assert_whole(model, before)
    assert {value.dtype for value in lora.values()} == {torch.float32}
    assert torch.isfinite(draw(student, kind)).all()
    full = distil(tiny(kind), kind, iterations=2)[1]
    assert losses["loss"] == pytest.approx(full["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("kind", "error"),
    grid(
        ["sd15", "sd3"],
        [KeyboardInterrupt, torch.OutOfMemoryError],
        gate=lambda kind, error: (kind == "sd15") == (error is KeyboardInterrupt),
    ),
)
def test_a_cancel_or_an_error_leaves_the_model_whole(kind, error, output, monkeypatch):
    model = tiny(kind)
    before, picture = snapshot(model), draw(model, kind)
    cancel_at(monkeypatch, 5, error)
    with pytest.raises(error):
        distil(model, kind, iterations=3, name="stopped")
    assert_whole(model, before)
    assert torch.equal(draw(model, kind), picture)
    monkeypatch.undo()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    whole = read_student_of(output, distil(model, kind, iterations=3, name="whole")[2])
    resumed = read_student_of(output, distil(model, kind, iterations=3, name="stopped")[2])
    assert all(torch.equal(whole[key], resumed[key]) for key in whole), "resume is bit-exact"


def read_student_of(output, name):
    return read_student(output / "fewstep" / "runs" / name / "student.safetensors")[0]


def test_a_users_lora_is_part_of_the_teacher(output):
    """Patched weights are what the teacher runs on, and stay on the student's MODEL."""
    model = tiny("sd3")
    with torch.inference_mode():
        style = {name: 0.5 * torch.randn_like(value) for name, value in lora_like(model).items()}
        styled, _ = comfy.sd.load_lora_for_models(model, None, style, 1.0, 0.0)
    student, _, name, _ = distil(styled, "sd3", iterations=2)
    plain, _, other, _ = distil(model, "sd3", iterations=2)
    one, two = (read_student_of(output, run) for run in (name, other))
    assert any(not torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(draw(student, "sd3"), draw(plain, "sd3"))


def lora_like(model):
    options = LoRAOptions(rank=2, alpha=2.0)
    with (
        students.host.training.shared_network(model) as network,
        Adapters(network.diffusion_model, options) as adapters,
    ):
        chosen = adapters.new_set(generator=torch.Generator().manual_seed(0))
        names = students.host.naming.lora_names(model, adapters.paths)
    return lora_file(chosen, alpha=2.0, names=names)


def test_full_weights_are_the_other_choice(output):
    (full,) = students.FullWeightsStudentNode().make()
    model = tiny("sd3")
    before = snapshot(model)
    student, _, name, lora = distil(model, "sd3", iterations=2, student=full)
    assert lora == {}
    assert_whole(model, before)
    assert not torch.equal(draw(student, "sd3"), draw(model, "sd3"))
    assert read_student_of(output, name).keys() == model.model.diffusion_model.state_dict().keys()


def test_another_rank_is_another_run(output):
    model = tiny("sd3")
    distil(model, "sd3", iterations=1, name="same")
    (wider,) = students.LoRAStudentNode().make(rank=8, alpha=4.0, layers="linear")
    with pytest.raises(ValueError, match=r"holds another run.*student\.rank: there 4, here 8"):
        distil(model, "sd3", iterations=1, name="same", student=wider)


def test_a_finished_lora_is_loaded_with_its_sampler_and_schedule(output):
    model = tiny("sd3")
    student, _, name, _ = distil(model, "sd3", iterations=2)
    with torch.inference_mode():
        loaded, _, sigmas = students.LoadStudent().load(model, f"{name} (run)")
    assert torch.equal(draw(loaded, "sd3"), draw(student, "sd3"))
    assert len(sigmas) == 2


def test_a_lora_of_another_architecture_is_named(output):
    *_, name, _ = distil(tiny("sd15"), "sd15", iterations=1)
    with pytest.raises(ValueError, match=r"\(run\) does not fit the connected model: .* layers are not in this model"):
        students.LoadStudent().load(tiny("sdxl"), f"{name} (run)")


def test_a_lora_of_the_same_layers_in_another_size_is_named(output):
    """As of Wan 14B and 1.3B: the host only logs what it cannot add, and would draw with the teacher."""
    *_, name, _ = distil(tiny("sd15"), "sd15", iterations=1)
    wider = ARCHITECTURES["sd15"]
    wider = dataclasses.replace(wider, network={**wider.network, "model_channels": 64})
    with pytest.raises(
        ValueError, match=r"\(run\) does not fit the connected model: its change of diffusion_model\..* of 32"
    ):
        students.LoadStudent().load(wider.model(seed=0), f"{name} (run)")


# --- in diffusers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_unets_lora_file_gives_the_same_in_diffusers(shape, tmp_path):
    """load_lora_weights on the same UNet: the names after diffusers' blocks, every layer, scaled alike."""
    linear = bool(SHAPES[shape])
    theirs = diffusers_unet(linear)
    model = host_model(dict(theirs.state_dict()), linear)
    options = LoRAOptions(rank=4, alpha=2.0, layers=LoRALayers.LINEAR_AND_CONV)
    with torch.inference_mode(False), students.student_of(model, options, seed=0) as student:
        for value in student.parameters():
            value.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        tensors = student.exported()
        generator = torch.Generator().manual_seed(2)
        x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([259.0, 999.0])
        context, (labels, y) = torch.randn(2, 5, 8, generator=generator), labels_for(theirs, linear, generator)
        network = model.model.diffusion_model
        with torch.no_grad(), student._adapters.active(student._student):
            ours = network(x, t, context=context, **y)
    write_tensors(tmp_path / "lora.safetensors", tensors, metadata={})
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=theirs, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with torch.no_grad():
        without = theirs(x, t, context, **labels).sample
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        loaded = theirs(x, t, context, **labels).sample
    torch.testing.assert_close(ours, loaded, atol=1e-4, rtol=1e-4)
    assert (loaded - without).abs().max() > 0.01


def test_the_nodes_options_reach_the_training(output):
    model = tiny("sd3")
    whole = read_student_of(output, distil(model, "sd3", iterations=2)[2])
    pieces = read_student_of(output, distil(model, "sd3", iterations=2, accumulation=2)[2])
    moved = sum(float(value.square().sum()) for name, value in whole.items() if "lora_up" in name)
    apart = sum(float((pieces[name] - value).square().sum()) for name, value in whole.items() if "lora_up" in name)
    assert apart < 0.01 * moved, "the same but for rounding, which Adam enlarges where a gradient is near zero"
    for changed in ({"ema_decay": 0.9}, {"learning_rate_schedule": "constant"}, {"warmup": 1}):
        other = read_student_of(output, distil(model, "sd3", iterations=2, **changed)[2])
        assert any(not torch.equal(other[name], value) for name, value in whole.items()), changed
    with pytest.raises(ValueError, match=r"batch_size is 4 .*accumulation is 3|accumulation is 3.* batch_size is 4"):
        distil(model, "sd3", iterations=2, accumulation=3)
