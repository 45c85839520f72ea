"""A MODEL as wired: wrappers and their kind, the deviation of its noise, kinds of sampling, and what is left as it was."""

import copy
import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_sampling
from architectures import conditioning, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import running
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from todays_inputs import CHANNELS, Frames, hosts_x0, noise, stand_in, text

HAS_WRAPPERS = hasattr(tiny("sd15"), "add_wrapper_with_key")
SIGMA = 0.6


def denoised(model, x, condition, sigma=SIGMA):
    with torch.no_grad():
        network = host.training.loaded(model)
        return host.training.as_denoiser(network, model=model)(x, torch.full((len(x),), sigma), **condition)


# --- wrappers --------------------------------------------------------------------------------------------------------


def wrapped(kind, key="mine", *, in_options=False):
    """The stand-in with one wrapper, where the host keeps those of a MODEL, or in its transformer options."""
    model = stand_in()
    if in_options:
        model.model_options["transformer_options"]["wrappers"] = {kind: {key: [print]}}
    else:
        model.wrappers = {kind: {key: [print]}}
    return model


@pytest.mark.parametrize("in_options", [False, True])
@pytest.mark.parametrize("kind", ["outer_sample", "predict_noise", "calc_cond_batch", "sampler_sample"])
def test_a_wrapper_that_no_forward_calls_is_refused_by_name(kind, in_options):
    with pytest.raises(
        ValueError, match=rf"carries wrappers around {kind} \(print of builtins\), which training does not support"
    ):
        host.training.loaded(wrapped(kind, in_options=in_options))


@pytest.mark.parametrize("option", [o for o, part in host.carried.OPTIONS.items() if part is host.carried.Part.REFUSED])
def test_what_stands_in_place_of_a_samplers_forward_is_refused_by_name(option):
    model = stand_in()
    model.model_options[option] = print
    with pytest.raises(ValueError, match=rf"carries {option} \(print of builtins\), which training does not support"):
        host.training.loaded(model)


def test_wrappers_around_a_forward_reach_it_and_those_that_only_make_it_faster_do_not(monkeypatch):
    model, seen = stand_in(), []
    mine = {"apply_model": {"mine": [print]}, "diffusion_model": {"mine": [len]}}
    model.wrappers = {kind: {**keyed, "torch.compile": [max], "easycache": [min]} for kind, keyed in mine.items()}
    model.wrappers["outer_sample"] = {"lazycache": [print]}
    x, network = noise(1, CHANNELS, 4, 4), host.training.loaded(model)
    monkeypatch.setattr(
        network, "apply_model", lambda x, t, transformer_options, **_: seen.append(transformer_options) or x
    )
    denoised(model, x, {})
    assert seen[0]["wrappers"] == mine
    assert model.wrappers["apply_model"].keys() == {"mine", "torch.compile", "easycache"}, "the MODEL keeps its own"


@pytest.mark.skipif(not HAS_WRAPPERS, reason="this host has no wrappers")
@pytest.mark.parametrize("kind", ["apply_model", "diffusion_model"])
def test_the_denoiser_of_a_wrapped_model_is_the_hosts(kind):
    def doubled(executor, x, *rest, **named):
        return 2.0 * executor(x, *rest, **named)

    bare, model = tiny("sd15"), tiny("sd15")
    model.add_wrapper_with_key(kind, "mine", doubled)
    x, prompt = 3.0 * noise(1, 4, 8, 8), conditioning("sd15")
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    found, expected = denoised(model, x, condition, 3.0), hosts_x0(model, x, 3.0, prompt)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, denoised(bare, x, condition, 3.0), atol=0.1)


def test_full_weights_refuse_wrappers_which_a_copy_would_lose():
    student = students.student_of(wrapped("apply_model"), students.FullWeights(), seed=0)
    with (
        pytest.raises(
            ValueError, match=r"wrappers around apply_model \(print of builtins\), which full weights cannot take over"
        ),
        student,
    ):
        pass


# --- the deviation of the noise --------------------------------------------------------------------------------------


def with_noise_scale(scale, latent_format=Frames):
    """As current hosts have it: the model's own mixing knows the deviation too."""
    model = stand_in(latent_format)
    sampling = model.model.model_sampling
    with torch.inference_mode():
        sampling.noise_scale = scale
    sampling.noise_scaling = lambda sigma, noise, latent, *_: sigma * scale * noise + (1.0 - sigma) * latent
    return model


