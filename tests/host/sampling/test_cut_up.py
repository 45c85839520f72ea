"""A run that is cut up draws the whole run's picture, in KSampler Advanced and SamplerCustomAdvanced; and denoise."""

import itertools

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.host.sampling import continuing
from comfyui_fewstep.nodes.sampling import guidance, samplers
from test_guidance_distilled import guided_model, rows  # noqa: F401 (a fixture)
from test_sampling import MENU, draw, model_of, noise_of, schedule

PROMPT = digits_model.prompt("1234")
STEPS = 4
RULES = {
    "lcm": lambda: samplers.LCMSampler().make()[0],
    "tcd": lambda: samplers.TCDSampler().make(eta=0.3)[0],
    "ancestral": lambda: samplers.AncestralSampler().make(eta=1.0, s_noise=1.0)[0],
    "consistency": lambda: host.models.sampler(samplers.sample_few_step, gamma=0.5),
}
TO_ROUNDING = {"EPS": 0.0, "V_PREDICTION": 0.0, "FLOW": 5e-7}
"""Of the largest value. The host divides a flow model's latent by 1 - sigma on its way out, and multiplies it on its way in."""


@pytest.fixture(autouse=True)
def unscaled(monkeypatch):
    """Latents at scale 1, so that the host's way from node to node changes no bit."""
    monkeypatch.setattr(digits_model.DigitLatents, "process_in", lambda self, latent: latent, raising=False)
    monkeypatch.setattr(digits_model.DigitLatents, "process_out", lambda self, latent: latent, raising=False)


def same(one, other, kind):
    away = float((one - other).abs().max())
    assert away <= TO_ROUNDING[kind] * float(other.abs().max()), away


@torch.inference_mode()
def stock(model, name, latent, *, noise=None, seed=9, **steps):
    """KSampler Advanced; noise: None for add_noise disabled."""
    begun = torch.zeros_like(latent) if noise is None else noise
    return comfy.sample.sample(
        *(model, begun, STEPS, 1.0, f"fewstep_{name}", "simple", PROMPT, PROMPT, latent),
        **{"disable_pbar": True, "seed": seed, "disable_noise": noise is None, **steps},
    )


@torch.inference_mode()
def custom(model, sampler, sigmas, latent, *, seed=None):
    """SamplerCustomAdvanced; seed: of RandomNoise, None for DisableNoise."""
    noise = torch.zeros_like(latent) if seed is None else noise_of(len(latent), seed=seed)
    guider = host.models.guider(model, {"positive": PROMPT}, cfg=1.0)
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed or 0)


@pytest.mark.parametrize("kind", TO_ROUNDING)
@pytest.mark.parametrize("rule", RULES)
def test_two_ksamplers_advanced_draw_what_one_does(rule, kind):
    model, noise = model_of(kind), noise_of()
    empty = torch.zeros_like(noise)
    whole = stock(model, rule, empty, noise=noise)
    for cut in range(1, STEPS):
        half = stock(model, rule, empty, noise=noise, last_step=cut)
        same(stock(model, rule, half, start_step=cut, force_full_denoise=True), whole, kind)


@pytest.mark.parametrize("kind", TO_ROUNDING)
@pytest.mark.parametrize("rule", RULES)
def test_two_samplers_custom_advanced_draw_what_one_does(rule, kind):
    """SplitSigmas, the second behind DisableNoise, which tells the sampler no seed."""
    model, sampler = model_of(kind), RULES[rule]()
    sigmas, empty = schedule(model, steps=STEPS), torch.zeros(4, 4, 4, 4)
    drawn = []
    for seed in (5, 6):
        whole = custom(model, sampler, sigmas, empty, seed=seed)
        for cut in range(1, STEPS):
            half = custom(model, sampler, sigmas[: cut + 1], empty, seed=seed)
            same(custom(model, sampler, sigmas[cut:], half), whole, kind)
        drawn.append(whole)
    assert not torch.allclose(*drawn, atol=1e-2)


