"""Two experts in one sampling: the whole run's picture, each at its own levels, noise added once."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.sampling import experts, recipes, samplers
from comfyui_fewstep.samplers.presets import OURS, PRESETS
from test_sampling import model_of, noise_of, schedule

PROMPT = digits_model.prompt("1234")
KINDS = ["EPS", "V_PREDICTION", "FLOW"]
SAMPLERS = {
    "lightning": lambda: samplers.LightningSampler().make()[0],
    "lcm": lambda: samplers.LCMSampler().make()[0],
    "ancestral": lambda: samplers.AncestralSampler().make(1.0, 1.0)[0],
    "euler": lambda: comfy.samplers.sampler_object("euler"),
    "ddim": lambda: comfy.samplers.sampler_object("ddim"),
}


def other_expert(kind="FLOW"):
    """Another network of the same kind."""
    model = model_of(kind)
    with torch.inference_mode():
        for weight in model.model.diffusion_model.parameters():
            weight.mul_(0.9)
    return model


def guider(high, low, boundary, **options):
    return experts.TwoExperts().make(high, low, PROMPT, boundary, **{"cfg": 1.0, **options})[0]


@torch.inference_mode()
def drawn(guider, sampler, sigmas, *, latent=None, mask=None, callback=None, seed=3):
    noise = noise_of()
    latent = torch.zeros_like(noise) if latent is None else latent
    return guider.sample(
        noise, latent, sampler, sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed
    )


def alone(model):
    return host.models.guider(model, {"positive": PROMPT}, cfg=1.0)


def starts():
    """What a sampling begins with: noise alone, and a picture behind a mask."""
    mask = torch.zeros(4, 1, 4, 4)
    mask[..., 2:] = 1.0
    return {}, {"latent": noise_of(seed=5), "mask": mask}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boundary", [0.9, 0.7, 0.3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_of_the_same_draw_the_whole_runs_picture(sampler, boundary, kind):
    """At every cut, from noise and from a picture behind a mask, to the bit."""
    model, made = model_of(kind), SAMPLERS[sampler]()
    sigmas = schedule(model)
    for start in starts():
        whole = drawn(alone(model), made, sigmas, **start)
        assert torch.equal(drawn(guider(model, model, boundary), made, sigmas, **start), whole)


@pytest.mark.parametrize("sampler", ["lcm", "euler"])
def test_a_mask_that_grows_with_the_sampling_grows_with_the_whole(sampler):
    """Differential Diffusion: how much of a grey mask is open is told by the level, between the sampling's first and last."""
    model, made = model_of("FLOW"), SAMPLERS[sampler]()
    asked = []

    def growing(sigma, denoise_mask, extra_options):
        levels = extra_options["sigmas"]
        asked.append((float(levels[0]), float(levels[-1])))
        return (denoise_mask >= (sigma[0] - levels[-1]) / (levels[0] - levels[-1])).to(denoise_mask)

    model.set_model_denoise_mask_function(growing)
    mask = torch.linspace(0.0, 1.0, 16).reshape(1, 1, 4, 4).expand(4, 1, 4, 4)
    start, sigmas = {"latent": noise_of(seed=5), "mask": mask}, schedule(model)
    whole = drawn(alone(model), made, sigmas, **start)
    assert torch.equal(drawn(guider(model, model, 0.7), made, sigmas, **start), whole)
    assert set(asked) == {(1.0, 0.0)}


def test_each_expert_is_asked_at_its_own_levels(monkeypatch):
    """Wan's rule: from the boundary up the one for high noise, at the boundary itself too."""
    high, low = model_of("FLOW"), model_of("FLOW")
    asked = {"high": [], "low": []}
    for name, model in (("high", high), ("low", low)):
        own = model.model.apply_model

        def seen(x, t, *rest, _own=own, _name=name, **named):
            asked[_name].append(round(float(t[0]), 4))
            return _own(x, t, *rest, **named)

        monkeypatch.setattr(model.model, "apply_model", seen)
    sigmas = torch.tensor([1.0, 0.9375, 0.9, 0.625, 0.0])
    drawn(guider(high, low, 0.9), SAMPLERS["lightning"](), sigmas)
    assert asked == {"high": [1.0, 0.9375, 0.9], "low": [0.625]}


@pytest.mark.parametrize("sampler", ["lightning", "euler"])
def test_it_draws_what_the_templates_two_samplers_draw(sampler):
    """KSampler Advanced twice: the second without noise, from what the first left."""
    high, low, made = model_of("FLOW"), other_expert(), SAMPLERS[sampler]()
    sigmas = torch.tensor([1.0, 0.9375, 0.8333, 0.625, 0.0])
    noise = noise_of()
    with torch.inference_mode():
        first = alone(high).sample(noise, torch.zeros_like(noise), made, sigmas[:3], disable_pbar=True, seed=3)
        theirs = alone(low).sample(torch.zeros_like(noise), first, made, sigmas[2:], disable_pbar=True, seed=0)
    ours = drawn(guider(high, low, 0.875), made, sigmas)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, drawn(alone(high), made, sigmas), atol=1e-3)


