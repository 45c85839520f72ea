"""The samplers and schedules against the host's own, in this process, for every kind of model."""

import inspect

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.k_diffusion.sampling
import comfy.model_base as model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.sampling import lists, samplers, schedules
from comfyui_fewstep.samplers.few_step import sample_ancestral, sample_few_step

KINDS = ["EPS", "V_PREDICTION", "EDM", "FLOW"]
CPU = torch.device("cpu")
MENU = ["fewstep_lcm", "fewstep_lightning", "fewstep_tcd", "fewstep_ancestral", "fewstep_consistency"]


def model_of(kind):
    """The digits network read as another kind of model: what it draws does not matter, how it is sampled does."""
    with torch.inference_mode():
        network = digits_model.DigitModel(digits_model.DigitConfig(), model_type=model_base.ModelType[kind])
        network.diffusion_model.load_state_dict(digits_model.load_teacher().model.diffusion_model.state_dict())
        return comfy.model_patcher.ModelPatcher(network.eval(), load_device=CPU, offload_device=CPU)


def noise_of(count=4, seed=0):
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def draw(model, sampler, sigmas, *, count=4, latent=None, mask=None, seed=7):
    noise = noise_of(count)
    latent = torch.zeros_like(noise) if latent is None else latent
    prompt = digits_model.prompt("1234")
    return comfy.sample.sample_custom(
        model, noise, 1.0, sampler, sigmas, prompt, prompt, latent, noise_mask=mask, disable_pbar=True, seed=seed
    )


def schedule(model, name="trailing", steps=5, **options):
    return schedules.Schedule().make(model, name, steps, **options)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_for_data_and_reports_begins_at_an_empty_latent(kind):
    """As the host's own nodes draw it; below the top of a flow model too, where a latent would be seen."""
    model, made = model_of(kind), comfy.samplers.sampler_object("euler")
    sigmas, prompt = schedule(model)[1:], digits_model.prompt("1234")
    with torch.inference_mode():
        drawn = host.models.sample(
            model, made, sigmas, noise=noise_of(), positive=prompt, negative=prompt, cfg=1.0, seed=7
        )
    assert torch.equal(drawn, draw(model, made, sigmas))


@pytest.mark.parametrize("kind", KINDS)
def test_lightning_is_the_hosts_euler(kind):
    model = model_of(kind)
    sigmas = schedule(model)
    (ours,) = samplers.LightningSampler().make()
    assert torch.equal(draw(model, ours, sigmas), draw(model, comfy.samplers.sampler_object("euler"), sigmas))


@pytest.mark.parametrize("kind", KINDS)
def test_lcm_is_the_hosts_lcm_with_the_same_noise(kind):
    model = model_of(kind)
    sigmas = schedule(model)
    fresh = [noise_of(seed=10 + i) for i in range(5)]

    def samplers():
        draws = [iter(fresh), iter(fresh)]
        yield host.models.sampler(sample_few_step, gamma=1.0, noise_sampler=lambda *_: next(draws[0]).clone())
        options = {"noise_sampler": lambda *_: next(draws[1]).clone()}
        yield comfy.samplers.KSAMPLER(comfy.k_diffusion.sampling.sample_lcm, extra_options=options)

    ours, theirs = (draw(model, sampler, sigmas) for sampler in samplers())
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_is_the_hosts_euler_ancestral_with_the_same_noise(kind):
    """SD- and SDXL-Turbo at more than one step. Equal to rounding: the host adds up where we mix."""
    if kind == "FLOW" and not hasattr(comfy.k_diffusion.sampling, "sample_euler_ancestral_RF"):
        pytest.skip("this host's euler_ancestral does not know flow models")
    model = model_of(kind)
    sigmas = schedule(model)
    fresh = [noise_of(seed=10 + i) for i in range(5)]
    drawn = []
    for function in (host.models.sampler_function(sample_ancestral), comfy.k_diffusion.sampling.sample_euler_ancestral):
        draws = iter(fresh)
        options = {"noise_sampler": lambda *_, draws=draws: next(draws).clone()}
        drawn.append(draw(model, comfy.samplers.KSAMPLER(function, extra_options=options), sigmas))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ["LCMSampler", "ConsistencySampler", "TCDSampler", "AncestralSampler"])
