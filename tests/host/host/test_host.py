"""host.models against the host's own classes, in this process: the embedded ComfyUI or the one at COMFYUI_PATH."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from cancelling import cancel_at
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_base as model_base
import comfy.samplers
import comfy.sd
import folder_paths
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.nodes.host.teachers import encoding
from comfyui_fewstep.nodes.sampling.samplers import LightningSampler
from comfyui_fewstep.nodes.sampling.schedules import Schedule
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.students.student import FullWeightsStudent, probe_writes_in_place

LOAD_LORA = comfy.sd.load_lora_for_models
VE, FLOW = NoiseFamily.VARIANCE_EXPLODING, NoiseFamily.FLOW


def teacher():
    """Made under inference mode, as the host makes every model."""
    with torch.inference_mode():
        return digits_model.load_teacher()


class Cancelled(Exception):
    """Stands for the host's own, which lives in another module on each host."""


def weights_of(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "family", "prediction"),
    [("EPS", VE, "eps"), ("V_PREDICTION", VE, "v_prediction"), ("EDM", VE, "edm"), ("FLOW", FLOW, "flow")],
)
def test_every_kind_of_model_is_known(kind, family, prediction):
    sampling = model_base.model_sampling(SimpleNamespace(sampling_settings={}), model_base.ModelType[kind])
    assert host.models.noise_family(sampling) is family
    assert host.models.prediction_type(sampling) == prediction
    levels = host.models.noise_levels(sampling)
    assert torch.all(levels.diff() > 0)
    assert not levels.is_inference()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="of a kind that FewStep does not know"):
        host.models.noise_family(torch.nn.Identity())


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_noise_is_added_as_the_host_adds_it(kind):
    sampling = model_base.model_sampling(SimpleNamespace(sampling_settings={}), model_base.ModelType[kind])
    x0, noise, sigma = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor(0.7)
    theirs = sampling.noise_scaling(sigma, noise.clone(), x0)
    assert torch.equal(host.models.noise_family(sampling).add_noise(x0, noise, sigma=sigma), theirs)


@torch.inference_mode()
def test_lightning_is_the_hosts_euler_bit_for_bit():
    model = teacher()
    noise = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    (sigmas,) = Schedule().make(model, "trailing", 5)
    prompts = {"positive": digits_model.prompt("1234"), "negative": digits_model.prompt("")}
    inputs = {"noise": noise, **prompts, "cfg": 2.0, "seed": 0}
    (ours,) = LightningSampler().make()
    theirs = comfy.samplers.sampler_object("euler")
    assert torch.equal(
        host.models.sample(model, ours, sigmas, **inputs), host.models.sample(model, theirs, sigmas, **inputs)
    )


def distil(model, root, monkeypatch, **changed):
    monkeypatch.setattr(folders, "runs_root", lambda: root)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(root / "output"))
    options = {"start_steps": 4, "target_steps": 2, "iterations": 4, "learning_rate": 1e-3, "guidance_scale": 2.0}
    method = ProgressiveOptions(weighting=Weighting.TRUNCATED_SNR, **options)
    training = {"seed": 0, "batch_size": 4, "optimiser": "adam", "weight_decay": 0.0, "gradient_clip": 1.0}
    inputs = {"latents": {"samples": torch.randn(10, 4, 4, 4)}, "positive": digits_model.prompt("0123456789")}
    with torch.inference_mode():
        return distillation.Distill().distil(
            model,
            method=method,
            run_name="run",
            checkpoint_every=2,
            negative=digits_model.prompt(""),
            student=students.FullWeights(),
            **{**training, **inputs, **changed},
        )


def test_the_hosts_model_is_untouched_and_the_student_differs(tmp_path, monkeypatch):
    model = teacher()
    before = weights_of(model)
    student, losses, name, _ = distil(model, tmp_path, monkeypatch)
    after = model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(parameter.requires_grad for parameter in student.model.parameters())
    assert not torch.equal(student.model.diffusion_model.out[2].weight, model.model.diffusion_model.out[2].weight)
    assert (len(losses["loss"]), name) == (1, "run")