def test_training_mixes_samples_with_noise_of_the_models_own_deviation():
    """In the model's own scale x = (1 - sigma) x0 + sigma s eps, as the host's noise_scaling has it; loss and x0 over s."""
    model, pictures, eps = with_noise_scale(4.0), noise(2, CHANNELS, 1, 4, 4), noise(2, CHANNELS, 1, 4, 4, seed=1)
    x0 = host.inputs.latents_for_training(model, {"samples": pictures})
    x_t = NoiseFamily.FLOW.add_noise(x0, eps, sigma=torch.tensor([SIGMA, SIGMA]))
    own = model.model.process_latent_in(pictures)
    mixed = (1.0 - SIGMA) * own + SIGMA * 4.0 * eps
    torch.testing.assert_close(4.0 * x_t, mixed)
    condition = host.inputs.condition_for_training(model, text(4), latents=x0, name="positive")
    condition = {key: value.expand(2, *value.shape[1:]) for key, value in condition.items()}
    torch.testing.assert_close(4.0 * denoised(model, x_t, condition), hosts_x0(model, mixed, SIGMA, text(4)))
    torch.testing.assert_close(host.inputs.latents_for_host(model, x0), pictures)


def test_methods_know_what_is_1_in_the_data():
    """Their constants, a floor or what shakes a picture, are for latents of deviation 1, which here are a quarter."""
    for scale in (1.0, 4.0):
        assert running.teacher_kind(with_noise_scale(scale).model.model_sampling).unit == 1 / scale


def test_fresh_noise_of_a_sampler_has_the_models_own_deviation():
    sampling = with_noise_scale(4.0).model.model_sampling
    guider = types.SimpleNamespace(inner_model=types.SimpleNamespace(model_sampling=sampling, diffusion_model=None))

    class Clean:
        inner_model = guider

        def __call__(self, x, sigma, **_):
            return torch.zeros_like(x)

    sample = host.models.sampler_function(sample_few_step, gamma=1.0)
    x, sigmas = torch.zeros(4, CHANNELS, 32, 32), torch.tensor([1.0, 0.5])
    assert sample(Clean(), x, sigmas, extra_args={"seed": 1}, disable=True).std() == pytest.approx(2.0, rel=0.05)
    given = sample(Clean(), x, sigmas, extra_args={}, disable=True, noise_sampler=lambda *_: torch.ones_like(x))
    assert torch.equal(given, torch.full_like(x, 2.0)), "of a noise sampler that the host gives too"


# --- kinds of sampling -----------------------------------------------------------------------------------------------


class COSMOS_RFLOW:  # noqa: N801  (the host's name)
    """A flow of t = sigma / (1 + sigma), as current hosts have it: x (1 - t) is (1 - t) x0 + t eps, the output eps - x0."""

    def calculate_input(self, sigma, noise):
        return noise / (1.0 + sigma.reshape(-1, *[1] * (noise.ndim - 1)))

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = sigma.reshape(-1, *[1] * (model_input.ndim - 1))
        return (model_input - sigma * model_output) / (1.0 + sigma)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + sigma * noise


def test_a_flow_in_cosmos_scale_mixes_as_variance_exploding():
    """Of the right velocity the denoiser is x0 exactly, at noise levels from far below 1 to far above."""
    kind = getattr(comfy.model_sampling, "COSMOS_RFLOW", COSMOS_RFLOW)
    sampling = type("ModelSampling", (torch.nn.Module, kind), {})()
    assert host.models.noise_family(sampling) is NoiseFamily.VARIANCE_EXPLODING
    assert host.models.prediction_type(sampling) == "rflow"
    x0, eps, sigma = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=1), torch.tensor([0.01, 1.0, 80.0])
    x = NoiseFamily.VARIANCE_EXPLODING.add_noise(x0, eps, sigma=sigma)
    t = (sigma / (1.0 + sigma)).reshape(3, 1, 1, 1)
    torch.testing.assert_close(sampling.calculate_input(sigma, x), (1.0 - t) * x0 + t * eps)
    torch.testing.assert_close(sampling.calculate_denoised(sigma, eps - x0, x), x0, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"for eps-, v- and x0-models .* the connected model is rflow"):
        host.models.read_as(sampling, prediction="x0")


@pytest.mark.parametrize("name", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_kinds_that_no_formula_covers_are_refused_by_name(name):
    """A class of the host's that derives from one that is known says nothing of how it mixes."""
    own = getattr(comfy.model_sampling, name, type(name, (comfy.model_sampling.CONST,), {}))
    with pytest.raises(ValueError, match=rf"sampling is {name}, which FewStep cannot follow"):
        host.models.noise_family(type("ModelSampling", (torch.nn.Module, own), {})())


def test_a_model_of_mean_flow_is_refused():
    model = stand_in()
    model.model.diffusion_model.time_r_in = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="of mean flow: its network takes the noise level of the next step"):
        host.inputs.condition_for_training(model, text(3), latents=noise(1, CHANNELS, 4, 4), name="positive")


# --- left as it was --------------------------------------------------------------------------------------------------


def test_dropout_never_comes_on():
    network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5)).eval()
    student = FullWeightsStudent(network, copy.deepcopy(network), as_denoiser=lambda module: lambda x, sigma: module(x))
    x = noise(2, 8)
    assert torch.equal(student.denoiser(x, torch.ones(2)), student.denoiser(x, torch.ones(2)))
