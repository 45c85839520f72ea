"""Real architectures of the host, small and random, through the host's own nodes and against diffusers' schedulers."""

import functools
import importlib
import importlib.util
import itertools

import diffusers.schedulers.scheduling_flow_match_lcm as diffusers_flow_lcm
import diffusers.schedulers.scheduling_lcm as diffusers_lcm
import diffusers.schedulers.scheduling_tcd as diffusers_tcd
import pytest
import torch
from architectures import conditioning, kinds, latent_channels, model_inputs, noise_for, tiny
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

import comfy.sample  # isort: skip  # architectures made it importable
import comfy.samplers  # isort: skip
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.sampling import model_sampling, samplers, schedules
from comfyui_fewstep.samplers.few_step import sample_few_step, sample_tcd
from comfyui_fewstep.samplers.noise import NoiseFamily

TABLE = ("sd15", "sd2_v", "sdxl")
FLOW = ("sd3", "flux")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
THEIR_NAMES = {"eps": "epsilon", "v_prediction": "v_prediction"}
SAMPLERS = {
    "fewstep_lcm": lambda: samplers.LCMSampler().make(),
    "fewstep_lightning": lambda: samplers.LightningSampler().make(),
    "fewstep_tcd": lambda: samplers.TCDSampler().make(eta=0.3),
}
STEPS = 4
model_of = functools.cache(tiny)  # no test changes a model: patches go on clones


@pytest.fixture(scope="module", autouse=True)
def no_model_outlives_its_tests():
    """Hosts of 2025 complain of patchers that the end of the process finds alive."""
    yield
    model_of.cache_clear()


# --- the host's own nodes --------------------------------------------------------------------------------------------


def run(name, **inputs):
    """The first output of a stock node, wherever the host keeps the class."""
    embedded = importlib.util.find_spec("comfy.nodes") is not None
    places = (
        ("comfy.nodes.base_nodes", "comfy_extras.nodes.nodes_custom_sampler")
        if embedded
        else ("nodes", "comfy_extras.nodes_custom_sampler")
    )
    node = next(getattr(place, name) for place in map(importlib.import_module, places) if hasattr(place, name))
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def prompts(kind):
    return {"positive": conditioning(kind, seed=1), "negative": conditioning(kind, seed=2)}


def empty_latent(model):
    """With the model's own channels: to make them of four empty ones, the host of June 2024 runs into a NameError."""
    return {"samples": torch.zeros_like(noise_for(model))}


def picture_latent(model):
    """Of unit variance in the model's own scale, as a VAE's latents are."""
    return model.model.process_latent_out(noise_for(model, seed=5))


def ksampler(kind, name, *, scheduler="simple", steps=STEPS, seed=7, cfg=1.0, latent=None, denoise=1.0):
    model = model_of(kind)
    settings = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": name, "scheduler": scheduler}
    latent = latent or empty_latent(model)
    return run("KSampler", model=model, **settings, **prompts(kind), latent_image=latent, denoise=denoise)["samples"]


def sampler_custom(kind, sampler, sigmas, *, seed=7, cfg=1.0):
    model = model_of(kind)
    settings = {"add_noise": True, "noise_seed": seed, "cfg": cfg, "sampler": sampler, "sigmas": sigmas}
    return run("SamplerCustom", model=model, **settings, **prompts(kind), latent_image=empty_latent(model))["samples"]


def sampler_custom_advanced(kind, guider, sampler, sigmas, *, seed=7):
    noise = run("RandomNoise", noise_seed=seed)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    return run("SamplerCustomAdvanced", **inputs, latent_image=empty_latent(model_of(kind)))["samples"]


def schedule(model, name="trailing", steps=STEPS, **options):
    return schedules.Schedule().make(model, name, steps, **options)[0]


@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_the_models_are_small_and_listen_to_all_that_they_are_given(kind):
    model, prompt, x = model_of(kind), conditioning(kind, seed=1, batch=2), noise_for(model_of(kind))
    ((text, options),) = conditioning(kind, seed=2, batch=2)
    assert sum(weight.numel() for weight in model.model.diffusion_model.parameters()) < 5e6
    assert {weight.dtype for weight in model.model.state_dict().values()} == {torch.float32}
    assert latent_channels(model) == (16 if kind in FLOW else 4)
    time = 0.5 if kind == "flux" else 500.0
    drawn = predict(model, prompt)(x, time)
    others = {
        "x": predict(model, prompt)(-x, time),
        "time": predict(model, prompt)(x, 1.9 * time),
        "text": predict(model, [[text, prompt[0][1]]])(x, time),
        "seed": predict(tiny(kind, seed=1), prompt)(x, time),
    }
    if kind not in ("sd15", "sd2_v"):
        others["pooled"] = predict(model, [[prompt[0][0], options]])(x, time)
    for name, other in others.items():
        assert torch.isfinite(other).all(), name
        assert 0.1 < float(other.std()) < 10.0, name
        assert (other - drawn).abs().mean() > 0.01, name


