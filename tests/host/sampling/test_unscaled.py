"""A kind of the host's that mixes as variance-exploding and reads as variance-preserving (CogVideoX): samplers and training."""

import current_architectures
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_sampling
import comfy.sample
import comfy.samplers
from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.sampling.lists import levels
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily


class V_PREDICTION_DDPM:  # noqa: N801  (the host's name)
    """As current hosts have it: x goes into the network as it is, and the output is read as if x had unit variance."""

    def calculate_input(self, sigma, noise):
        return noise

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = sigma.reshape(-1, *[1] * (model_input.ndim - 1))
        return (model_input - sigma * model_output) / (1.0 + sigma**2).sqrt()

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * ((1.0 + sigma**2).sqrt() if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent


KIND = getattr(comfy.model_sampling, "V_PREDICTION_DDPM", V_PREDICTION_DDPM)


def stand_in():
    """(MODEL of v whose sampling object is of that kind, noise, prompt)"""
    model = tiny("sd2_v")
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, KIND), {})(model.model.model_config)
    model.model.model_sampling = sampling
    return model, noise_for(model), conditioning("sd2_v")


def cogvideox():
    one = current_architectures.ALL["cogvideox"]
    return one.model(), one.noise(), one.conditioning()


MODELS = {
    "stand-in": stand_in,
    "cogvideox": pytest.param(
        cogvideox,
        marks=pytest.mark.skipif(
            not current_architectures.ALL["cogvideox"].known(), reason="this host has no CogVideoX"
        ),
    ),
}


def ddim(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Song et al. 2021, equation 12, eta 0, on z of unit variance: what such a network was trained for."""
    alphas = 1.0 / (1.0 + sigmas**2).sqrt()
    noises = sigmas * alphas
    z = x * alphas[0]
    for i, sigma in enumerate(sigmas[:-1]):
        x0 = model(z, sigma.expand(len(z)), **extra_args)
        z = alphas[i + 1] * x0 + noises[i + 1] / noises[i] * (z - alphas[i] * x0)
    return z


def drawn(made, sampler, *, mask=None):
    model, noise, prompt = made
    sigmas = levels(host.models.model_sampling_of(model), "trailing", 4)
    latent = torch.ones_like(noise)
    return comfy.sample.sample_custom(
        *(model, noise, 3.0, sampler, sigmas, prompt, prompt, latent if mask is not None else 0.0 * noise),
        noise_mask=mask,
        disable_pbar=True,
        seed=0,
    )


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_euler_is_ddim_on_unit_variance(make):
    made = make()
    own = made[0].model.model_sampling
    found = drawn(made, host.models.sampler(sample_few_step, gamma=0.0))
    assert apart(found, drawn(made, comfy.samplers.KSAMPLER(ddim))) < 1e-3
    assert apart(found, drawn(made, comfy.samplers.sampler_object("euler"))) > 0.1, "which scales x nowhere"
    assert made[0].model.model_sampling is own


@pytest.mark.skipif(not current_architectures.ALL["cogvideox"].known(), reason="this host has no CogVideoX")
@torch.inference_mode()
def test_euler_is_the_hosts_own_sampler_for_it():
    from comfy_extras.nodes_void import VOID_DDIM

    made = cogvideox()
    found = drawn(made, host.models.sampler(sample_few_step, gamma=0.0))
    assert apart(found, drawn(made, VOID_DDIM())) < 1e-3


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_what_a_mask_keeps_is_kept(make):
    made = make()
    mask = torch.zeros(1, 1, *made[1].shape[-2:])
    mask[..., :2] = 1.0
    found = drawn(made, host.models.sampler(sample_few_step, gamma=1.0), mask=mask)
    torch.testing.assert_close(found[..., 2:], torch.ones_like(found[..., 2:]), atol=1e-4, rtol=1e-4)
    assert found[..., :2].isfinite().all()
    assert not torch.allclose(found[..., :2], torch.ones_like(found[..., :2]), atol=0.1)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_trainings_denoiser_scales_x(make):
    """D(x) is the host's own of x / sqrt(1 + sigma^2), at every level; afterwards the object is the host's."""
    model, noise, prompt = make()
    own = model.model.model_sampling
    x0 = host.inputs.latents_for_training(model, {"samples": model.model.process_latent_out(noise)})
    condition = host.inputs.condition_for_training(model, prompt, latents=x0, name="positive")
    condition = {key: value.expand(len(x0), *value.shape[1:]) for key, value in condition.items()}
    for sigma in (0.05, 1.0, 50.0):
        x, level = x0 * (1.0 + sigma**2) ** 0.5, torch.full((len(x0),), sigma)
        with torch.no_grad():
            network = host.training.loaded(model)
            found = host.training.as_denoiser(network, model=model)(x, level, **condition)
            theirs = network.apply_model(x0, level, transformer_options={}, **host.conditions.host_inputs(condition))
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-4)
    assert model.model.model_sampling is own


def test_of_the_right_velocity_it_reads_the_clean_sample():
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, KIND), {})()
    assert host.models.noise_family(sampling) is NoiseFamily.VARIANCE_EXPLODING
    assert host.models.prediction_type(sampling) == "v_prediction"
    read = host.models.reading(sampling)
    assert torch.equal(read.sigmas, sampling.sigmas)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.05, 1.0, 14.0])
    alpha = (1.0 / (1.0 + sigma**2).sqrt()).reshape(3, 1, 1, 1)
    z = alpha * (x0 + sigma.reshape(3, 1, 1, 1) * eps)
    v = alpha * (eps - sigma.reshape(3, 1, 1, 1) * x0)
    x = NoiseFamily.VARIANCE_EXPLODING.add_noise(x0, eps, sigma=sigma)
    torch.testing.assert_close(read.calculate_input(sigma, x), z)
    torch.testing.assert_close(read.calculate_denoised(sigma, v, x), x0, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sampling.calculate_denoised(sigma, v, z), x0, atol=1e-5, rtol=1e-4)
