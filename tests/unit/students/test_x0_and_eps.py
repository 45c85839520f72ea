"""x0 and eps predicted at once: the paper's combination, and what it is good for."""

import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.students.x0_and_eps import combined_x0
from gaussian import signal_and_noise

VE = NoiseFamily.VARIANCE_EXPLODING


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(count):
    return torch.logspace(-2, 2, count, dtype=torch.float64)


def test_the_combination_is_the_papers_on_random_tensors():
    """x^ = s^2 x~ + alpha (z - s eps~) of z = alpha x (Salimans and Ho 2022, section 4), to 1e-12 in float64."""
    x, output, sigma = random(64, 4, 3, 3), random(64, 8, 3, 3, seed=1), levels(64)
    alpha, s = (value.reshape(-1, 1, 1, 1) for value in signal_and_noise(sigma, VE))
    papers = s**2 * output[:, :4] + alpha * (alpha * x - s * output[:, 4:])
    torch.testing.assert_close(combined_x0(x, output, sigma=sigma), papers, atol=1e-12, rtol=1e-12)


def test_right_predictions_give_x0_and_an_error_is_never_made_larger():
    """Of eps alone an error grows with sigma, a hundredfold at 100; of x0 alone it stays as large where x says x0 already."""
    x0, eps, sigma = random(9, 2, 4, 4), random(9, 2, 4, 4, seed=1), levels(9)
    level = sigma.reshape(-1, 1, 1, 1)
    x = x0 + level * eps
    torch.testing.assert_close(combined_x0(x, torch.cat([x0, eps], dim=1), sigma=sigma), x0)
    one = torch.ones_like(x0)
    for wrong, share in (
        (torch.cat([x0 + one, eps], dim=1), level**2 / (1 + level**2)),
        (torch.cat([x0, eps + one], dim=1), -level / (1 + level**2)),
    ):
        error = combined_x0(x, wrong, sigma=sigma) - x0
        torch.testing.assert_close(error, share.expand_as(x0), atol=1e-9, rtol=1e-9)
        assert error.abs().max() <= 1.0