def test_every_sampler_draws_with_every_kind_of_model(kind, make):
    model = model_of(kind)
    options = {
        "ConsistencySampler": {"gamma": 0.5, "s_noise": 1.0, "sigma_min": 0.0, "unit_variance_start": False},
        "TCDSampler": {"eta": 0.3},
        "AncestralSampler": {"eta": 1.0, "s_noise": 1.0},
    }.get(make, {})
    (sampler,) = getattr(samplers, make)().make(**options)
    sigmas = schedule(model)
    drawn = draw(model, sampler, sigmas)
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, draw(model, sampler, sigmas)), "the seed decides"
    # the batch does not, but for the rounding of a network whose kernels depend on the batch's size
    torch.testing.assert_close(drawn[:2], draw(model, sampler, sigmas, count=2), rtol=1e-3, atol=1e-3)


def test_inpainting_keeps_what_the_mask_protects():
    model = model_of("V_PREDICTION")
    latent = noise_of(seed=3)
    mask = torch.zeros(4, 1, 4, 4)
    mask[..., 2:] = 1.0
    (sampler,) = samplers.LCMSampler().make()
    drawn = draw(model, sampler, schedule(model), latent=latent, mask=mask)
    torch.testing.assert_close(drawn[..., :2], latent[..., :2], atol=1e-4, rtol=1e-4)
    assert (drawn[..., 2:] - latent[..., 2:]).abs().mean() > 0.1


@pytest.mark.parametrize(("wanted", "deviation"), [(False, 0.7576), (True, 1.0)])
def test_starting_below_sigma_max_at_unit_variance(wanted, deviation):
    """DMD2 in one step starts at 399, where the host would give 0.7576 in the variance-preserving scale."""
    model, seen = model_of("EPS"), []

    def spy(inner, x, sigmas, extra_args=None, callback=None, disable=None, *, family):
        seen.append(x / (1.0 + sigmas[0] ** 2) ** 0.5)
        return x

    draw(model, host.models.sampler(spy, unit_variance_start=wanted), schedule(model, "dmd2", 1))
    expected = deviation * float(noise_of().std())
    assert float(seen[0].std()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "steps", "options", "indices"),
    [
        ("trailing", 4, {}, [999, 749, 499, 249, None]),
        ("lcm", 4, {}, [999, 759, 499, 259, None]),
        ("lcm", 2, {"original_steps": 100, "strength": 0.5}, [499, 249, None]),
        ("tcd", 4, {}, [999, 759, 499, 259, 0]),
        ("turbo", 4, {}, [999, 899, 799, 699, None]),
        ("dmd2", 1, {}, [399, None]),
        ("timesteps", 9, {"values": "800"}, [800, None]),
        ("timesteps", 9, {"values": "999, 500 20"}, [999, 500, 20, None]),
    ],
)
def test_schedules_are_levels_of_the_models_table(name, steps, options, indices):
    model = model_of("EPS")
    table = host.models.noise_levels(host.models.model_sampling_of(model))
    expected = torch.tensor([0.0 if index is None else float(table[index]) for index in indices])
    assert torch.equal(schedule(model, name, steps, **options), expected)


def test_published_sigmas():
    """SDTurboScheduler's and diffusers' LCM values for Stable Diffusion's betas, to the digits that they are quoted with."""
    model = model_of("EPS")
    turbo, lcm = schedule(model, "turbo", 4), schedule(model, "lcm", 4)
    torch.testing.assert_close(turbo[:4], torch.tensor([14.6146, 8.3028, 5.0878, 3.3211]), atol=1e-4, rtol=0)
    torch.testing.assert_close(lcm[:4], torch.tensor([14.6146, 4.2606, 1.6129, 0.7194]), atol=1e-4, rtol=0)


