"""A student merged into its teacher: a checkpoint that the host's own loader takes whole, and that says how to sample it."""

import inspect
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sd
import comfy.supported_models
import folder_paths
from architectures import on_levels, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits
from comfyui_fewstep.nodes.distillation.learning import saving, students
from comfyui_fewstep.nodes.sampling import recipes
from comfyui_fewstep.trainers.storage.files import read_metadata
from safetensors.torch import load_file
from test_lora import distil, draw, output, snapshot  # noqa: F401


class TextEncoder:
    """What the host's saving asks of a CLIP; a real one weighs half a gigabyte."""

    def __init__(self):
        self.weights = {"clip_l.transformer.text_model.final_layer_norm.weight": torch.arange(4.0)}

    def load_model(self):
        return tiny("sd15", seed=9)

    def get_sd(self):
        return dict(self.weights)

    state_dict_for_saving = get_sd  # its name since 2026


class Decoder:
    """What the host's saving asks of a VAE."""

    def get_sd(self):
        return {"decoder.conv_out.weight": torch.arange(6.0)}

    state_dict_for_saving = get_sd


@pytest.fixture
def small_sd15(monkeypatch):
    """The host takes the tiny UNet for one of SD1.5's."""
    wanted = {**comfy.supported_models.SD15.unet_config, "model_channels": 32}
    monkeypatch.setattr(comfy.supported_models.SD15, "unet_config", wanted)


def save(model, run, **changed):
    given = {"student": f"{run} (run)", "name": "merged", **changed}
    with torch.inference_mode():
        return saving.SaveStudentCheckpoint().save(model, TextEncoder(), Decoder(), **given)


@pytest.mark.parametrize("learns", ["lora", "full"])
def test_the_checkpoint_is_the_student(learns, small_sd15, output):  # noqa: F811
    model = tiny("sd15")
    before = snapshot(model)[1]
    student, _, name, _ = distil(model, "sd15", student=students.FullWeights() if learns == "full" else None)
    saved = save(model, name)
    file = output / "checkpoints" / saved["result"][0]
    assert saved["ui"]["text"] == [str(file)]
    assert saved["result"][0] in folder_paths.get_filename_list("checkpoints"), "Load Checkpoint lists it"
    after = {key: value for key, value in snapshot(model)[1].items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())

    with torch.inference_mode():
        loaded, *_ = comfy.sd.load_checkpoint_guess_config(str(file), output_vae=False, output_clip=False)
    torch.testing.assert_close(draw(loaded, "sd15"), draw(student, "sd15"), atol=1e-5, rtol=1e-5)
    assert (draw(loaded, "sd15") - draw(model, "sd15")).abs().max() > 0.01
    content = load_file(file)
    assert torch.equal(content["first_stage_model.decoder.conv_out.weight"], torch.arange(6.0))
    assert torch.equal(content["cond_stage_model.transformer.text_model.final_layer_norm.weight"], torch.arange(4.0))

    metadata = read_metadata(file)
    assert metadata["fewstep.kind"] == "checkpoint"
    assert metadata["modelspec.title"] == "merged"
    assert "fewstep.sha256" not in metadata, "it was of other tensors"


def test_apply_recipe_finds_the_sampler_in_the_checkpoint(small_sd15, output):  # noqa: F811
    model = tiny("sd15")
    _, _, name, _ = distil(model, "sd15")
    (file,) = save(model, name)["result"]
    with torch.inference_mode():
        loaded, *_ = comfy.sd.load_checkpoint_guess_config(
            str(output / "checkpoints" / file), output_vae=False, output_clip=False
        )
        _, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(loaded, recipes.FROM_FILE, file=f"checkpoints/{file}")
        _, _, trained_on = students.LoadStudent().load(model, f"{name} (run)")
    assert torch.equal(sigmas, trained_on)
    assert sampler.extra_options == {}


def test_the_full_student_is_a_diffusion_model_of_the_hosts(small_sd15, output):  # noqa: F811
    """In output/diffusion_models, by the host's own loader, without the pack."""
    model = tiny("sd15")
    student, _, name, _ = distil(model, "sd15", student=students.FullWeights())
    file = output / "diffusion_models" / "fewstep" / f"{name}.safetensors"
    assert load_file(file).keys() == model.model.diffusion_model.state_dict().keys()
    with torch.inference_mode():
        loaded = comfy.sd.load_unet(str(file))
    torch.testing.assert_close(draw(loaded, "sd15"), draw(student, "sd15"), atol=1e-5, rtol=1e-5)


def test_what_is_wired_in_and_in_no_file_is_said(small_sd15, output):  # noqa: F811
    """FreeU's kind, which the student learnt with, and what a network is told (Scale RoPE)."""
    model = tiny("sd15")
    model.set_model_patch(lambda h, skip, options: (1.1 * h, skip), "output_block_patch")
    model.model_options["transformer_options"]["rope_options"] = {"scale_x": 1.2}
    _, _, name, _ = distil(model, "sd15")
    line = (
        "not in the file: output_block_patch (test_what_is_wired_in_and_in_no_file_is_said of test_save_student); rope_options. "
        "Connect it behind the loader, as behind the teacher's."
    )
    assert save(model, name)["ui"]["text"][0].splitlines()[-1] == line
    model.patches = {"diffusion_model.out.2.weight": [(1.0, ("diff", (torch.zeros(4, 32, 3, 3),)), 1.0, None, None)]}
    with torch.inference_mode():
        said = saving.SaveStudentLoRA().save(model, f"{name} (run)", 4, "one")["ui"]["text"][0]
    assert said.splitlines()[-1] == line