def test_what_a_cut_flow_run_is_off_is_the_hosts_rounding():
    """Its own euler, cut at the same levels, is off by as much, and ours for it by the same number."""
    model, empty = model_of("FLOW"), torch.zeros(4, 4, 4, 4)
    sigmas = schedule(model, steps=5, shift=3.0)  # levels that are no powers of two

    def off(sampler):
        whole = custom(model, sampler, sigmas, empty, seed=5)
        halves = [custom(model, sampler, sigmas[: cut + 1], empty, seed=5) for cut in range(1, 5)]
        cut_up = [custom(model, sampler, sigmas[cut:], half) for cut, half in enumerate(halves, start=1)]
        return [float((one - whole).abs().max() / whole.abs().max()) for one in cut_up]

    floor = off(comfy.samplers.sampler_object("euler"))
    assert 1e-8 < max(floor) < TO_ROUNDING["FLOW"]
    assert off(samplers.LightningSampler().make()[0]) == floor
    assert all(max(off(make())) < TO_ROUNDING["FLOW"] for make in RULES.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_run_of_single_steps_with_two_regions_is_the_whole_run(rule):
    """As a regional sampler goes: step by step, each region by its own sampling, put together after each."""
    model, noise = model_of("EPS"), noise_of()
    left = torch.zeros(4, 1, 4, 4)
    left[..., :2] = 1.0
    whole = stock(model, rule, torch.zeros_like(noise), noise=noise)
    latent = torch.zeros_like(noise)
    for step in range(STEPS):
        asked = {"noise": noise if step == 0 else None, "start_step": step, "last_step": step + 1}
        last = step + 1 == STEPS
        parts = [stock(model, rule, latent, force_full_denoise=last, **asked) for _ in range(2)]
        latent = left * parts[0] + (1.0 - left) * parts[1]
    same(latent, whole, "EPS")


def test_without_a_run_to_go_on_with_the_noise_is_the_latents_own():
    """A latent that was changed in between, or comes from elsewhere: another draws other noise, the same draws the same."""
    model, sampler = model_of("EPS"), RULES["lcm"]()
    sigmas = schedule(model, steps=STEPS)
    noises = []
    spy = host.models.sampler_function(
        lambda model, x, sigmas, extra_args=None, *, samples, **_: noises.append(samples) or x
    )
    for latent in (noise_of(seed=50), noise_of(seed=51), noise_of(seed=50)):
        custom(model, comfy.samplers.KSAMPLER(spy), sigmas[1:], latent)
    assert noises[0] == noises[2] != noises[1]
    assert 0 not in {seed for samples in noises for seed, _ in samples}
    one, other = (custom(model, sampler, sigmas[1:], noise_of(seed=50)) for _ in range(2))
    assert torch.equal(one, other)


def test_only_so_many_ends_are_kept():
    for seed in range(200):
        continuing.leave(torch.randn(1, 4, 4, 4), level=1.0, samples=[(seed, 0)])
    assert len(continuing._ends) == continuing._KEPT
    continuing.leave(torch.ones(1, 4, 4, 4), level=0.0, samples=[(1, 0)])
    assert continuing._ends[-1].samples == [(199, 0)]


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_a_batch_is_its_pictures_one_by_one(kind):
    """Without fresh noise; to the rounding of kernels that depend on the batch's size."""
    model = model_of(kind)
    sigmas = schedule(model)
    noise, empty = noise_of(), torch.zeros(1, 4, 4, 4)
    whole = draw(model, samplers.LightningSampler().make()[0], sigmas)
    for place in range(4):
        prompt = digits_model.prompt("1234"[place])
        guider = host.models.guider(model, {"positive": prompt}, cfg=1.0)
        with torch.inference_mode():
            alone = guider.sample(
                noise[place : place + 1],
                empty,
                samplers.LightningSampler().make()[0],
                sigmas,
                disable_pbar=True,
                seed=7,
            )
        torch.testing.assert_close(alone[0], whole[place], rtol=1e-3, atol=1e-3)


# --- inside a sampler that wraps another ---------------------------------------------------------------------------------


def wrapping(sampler):
    """As Detail Daemon does: the model behind a function, the levels changed a little, attributes handed on."""

    def function(model, x, sigmas, **named):
        def changed(x, sigma, **rest):
            return model(x, sigma, **rest)

        changed.inner_model, changed.sigmas = model.inner_model, sigmas
        return sampler.sampler_function(changed, x, sigmas, **named, **sampler.extra_options)

    return comfy.samplers.KSAMPLER(function)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_guidance_distilled_inside_a_wrapper_costs_one_forward_and_takes_the_scale(gamma, rows):  # noqa: F811
    (inner,) = guidance.GuidanceDistilledSampler().make(gamma)
    sigmas, model = schedule(guided_model(), steps=STEPS), guided_model()
    prompts = {"positive": PROMPT, "negative": digits_model.prompt("9999")}
    guider, noise = host.models.guider(model, prompts, cfg=7.5), noise_of()
    with torch.inference_mode():
        drawn = guider.sample(noise, torch.zeros_like(noise), wrapping(inner), sigmas, disable_pbar=True, seed=3)
        assert rows == [4] * STEPS
        assert guider.cfg == 7.5
        plain = guider.sample(noise, torch.zeros_like(noise), inner, sigmas, disable_pbar=True, seed=3)
    assert torch.equal(drawn, plain)
    ordinary = host.models.sampler(samplers.sample_few_step, gamma=gamma)
    with torch.inference_mode():
        at_scale = host.models.guider(guided_model(7.5), {"positive": PROMPT}, cfg=1.0).sample(
            noise, torch.zeros_like(noise), ordinary, sigmas, disable_pbar=True, seed=3
        )
    assert torch.equal(drawn, at_scale)


# --- denoise -------------------------------------------------------------------------------------------------------------

DENOISES = [k / 10 for k in range(1, 11)]
CHEAP = {(0.1, 1), (0.1, 8), (0.3, 4), (0.5, 2), (1.0, 1), (1.0, 8)}


def schedules_of(kind):
    names = [name for name in comfy.samplers.KSampler.SCHEDULERS if name.startswith("fewstep_")]
    of_flow = ("fewstep_trailing", "fewstep_twice_shifted", "fewstep_log_snr")
    not_of_others = ("fewstep_twice_shifted", "fewstep_log_snr")
    return ["simple", *(name for name in names if (name in of_flow if kind == "FLOW" else name not in not_of_others))]


@pytest.mark.parametrize(
    ("denoise", "steps"),
    [
        pytest.param(*pair, marks=() if pair in CHEAP else pytest.mark.thorough)
        for pair in itertools.product(DENOISES, range(1, 9))
    ],
)
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@torch.inference_mode()
def test_every_sampler_and_schedule_takes_every_denoise(kind, denoise, steps):
    """KSampler as image to image: as many steps as are asked for, from no higher a level than the stock schedule's by a step."""
    model, latent = model_of(kind), noise_of(seed=5)
    sampling = host.models.model_sampling_of(model)
    top = float(host.models.noise_levels(sampling)[-1])
    for scheduler in schedules_of(kind):
        host_ksampler = comfy.samplers.KSampler(
            model, steps=steps, device=torch.device("cpu"), sampler="euler", scheduler=scheduler, denoise=denoise
        )
        assert len(host_ksampler.sigmas) == steps + 1
        assert float(host_ksampler.sigmas[0]) <= top * 1.0001
        whole = comfy.samplers.calculate_sigmas(sampling, scheduler, int(steps / denoise) if denoise < 1.0 else steps)
        assert torch.equal(host_ksampler.sigmas.cpu(), whole[-(steps + 1) :].cpu()), (
            "the tail, as of the stock schedulers"
        )
        for name in MENU:
            drawn = comfy.sample.sample(
                *(model, noise_of(), steps, 1.0, name, scheduler, PROMPT, PROMPT, latent),
                **{"denoise": denoise, "disable_pbar": True, "seed": 1},
            )
            assert torch.isfinite(drawn).all(), (name, scheduler)
