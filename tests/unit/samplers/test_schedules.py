import numpy as np
import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import lcm_timesteps, timesteps_to_sigmas, trailing_sigmas, trailing_timesteps
from diffusers import EulerDiscreteScheduler, LCMScheduler
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


@pytest.mark.parametrize(
    ("made", "published"),
    [
        (trailing_timesteps(4), [999, 749, 499, 249]),
        (trailing_timesteps(1), [999]),
        (lcm_timesteps(4), [999, 759, 499, 259]),
        (lcm_timesteps(8), [999, 879, 759, 639, 499, 379, 259, 139]),
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
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()
