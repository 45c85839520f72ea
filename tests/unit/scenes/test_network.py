"""How the scenes' network is read, and its noise levels."""

import math

import pytest
import torch
from comfyui_fewstep.benchmarks.scenes.model.network import (
    PREDICTIONS,
    SIGMA_MAX,
    SIGMA_MIN,
    SceneNetwork,
    as_denoiser,
    noise_levels,
)
from comfyui_fewstep.samplers.noise import NoiseFamily


def test_the_levels_are_even_in_the_angle():
    """Salimans and Ho 2022: alpha is the cosine and sigma / sqrt(1 + sigma^2) the sine of even angles."""
    angles = noise_levels().double().atan()
    assert len(angles) == 1000
    assert angles[0] == pytest.approx(math.atan(SIGMA_MIN), rel=1e-6)
    assert angles[-1] == pytest.approx(math.atan(SIGMA_MAX), rel=1e-6)
    assert torch.allclose(angles.diff(), angles.diff().mean().expand(999), rtol=1e-3)


def test_a_network_that_knows_v_is_read_as_the_clean_sample():
    """v = alpha eps - sin x0 of the unit-variance mix; and the network is told where on the levels it stands."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 12, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([SIGMA_MIN, 0.3, 1.0, 7.0, SIGMA_MAX])
    told = []

    def network(x, place, y):
        told.append((x.square().mean(dim=(1, 2, 3)), place, y))
        alpha, sine = (
            ((1 + sigma**2).rsqrt())[:, None, None, None],
            (sigma / (1 + sigma**2).sqrt())[:, None, None, None],
        )
        assert torch.allclose(x, alpha * x0 + sine * eps, atol=1e-5)
        return alpha * eps - sine * x0

    x = NoiseFamily.VARIANCE_EXPLODING.add_noise(x0, eps, sigma=sigma)
    found = as_denoiser(network)(x, sigma, y=torch.ones(5, 30))
    assert torch.allclose(found, x0, atol=2e-5)
    _, place, y = told[0]
    assert place[0] == pytest.approx(0.0, abs=1e-6)
    assert place[-1] == pytest.approx(1.0)
    assert place[2] == pytest.approx(
        (math.pi / 4 - math.atan(SIGMA_MIN)) / (math.atan(SIGMA_MAX) - math.atan(SIGMA_MIN))
    )
    assert torch.equal(y, torch.ones(5, 30))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_what_it_predicts_is_read_as_the_clean_sample(prediction):
    """Each by its definition, from the unit-variance mix alpha x0 + s eps."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 12, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([SIGMA_MIN, 0.3, 1.0, 7.0, SIGMA_MAX])
    alpha, sine = (value[:, None, None, None] for value in (sigma.atan().cos(), sigma.atan().sin()))
    said = {"x0": x0, "eps": eps, "v_prediction": alpha * eps - sine * x0, "x0_and_eps": torch.cat([x0, eps], dim=1)}
    x = NoiseFamily.VARIANCE_EXPLODING.add_noise(x0, eps, sigma=sigma)
    found = as_denoiser(lambda z, place, y: said[prediction], prediction=prediction)(x, sigma, y=torch.ones(5, 30))
    assert torch.allclose(found, x0, atol=5e-5)


def test_every_weight_learns_and_the_caption_is_heard():
    """At first the network is silent; after one step all that is not behind a zero learns, after a few everything."""
    torch.manual_seed(0)
    network = SceneNetwork(width=32)
    x, place = torch.randn(4, 12, 8, 8), torch.rand(4)
    y = torch.eye(30)[:4]
    assert torch.equal(network(x, place, y), torch.zeros_like(x))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(4):
        optimiser.zero_grad()
        (network(x, place, y) - x).square().mean().backward()
        optimiser.step()
    silent = [name for name, value in network.named_parameters() if not value.grad.any()]
    assert silent == []
    assert not torch.allclose(network(x, place, y), network(x, place, 0 * y), atol=1e-4)
    assert not torch.allclose(network(x, place, y), network(x, 1 - place, y), atol=1e-4)


def test_half_precision_inside_stays_near_and_float32_outside():
    torch.manual_seed(0)
    network = SceneNetwork(width=32)
    torch.nn.init.normal_(network.leave[-1].weight, std=0.05)
    x, sigma, y = torch.randn(4, 12, 8, 8), torch.tensor([0.1, 1.0, 5.0, 50.0]), torch.eye(30)[:4]
    whole, half = (as_denoiser(network, precision=dtype)(x, sigma, y=y) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype is torch.float32
    assert 0 < (whole - half).abs().max() < 0.03 * whole.abs().max()
