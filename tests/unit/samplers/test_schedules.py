import math

import numpy as np
import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import (
    Levels,
    dmd2_timesteps,
    even_shares,
    even_sigmas,
    flux2_mu,
    lcm_timesteps,
    log_snr_shares,
    parse_numbers,
    shifted_sigmas,
    timestep_shares,
    timesteps_to_sigmas,
    trailing_sigmas,
    trailing_timesteps,
    turbo_timesteps,
    twice_shifted_sigmas,
)
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from gaussian import table

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = range(1, 51)


@pytest.mark.parametrize("steps", STEPS)
def test_trailing_equals_diffusers(steps):
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing_timesteps(steps) == scheduler.timesteps.tolist()
    ours = trailing_sigmas(steps, table=table(NoiseFamily.VARIANCE_EXPLODING))
    np.testing.assert_allclose(ours.numpy(), scheduler.sigmas.numpy(), rtol=2e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 48])
def test_trailing_is_at_its_timesteps_on_a_table_of_every_twentieth_too(steps):
    """ModelSamplingDiscrete with lcm leaves 50 levels, by whose places 4 steps were 999, 759, 499, 239."""
    whole = table(NoiseFamily.VARIANCE_EXPLODING)
    wanted = trailing_sigmas(steps, table=whole)
    found = even_sigmas(steps, levels=Levels(table=whole[19::20]))
    kept = wanted >= whole[19]  # below its smallest level the table knows nothing
    torch.testing.assert_close(found[kept], wanted[kept], rtol=1e-2, atol=0.0)
    assert found[-1] == 0.0
    assert (found.diff() <= 0.0).all()


def test_a_trailing_schedule_has_as_many_steps_as_asked_for():
    """At 61 steps and 61 others of the 1000, rounding makes numpy's arange one longer, down to a timestep of -1."""
    for steps in range(1, 1001):
        times = trailing_timesteps(steps)
        assert (len(times), times[0]) == (steps, 999)
        assert times[-1] >= 0
        assert all(np.diff(times) < 0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("strength", [k / 10 for k in range(1, 11)])
def test_lcm_equals_diffusers(steps, strength):
    scheduler = LCMScheduler(**SD)
    if steps > int(50 * strength):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            lcm_timesteps(steps, strength=strength)
        return
    scheduler.set_timesteps(steps, strength=strength)
    assert lcm_timesteps(steps, strength=strength) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("strength", [0.25, 0.35, 0.55, 0.75, 0.95])
def test_lcm_takes_the_whole_part_of_a_share_of_its_grid(strength):
    """As diffusers does; tenths of 50 have none but it."""
    assert lcm_timesteps(1, strength=strength) == [20 * math.floor(50 * strength) - 1]


@pytest.mark.parametrize(
    ("made", "published"),
    [
        (trailing_timesteps(4), [999, 749, 499, 249]),
        (trailing_timesteps(1), [999]),
        (lcm_timesteps(4), [999, 759, 499, 259]),
        (lcm_timesteps(8), [999, 879, 759, 639, 499, 379, 259, 139]),
        (turbo_timesteps(10), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (dmd2_timesteps(4), [999, 749, 499, 249]),
        (dmd2_timesteps(1), [399]),
    ],
)
def test_published_lists(made, published):
    assert made == published


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32, 64, 128])
def test_half_the_steps_are_every_second_level(steps):
    """Progressive distillation lands on the student's own schedule only if this holds."""
    levels = table(NoiseFamily.VARIANCE_EXPLODING)
    assert torch.equal(trailing_sigmas(steps, table=levels), trailing_sigmas(2 * steps, table=levels)[::2])