@pytest.mark.parametrize(("scheduler", "cfg"), [("simple", 1.0), ("simple", 3.0), ("fewstep_trailing", 1.0)])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_the_ksampler_and_both_custom_samplers_draw_the_same(kind, name, scheduler, cfg):
    if scheduler not in comfy.samplers.KSampler.SCHEDULERS:
        pytest.skip("this host lets no pack add schedulers")
    model, (sampler,) = model_of(kind), SAMPLERS[name]()
    sigmas = run("BasicScheduler", model=model, scheduler=scheduler, steps=STEPS, denoise=1.0)
    if scheduler == "fewstep_trailing":
        assert torch.equal(sigmas, schedule(model))
    drawn = ksampler(kind, name, scheduler=scheduler, cfg=cfg)
    assert drawn.shape == noise_for(model).shape
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, sampler_custom(kind, sampler, sigmas, cfg=cfg))
    assert torch.equal(drawn, sampler_custom(kind, run("KSamplerSelect", sampler_name=name), sigmas, cfg=cfg))
    guider = run("CFGGuider", model=model, cfg=cfg, **prompts(kind))
    assert torch.equal(drawn, sampler_custom_advanced(kind, guider, sampler, sigmas))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", ["trailing", "lcm"])
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_the_seed_decides_every_sampler_on_every_schedule(kind, grid, name):
    """The second time through SamplerCustomAdvanced without guidance, which cfg 1 is."""
    if kind in FLOW and grid != "trailing":
        pytest.skip("the lcm schedule is not for flow models")
    model, (sampler,) = model_of(kind), SAMPLERS[name]()
    guider = run("BasicGuider", model=model, conditioning=prompts(kind)["positive"])
    drawn = sampler_custom(kind, sampler, schedule(model, grid))
    again = sampler_custom_advanced(kind, guider, sampler, schedule(model, grid))
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, again)
    assert (drawn - sampler_custom(kind, sampler, schedule(model, grid), seed=8)).abs().mean() > 0.1


# --- against diffusers -----------------------------------------------------------------------------------------------


def predict(model, prompt):
    """The bare network (x, t) -> eps, v or velocity, called as diffusers' pipelines call theirs."""
    inputs = model_inputs(model, prompt)
    return lambda x, t: model.model.diffusion_model(x, torch.full((len(x),), float(t)), **inputs)


def ours(model, sampler, sigmas, prompt):
    """x at every level of a schedule, and what came out, in the model's scale."""
    seen, noise = [], noise_for(model)
    drawn = comfy.sample.sample_custom(
        *(model, noise, 1.0, sampler, sigmas, prompt, prompt, torch.zeros_like(noise)),
        callback=lambda step, x0, x, total: seen.append(x.clone()),
        disable_pbar=True,
        seed=7,
    )
    return [*seen, model.model.process_latent_in(drawn)]


def theirs(scheduler, network, x, **options):
    """The same with a scheduler of diffusers."""
    seen = []
    for t in scheduler.timesteps:
        seen.append(x)
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
    return [*seen, x]


def in_vp_scale(walk, sigmas):
    return [x / (1.0 + sigma**2) ** 0.5 for x, sigma in zip(walk, sigmas, strict=True)]