def test_flow_schedules_bend_with_shift():
    model = model_of("FLOW")
    plain, bent = schedule(model, steps=4), schedule(model, steps=4, shift=3.0)
    assert plain[0] == bent[0] == 1.0
    torch.testing.assert_close(bent[1:4], 3.0 * plain[1:4] / (1.0 + 2.0 * plain[1:4]))


@pytest.mark.parametrize(
    ("kind", "name", "steps", "options", "said"),
    [
        ("FLOW", "lcm", 4, {}, "this is a flow model"),
        ("FLOW", "turbo", 4, {}, "this is a flow model"),
        ("EPS", "trailing", 4, {"shift": 3.0}, r"shift \(shown as relative_shift\) is 3.0"),
        ("EPS", "lcm", 51, {}, "steps is 51"),
        ("EPS", "turbo", 11, {}, "steps is 11"),
        ("EPS", "dmd2", 2, {}, "steps is 2"),
        ("EPS", "timesteps", 4, {}, "give at least one"),
        ("EPS", "timesteps", 4, {"values": "999, fast"}, "values is '999, fast'"),
        ("EPS", "timesteps", 4, {"values": "1001, 500"}, "timestep 1001"),
        ("EPS", "timesteps", 4, {"values": "999, 500.5"}, "whole numbers"),
        ("EPS", "timesteps", 4, {"values": "1, 999"}, "must fall"),
        ("EPS", "sigmas", 4, {"values": "14, -1"}, "none of them negative"),
        ("EPS", "sigmas", 4, {"values": "0"}, "leaves no step"),
        ("EPS", "sigmas", 4, {"values": "nan"}, "values is 'nan'"),
        (
            "EPS",
            "sigmas",
            3,
            {"values": "80, 20, 5"},
            r"values is '80, 20, 5', but this model's noise levels end at 14\.6",
        ),
    ],
)
def test_bad_schedules_are_named(kind, name, steps, options, said):
    with pytest.raises(ValueError, match=said):
        schedule(model_of(kind), name, steps, **options)


def test_the_stock_menu_has_ours_and_lost_nothing():
    before = list(comfy.samplers.KSampler.SAMPLERS)
    samplers.add_to_menu()
    lists.add_to_menu()
    assert before == comfy.samplers.KSampler.SAMPLERS, "a second time adds nothing"
    assert {*MENU, "fewstep_guidance_distilled", "fewstep_guidance_distilled_lcm", "euler", "lcm"} <= set(before)
    assert len(before) == len(set(before))


@pytest.mark.parametrize("name", MENU)
@torch.inference_mode()
def test_the_stock_ksampler_takes_ours(name):
    models, noise, prompt = (
        {kind: model_of(kind) for kind in ("V_PREDICTION", "FLOW")},
        noise_of(),
        digits_model.prompt("1234"),
    )
    schedulers = ["simple"] + [s for s in comfy.samplers.KSampler.SCHEDULERS if s.startswith("fewstep_")]
    for scheduler in schedulers:
        model = models["FLOW" if scheduler in ("fewstep_twice_shifted", "fewstep_log_snr") else "V_PREDICTION"]
        drawn = comfy.sample.sample(
            model, noise, 4, 1.0, name, scheduler, prompt, prompt, torch.zeros_like(noise), disable_pbar=True, seed=1
        )
        assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("name", ["lcm", "tcd", "turbo", "consistency"])
def test_the_stock_menus_refuse_a_schedule_of_another_family(name):
    """Where the node would; a flow model's table would be read at timesteps that mean nothing to it."""
    if f"fewstep_{name}" not in comfy.samplers.KSampler.SCHEDULERS:
        pytest.skip("this host lets no pack add schedulers")
    sampling_of_flow = host.models.model_sampling_of(model_of("FLOW"))
    said = f"scheduler is 'fewstep_{name}', which is for eps-, v- and x0-models; this is a flow model. Use fewstep_trailing"
    with pytest.raises(ValueError, match=rf"{said}\."):
        comfy.samplers.calculate_sigmas(sampling_of_flow, f"fewstep_{name}", 4)