def test_the_hosts_model_is_untouched_after_a_cancel(tmp_path, monkeypatch):
    model = teacher()
    before = weights_of(model)
    cancel_at(monkeypatch, 3, Cancelled)
    with pytest.raises(Cancelled):
        distil(model, tmp_path, monkeypatch)
    assert [path.stem for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["00000002", "00000003"]
    after = model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_patches_on_the_wire_are_distilled_too():
    """A LoRA changes the MODEL, not the base: the copy must carry the change, the base must not keep it."""
    model = teacher()
    key = "diffusion_model.out.2.weight"
    before = weights_of(model)[key]
    with torch.inference_mode():
        patched = model.clone()
        patched.add_patches({key: (torch.ones_like(before),)}, 0.5)
    network = host.training.trainable_copy(patched)
    torch.testing.assert_close(network.state_dict()[key], before + 0.5)
    torch.testing.assert_close(host.training.trainable_copy(model).state_dict()[key], before)


def test_load_lora_takes_the_demos_clip_and_changes_its_model_alone():
    """The node that people know asks for both; it found neither a clone nor a text encoder, and said so in Python's words."""
    model, clip, path, key = teacher(), digits_model.DigitCLIP(), "lora_unet_out_2", "diffusion_model.out.2.weight"
    before = weights_of(model)[key]
    file = {f"{path}.lora_up.weight": torch.ones(len(before), 1, 1, 1), f"{path}.alpha": torch.tensor(1.0)}
    file[f"{path}.lora_down.weight"] = torch.ones(1, *before.shape[1:])
    told = {"lora_metadata": {"it": "1"}} if "lora_metadata" in inspect.signature(LOAD_LORA).parameters else {}
    with torch.inference_mode():
        changed, same = LOAD_LORA(model, clip, file, 1.0, 1.0, **told)
        alone, _ = LOAD_LORA(model, None, file, 1.0, 0.0)
    copies = [host.training.trainable_copy(each).state_dict()[key] for each in (changed, alone)]
    assert torch.equal(*copies)
    assert not torch.equal(copies[0], before)
    assert torch.equal(same.encode_from_tokens(same.tokenize("3")), clip.encode_from_tokens("3"))
    assert encoding.weights_sha256(same) == "digits_model.DigitCLIP", "as runs of the demo have it"


def test_a_copy_can_be_trained_though_the_host_made_inference_tensors():
    network = host.training.trainable_copy(teacher()).requires_grad_(True)
    assert not any(parameter.is_inference() for parameter in network.parameters())
    x, y = torch.randn(2, 4, 4, 4), torch.zeros(2, 10)
    host.training.as_denoiser(network)(x, torch.ones(2), y=y, c_crossattn=torch.zeros(2, 1, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("option", ["area", "control", "mask"])
def test_conditioning_that_training_cannot_honour_is_refused(option):
    prompt = copy.deepcopy(digits_model.prompt("1"))
    prompt[0][1][option] = object()
    with pytest.raises(ValueError, match=f"positive conditioning carries {option}"):
        host.inputs.condition_for_training(teacher(), prompt, latents=torch.zeros(1, 4, 4, 4), name="positive")


PART = [("start_percent", 0.2), ("end_percent", 0.8), ("clip_start_percent", 0.2), ("clip_end_percent", 0.8)]


@pytest.mark.parametrize(("option", "value"), [*PART, ("default", True)])
def test_a_prompt_for_a_part_of_the_sampling_is_refused_and_one_for_its_whole_is_not(option, value):
    """Conditioning Set Timestep Range, text encoders with a schedule of hooks, and what fills in where no mask is."""
    prompt = copy.deepcopy(digits_model.prompt("1"))
    prompt[0][1] |= {"start_percent": 0.0, "end_percent": 1.0, "clip_start_percent": 0.0, "clip_end_percent": 1.0}
    latents = torch.zeros(1, 4, 4, 4)
    whole = host.inputs.condition_for_training(teacher(), prompt, latents=latents, name="positive")
    plain = host.inputs.condition_for_training(teacher(), digits_model.prompt("1"), latents=latents, name="positive")
    assert whole.keys() == plain.keys()
    prompt[0][1][option] = value
    with pytest.raises(ValueError, match=f"positive conditioning carries {option}, which training does not support"):
        host.inputs.condition_for_training(teacher(), prompt, latents=latents, name="positive")


def test_latents_of_another_model_are_refused():
    with pytest.raises(ValueError, match="latents have 16 channels but this model works on 4"):
        host.inputs.latents_for_training(teacher(), {"samples": torch.zeros(1, 16, 4, 4)})


def transformer_unet():
    """The host's UNet with attention, whose blocks add in place on hosts of mid-2024."""
    config = digits_model.DigitConfig()
    config.unet_config |= {
        "transformer_depth": [1, 0],
        "transformer_depth_output": [0, 0, 1, 0],
        "context_dim": 8,
        "use_spatial_transformer": True,
    }
    model = digits_model.DigitModel(config, model_type=model_base.ModelType.V_PREDICTION)
    generator = torch.Generator().manual_seed(0)
    digits_model.initialise(model, generator=generator)
    torch.nn.init.normal_(model.diffusion_model.out[-1].weight, std=0.1, generator=generator)
    return model


def test_gradients_are_right_through_the_hosts_transformer_blocks():
    """Against finite differences: an overwritten tensor that autograd saved would give a wrong or no gradient."""
    network, teaching = transformer_unet(), transformer_unet()  # of one seed
    x, sigma = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7, 2.0])
    condition = {
        "y": torch.eye(10)[:2],
        "c_crossattn": torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2)),
    }
    student = FullWeightsStudent(network, teaching, as_denoiser=host.training.as_denoiser)
    student.writes_in_place = probe_writes_in_place(student, Batch(x[:1], {k: v[:1] for k, v in condition.items()}))
    with student.autograd():
        student.denoiser(x, sigma, **condition).square().mean().backward()
    weight = network.get_parameter("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight")
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    slope = float((weight.grad * direction).sum())

    def loss(step):
        with torch.no_grad():
            weight.add_(step * direction)
            value = student.denoiser(x, sigma, **condition).square().mean()
            weight.sub_(step * direction)
        return float(value)

    assert slope == pytest.approx((loss(1e-2) - loss(-1e-2)) / 2e-2, rel=0.05)