def assert_same(walk, other):
    for i, (x, expected) in enumerate(zip(walk, other, strict=True)):
        error = float((x - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        assert error < 1e-5, f"step {i}: {error}"


def fresh_noise(model, steps, monkeypatch, module):
    """A noise sampler of ours whose draws the diffusers module gets too."""
    fresh = [noise_for(model, seed=10 + i) for i in range(steps)]
    mine, other = iter(fresh), iter(fresh)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(other))
    return lambda *_: next(mine)


def scheduler_for(model, made, steps, **options):
    prediction = THEIR_NAMES[host.models.prediction_type(host.models.model_sampling_of(model))]
    scheduler = made(**SD, prediction_type=prediction, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("kind", kinds(*TABLE))
@torch.inference_mode()
def test_lcm_is_diffusers_lcm(kind, steps, monkeypatch):
    (model,), prompt = model_sampling.LCMModel().patch(model_of(kind)), conditioning(kind, batch=2)
    noise_sampler = fresh_noise(model, steps, monkeypatch, diffusers_lcm)
    sigmas = schedule(model, "lcm", steps)
    walk = ours(model, host.models.sampler(sample_few_step, gamma=1.0, noise_sampler=noise_sampler), sigmas, prompt)
    other = theirs(scheduler_for(model, LCMScheduler, steps), predict(model, prompt), noise_for(model))
    assert_same(in_vp_scale(walk, sigmas), other)


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("kind", kinds(*TABLE))
@torch.inference_mode()
def test_tcd_is_diffusers_tcd(kind, steps, monkeypatch):
    model, prompt = model_of(kind), conditioning(kind, batch=2)
    noise_sampler = fresh_noise(model, steps, monkeypatch, diffusers_tcd)
    sigmas = schedule(model, "tcd", steps)
    walk = ours(model, host.models.sampler(sample_tcd, eta=0.3, noise_sampler=noise_sampler), sigmas, prompt)
    other = theirs(scheduler_for(model, TCDScheduler, steps), predict(model, prompt), noise_for(model), eta=0.3)
    assert_same(in_vp_scale(walk, sigmas), other)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("kind", kinds(*TABLE))
@torch.inference_mode()
def test_lightning_is_diffusers_euler_trailing(kind, steps):
    model, prompt = model_of(kind), conditioning(kind, batch=2)
    sigmas, network = schedule(model, steps=steps), predict(model, prompt)
    walk = ours(model, samplers.LightningSampler().make()[0], sigmas, prompt)
    scheduler = scheduler_for(model, EulerDiscreteScheduler, steps, timestep_spacing="trailing")
    start = NoiseFamily.VARIANCE_EXPLODING.initial(noise_for(model), sigma=sigmas[0])
    other = theirs(scheduler, lambda x, t: network(scheduler.scale_model_input(x, t), t), start)
    assert_same(in_vp_scale(walk, sigmas), in_vp_scale(other, sigmas))


def flow_scheduler(kind, scheduler, sigmas, network):
    """The scheduler on our levels, and the network at its timesteps; Flux's time runs from 0 to 1, there as here."""
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    unit = 1000.0 if kind == "flux" else 1.0
    return scheduler, lambda x, t: network(x, t / unit)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("kind", kinds(*FLOW))
@torch.inference_mode()
def test_lightning_is_diffusers_euler_for_flow_models(kind, steps):
    model, prompt = model_of(kind), conditioning(kind, batch=2)
    sigmas, network = schedule(model, steps=steps), predict(model, prompt)
    walk = ours(model, samplers.LightningSampler().make()[0], sigmas, prompt)
    assert_same(
        walk, theirs(*flow_scheduler(kind, FlowMatchEulerDiscreteScheduler(), sigmas, network), noise_for(model))
    )


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("kind", kinds(*FLOW))
@torch.inference_mode()
def test_lcm_is_diffusers_lcm_for_flow_models(kind, steps, monkeypatch):
    model, prompt = model_of(kind), conditioning(kind, batch=2)
    noise_sampler = fresh_noise(model, steps, monkeypatch, diffusers_flow_lcm)
    sigmas, network = schedule(model, steps=steps), predict(model, prompt)
    walk = ours(model, host.models.sampler(sample_few_step, gamma=1.0, noise_sampler=noise_sampler), sigmas, prompt)
    assert_same(walk, theirs(*flow_scheduler(kind, FlowMatchLCMScheduler(), sigmas, network), noise_for(model)))


# --- from a picture --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_denoise_says_how_far_a_picture_is_left(kind, name):
    latent = picture_latent(model_of(kind))
    share = (0.05, 0.5, 1.0)
    drawn = [ksampler(kind, name, steps=2, latent={"samples": latent}, denoise=denoise) for denoise in share]
    assert all(torch.isfinite(d).all() for d in drawn)
    slightly, halfway, wholly = (float((d - latent).abs().mean() / latent.abs().mean()) for d in drawn)
    assert 0.0 < slightly < 0.35 * wholly
    assert slightly < 0.5 * halfway
    assert (drawn[1] - drawn[2]).abs().mean() > 0.1 * latent.abs().mean()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_inpainting_keeps_what_the_mask_protects(kind, name):
    latent = picture_latent(model_of(kind))
    mask = torch.zeros_like(latent[:, :1])
    mask[..., 3:] = 1.0
    drawn = ksampler(kind, name, latent={"samples": latent, "noise_mask": mask})
    torch.testing.assert_close(drawn[..., :3], latent[..., :3], atol=1e-4, rtol=1e-4)
    assert (drawn[..., 3:] - latent[..., 3:]).abs().mean() > 0.1 * latent.abs().mean()


@pytest.mark.parametrize("name", ["fewstep_lcm", "fewstep_tcd"])
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_previews_show_the_clean_picture_of_the_step(kind, name):
    model, prompt, shown = model_of(kind), conditioning(kind, batch=2), []
    sigmas, noise = schedule(model), noise_for(model)
    comfy.sample.sample_custom(
        *(model, noise, 1.0, SAMPLERS[name]()[0], sigmas, prompt, prompt, torch.zeros_like(noise)),
        callback=lambda step, x0, x, total: shown.append((step, total, x0.clone(), x.clone())),
        disable_pbar=True,
        seed=7,
    )
    inputs = model_inputs(model, prompt)
    text = inputs.pop("context")
    assert [(step, total) for step, total, *_ in shown] == [(i, STEPS) for i in range(STEPS)]
    for (_, _, x0, x), sigma in zip(shown, sigmas[:-1], strict=True):
        expected = model.model.apply_model(x, sigma.expand(len(x)), c_crossattn=text, **inputs)
        torch.testing.assert_close(x0, expected, atol=1e-5, rtol=1e-5)
    assert all((now[2] - then[3]).abs().mean() > 0.1 for now, then in itertools.pairwise(shown))