@pytest.mark.parametrize(("boundary", "taken"), [(0.3, 0), (0.95, 1)], ids=["high", "low"])
@pytest.mark.parametrize("sampler", ["lcm", "ancestral", "ddim"])
def test_steps_of_one_expert_are_its_own_sampling(sampler, boundary, taken):
    """Part of a schedule, as Split Sigmas cuts it: the one draws it as if there were no other, and the host hears of it."""
    pair, made, sigmas = (model_of("FLOW"), other_expert()), SAMPLERS[sampler](), torch.tensor([0.9, 0.75, 0.5])
    heard = []
    for start in starts():
        whole = drawn(alone(pair[taken]), made, sigmas, **start)
        start["callback"] = lambda step, x0, x, total: heard.append((step, total))
        assert torch.equal(drawn(guider(*pair, boundary), made, sigmas, **start), whole)
    assert heard == [(0, 2), (1, 2)] * 2


def test_a_share_of_an_eps_models_time_is_its_timestep():
    """0.5 of a thousand timesteps: the level of timestep 499, the second of two."""
    model = model_of("EPS")
    levels = host.models.noise_levels(host.models.model_sampling_of(model))
    assert experts._level(model, 0.5) == pytest.approx(float(levels[499]))
    assert host.experts.steps_above(torch.tensor([*levels[[999, 499, 498]], 0.0]), experts._level(model, 0.5)) == 2


def test_the_host_hears_of_the_steps_of_the_whole():
    model = model_of("FLOW")
    heard = []
    drawn(
        guider(model, model, 0.7),
        SAMPLERS["lcm"](),
        schedule(model),
        callback=lambda step, x0, x, total: heard.append((step, total)),
    )
    assert heard == [(i, 5) for i in range(5)]


@pytest.mark.parametrize(("seed", "second"), [(3, 4), (2**64 - 1, 0)])
def test_the_hosts_samplers_draw_no_noise_twice(seed, second):
    """By seed they would begin their draws anew in the second part; after the largest seed of the host comes its least."""
    seeds = []

    def function(model, x, sigmas, extra_args=None, **_):
        seeds.append(extra_args["seed"])
        return x

    model = model_of("FLOW")
    drawn(guider(model, model, 0.7), comfy.samplers.KSAMPLER(function), schedule(model), seed=seed)
    assert seeds == [seed, second]


def test_unit_variance_belongs_to_the_start_alone():
    """Below the largest level; what the second expert gets is no start."""
    model = model_of("EPS")
    (made,) = samplers.ConsistencySampler().make(
        gamma=0.0, s_noise=1.0, sigma_min=0.0, unit_variance_start=True, s_noise_end=-1.0, noise_clip=0.0
    )
    sigmas = schedule(model)[1:]
    assert torch.equal(drawn(guider(model, model, 0.5), made, sigmas), drawn(alone(model), made, sigmas))


def test_guidance_may_differ_between_the_two():
    high, low, made = model_of("FLOW"), other_expert(), SAMPLERS["lightning"]()
    empty = digits_model.prompt("")
    sigmas = torch.tensor([1.0, 0.9, 0.5, 0.0])
    both = {"positive": PROMPT, "negative": empty}
    noise = noise_of()
    with torch.inference_mode():
        first = host.models.guider(high, both, cfg=3.0).sample(
            noise, torch.zeros_like(noise), made, sigmas[:3], disable_pbar=True, seed=3
        )
        theirs = alone(low).sample(torch.zeros_like(noise), first, made, sigmas[2:], disable_pbar=True, seed=3)
    ours = drawn(guider(high, low, 0.8, cfg=3.0, negative=empty, low_cfg=1.0), made, sigmas)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"boundary": 0.0}, "boundary is 0, so low would never be sampled"),
        ({"low": "EPS"}, "high is a model of flow noise .* low of variance_exploding noise"),
        ({"high": "EDM", "low": "EDM"}, "boundary is 0.875, .* of high are continuous and have no timesteps; connect"),
        ({"cfg": 3.0}, "cfg is 3 and low_cfg 3: guidance needs a negative prompt"),
        ({"low_cfg": 2.0}, "cfg is 1 and low_cfg 2: guidance needs a negative prompt"),
        ({"low_cfg": 0.5}, "cfg is 1 and low_cfg 0.5: guidance needs a negative prompt"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    high, low = (model_of(given.pop(name, "FLOW")) for name in ("high", "low"))
    with pytest.raises(ValueError, match=said):
        guider(high, low, given.pop("boundary", 0.875), **given)


def test_a_sampler_that_cannot_be_handed_over_is_refused():
    class Own:
        def sample(self, *_: object) -> None: ...

    model = model_of("FLOW")
    with pytest.raises(ValueError, match=r"this sampler \(Own\) cannot be handed"):
        drawn(guider(model, model, 0.7), Own(), schedule(model))


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.boundary is not None])
def test_a_recipe_names_its_boundary_and_the_experts_take_it(name):
    """Half of the steps each, from text (0.875) and from a picture (0.9)."""
    preset, sampling = PRESETS[name], host.models.model_sampling_of(model_of("FLOW"))
    assert preset.boundary == (0.875 if name == "Wan 2.1 or 2.2 lightx2v, 4 steps" else 0.9)
    assert host.experts.steps_above(recipes.preset_levels(sampling, preset), preset.boundary) == preset.steps // 2
    if preset.sampler in OURS:
        *_, boundary = recipes.ApplyRecipe().apply(model_of("FLOW"), name)
        assert boundary == preset.boundary


def test_recipes_of_one_model_have_no_boundary():
    *_, boundary = recipes.ApplyRecipe().apply(model_of("FLOW"), "FLUX.1 schnell, 4 steps")
    assert boundary == 0.0
