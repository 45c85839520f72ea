"""Closed forms on data with several modes, where no sampler is exact by being linear."""

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from gaussian import FAMILIES, Mixture, table

VE = NoiseFamily.VARIANCE_EXPLODING
DATA = Mixture(weights=[0.5, 0.3, 0.2], means=[-1.2, 0.4, 1.9], stds=[0.2, 0.5, 0.3])
COUNT = 20000
# Kolmogorov's distribution: exact samples exceed 1.95 / sqrt(n) once in 1000 times. The seeds are fixed.
KS_LIMIT = 1.95 / COUNT**0.5


def smooth_sigmas(steps, *, start):
    """From start to 0, smooth in the step's number, so that halving the step halves it everywhere."""
    return start * torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64) ** 2


def ks_distance(x, cdf):
    """Largest gap between the share of samples below a point and the distribution there."""
    levels = cdf(x.flatten().sort().values)
    ranks = torch.arange(len(levels) + 1, dtype=torch.float64) / len(levels)
    return float(torch.maximum(ranks[1:] - levels, levels - ranks[:-1]).max())


def unit_noise(generator):
    return torch.randn(COUNT, 1, dtype=torch.float64, generator=generator)


def ks_along_the_way(model, sigmas, *, family, ends_at=0.0, **options):
    """KS distances to the noised data at each level and to the data at the end, from exact samples at sigmas[0].

    Exact ones and not unit noise: the first level is finite, and the sampler shall answer for its own error only.
    """
    generator = torch.Generator().manual_seed(len(sigmas))
    start = DATA.quantile(torch.rand(COUNT, 1, dtype=torch.float64, generator=generator), sigmas[0], family)
    seen = []
    last = sample_few_step(
        model,
        start,
        sigmas,
        callback=lambda state: seen.append((state["x"], state["sigma"])),
        disable=True,
        family=family,
        gamma=1.0,
        noise_sampler=lambda *_: unit_noise(generator),
        **options,
    )
    return [
        ks_distance(x, lambda points, sigma=sigma: DATA.cdf(points, sigma, family))
        for x, sigma in [*seen, (last, ends_at)]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_euler_converges_to_the_mixture_at_first_order(family):
    """The mean error over even quantiles: on a line that is the Wasserstein distance between samples and data."""
    start = 1.0 if family is NoiseFamily.FLOW else 10.0
    levels = ((torch.arange(200, dtype=torch.float64) + 0.5) / 200)[:, None]
    noised, exact = (DATA.quantile(levels, sigma, family) for sigma in (start, 0.0))
    errors = []
    for steps in (32, 64, 128, 256):
        sigmas = smooth_sigmas(steps, start=start)
        landed = sample_few_step(DATA.denoiser(family), noised, sigmas, disable=True, family=family, gamma=0.0)
        errors.append((landed - exact).abs().mean())
    orders = torch.stack(errors).log2().diff().neg()
    torch.testing.assert_close(orders, torch.ones_like(orders), rtol=0.0, atol=0.05)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_euler_is_the_literal_loop_to_rounding(family):
    denoiser = DATA.denoiser(family)
    sigmas = smooth_sigmas(12, start=1.0 if family is NoiseFamily.FLOW else 10.0)
    start = torch.linspace(-2.0, 2.0, 50, dtype=torch.float64).reshape(10, 5) * sigmas[0]
    ours = []
    last = sample_few_step(
        denoiser, start, sigmas, callback=lambda state: ours.append(state["x"]), disable=True, family=family, gamma=0.0
    )
    x, literal = start, [start]
    for i in range(len(sigmas) - 1):
        d = (x - denoiser(x, sigmas[i].expand(10))) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
        literal.append(x)
    torch.testing.assert_close(torch.stack([*ours, last]), torch.stack(literal), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_consistency_sampling_gives_the_mixture_at_every_level(family, steps):
    distances = ks_along_the_way(DATA.flow_map(family), trailing_sigmas(steps, table=table(family)), family=family)
    assert len(distances) == steps + 1
    assert max(distances) < KS_LIMIT, distances


@pytest.mark.parametrize("family", FAMILIES)
def test_a_denoiser_is_no_consistency_model(family):
    """The posterior mean in the flow map's place is caught by the same limit: the statistic has power."""
    distances = ks_along_the_way(DATA.denoiser(family), trailing_sigmas(2, table=table(family)), family=family)
    assert distances[0] < KS_LIMIT
    assert min(distances[1:]) > 3 * KS_LIMIT, distances


def test_a_consistency_model_that_ends_above_zero_is_filled_up_by_the_rest():
    """Its x0 holds sigma_min of noise: with sigma_min every level is exact, without it the low levels are too wide."""
    floor = 0.5
    model, sigmas = DATA.flow_map(VE, sigma_min=floor), torch.tensor([80.0, 10.0, 2.0, 0.6, 0.0])
    told = ks_along_the_way(model, sigmas, family=VE, ends_at=floor, sigma_min=floor)
    untold = ks_along_the_way(model, sigmas, family=VE, ends_at=floor)
    assert max(told) < KS_LIMIT, told
    assert untold[3] > 1.5 * KS_LIMIT, untold


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gammas", [[0.3] * 5, [0.8] * 5, [0.8, 0.0, 1.0, 0.3, 0.5]], ids=str)
def test_every_gamma_keeps_the_noise_of_a_point_of_data(family, gammas):
    """With one picture in the data x0 is known: x must be N(signal * mean, sigma^2) at each level, and share
    sqrt(1 - gamma^2) of its noise with the level before. Moments of n samples: within 4 of their own deviations."""
    mean, generator = 0.7, torch.Generator().manual_seed(0)
    sigmas = trailing_sigmas(5, table=table(family)).double()
    signals = 1.0 - sigmas if family is NoiseFamily.FLOW else torch.ones_like(sigmas)
    seen = []
    last = sample_few_step(
        lambda x, sigma: torch.full_like(x, mean),
        signals[0] * mean + sigmas[0] * unit_noise(generator),
        sigmas,
        callback=lambda state: seen.append(state["x"]),
        disable=True,
        family=family,
        gamma=gammas,
        noise_sampler=lambda *_: unit_noise(generator),
    )
    noises = [(x - signal * mean) / sigma for x, signal, sigma in zip(seen, signals, sigmas, strict=False)]
    for noise in noises:
        assert float(noise.mean()) == pytest.approx(0.0, abs=4 / COUNT**0.5)
        assert float(noise.var()) == pytest.approx(1.0, abs=4 * (2 / COUNT) ** 0.5)
    for before, after, gamma in zip(noises, noises[1:], gammas, strict=False):
        shared = float(torch.corrcoef(torch.cat([before, after], dim=1).T)[0, 1])
        assert shared == pytest.approx((1.0 - gamma**2) ** 0.5, abs=4 * gamma**2 / COUNT**0.5 + 1e-9)
    torch.testing.assert_close(last, torch.full_like(last, mean))
