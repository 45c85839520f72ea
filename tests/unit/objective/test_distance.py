import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.loss import weighted_error
from comfyui_fewstep.trainers.objective.method import Target
from comfyui_fewstep.trainers.training.optimisation.micro_batches import split
from gaussian import gaussian_denoiser


def target_of(distance, *, size=6, count=8):
    generator = torch.Generator().manual_seed(0)
    x_t, x0 = (torch.randn(count, 4, size, size, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
    return Target(x_t, torch.ones(count, dtype=torch.float64), {}, x0, weight, distance)


denoiser = gaussian_denoiser(NoiseFamily.VARIANCE_EXPLODING)


@pytest.mark.parametrize("size", [1, 6, 32])
def test_pseudo_huber_is_equation_7_over_the_root_of_the_dimension(size):
    """Song and Dhariwal 2023: sqrt(|x - y|^2 + c^2) - c with c = 0.00054 sqrt(d), weighted for each sample."""
    target = target_of(Distance.PSEUDO_HUBER, size=size)
    error = denoiser(target.x_t, target.sigma) - target.x0
    dimension = 4 * size**2
    c = 0.00054 * math.sqrt(dimension)
    distances = [math.sqrt(float(e.square().sum()) + c**2) - c for e in error]
    expected = sum(float(w) * d for w, d in zip(target.weight, distances, strict=True)) / 8 / math.sqrt(dimension)
    loss, x0_error = weighted_error(denoiser, target)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(x0_error) == pytest.approx(float(error.square().mean()), rel=1e-5), "of metrics: squared as ever"


@pytest.mark.parametrize("distance", [Distance.PSEUDO_HUBER, Distance.PSEUDO_HUBER_LATENTS])
def test_of_data_an_eighth_as_large_the_distance_is_an_eighth(distance):
    """The constant is in the unit of the data: small errors are small for them. Errors as small as it tell."""
    squared = torch.tensor([[1e-8, 4e-7], [1e-6, 1e-2]])
    torch.testing.assert_close(8 * distance(squared / 64, unit=1 / 8), distance(squared))
    target = target_of(distance)._replace(unit=1 / 8)
    loss, _ = weighted_error(denoiser, target)
    each = (denoiser(target.x_t, target.sigma).float() - target.x0.float()).square()
    assert torch.equal(loss, (target.weight * distance(each, unit=1 / 8)).mean())


def test_the_squared_distance_is_what_it_was():
    target = target_of(Distance.SQUARED)
    error = (denoiser(target.x_t, target.sigma).float() - target.x0.float()).square()
    assert torch.equal(weighted_error(denoiser, target)[0], (target.weight.reshape(-1, 1, 1, 1) * error).mean())


def test_pseudo_huber_has_a_gradient_where_nothing_is_wrong():
    target = target_of(Distance.PSEUDO_HUBER)
    x0 = target.x0.float().requires_grad_()
    loss, _ = weighted_error(lambda x, sigma: x0, target._replace(x0=target.x0.float()))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(x0.grad, torch.zeros_like(x0))


def test_the_pieces_of_a_batch_keep_its_distance():
    target = target_of(Distance.PSEUDO_HUBER)
    whole, _ = weighted_error(denoiser, target)
    pieces = [weighted_error(denoiser, piece)[0] for piece in split(target, 4)]
    torch.testing.assert_close(torch.stack(pieces).mean(), whole)
