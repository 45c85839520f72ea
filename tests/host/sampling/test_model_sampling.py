"""How a model's output is read: against what diffusers' schedulers make of the same output."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from diffusers import CMStochasticIterativeScheduler, LCMScheduler

import_host()

import comfy.samplers
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.sampling import model_sampling, samplers
from comfyui_fewstep.samplers.boundary import consistency_scalings, lcm_scalings
from test_sampling import model_of, noise_of, schedule
from test_schedules_of_kinds import sampling

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
THEIR_NAMES = {"eps": "epsilon", "v_prediction": "v_prediction", "x0": "sample"}


def reading(model):
    return host.models.model_sampling_of(model)


@pytest.mark.parametrize("timesteps", [None, [2, 1, 0]], ids=["of 8 steps", "the first"])
@pytest.mark.parametrize("prediction", ["eps", "v_prediction", "x0"])
def test_lcm_reads_every_prediction_type_as_diffusers_does(prediction, timesteps):
    """At the first timesteps too, where alone there is something left of x in its boundary."""
    (model,) = model_sampling.PredictionType().patch(model_of("EPS"), prediction)
    (model,) = model_sampling.LCMModel().patch(model)
    assert host.models.prediction_type(reading(model)) == prediction
    scheduler = LCMScheduler(**SD, prediction_type=THEIR_NAMES[prediction])
    scheduler.set_timesteps(None if timesteps else 8, timesteps=timesteps)
    x_vp, output = noise_of(seed=1), noise_of(seed=2)
    table = host.models.noise_levels(reading(model))
    for t in scheduler.timesteps:
        sigma = table[int(t)]
        x = x_vp * (1.0 + sigma**2) ** 0.5
        ours = reading(model).calculate_denoised(sigma.expand(4), output, x)
        theirs = scheduler.step(output, t, x_vp).denoised
        assert (ours - theirs).abs().max() / max(1.0, theirs.abs().max()) < 1e-5, int(t)


def test_a_v_prediction_lcm_keeps_its_prediction_type():
    """The stock node would read it as eps."""
    (model,) = model_sampling.LCMModel().patch(model_of("V_PREDICTION"))
    assert host.models.prediction_type(reading(model)) == "v_prediction"
    assert torch.equal(
        host.models.noise_levels(reading(model)), host.models.noise_levels(reading(model_of("V_PREDICTION")))
    )


def test_the_connected_model_is_not_changed():
    model = model_of("EPS")
    model_sampling.PredictionType().patch(model, "x0")
    assert host.models.prediction_type(reading(model)) == "eps"


def test_one_step_of_an_x0_model_is_its_output():
    (model,) = model_sampling.PredictionType().patch(model_of("EPS"), "x0")
    assert torch.equal(
        reading(model).calculate_denoised(torch.tensor([14.6]), noise_of(1), noise_of(1, 5)), noise_of(1)
    )


def test_consistency_models_are_read_as_diffusers_reads_them():
    (model,) = model_sampling.ConsistencyModel().patch(model_of("EDM"), sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(1)
    x, output, sigma = noise_of(seed=1) * 80, noise_of(seed=2), torch.tensor([80.0] * 4)
    torch.testing.assert_close(reading(model).timestep(sigma)[0], scheduler.timesteps[0].float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        reading(model).calculate_input(sigma, x), scheduler.scale_model_input(x, scheduler.timesteps[0])
    )
    theirs = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    torch.testing.assert_close(reading(model).calculate_denoised(sigma, output, x), theirs, atol=1e-5, rtol=1e-5)
    sigmas = schedule(model, "consistency", 4)
    assert float(sigmas[0]) == pytest.approx(80.0, rel=1e-4)
    assert samplers.ConsistencySampler().make(gamma=1.0, s_noise=1.0, sigma_min=0.002, unit_variance_start=False)


@pytest.mark.parametrize("read_as", ["lcm", "v_prediction", "x0", "consistency"])
def test_the_hosts_own_schedules_fall_from_the_models_levels(read_as):
    """Those of evenly spaced timesteps ask a level its time and a time its level."""
    (model,) = {
        "lcm": lambda: model_sampling.LCMModel().patch(model_of("EPS")),
        "consistency": lambda: model_sampling.ConsistencyModel().patch(
            model_of("EDM"), sigma_data=0.5, sigma_min=0.002, sigma_max=80.0
        ),
    }.get(read_as, lambda: model_sampling.PredictionType().patch(model_of("EPS"), read_as))()
    own = reading(model)
    levels = torch.linspace(float(own.sigma_min), float(own.sigma_max), 7)[1:]
    torch.testing.assert_close(own.sigma(own.timestep(levels)), levels, rtol=2e-2, atol=0.0)
    for name in comfy.samplers.KSampler.SCHEDULERS:
        if not name.startswith("fewstep_"):
            sigmas = comfy.samplers.calculate_sigmas(own, name, 5)
            assert 0.0 < sigmas[0] < 1.001 * own.sigma_max, name
            assert (sigmas.diff() < 0.0).all(), name


def test_boundaries_are_the_identity_where_noise_ends():
    c_skip, c_out = consistency_scalings(torch.tensor(0.002), sigma_data=0.5, sigma_min=0.002)
    assert (float(c_skip), float(c_out)) == (1.0, 0.0)
    c_skip, c_out = lcm_scalings(torch.tensor(0))
    assert (float(c_skip), float(c_out)) == (1.0, 0.0)
    c_skip, c_out = lcm_scalings(torch.tensor(19))
    assert float(c_skip) == pytest.approx(6.9e-6, rel=0.01)


@pytest.mark.parametrize("kind", ["FLOW", "EDM"])
def test_other_kinds_are_refused_by_name(kind):
    with pytest.raises(ValueError, match="for eps-, v- and x0-models"):
        model_sampling.LCMModel().patch(model_of(kind))


@pytest.mark.parametrize(
    ("levels", "prediction"),
    [
        ("ModelSamplingContinuousEDM", "EPS"),
        ("ModelSamplingContinuousEDM", "V_PREDICTION"),
        ("StableCascadeSampling", "EPS"),
    ],
)
def test_a_model_without_training_timesteps_has_no_boundary_of_lcm(levels, prediction):
    """What they call their levels, -2 to 1 or 0 to 1, would be read as the first of a thousand: noise came out as x0."""
    model = model_of(prediction).clone()
    model.add_object_patch("model_sampling", sampling(levels, prediction))
    with pytest.raises(ValueError, match=f"made of training timesteps, .* this model has none.*{levels}"):
        model_sampling.LCMModel().patch(model)


@pytest.mark.parametrize("least", [1.0, 0.5])
def test_bad_levels_are_named(least):
    with pytest.raises(ValueError, match=rf"sigma_min is {least} and sigma_max is 0\.5"):
        model_sampling.ConsistencyModel().patch(model_of("EDM"), sigma_data=0.5, sigma_min=least, sigma_max=0.5)


def test_a_flow_model_is_no_consistency_model_of_theirs():
    """Its pictures were of values up to 3e8."""
    with pytest.raises(ValueError, match=r"is a flow model, .* Leave this node out"):
        model_sampling.ConsistencyModel().patch(model_of("FLOW"), sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)
