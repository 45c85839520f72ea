"""Schedules on every kind of noise levels that a host has: tables of 50, 1,000 and 10,000 levels, and continuous ones."""

import math

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from diffusers import CMStochasticIterativeScheduler

import_host()

import comfy.model_sampling as kinds
import comfy.samplers
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.sampling.lists import levels

CURRENT_HOST = pytest.mark.skipif(not hasattr(kinds, "ModelSamplingFlux"), reason="this host has no such levels")


def sampling(levels_kind, prediction, **parameters):
    made = type("ModelSampling", (getattr(kinds, levels_kind), getattr(kinds, prediction)), {})()
    if parameters:
        made.set_parameters(**parameters)
    return made


def flow(shift):
    return sampling("ModelSamplingDiscreteFlow", "CONST", shift=shift)


def flux(mu=1.15):
    return sampling("ModelSamplingFlux", "CONST", shift=mu)


EPS, FLOW = (lambda: sampling("ModelSamplingDiscrete", "EPS")), (lambda: flow(3.0))


def near(made, expected, atol=1e-6):
    torch.testing.assert_close(made.double(), torch.tensor([*expected, 0.0], dtype=torch.float64), atol=atol, rtol=0)


def bent(shares, shift):
    return [shift * t / (1 + (shift - 1) * t) for t in shares]


# --- tables of 10,000 levels -------------------------------------------------------------------------------------------


@CURRENT_HOST
@pytest.mark.parametrize("values", ["999, 749, 499, 249", "1000, 750, 500, 250"])
def test_typed_timesteps_on_a_table_of_ten_thousand(values):
    """1, .9045, .7595, .5128 at FLUX.1 dev's mu, not the levels 999 .. 249 of ten thousand: .26, .20, .14, .07."""
    near(levels(flux(), "timesteps", 4, values=values), bent([1, 0.75, 0.5, 0.25], math.exp(1.15)))


@pytest.mark.parametrize("name", ["lcm", "tcd", "turbo", "dmd2", "timesteps"])
def test_lists_of_timesteps_begin_at_the_top_of_stable_cascade(name):
    """Its ten thousand levels: the same shares of them as of a thousand."""
    cascade, plain = sampling("StableCascadeSampling", "EPS"), EPS()
    made = levels(cascade, name, 4, values="999, 749, 499, 249")
    table = host.models.noise_levels(plain)
    indices = [
        int((table - sigma).abs().argmin()) for sigma in levels(plain, name, 4, values="999, 749, 499, 249")[:-1]
    ]
    assert torch.equal(made[:-1], cascade.sigmas[[10 * (i + 1) - 1 for i in indices]])


@pytest.mark.parametrize("name", ["lcm", "tcd", "turbo", "dmd2", "timesteps"])
@pytest.mark.parametrize(
    ("kind", "prediction"), [("ModelSamplingContinuousEDM", "EDM"), ("ModelSamplingContinuousEDM", "V_PREDICTION")]
)
def test_continuous_levels_have_no_timesteps(name, kind, prediction):
    """CosXL: index 749 of its log-spaced table is no timestep of anything."""
    with pytest.raises(ValueError, match=rf"the {name} schedule names training timesteps, and this model has none"):
        levels(sampling(kind, prediction), name, 4, values="999, 749")


# --- flow models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 33))
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_even_steps_are_the_formulas(steps, shift):
    near(levels(flow(shift), "trailing", steps), bent([1 - k / steps for k in range(steps)], shift))


@CURRENT_HOST
@pytest.mark.parametrize("steps", [1, 3, 6, 7, 16])
def test_even_steps_of_flux_are_the_formulas(steps):
    near(levels(flux(0.8), "trailing", steps), bent([1 - k / steps for k in range(steps)], math.exp(0.8)))


@CURRENT_HOST
@pytest.mark.parametrize("steps", range(2, 17))
@pytest.mark.parametrize("make", [lambda: flow(3.0), lambda: flow(6.0), flux])
def test_twice_shifted_is_the_hosts_normal(make, steps):
    theirs = comfy.samplers.normal_scheduler(make(), steps)
    torch.testing.assert_close(levels(make(), "twice_shifted", steps), theirs, atol=1e-6, rtol=0)


