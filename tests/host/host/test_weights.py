"""Full weights, and what identifies them, do not depend on where the host keeps a model's weights."""

import json
import os
import weakref

import architectures
import current_architectures
import gradients
import pytest
import quantised
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
from architectures import kinds, tiny
from comfyui_fewstep.benchmarks.architectures import paging
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import teacher
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.samplers.recipe import Recipe
from comfyui_fewstep.trainers.storage.files import tensors_sha256
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_checkpoint_files import make_older
from test_lending import PAGING, size_of, training
from test_lora import distil, lora_like, output, read_student_of  # noqa: F401 (a fixture)

FAR = torch.device("cpu", 0)


def styled(model, *, seed=0):
    """The MODEL with a LoRA of everything that the host's loader knows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        style = {
            name: value if value.ndim == 0 else 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in lora_like(model).items()
        }
        return comfy.sd.load_lora_for_models(model, None, style, 1.0, 0.0)[0]


def offload(model, monkeypatch):
    """Has the host keep the MODEL's layers where they are and lend them with their patches, as when there is no room."""
    management = comfy.model_management

    def load(models, **_):
        management.unload_all_models()
        with torch.inference_mode():
            for one in models:
                if hasattr(one, "patch_model_lowvram"):
                    one.patch_model_lowvram(one.load_device, lowvram_model_memory=1)
                else:
                    one.partially_load(one.load_device, extra_memory=1 - one.loaded_size())

    monkeypatch.setattr(management, "load_models_gpu", load)


def tensors_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


ALL = [*kinds("sd15", "sd3"), *current_architectures.kinds("flux", "wan")]


@pytest.mark.parametrize("kind", ALL)
def test_offloaded_weights_are_taken_over_with_their_patches(kind, monkeypatch):
    model, x, inputs = training(kind)
    model = styled(model)
    wanted = tensors_of(host.training.trainable_copy(model))
    with torch.inference_mode():
        drawn = gradients.loss_of(host.training.as_denoiser(host.training.loaded(model)), x, inputs)
    offload(model, monkeypatch)
    network = host.training.trainable_copy(model)
    lent = [layer for layer in model.model.modules() if getattr(layer, "weight_function", None)]
    assert len(lent) > 10, "the host lends them"
    assert_equal(tensors_of(network), wanted)
    with torch.no_grad():
        again = gradients.loss_of(host.training.as_denoiser(network), x, inputs)
    assert again.item() == pytest.approx(drawn.item(), rel=1e-4)
    made = host.training.model_from(network, like=model)
    with torch.inference_mode():
        again = gradients.loss_of(host.training.as_denoiser(host.training.loaded(made)), x, inputs)
    assert again.item() == pytest.approx(drawn.item(), rel=1e-4)


@PAGING
@pytest.mark.parametrize("share", [2.0, 0.0])
@pytest.mark.parametrize("kind", current_architectures.kinds("flux", "wan"))
def test_weights_in_pages_are_taken_over_with_their_patches(kind, share, monkeypatch):
    model, x, inputs = training(kind)
    wanted = tensors_of(host.training.trainable_copy(styled(model)))
    comfy.model_management.unload_all_models()
    with monkeypatch.context() as patched:
        paging.install(patched, room=int(share * size_of(model)))
        pages = styled(paging.paged(model))
        with torch.inference_mode():
            gradients.loss_of(host.training.as_denoiser(host.training.loaded(pages)), x, inputs)
        network = host.training.trainable_copy(pages)
        assert sum(hasattr(layer, "_v") for layer in model.model.modules()) > 10
    assert not any(hasattr(layer, "_v") for layer in network.modules())
    assert_equal(tensors_of(network), wanted)
    with torch.no_grad():
        assert gradients.loss_of(host.training.as_denoiser(network), x, inputs).isfinite()


@PAGING
def test_weights_in_pages_are_those_of_the_type_that_the_model_has(monkeypatch):
    """Such a host holds what the file says, and lends what the model computes with."""
    model, *_ = current_architectures.tiny("flux")
    paging.install(monkeypatch, room=0)
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight_comfy_model_dtype = torch.bfloat16
    network = host.training.trainable_copy(paging.paged(model))
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    assert torch.equal(network.state_dict()[key], model.model.state_dict()[key].bfloat16().float())


