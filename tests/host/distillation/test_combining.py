"""A style LoRA, distilled guidance and few steps in one student, or apart, by choice; and one method after another."""

import uuid

import pytest
import torch
from architectures import conditioning, grid, kinds, noise_for, tiny
from test_lora import TRAINING, draw, output  # noqa: F401

import comfy.sd  # isort: skip  # architectures made it importable
import folder_paths  # isort: skip
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, saving, students
from comfyui_fewstep.trainers.storage.files import read_metadata, read_tensors
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LowRank, adaptable_layers, lora_file

FEW = {"iterations": 3, "learning_rate": 2e-3, "guidance_scale": 1.0}
METHODS = {
    "consistency": lambda: methods.ConsistencyDistillation().make(**FEW, steps=2, levels=8),
    "progressive": lambda: methods.ProgressiveDistillation().make(
        **FEW, start_steps=4, target_steps=2, weighting="constant"
    ),
    "guidance": lambda: methods.GuidanceDistillation().make(**{**FEW, "guidance_scale": 3.0}, steps=4),
}
STYLE_RANK, STUDENT_RANK = 3, 4


def style(model, *, layers=LoRALayers.LINEAR_AND_CONV):
    """A LoRA file of rank 3 that changes the picture much, at an alpha that is not its rank."""
    generator = torch.Generator().manual_seed(8)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator) / max(shape) ** 0.5

    adapters = {
        path: LowRank(
            drawn(STYLE_RANK, *layer.weight.shape[1:]),
            drawn(layer.weight.shape[0], STYLE_RANK, *(1,) * (layer.weight.ndim - 2)),
        )
        for path, layer in adaptable_layers(model.model.diffusion_model, layers).items()
    }
    return lora_file(adapters, alpha=2.0, names=host.naming.lora_names(model, adapters))


def load(model, tensors, strength=1.0):
    """By the host's own loader."""
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


@torch.inference_mode()
def distil(model, kind, method, *, student=None):
    """(the student as MODEL, the run's name), as the graph runs it."""
    name = uuid.uuid4().hex
    (lora,) = students.LoRAStudentNode().make(rank=STUDENT_RANK, alpha=4.0, layers="linear")
    made, *_ = distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=16)},
        positive=conditioning(kind, seed=2),
        negative=conditioning(kind, seed=5),
        method=METHODS[method]()[0],
        run_name=name,
        student=student or lora,
        **TRAINING,
    )
    return made, name


def file_of(output, name):  # noqa: F811
    return read_tensors(output / "loras" / "fewstep" / f"{name}.safetensors")[0]


@torch.inference_mode()
def save_in_one(model, name, *, rank=STYLE_RANK + STUDENT_RANK, to=None):
    return saving.SaveStudentLoRA().save(model, f"{name} (run)", rank, to or f"{name} in one")


def same(one, other):
    """But for rounding, which is of the largest values: drawn with random weights, these are hundreds."""
    torch.testing.assert_close(one, other, atol=max(1e-4, 1e-5 * float(other.abs().max())), rtol=1e-4)


def differ(one, other):
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("kind", kinds("sd15", "sdxl", "sd3", "flux", thorough=["sdxl"]))
def test_a_style_stays_apart_or_comes_along_by_choice(kind, output):  # noqa: F811
    """The student's file is what distillation changed; with the style beside it, or merged with it, it is the student."""
    base = tiny(kind)
    style_file = style(base)
    teacher = load(base, style_file, 0.7)
    student, name = distil(teacher, kind, "consistency")
    drawn, own = draw(student, kind), file_of(output, name)
    differ(drawn, draw(teacher, kind))
    same(draw(load(teacher, own), kind), drawn)
    same(draw(load(load(base, own), style_file, 0.7), kind), drawn)
    differ(draw(load(base, own), kind), drawn)
    said = save_in_one(teacher, name)
    one = file_of(output, f"{name} in one")
    same(draw(load(base, one), kind), drawn)
    assert said["result"] == (f"fewstep/{name} in one.safetensors",)
    assert said["result"][0] in folder_paths.get_filename_list("loras"), "Load LoRA lists it"
    assert draw(base, kind).isfinite().all()
    metadata = read_metadata(output / "loras" / "fewstep" / f"{name} in one.safetensors")
    assert "consistency_distillation" in metadata["fewstep.recipe"], "Apply Recipe reads it"
    assert (metadata["ss_network_dim"], metadata["fewstep.kind"]) == ("7", "lora")