# --- the rules of re-noising ---------------------------------------------------------------------------------------------


def renoised(model, function, theirs, *, steps=5, **options):
    """What ours and the host's draw with the same fresh noises."""
    fresh = [noise_of(seed=10 + i) for i in range(steps)]
    drawn = []
    for each in (host.models.sampler_function(function, **options.pop("ours", {})), theirs):
        draws = iter(fresh)
        given = {"noise_sampler": lambda *_, draws=draws: next(draws).clone(), **options}
        drawn.append(draw(model, comfy.samplers.KSAMPLER(each, extra_options=given), schedule(model, steps=steps)))
    return drawn


@pytest.mark.skipif(not hasattr(comfy.k_diffusion.sampling, "sample_euler_ancestral_RF"), reason="not of this host")
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_is_the_hosts_at_every_eta(kind, eta):
    ours, theirs = renoised(
        model_of(kind), sample_ancestral, comfy.k_diffusion.sampling.sample_euler_ancestral, eta=eta, s_noise=0.9
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(comfy.k_diffusion.sampling, "sample_euler_ancestral_RF"), reason="not of this host")
@pytest.mark.parametrize("rule", ["lcm", "euler_ancestral"])
def test_fresh_noise_has_the_models_scale(rule):
    """HiDream-O1's kind calls noise of deviation 8 noise of 1; unscaled, a second step would see an eighth of its level."""
    model = model_of("FLOW")
    host.models.model_sampling_of(model).set_noise_scale(8.0)
    function, options = (sample_few_step, {"gamma": 1.0}) if rule == "lcm" else (sample_ancestral, {})
    ours, theirs = renoised(model, function, getattr(comfy.k_diffusion.sampling, f"sample_{rule}"), ours=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    "noise_clip_std" not in inspect.signature(comfy.k_diffusion.sampling.sample_lcm).parameters,
    reason="not of this host",
)
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_noise_that_changes_over_the_steps_is_the_hosts(kind):
    """SamplerLCM: from s_noise to s_noise_end, clipped. One sample, since ours clips each by its own deviation."""
    model, fresh = model_of(kind), [noise_of(1, seed=10 + i) for i in range(5)]
    drawn = []
    for function, clip in (
        (host.models.sampler_function(sample_few_step, gamma=1.0, noise_clip=1.5), {}),
        (comfy.k_diffusion.sampling.sample_lcm, {"noise_clip_std": 1.5}),
    ):
        draws = iter(fresh)
        options = {
            "noise_sampler": lambda *_, draws=draws: next(draws).clone(),
            "s_noise": 1.1,
            "s_noise_end": 0.7,
            **clip,
        }
        drawn.append(draw(model, comfy.samplers.KSAMPLER(function, extra_options=options), schedule(model), count=1))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)


def test_nodes_pass_on_what_is_set(monkeypatch):
    seen = {}
    monkeypatch.setattr(host.models, "sampler", lambda function, **options: seen.update(options))
    node = samplers.ConsistencySampler()
    node.make(gamma=1.0, s_noise=0.9)
    assert seen["s_noise_end"] is None
    node.make(gamma=1.0, s_noise=0.9, s_noise_end=0.0, noise_clip=2.5)
    assert (seen["s_noise_end"], seen["noise_clip"]) == (0.0, 2.5)
    samplers.TCDSampler().make(eta=0.7)
    assert seen["eta"] == 0.7
    samplers.AncestralSampler().make(eta=0.6, s_noise=0.8)
    assert (seen["eta"], seen["s_noise"]) == (0.6, 0.8)