def test_a_schedule_falls_to_zero():
    sigmas = timesteps_to_sigmas([999, 499], table=table(NoiseFamily.VARIANCE_EXPLODING))
    assert sigmas[-1] == 0.0
    assert torch.all(sigmas.diff() < 0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: trailing_timesteps(0), "steps is 0"),
        (lambda: trailing_timesteps(1001), "steps is 1001"),
        (lambda: lcm_timesteps(51), "steps is 51"),
        (lambda: lcm_timesteps(4, strength=0.0), "strength is 0"),
        (lambda: lcm_timesteps(4, original_steps=0), "original_steps is 0"),
        (lambda: lcm_timesteps(1, strength=0.01), "leaves no step"),
        (lambda: timesteps_to_sigmas([50], table=torch.ones(50)), "timestep 50"),
        (lambda: timestep_shares([1001, 500]), "timestep 1001"),
        (lambda: even_shares(0), "steps is 0"),
        (lambda: turbo_timesteps(11), "steps is 11; a Turbo schedule allows 1 to 10"),
        (lambda: dmd2_timesteps(2), "steps is 2; DMD2 models were made for 1 or 4"),
        (lambda: parse_numbers("999, 499, 499", name="values"), "must fall"),
        (lambda: parse_numbers(" , ", name="values"), "at least one number"),
        (lambda: parse_numbers("3, -1", name="values"), "none of them negative"),
        (lambda: parse_numbers("inf, 3", name="values"), "at least one number"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


# --- flow models: the formula, not the table ---------------------------------------------------------------------------


def flow(shift, *, length=1000):
    """Levels of a flow model of that shift."""
    return Levels(
        table=shifted_sigmas(table(NoiseFamily.FLOW, length), shift=shift),
        flow=lambda shares: shifted_sigmas(shares, shift=shift),
    )


def diffusers_flow(steps, *, sigmas=None, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    given = {} if sigmas is None else {"sigmas": sigmas}
    scheduler.set_timesteps(None if given else steps, **given)
    return scheduler.sigmas


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("length", [1000, 10000])
def test_even_steps_of_flow_models_equal_diffusers(steps, shift, length):
    theirs = diffusers_flow(steps, sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist(), shift=shift)
    torch.testing.assert_close(even_sigmas(steps, levels=flow(shift, length=length)), theirs, atol=2e-7, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_the_twice_shifted_list_is_diffusers_own(steps, shift):
    theirs = diffusers_flow(steps, shift=shift)
    torch.testing.assert_close(twice_shifted_sigmas(steps, levels=flow(shift)), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "steps", "mu"),
    [
        (256, 4, 1.965567161408539),
        (1024, 8, 2.0021041861550484),
        (1024, 200, 0.6299991400000002),
        (4096, 1, 2.3086469856581564),
        (4096, 4, 2.291179894115571),
        (4096, 50, 2.0233511571292637),
        (4300, 4, 2.3084780705406316),
        (4301, 4, 1.18469693),
        (16384, 50, 3.22998634),
    ],
)
def test_flux2s_mu_equals_diffusers(tokens, steps, mu):
    """What compute_empirical_mu of diffusers' Flux2Pipeline returns."""
    assert flux2_mu(steps, tokens=tokens) == pytest.approx(mu, abs=1e-12)


@pytest.mark.parametrize(
    ("made", "published"),
    [
        (twice_shifted_sigmas(4, levels=flow(3.0)), [1.0, 0.8577, 0.6022, 0.0089, 0.0]),  # SD3.5-Large-Turbo
        (log_snr_shares(8), [1.0, 0.9944, 0.9845, 0.9579, 0.8909, 0.7455, 0.5125, 0.2739, 0.0]),  # Stable Audio 3
        (even_sigmas(8, levels=flow(3.0)), [1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0]),  # ACE-Step 1.5
        (shifted_sigmas(even_shares(4), shift=5.0), [1.0, 0.9375, 0.8333, 0.625, 0.0]),  # Wan2.2-Lightning
    ],
)
def test_published_lists_of_flow_models(made, published):
    torch.testing.assert_close(made.double(), torch.tensor(published, dtype=torch.float64), atol=5e-5, rtol=0)


@pytest.mark.parametrize("length", [1000, 10000])
@pytest.mark.parametrize("family", list(NoiseFamily))
@pytest.mark.parametrize("timesteps", [[999, 749, 499, 249], [1000, 750, 500, 250]])
def test_timesteps_are_thousandths_of_every_table(length, family, timesteps):
    levels = flow(1.0, length=length) if family is NoiseFamily.FLOW else Levels(table=table(family, length))
    quarters = levels.table[[length - 1, length * 3 // 4 - 1, length // 2 - 1, length // 4 - 1]]
    made = levels.at(timestep_shares(timesteps))
    assert torch.equal(made, torch.cat([quarters, torch.zeros(1)]))


def test_between_two_levels_of_a_table_the_level_is_log_linear():
    levels = Levels(table=torch.tensor([0.5, 2.0, 8.0]))
    made = levels.at(torch.tensor([1.0, 5 / 6, 2 / 3, 0.5, 1 / 3, 0.1, 0.0]))
    torch.testing.assert_close(made, torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.5, 0.0]))


def test_a_list_that_ends_in_0_gets_no_second_one():
    assert timestep_shares([1000, 500, 0]).tolist() == [1.0, 0.5, 0.0]