def test_a_student_with_full_weights_has_the_style_in_it(output):  # noqa: F811
    base = tiny("sd15")
    teacher = load(base, style(base))
    student, name = distil(teacher, "sd15", "consistency", student=students.FullWeights())
    with torch.inference_mode():
        again, *_ = students.LoadStudent().load(base, f"{name} (run)")
    same(draw(again, "sd15"), draw(student, "sd15"))
    with pytest.raises(ValueError, match="has full weights, with all that was wired into its teacher"):
        save_in_one(teacher, name)


@pytest.mark.parametrize(
    ("kind", "then"),
    grid(
        ["sd15", "sd3"], ["consistency", "progressive"], gate=lambda kind, then: (kind, then) != ("sd15", "progressive")
    ),
)
def test_guidance_first_then_few_steps_in_one_lora(kind, then, output):  # noqa: F811
    """The guidance is in the second run's teacher, so that run pays for none; the end is one file."""
    base = tiny(kind)
    guided, first = distil(base, kind, "guidance")
    student, second = distil(guided, kind, then)
    both = load(load(base, file_of(output, first)), file_of(output, second))
    same(draw(both, kind), draw(student, kind))
    save_in_one(guided, second, rank=2 * STUDENT_RANK)
    same(draw(load(base, file_of(output, f"{second} in one")), kind), draw(student, kind))
    differ(draw(student, kind), draw(guided, kind))


def test_the_second_teacher_is_the_first_student(output):  # noqa: F811
    """At each sample, and at one forward."""
    base = tiny("sd15")
    guided, _ = distil(base, "sd15", "guidance")
    options = students.LoRAStudentNode().make(rank=2, alpha=2.0, layers="linear")[0]
    x, sigma = noise_for(base), torch.tensor([1.0, 3.0])
    with torch.inference_mode(False), torch.no_grad():
        prompt = conditioning("sd15", seed=2, batch=2)
        condition = host.inputs.condition_for_training(base, prompt, latents=x, name="positive")
        with students.student_of(guided, options, seed=0) as learning:
            teacher = learning.teacher(x, sigma, **condition)
        wanted = host.training.as_denoiser(host.training.loaded(guided))(x, sigma, **condition)
        bare = host.training.as_denoiser(host.training.loaded(base))(x, sigma, **condition)
    assert torch.equal(teacher, wanted)
    differ(teacher, bare)


def test_too_small_a_rank_says_what_it_loses(output):  # noqa: F811
    base = tiny("sd15")
    teacher = load(base, style(base))
    _, name = distil(teacher, "sd15", "consistency")
    lost = [
        float(save_in_one(teacher, name, rank=rank, to=f"{name} {rank}")["ui"]["text"][0].split()[-7])
        for rank in (1, 3, 7)
    ]
    assert lost[0] > lost[1] > 1e-3
    assert lost[2] < 1e-6


def test_what_cannot_be_one_lora_is_named(output):  # noqa: F811
    base = tiny("sd15")
    with pytest.raises(ValueError, match="no LoRA is wired into this model"):
        host.training.lora_in_one(base, rank=4)
    clone = base.clone()
    clone.add_patches(
        {"diffusion_model.time_embed.0.bias": (torch.ones_like(base.model.diffusion_model.time_embed[0].bias),)}
    )
    with pytest.raises(ValueError, match=r"change diffusion_model\.time_embed\.0\.bias, which is no layer"):
        host.training.lora_in_one(clone, rank=4)
    teacher = load(base, style(base))
    _, name = distil(teacher, "sd15", "consistency")
    with pytest.raises(ValueError, match=f"there is a file '{name}' in loras already"):
        save_in_one(teacher, name, to=name)


@pytest.mark.parametrize(
    ("names", "layer"), [("kohya", "lora_unet_input_blocks_"), ("as the student", "lora_unet_down_blocks_")]
)
def test_names_and_precision_of_the_one_lora_are_a_choice_and_it_draws_the_same(names, layer, output):  # noqa: F811
    model = load(tiny("sdxl"), style(tiny("sdxl")))
    made, name = distil(model, "sdxl", "consistency")
    wanted = draw(made, "sdxl")
    with torch.inference_mode():
        saving.SaveStudentLoRA().save(
            model, f"{name} (run)", STYLE_RANK + STUDENT_RANK, f"{name} one", names, "bfloat16"
        )
    file = output / "loras" / "fewstep" / f"{name} one.safetensors"
    tensors, metadata = read_tensors(file)
    assert any(key.startswith(layer) for key in tensors)
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert (
        read_metadata(output / "loras" / "fewstep" / f"{name}.safetensors")["ss_base_model_version"] == "sdxl_base_v1-0"
    )
    bare = draw(tiny("sdxl"), "sdxl")
    assert (draw(load(tiny("sdxl"), tensors), "sdxl") - wanted).std() < 0.05 * (bare - wanted).std()