def test_an_existing_checkpoint_is_kept(small_sd15, output):  # noqa: F811
    model = tiny("sd15")
    _, _, name, _ = distil(model, "sd15")
    file = output / "checkpoints" / "fewstep" / "merged.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the user's")
    with pytest.raises(ValueError, match="there is a file 'merged' in checkpoints already"):
        save(model, name)
    assert file.read_bytes() == b"the user's"


def test_nothing_half_written_stays_when_saving_fails(small_sd15, output, monkeypatch):  # noqa: F811
    model = tiny("sd15")
    _, _, name, _ = distil(model, "sd15")

    def fail(path, *_, **__):
        Path(path).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comfy.sd, "save_checkpoint", fail)
    with pytest.raises(OSError, match=r"merged.safetensors could not be written: No space left on device"):
        save(model, name)
    assert not list((output / "checkpoints" / "fewstep").iterdir())


@pytest.mark.parametrize("name", ["../escape", "", "a/b"])
def test_the_name_is_no_path(name):
    assert "the name of the file is" in str(saving.SaveStudentCheckpoint.VALIDATE_INPUTS(name=name))


def test_an_unknown_student_is_named(output):  # noqa: F811
    with pytest.raises(ValueError, match="student is 'gone'; allowed are none yet"):
        save(None, "gone", student="gone")


READS_ZTSNR = "ztsnr" in inspect.getsource(comfy.supported_models.SDXL)
"""Hosts since 2025."""
LEVELS = {
    "zero terminal": (lambda model: on_levels("ModelSamplingDiscrete", model, "v_prediction", True)),
    "edm": (lambda model: on_levels("ModelSamplingContinuousEDM", model, "v_prediction", 120.0, 0.002)),
    "v": (lambda model: on_levels("ModelSamplingDiscrete", model, "v_prediction", False)),
}


@pytest.mark.parametrize("levels", LEVELS)
def test_the_checkpoint_keeps_its_noise_levels(levels, output, monkeypatch):  # noqa: F811
    """By the host's own loader, where that can be told; otherwise the node says what to put behind it."""
    small = {"model_channels": 32, "transformer_depth": [0, 2]}
    monkeypatch.setattr(
        comfy.supported_models.SDXL, "unet_config", {**comfy.supported_models.SDXL.unet_config, **small}
    )
    model = LEVELS[levels](tiny("sdxl"))
    _, _, name, _ = distil(model, "sdxl", iterations=1)
    saved = save(model, name)
    with torch.inference_mode():
        loaded, *_ = comfy.sd.load_checkpoint_guess_config(
            str(output / "checkpoints" / saved["result"][0]), output_vae=False, output_clip=False
        )
    found, own = host.models.model_sampling_of(loaded), host.models.model_sampling_of(model)
    assert host.models.prediction_type(found) == "v_prediction"
    (said,) = saved["ui"]["text"]
    if levels == "zero terminal" and not READS_ZTSNR:
        assert (
            "takes this file for v_prediction up to noise level 14.6146, but the student is v_prediction up to" in said
        )
        return
    assert "takes this file" not in said
    torch.testing.assert_close(host.models.noise_levels(found), host.models.noise_levels(own))


def test_what_a_checkpoint_cannot_say_is_said(small_sd15, output):  # noqa: F811
    model = LEVELS["zero terminal"](tiny("sd15"))
    _, _, name, _ = distil(model, "sd15", iterations=1)
    (said,) = save(model, name)["ui"]["text"]
    assert "for eps up to noise level 14.6146, but the student is v_prediction up to noise level 45" in said
    assert "ModelSamplingDiscrete" in said


def test_a_student_is_not_loaded_on_other_noise_levels(output):  # noqa: F811
    plain = tiny("sdxl")
    zero, bare = LEVELS["zero terminal"](plain), LEVELS["v"](plain)
    _, _, name, _ = distil(zero, "sdxl", iterations=1)
    with pytest.raises(ValueError, match=r"starts at noise level 45\d\d\..*largest is 14.6146. Connect the model that"):
        students.LoadStudent().load(bare, f"{name} (run)")
    with torch.inference_mode():
        students.LoadStudent().load(zero, f"{name} (run)")


def test_a_model_that_load_checkpoint_does_not_know_is_named(output):  # noqa: F811
    *_, run, _ = distil(tiny("sd15"), "sd15", iterations=1)
    model, *_ = digits.DemoTeacher().load()
    with pytest.raises(ValueError, match="model is of the kind DigitConfig, which Load Checkpoint could not read"):
        save(model, run)
    assert not (output / "checkpoints").exists()
