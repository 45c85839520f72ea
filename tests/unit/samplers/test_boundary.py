"""The boundary scalings against diffusers' own, at levels where each of their terms can be seen."""

import torch
from comfyui_fewstep.samplers.boundary import consistency_scalings, lcm_scalings
from diffusers import CMStochasticIterativeScheduler, LCMScheduler


def test_lcms_scalings_equal_diffusers_at_the_first_timesteps_too():
    """From the tenth on there is nothing left to see of sigma_data."""
    timesteps = torch.tensor([0, 1, 2, 5, 19, 999])
    theirs = LCMScheduler().get_scalings_for_boundary_condition_discrete(timesteps.double())
    for ours, expected in zip(lcm_scalings(timesteps), theirs, strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=0.0, rtol=1e-6)


def test_consistency_scalings_equal_diffusers_from_end_to_end():
    sigmas = torch.tensor([0.002, 0.003, 0.1, 0.5, 2.0, 80.0], dtype=torch.float64)
    theirs = CMStochasticIterativeScheduler().get_scalings_for_boundary_condition(sigmas)
    ours = consistency_scalings(sigmas, sigma_data=0.5, sigma_min=0.002)
    torch.testing.assert_close(ours, theirs[:2], atol=0.0, rtol=1e-12)
