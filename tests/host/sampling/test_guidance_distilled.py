"""Guidance-distilled sampling: the scale in the network, one forward a step, from KSampler's cfg and from a guider."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from torch.nn import Linear

import_host()

import comfy.sample
import comfy.samplers
from architectures import conditioning, kinds, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.sampling import guidance, recipes, samplers
from test_sampling import model_of, noise_of, schedule

BATCH = 4
PROMPT = digits_model.prompt("1234")
NO_PROMPT = digits_model.prompt("")


def guided_model(scale=1.0, kind="V_PREDICTION"):
    cond_proj = torch.randn(32, 16, generator=torch.Generator().manual_seed(5))
    return host.guidance.with_guidance_embedding(model_of(kind), cond_proj, guidance_scale=scale)


@pytest.fixture
def rows(monkeypatch):
    """The number of samples in every call of the network."""
    seen = []
    forward = comfy.model_base.BaseModel.apply_model

    def counted(self, x, *rest, **named):
        seen.append(len(x))
        return forward(self, x, *rest, **named)

    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model", counted)
    return seen


@torch.inference_mode()
def ksampler(model, name, *, cfg, negative=NO_PROMPT, steps=4):
    noise = noise_of(BATCH)
    return comfy.sample.sample(
        model, noise, steps, cfg, name, "simple", PROMPT, negative, torch.zeros_like(noise), disable_pbar=True, seed=3
    )


@torch.inference_mode()
def advanced(guider, sampler, sigmas):
    """As SamplerCustomAdvanced does it."""
    noise = noise_of(BATCH)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=3)


@pytest.mark.parametrize(
    ("distilled", "ordinary"),
    [("fewstep_guidance_distilled", "fewstep_lightning"), ("fewstep_guidance_distilled_lcm", "fewstep_lcm")],
)
def test_ksamplers_cfg_goes_into_the_network_at_one_forward_a_step(distilled, ordinary, rows):
    drawn = ksampler(guided_model(), distilled, cfg=7.5)
    assert rows == [BATCH] * 4
    assert torch.equal(drawn, ksampler(guided_model(7.5), ordinary, cfg=1.0))
    assert not torch.equal(drawn, ksampler(guided_model(), distilled, cfg=3.0))


def test_an_ordinary_sampler_would_pay_twice(rows):
    ksampler(guided_model(), "fewstep_lightning", cfg=7.5)
    assert sum(rows) == 2 * BATCH * 4


def test_the_guider_costs_one_forward_a_step_with_any_sampler(rows):
    model = guided_model()
    (guider,) = guidance.GuidanceDistilledGuider().make(model, PROMPT, 7.5)
    sigmas = schedule(model, steps=4)
    drawn = advanced(guider, comfy.samplers.sampler_object("euler"), sigmas)
    assert rows == [BATCH] * 4
    (sampler,) = samplers.LightningSampler().make()
    (plain,) = guidance.GuidanceDistilledGuider().make(guided_model(3.0), PROMPT, 7.5)
    assert torch.equal(drawn, advanced(plain, sampler, sigmas)), "the guider's scale replaces the model's"
    (distilled,) = guidance.GuidanceDistilledSampler().make(0.0)
    assert torch.equal(drawn, advanced(guider, distilled, sigmas)), "both together ask for the guider's scale"


def test_the_negative_prompt_is_not_evaluated():
    one = ksampler(guided_model(), "fewstep_guidance_distilled", cfg=7.5)
    other = ksampler(guided_model(), "fewstep_guidance_distilled", cfg=7.5, negative=digits_model.prompt("9"))
    assert torch.equal(one, other)


def test_the_model_keeps_its_own_scale_afterwards():
    model = guided_model(3.0)
    embedding = model.object_patches["diffusion_model.time_embed"]
    before = ksampler(model, "fewstep_lightning", cfg=1.0)
    ksampler(model, "fewstep_guidance_distilled", cfg=7.5)
    assert embedding.guidance_scale == 3.0
    with pytest.raises(ValueError, match=r"guidance_scale is 0\.5"):
        ksampler(model, "fewstep_guidance_distilled", cfg=0.5)
    assert torch.equal(before, ksampler(model, "fewstep_lightning", cfg=1.0))


def test_a_guider_can_sample_twice():
    model = guided_model()
    guider = host.models.guider(model, {"positive": PROMPT, "negative": NO_PROMPT}, cfg=5.0)
    (sampler,) = guidance.GuidanceDistilledSampler().make(1.0)
    sigmas = schedule(model, steps=3)
    assert torch.equal(advanced(guider, sampler, sigmas), advanced(guider, sampler, sigmas))
    assert guider.cfg == 5.0


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_a_model_without_guidance_input_is_refused(kind):
    with pytest.raises(ValueError, match=r"no guidance input\. For a full LCM checkpoint put Guidance Embedding"):
        ksampler(model_of(kind), "fewstep_guidance_distilled", cfg=3.0)
    with pytest.raises(ValueError, match="no guidance input"):
        guidance.GuidanceDistilledGuider().make(model_of(kind), PROMPT, 3.0)


class _TwoScales(comfy.samplers.CFGGuider):
    """As DualCFGGuider: more than one scale, none of which is the cfg."""

    def predict_noise(self, *given, **named):
        return super().predict_noise(*given, **named)


@pytest.mark.parametrize(
    ("kind", "prompts"),
    [
        (host.guidance.OnePromptGuider, {"positive": PROMPT}),
        (comfy.samplers.CFGGuider, {"positive": PROMPT}),
        (_TwoScales, {"positive": PROMPT, "negative": NO_PROMPT}),
    ],
)
def test_a_guider_without_cfg_is_refused(kind, prompts):
    (sampler,) = guidance.GuidanceDistilledSampler().make(0.0)
    model = guided_model()
    guider = kind(model)
    guider.inner_set_conds(prompts)
    with pytest.raises(ValueError, match=f"takes its scale from the cfg, but {kind.__name__} has none"):
        advanced(guider, sampler, schedule(model))


HAS_WRAPPERS = hasattr(model_of("EPS"), "add_wrapper")


def overridden(model, cfg, *, down_to=0.0):
    """As CFG Override: another cfg at levels from the top down to one."""

    def other_cfg(executor, x, timestep, *rest, **named):
        guider = executor.class_obj
        before = guider.cfg
        try:
            guider.cfg = cfg if float(timestep[0]) >= down_to else before
            return executor(x, timestep, *rest, **named)
        finally:
            guider.cfg = before

    clone = model.clone()
    clone.add_wrapper("predict_noise", other_cfg)
    return clone


@pytest.mark.skipif(not HAS_WRAPPERS, reason="no node of this host sets another cfg for a step")
@pytest.mark.parametrize("way", ["sampler", "guider", "guider and host's sampler"])
def test_a_cfg_that_a_patch_sets_for_some_steps_goes_into_the_network_too(way, rows):
    """Of these steps alone, and still at one forward each."""
    (distilled,) = guidance.GuidanceDistilledSampler().make(0.0)
    sigmas = schedule(guided_model(), steps=4)

    def draw(model, cfg):
        if way == "sampler":
            return advanced(
                host.models.guider(model, {"positive": PROMPT, "negative": NO_PROMPT}, cfg=cfg), distilled, sigmas
            )
        made = distilled if way == "guider" else comfy.samplers.sampler_object("euler")
        return advanced(guidance.GuidanceDistilledGuider().make(model, PROMPT, cfg)[0], made, sigmas)

    asked = draw(guided_model(), 3.0)
    assert torch.equal(draw(overridden(guided_model(), 3.0), 7.0), asked)
    rows.clear()
    partly = draw(overridden(guided_model(), 3.0, down_to=float(sigmas[1])), 7.0)
    assert rows == [BATCH] * 4
    assert not torch.equal(partly, asked)
    first, second = sigmas[:3], sigmas[2:]
    noise, none = noise_of(BATCH), torch.zeros(BATCH, 4, 4, 4)
    (lightning,) = samplers.LightningSampler().make()
    with torch.inference_mode():
        one, other = (host.models.guider(guided_model(scale), {"positive": PROMPT}, cfg=1.0) for scale in (3.0, 7.0))
        half = one.sample(noise, none, lightning, first, disable_pbar=True, seed=3)
        whole = other.sample(none, half, lightning, second, disable_pbar=True, seed=3)
    torch.testing.assert_close(partly, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not HAS_WRAPPERS, reason="no node of this host sets another cfg for a step")
def test_a_cfg_that_a_patch_sets_wants_a_negative_prompt():
    """Without one the host takes zeros for what it predicts: the picture times the cfg."""
    model, sigmas = overridden(model_of("EPS"), 3.0), schedule(model_of("EPS"))
    (lightning,) = samplers.LightningSampler().make()
    with pytest.raises(ValueError, match=r"carries a cfg of 3 \(CFG Override, say\), .* connect negative"):
        advanced(host.models.guider(model, {"positive": PROMPT}, cfg=1.0), lightning, sigmas)
    name = "SDXL-Lightning, 4 steps"
    guider = recipes.ApplyRecipe().apply(model, name, positive=PROMPT, negative=NO_PROMPT)[4]
    both = host.models.guider(model_of("EPS"), {"positive": PROMPT, "negative": NO_PROMPT}, cfg=3.0)
    assert torch.equal(advanced(guider, lightning, sigmas), advanced(both, lightning, sigmas))


@pytest.mark.parametrize("way", ["one prompt", "guider", "sampler"])
def test_what_wants_the_negative_prediction_whatever_the_cfg_is_refused_where_there_is_none(way):
    """CFG++ samplers and Self-Attention Guidance: the host gave them zeros, and the picture was another."""

    def asking(inner, x, sigmas, extra_args=None, **_):
        options = {**extra_args["model_options"], "disable_cfg1_optimization": True}
        return inner(x, sigmas[0].expand(len(x)), **{**extra_args, "model_options": options})

    model, sigmas = guided_model(3.0), schedule(guided_model(), steps=4)
    made = comfy.samplers.KSAMPLER(asking)
    if way == "sampler":
        model.model_options["disable_cfg1_optimization"] = True
        (made,) = guidance.GuidanceDistilledSampler().make(0.0)
        guider = host.models.guider(model, {"positive": PROMPT, "negative": NO_PROMPT}, cfg=3.0)
    elif way == "guider":
        (guider,) = guidance.GuidanceDistilledGuider().make(model, PROMPT, 3.0)
    else:
        guider = host.models.guider(model, {"positive": PROMPT}, cfg=1.0)
        both = host.models.guider(model, {"positive": PROMPT, "negative": NO_PROMPT}, cfg=1.0)
        assert advanced(both, made, sigmas).isfinite().all()
        assert advanced(guider, comfy.samplers.sampler_object("dpmpp_2m"), sigmas).isfinite().all()
    with pytest.raises(ValueError, match=r"one of CFG\+\+.* wants what is predicted for a negative prompt"):
        advanced(guider, made, sigmas)


@pytest.mark.parametrize("kind", kinds("flux"))
@torch.inference_mode()
def test_the_hosts_own_guidance_input_takes_the_scale(kind, rows):
    """Flux dev's: the cfg equals a prompt that carries the guidance, and the prompt's own is replaced."""
    model, noise = tiny(kind), noise_for(tiny(kind))
    prompt = conditioning(kind)
    prompt_of = lambda scale: [[text, {**options, "guidance": scale}] for text, options in prompt]  # noqa: E731
    negative = conditioning(kind, seed=1)

    def draw(name, positive, cfg, model=model):
        empty = torch.ones_like(noise)  # an empty one would have its channels counted wrongly by some hosts
        return comfy.sample.sample(
            model, noise, 3, cfg, name, "simple", positive, negative, empty, disable_pbar=True, seed=3
        )

    drawn = draw("fewstep_guidance_distilled", prompt, 7.5)
    assert rows == [len(noise)] * 3
    assert torch.equal(drawn, draw("fewstep_lightning", prompt_of(7.5), 1.0))
    assert not torch.equal(drawn, draw("fewstep_lightning", prompt, 1.0))
    (guider,) = guidance.GuidanceDistilledGuider().make(model, prompt, 7.5)
    (sampler,) = samplers.LightningSampler().make()
    sigmas = comfy.samplers.calculate_sigmas(host.models.model_sampling_of(model), "simple", 3)
    guided = guider.sample(noise, torch.ones_like(noise), sampler, sigmas, disable_pbar=True, seed=3)
    assert torch.equal(drawn, guided)
    assert prompt[0][1]["guidance"] == 3.5, "the connected prompt is as it was"
    assert torch.equal(drawn, draw("fewstep_guidance_distilled", prompt, 3.0, model=overridden(model, 7.5)))


def test_a_network_built_without_guidance_is_refused():
    """Flux schnell has the layer's place, and nothing in it."""
    network = torch.nn.Module()
    network.guidance_in = torch.nn.Identity()
    assert not host.guidance._has_guidance_input(network)
    network.guidance_in = Linear(2, 2)
    assert host.guidance._has_guidance_input(network)