@pytest.mark.parametrize("form", quantised.formats())
def test_quantised_weights_are_taken_over_as_what_they_stand_for(form):
    model, x, inputs, same = quantised.tiny("flux", form)
    before = {name: inner.clone() for name, inner in quantised.contents(model).items()}
    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
    with torch.inference_mode():  # as some files scale what goes into a layer
        scale = 1.0 + torch.rand(layer.in_features)
        layer.register_parameter("pre_quant_scale", torch.nn.Parameter(scale, requires_grad=False))
        same.model.diffusion_model.double_blocks[0].img_attn.qkv.weight *= scale
    network = host.training.trainable_copy(model)
    wanted = host.training.trainable_copy(same)
    assert_equal(tensors_of(network), tensors_of(wanted))
    with torch.no_grad():
        found, expected = (gradients.loss_of(host.training.as_denoiser(one), x, inputs) for one in (network, wanted))
    assert found.item() == expected.item()
    network.load_state_dict({name: value * 1.001 for name, value in tensors_of(wanted).items()})
    assert {value.dtype for value in network.diffusion_model.parameters()} == {torch.float32}
    model.model.diffusion_model.double_blocks[0].img_attn.qkv._parameters.pop("pre_quant_scale")
    after = quantised.contents(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_teacher_is_the_same_wherever_its_weights_are_and_each_style_another(kind, monkeypatch):
    model, *_ = training(kind)
    wired = [model, styled(model), styled(model, seed=1), styled(styled(model), seed=1)]
    resident = [teacher.hashed(one).sha256 for one in wired]
    offload(model, monkeypatch)
    assert [teacher.hashed(one).sha256 for one in wired] == resident
    assert len(set(resident)) == len(wired)
    with torch.inference_mode():
        next(model.model.diffusion_model.parameters()).add_(1.0)
    assert teacher.hashed(model).sha256 not in resident


@PAGING
def test_a_teacher_in_pages_is_the_same_and_each_style_another(monkeypatch):
    model, *_ = training("flux")
    wired = [model, styled(model), styled(model, seed=1)]
    resident = [teacher.hashed(one).sha256 for one in wired]
    comfy.model_management.unload_all_models()
    paging.install(monkeypatch, room=0)
    pages = paging.paged(model)
    found = [teacher.hashed(one).sha256 for one in (pages, styled(pages), styled(pages, seed=1))]
    assert found == resident
    assert len(set(found)) == 3


@pytest.mark.parametrize("form", quantised.formats())
def test_a_quantised_teacher_is_known_by_every_part(form):
    model, *_ = quantised.tiny("flux", form)
    first = teacher.hashed(model).sha256
    again, *_ = quantised.tiny("flux", form)
    assert teacher.hashed(again).sha256 == first
    parts = {name: part for name, part in quantised.contents(model).items() if "img_attn.qkv.weight" in name}
    assert parts
    for part in parts.values():
        with torch.inference_mode():
            part.view(-1)[0] ^= 1
        assert teacher.hashed(model).sha256 != first
        with torch.inference_mode():
            part.view(-1)[0] ^= 1


@pytest.mark.parametrize("with_style", [False, True])
def test_a_run_of_the_first_version_knows_its_teacher(with_style, monkeypatch):
    model, *_ = training("sd15")
    wired = styled(model) if with_style else model
    said = tensors_sha256(dict(host.training.loaded(wired).diffusion_model.state_dict()))
    assert teacher.hashed(wired).sha256 != said
    assert teacher.hashed(wired, begun_with=said).sha256 == said
    other = styled(model, seed=1)
    assert teacher.hashed(other, begun_with=said).sha256 == teacher.hashed(other).sha256
    offload(model, monkeypatch)
    assert teacher.hashed(other, begun_with=tensors_sha256(dict(model.model.diffusion_model.state_dict()))).sha256 == (
        teacher.hashed(other).sha256
    ), "weights that lie bare say nothing of a style"


def test_a_run_of_the_first_version_goes_on(output):  # noqa: F811
    model = tiny("sd15")
    first = read_student_of(output, distil(model, "sd15", name="run", iterations=2)[2])
    (file,) = output.glob("**/run/run.json")
    said = json.loads(file.read_text())
    said["run"]["teacher_sha256"] = tensors_sha256(dict(host.training.loaded(model).diffusion_model.state_dict()))
    file.write_text(json.dumps(said))
    for done in file.parent.glob("*.safetensors"):
        done.unlink()
    make_older(RunFolder(file.parents[1], "run"))
    again = read_student_of(output, distil(model, "sd15", name="run", iterations=2)[2])
    assert_equal(again, first)
    said["run"]["teacher_sha256"] = "0" * 64
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="teacher_sha256"):
        distil(model, "sd15", name="run", iterations=2)


def training_from(file, *, seed=0):
    model = tiny("sd15", seed=seed, computes_in=torch.float32)
    model.cached_patcher_init = (None, (str(file), {}))
    return model