@pytest.mark.parametrize(("kind", "after"), [("EPS", 0), ("FLOW", 0), ("FLOW", 1)])
def test_unit_variance_changes_nothing_where_noise_begins_right_already(kind, after):
    """At the top, where the host scales it so itself, and in a flow model at any level."""
    model = model_of(kind)
    made = [host.models.sampler(sample_few_step, gamma=0.0, unit_variance_start=wanted) for wanted in (False, True)]
    plain, wanted = (draw(model, sampler, schedule(model)[after:]) for sampler in made)
    assert torch.equal(plain, wanted)


def test_a_picture_to_start_from_keeps_its_share_at_unit_variance():
    """Only the sample that begins from noise alone is scaled; the other is latent + sigma * noise, as the host made it."""
    model, seen = model_of("EPS"), []

    def spy(inner, x, sigmas, extra_args=None, callback=None, disable=None, *, family):
        seen.append(x)
        return x

    latent = noise_of(2, seed=3)
    latent[1] = 0.0
    sigmas = schedule(model, "dmd2", 1)
    draw(model, host.models.sampler(spy, unit_variance_start=True), sigmas, count=2, latent=latent)
    inside = model.model.process_latent_in(latent)
    torch.testing.assert_close(seen[0][0], inside[0] + sigmas[0] * noise_of(2)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0][1], (1 + sigmas[0] ** 2) ** 0.5 * noise_of(2)[1], atol=1e-5, rtol=1e-5)


def test_a_kind_that_means_something_else_is_refused_by_name():
    """Not only those of the host: a pack's own that derives from CONST, but starts from the picture and takes no noise."""

    class FromPicture(comfy.model_sampling.CONST):
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return latent_image

    model = model_of("FLOW")
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscreteFlow, FromPicture), {})()
    model.add_object_patch("model_sampling", sampling)
    said = r"\(ModelSamplingDiscreteFlow, .*FromPicture.*\) derives from flow but mixes noise in otherwise"
    with pytest.raises(ValueError, match=said):
        schedule(model)
    with pytest.raises(ValueError, match=said):
        draw(model, samplers.LCMSampler().make()[0], torch.tensor([1.0, 0.5, 0.0]))


def test_ours_stand_in_the_menus_whatever_pack_came_before(monkeypatch):
    """Another pack may have put a list of its own in the place of either of the host's two."""
    for menu in ("SAMPLER", "SCHEDULER"):
        others = [name for name in getattr(comfy.samplers.KSampler, f"{menu}S") if not name.startswith("fewstep_")]
        monkeypatch.setattr(comfy.samplers.KSampler, f"{menu}S", [*others, "another pack's"])
        monkeypatch.setattr(comfy.samplers, f"{menu}_NAMES", list(others))
    samplers.add_to_menu()
    lists.add_to_menu()
    wanted = {"SAMPLER": "fewstep_lcm", "SCHEDULER": "fewstep_turbo"}
    for menu, name in wanted.items():
        if menu == "SAMPLER" or hasattr(comfy.samplers, "SCHEDULER_HANDLERS"):
            assert getattr(comfy.samplers.KSampler, f"{menu}S").count(name) == 1
            assert getattr(comfy.samplers, f"{menu}_NAMES").count(name) == 1


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("name", ["fewstep_lcm", "fewstep_tcd", "fewstep_ancestral", "fewstep_consistency"])
@torch.inference_mode()
def test_two_advanced_ksamplers_draw_what_one_does(name, kind):
    """The second adds no noise and takes up the steps where the first left them; to the rounding of the latent's scale."""
    model, noise, prompt = model_of(kind), noise_of(), digits_model.prompt("1234")

    def run(begun, latent, **steps):
        return comfy.sample.sample(
            *(model, begun, 4, 1.0, name, "simple", prompt, prompt, latent), disable_pbar=True, seed=9, **steps
        )

    empty = torch.zeros_like(noise)
    whole = run(noise, empty)
    for cut in (1, 2, 3):
        half = run(noise, empty, last_step=cut)
        split = run(empty, half, disable_noise=True, start_step=cut, force_full_denoise=True)
        torch.testing.assert_close(split, whole, atol=2e-4, rtol=2e-4)