@CURRENT_HOST
@pytest.mark.parametrize("steps", [4, 8, 50])
@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (512, 768), (2048, 1536)])
def test_flux2_is_the_hosts_flux2_scheduler(steps, width, height):
    from comfy_extras.nodes_flux import Flux2Scheduler

    theirs = Flux2Scheduler.execute(steps, width, height).args[0]
    made = levels(flux(2.02), "flux2", steps, width=width, height=height)
    torch.testing.assert_close(made, theirs, atol=1e-6, rtol=0)
    for latent in (torch.zeros(1, 128, height // 16, width // 16), torch.zeros(1, 16, height // 8, width // 8)):
        assert torch.equal(levels(flow(1.0), "flux2", steps, latent={"samples": latent}), made)


@pytest.mark.parametrize(("side", "shift"), [(256, math.exp(0.5)), (1024, 2.000803), (2048, math.exp(1.312903))])
def test_qwen_images_shift_grows_with_the_picture(side, shift):
    """mu is 0.5 at 256 tokens and 0.9 at 8192, of 16 x 16 pixels, and goes on in a line."""
    nodes = [1, 0.9375, 0.875, 0.75, 0.5, 0.25]
    typed = ", ".join(map(str, nodes))
    near(levels(flow(1.15), "qwen_image_21", 6, values=typed, width=side, height=side), bent(nodes, shift))
    near(levels(flow(1.15), "qwen_image_21", 4, width=side, height=side), bent([1, 0.75, 0.5, 0.25], shift))
    latent = torch.zeros(1, 64, side // 16, side // 16)
    near(levels(flow(1.15), "qwen_image_21", 4, latent={"samples": latent}), bent([1, 0.75, 0.5, 0.25], shift))
    near(
        levels(flow(1.15), "qwen_image_21", 4, shift=2.0, latent={"samples": latent}),
        bent([1, 0.75, 0.5, 0.25], 2 * shift),
    )


def test_relative_and_absolute_shift():
    quarters = [1, 0.75, 0.5, 0.25]
    for name, values in (("trailing", ""), ("timesteps", "999, 749, 499, 249")):
        near(levels(flow(8.0), name, 4, values=values, shift=0.5), bent(quarters, 4.0))
        near(levels(flow(8.0), name, 4, values=values, absolute_shift=5.0), bent(quarters, 5.0))
        near(levels(flow(8.0), name, 4, values=values, absolute_shift=1.0), quarters)
    for given in ({"shift": 3.0}, {"absolute_shift": 3.0}):
        near(levels(flow(8.0), "sigmas", 4, values="1, .75, .5, .25", **given), bent(quarters, 3.0))
    near(levels(flow(8.0), "sigmas", 4, values="1, .75, .5, .25, 0"), quarters)
    lowest = 5 / (1000 + 4)
    near(levels(flow(8.0), "twice_shifted", 2, absolute_shift=5.0), bent([1, lowest], 5.0))


@pytest.mark.parametrize(
    ("make", "name", "options", "said"),
    [
        (lambda: flow(1.0), "sigmas", {"values": "1000, 500"}, "levels of a flow model end at 1"),
        (
            lambda: flow(1.0),
            "trailing",
            {"shift": 2.0, "absolute_shift": 3.0},
            r"shift \(shown as relative_shift\) is 2.0 and absolute_shift is 3.0",
        ),
        (lambda: flow(1.0), "flux2", {"absolute_shift": 3.0}, "flux2 computes its own"),
        (lambda: flow(1.0), "qwen_image_21", {"absolute_shift": 3.0}, "qwen_image_21 computes its own"),
        (lambda: flow(1.0), "qwen_image_21", {"values": "1000, 500"}, "levels of a flow model end at 1"),
        (lambda: flow(1.0), "trailing", {"absolute_shift": 1e-320}, "absolute_shift is 1e-320; allowed are 0.*0.01 to"),
        (lambda: flow(3.0), "log_snr", {"absolute_shift": 0.009}, "absolute_shift is 0.009; allowed are 0"),
        (lambda: flow(1.0), "dmd2", {}, "this is a flow model"),
        (EPS, "trailing", {"absolute_shift": 3.0}, "absolute_shift is 3.0"),
        (EPS, "flux2", {}, "the flux2 schedule is for flow models"),
        (EPS, "log_snr", {}, "the log_snr schedule is for flow models"),
        (
            lambda: flow(1.0),
            "timesteps",
            {"values": "999, 499", "strength": 0.4},
            r"strength is 0.4.*not one step of 2; 0.5 leaves one",
        ),
        (EPS, "turbo", {"strength": 0.05}, r"strength is 0.05.*0.1 and above"),
    ],
)
def test_what_does_not_go_together_is_named(make, name, options, said):
    with pytest.raises(ValueError, match=said):
        levels(make(), name, 4, **options)


def test_a_published_list_may_be_rounded_up_at_its_top():
    """14.6146 is the largest level of Stable Diffusion; a list that says 14.62 means it, one that says 15 another model."""
    near(levels(EPS(), "sigmas", 2, values="14.62, 1.5"), [14.62, 1.5])
    with pytest.raises(ValueError, match=r"this model's noise levels end at 14\.6146"):
        levels(EPS(), "sigmas", 2, values="15, 1.5")


@pytest.mark.parametrize("steps", [1, 2, 18, 40])
def test_consistency_is_diffusers_list_of_forty_on_the_models_own_levels(steps):
    """Song et al.'s list goes from 80 to 0.002; Stable Diffusion's levels from 14.6 to 0.029."""
    own = EPS().sigmas
    theirs = CMStochasticIterativeScheduler(40, sigma_min=float(own[0]), sigma_max=float(own[-1]))
    theirs.set_timesteps(steps)
    torch.testing.assert_close(levels(EPS(), "consistency", steps)[:-1], theirs.sigmas[:steps])


# --- strength and denoise ----------------------------------------------------------------------------------------------

STRENGTHS = [k / 10 for k in range(1, 10)]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize(
    ("make", "name"),
    [(EPS, "trailing"), (FLOW, "trailing"), (FLOW, "twice_shifted"), (FLOW, "flux2"), (EPS, "consistency")],
)
def test_strength_is_the_hosts_denoise(make, name, steps, strength):
    """The last steps of int(steps / strength), as KSampler and BasicScheduler take them."""
    whole = levels(make(), name, int(steps / strength))
    assert torch.equal(levels(make(), name, steps, strength=strength), whole[-(steps + 1) :])


@pytest.mark.parametrize("strength", [*STRENGTHS, 1.0])
@pytest.mark.parametrize("steps", range(1, 9))
def test_turbos_strength_is_the_hosts_sd_turbo_scheduler(steps, strength):
    start = 10 - int(10 * strength)
    theirs = [999 - 100 * k for k in range(10)][start : start + steps]
    assert torch.equal(levels(EPS(), "turbo", steps, strength=strength)[:-1], EPS().sigmas[theirs])


@pytest.mark.parametrize(
    ("name", "strength", "left"),
    [
        ("dmd2", 0.75, [749, 499, 249]),
        ("dmd2", 0.5, [499, 249]),
        ("timesteps", 0.99, [749, 499, 249]),
        ("timesteps", 0.25, [249]),
    ],
)
def test_lists_keep_their_own_last_levels(name, strength, left):
    """diffusers' image-to-image: int(steps * strength) of them."""
    made = levels(EPS(), name, 4, values="999, 749, 499, 249", strength=strength)
    assert torch.equal(made[:-1], EPS().sigmas[left])


def test_strength_scales_the_log_snr_list():
    """sigma_max of Stable Audio 3's scheduler in diffusers."""
    whole = levels(flow(1.0), "log_snr", 8)
    torch.testing.assert_close(levels(flow(1.0), "log_snr", 8, strength=0.6), 0.6 * whole)


def from_menu(make, name, steps, denoise):
    """As the host's KSampler: int(steps / denoise) are asked for, the last taken."""
    return comfy.samplers.calculate_sigmas(make(), f"fewstep_{name}", int(steps / denoise))[-(steps + 1) :]


@CURRENT_HOST
@pytest.mark.parametrize("denoise", [0.01, *STRENGTHS, 1.0])
@pytest.mark.parametrize("steps", [*range(1, 9), 30])
@pytest.mark.parametrize("name", ["trailing", "lcm", "turbo", "tcd", "consistency", "twice_shifted", "log_snr"])
def test_the_stock_menu_with_denoise(name, steps, denoise):
    make = FLOW if name in ("twice_shifted", "log_snr") else EPS
    made = from_menu(make, name, steps, denoise)
    assert len(made) == steps + 1
    assert torch.all(made.diff() <= 0)
    if name in ("trailing", "turbo", "lcm"):
        # where the stock scheduler that is even in the timesteps begins, to LCM's twentieth of a thousand
        table = EPS().sigmas
        begun = 1 + int((table - made[0]).abs().argmin())
        assert abs(begun - 1000 * steps / int(steps / denoise)) <= (20 if name == "lcm" else 1)


@CURRENT_HOST
def test_turbos_card_in_the_stock_menu():
    """stabilityai/sdxl-turbo: trailing timesteps; image-to-image in 2 steps at strength 0.5 is one step from 499."""
    assert torch.equal(from_menu(EPS, "turbo", 1, 0.5)[:-1], EPS().sigmas[[499]])
    assert torch.equal(from_menu(EPS, "turbo", 4, 1.0)[:-1], EPS().sigmas[[999, 749, 499, 249]])


@CURRENT_HOST
@pytest.mark.parametrize(("steps", "denoise"), [(4, 0.5), (2, 0.5), (8, 0.2)])
def test_lcms_denoise_is_its_strength(steps, denoise):
    assert torch.equal(from_menu(EPS, "lcm", steps, denoise), levels(EPS(), "lcm", steps, strength=denoise))


@CURRENT_HOST
def test_lcm_on_the_hosts_own_lcm_patch():
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    fifty = type("ModelSampling", (ModelSamplingDiscreteDistilled, LCM), {})()
    assert len(fifty.sigmas) == 50
    for name in ("lcm", "timesteps"):
        made = levels(fifty, name, 4, values="999, 759, 499, 259")
        assert torch.equal(made, levels(EPS(), "lcm", 4))