def test_weights_are_hashed_once(monkeypatch, tmp_path):
    """For each network; of those from a file once for the file, in later processes too."""
    monkeypatch.setattr(host.folders, "known_weights", lambda: tmp_path / "known.json")
    model, *_ = training("sd15")
    hashed = []
    own = host.identity.tensors_sha256
    monkeypatch.setattr(
        host.identity,
        "tensors_sha256",
        lambda tensors, **_: hashed.append(sum(t.numel() for t in tensors.values())) or own(tensors),
    )
    whole = sum(value.numel() for value in model.model.diffusion_model.parameters()) // 2
    first = teacher.hashed(model).sha256
    assert teacher.hashed(styled(model)).sha256 != first == teacher.hashed(model).sha256
    assert sum(size > whole for size in hashed) == 1
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"as it was")
    twins = [training_from(file) for _ in range(3)]
    hashed.clear()
    assert [teacher.hashed(twin).sha256 for twin in twins[:2]] == [first, first]
    assert sum(size > whole for size in hashed) == 1, "loaded again from the same file"
    monkeypatch.setattr(host.identity, "_of_networks", weakref.WeakKeyDictionary())  # as in a new process
    assert teacher.hashed(training_from(file)).sha256 == first
    assert sum(size > whole for size in hashed) == 1
    changed = training_from(file, seed=1)
    assert teacher.hashed(changed).sha256 != first, "the sample tells of weights that are not the file's"
    assert sum(size > whole for size in hashed) == 2
    os.utime(file, ns=(1, 1))
    assert teacher.hashed(twins[2]).sha256 == first
    assert sum(size > whole for size in hashed) == 3
    file.write_bytes(b"written anew")
    assert teacher.hashed(twins[2]).sha256 == first
    assert sum(size > whole for size in hashed) == 4
    (tmp_path / "known.json").write_bytes(b"{")
    assert teacher.hashed(twins[2]).sha256 == first
    assert sum(size > whole for size in hashed) == 5


@pytest.mark.parametrize("kind", [*kinds("sd15", "sd2_v", "sdxl", "sd3"), *current_architectures.kinds()])
def test_a_student_of_full_weights_is_read_into_every_network(kind):
    """Ideogram 4 has an llm_cond_proj, which was taken for a guidance embedding: its students fitted no model."""
    model = architectures.ALL[kind].model()
    before = tensors_of(model.model.diffusion_model)
    learnt = {name: value + 0.5 if value.is_floating_point() else value for name, value in before.items()}
    sampling = host.models.model_sampling_of(model)
    recipe = Recipe(
        method="progressive_distillation",
        steps=1,
        sigmas=(1.0, 0.0),
        schedule="trailing",
        gamma=0.0,
        prediction_type=host.models.prediction_type(sampling),
        noise_family=host.models.noise_family(sampling),
        guidance_scale=1.0,
    )
    made = students.with_student(model, learnt, lora=False, recipe=recipe)
    assert_equal(tensors_of(made.model.diffusion_model), learnt)
    assert_equal(tensors_of(model.model.diffusion_model), before)


def test_a_patch_of_an_unknown_kind_is_refused_by_name():
    model, *_ = training("sd15")
    patched = model.clone()
    patched.patches["diffusion_model.out.2.weight"] = [(1.0, object(), 1.0, None, None)]
    with pytest.raises(
        ValueError, match=r"change diffusion_model.out.2.weight by a object, which FewStep cannot identify"
    ):
        host.identity.patches_sha256(patched)


def in_todays(form):
    """A MODEL of today's host: its layers quantised, or lent as under dynamic VRAM."""
    return current_architectures.tiny("flux")[0] if form == "lent" else quantised.tiny("flux", form)[0]


@PAGING
@pytest.mark.parametrize("form", ["lent", *quantised.formats()])
def test_full_weights_learn_on_after_a_resume_and_a_stage(form, monkeypatch):
    """The host's layers would take what is loaded in the place of their own weights, or be given another's memory."""
    model = in_todays(form)
    if form == "lent":
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    with torch.inference_mode(False), students.student_of(model, students.FullWeights(), seed=0) as student:
        learning = student.parameters()
        student.promote()
        student.load_state_dict({name: value.clone() for name, value in student.state_dict().items()})
        assert all(one is two and one.requires_grad for one, two in zip(learning, student.parameters(), strict=True))
        memory = {value.data_ptr() for value in learning}
        assert not memory & {value.data_ptr() for value in student._teacher_module.parameters()}
