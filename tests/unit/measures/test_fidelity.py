"""Distances without bias and neighbourhoods, against closed forms and against what they must not depend on."""

import statistics

import pytest
import torch
from comfyui_fewstep.trainers.measures.evaluate import FeatureStatistics, frechet_distance
from comfyui_fewstep.trainers.measures.fidelity import (
    Estimate,
    copied_share,
    frechet_at_infinity,
    jackknife,
    kernel_distance,
    kernel_estimate,
    nearest,
    neighbourhoods,
    share,
)

F = 16


def gaussians(count, *, shift=0.0, scale=1.0, seed=0):
    """Two samples (count, F): a unit Gaussian, and one with its mean moved in each feature and its deviation scaled."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, F, generator=generator, dtype=torch.float64) for _ in range(2))
    return first * scale + shift, second


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (0.0, 1.2), (0.2, 0.9)])
def test_the_frechet_distance_at_infinity_is_that_of_the_distributions(shift, scale):
    """F (shift^2 + (scale - 1)^2), within the interval in 19 of 20 samples; the mean of finite ones is far above it."""
    true = F * (shift**2 + (scale - 1) ** 2)
    pairs = [gaussians(800, shift=shift, scale=scale, seed=seed) for seed in range(20)]
    found = [jackknife(frechet_at_infinity, *pair) for pair in pairs]
    biased = [frechet_distance(*(FeatureStatistics.of(values) for values in pair)) for pair in pairs]
    assert sum(abs(one.value - true) <= one.margin for one in found) >= 17
    spread = statistics.stdev(one.value for one in found)
    assert abs(statistics.mean(one.value for one in found) - true) < 3 * spread / 20**0.5
    assert statistics.mean(biased) - true > 5 * statistics.stdev(biased) / 20**0.5
    typical = statistics.mean(one.margin for one in found) / 2.26
    assert 0.5 < typical / spread < 2.0, "the interval is as wide as the figure varies"


def test_a_part_too_small_for_its_covariance_is_refused():
    with pytest.raises(
        ValueError, match=r"100 and 100 samples leave parts of 25; for 16 features each needs more than 32"
    ):
        frechet_at_infinity(*gaussians(100))
    drawn, real = gaussians(800)
    for few, many in ((drawn[:100], real), (drawn, real[:100])):
        with pytest.raises(ValueError, match=f"{len(few)} and {len(many)} samples leave parts of 25"):
            frechet_at_infinity(few, many)


def test_the_kernel_distance_of_one_distribution_is_zero_in_the_mean():
    found = [kernel_estimate(*gaussians(640, seed=seed)) for seed in range(20)]
    assert sum(abs(one.value) <= one.margin for one in found) >= 17
    assert abs(Estimate.of([one.value for one in found]).value) < Estimate.of([one.value for one in found]).margin * 1.5


def test_the_kernel_distance_is_the_moments_of_the_cubic_kernel():
    """E (x y / F + 1)^3 = 1 + 3 E(xy)/F + 3 E(xy)^2/F^2 + E(xy)^3/F^3; x and y of unit Gaussians, one moved by m each feature.

    With s = m^2 F: E xy is s, 0, 0 for two moved, one moved, none; E(xy)^2 is F + 2 s + s^2, F + s, F; E(xy)^3 is
    s^3 + 3 s F + 6 s^2 + 6 s, 0, 0.
    """
    m = 0.3
    s = m**2 * F

    def kernel(first, second, third):
        return 1 + 3 * first / F + 3 * second / F**2 + third / F**3

    both = kernel(s, F + 2 * s + s**2, s**3 + 3 * s * F + 6 * s**2 + 6 * s)
    true = both + kernel(0, F, 0) - 2 * kernel(0, F + s, 0)
    found = Estimate.of([kernel_distance(*gaussians(600, shift=m, seed=seed)) for seed in range(20)])
    assert abs(found.value - true) < 1.5 * found.margin
    assert found.margin < 0.1 * true


def test_no_figure_depends_on_the_order_of_samples_beyond_its_interval():
    drawn, real = gaussians(800, shift=0.1)
    order = torch.randperm(800, generator=torch.Generator().manual_seed(3))
    assert kernel_distance(drawn[order], real) == pytest.approx(kernel_distance(drawn, real), rel=1e-9)
    assert neighbourhoods(drawn[order], real) == neighbourhoods(drawn, real)
    one, other = (jackknife(frechet_at_infinity, values, real) for values in (drawn, drawn[order]))
    assert abs(one.value - other.value) < one.margin


def test_neighbourhoods_of_one_distribution_and_of_parts_of_it():
    """Coverage of equals is 1 - 1 / 2^k (Naeem et al. 2020, proposition 2) and density 1; half of a mixture covers half of it."""
    drawn, real = gaussians(1500, seed=5)
    same = neighbourhoods(drawn, real, k=5)
    assert same.coverage == pytest.approx(1 - 2.0**-5, abs=0.02)
    assert same.density == pytest.approx(1.0, abs=0.1)
    apart = torch.where(torch.arange(1500)[:, None] % 2 == 0, 50.0, 0.0)
    dropped = neighbourhoods(drawn, real + apart, k=5)
    assert dropped.recall == pytest.approx(same.recall / 2, abs=0.05)
    assert dropped.coverage < 0.51
    assert dropped.precision > 0.8 * same.precision
    blurred = neighbourhoods(0.3 * drawn, real, k=5)
    assert blurred.recall < 0.1 < 0.9 < blurred.precision, "the middle of a distribution alone"
    assert neighbourhoods(drawn + 50.0, real).density == 0.0


def test_neighbourhoods_count_by_hand():
    """On a line, k = 1: real 0, 1, 10 reach 1, 1, 9; drawn 0.5, 12, 30 reach 11.5, 11.5, 18."""
    real, drawn = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [12.0], [30.0]])
    found = neighbourhoods(drawn, real, k=1)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == 1.0
    assert found.density == pytest.approx((2 + 1 + 0) / 3)
    assert found.coverage == 1.0


def test_copies_of_what_was_learnt_are_told_from_fair_drawings():
    generator = torch.Generator().manual_seed(0)
    learnt, unseen, fair = (torch.rand(2000, 3, 2, 2, generator=generator) for _ in range(3))
    assert abs(copied_share(fair, learnt, unseen).value - 0.5) < copied_share(fair, learnt, unseen).margin * 1.5
    nearly = learnt[:500] + 1e-3 * torch.randn(500, 3, 2, 2, generator=generator)
    assert copied_share(nearly, learnt, unseen).value > 0.99
    assert copied_share(unseen[:10], unseen, unseen).value == 0.5, "ties are halves"
    with pytest.raises(ValueError, match="2000 learnt and 10 unseen samples are given"):
        copied_share(fair, learnt, unseen[:10])


def test_the_nearest_is_found_in_whatever_pieces():
    values, others = torch.rand(7, 2, 3), torch.rand(20, 2, 3)
    by_hand = torch.stack([(others - value).flatten(1).norm(dim=1).min() for value in values])
    assert torch.allclose(nearest(values, others, chunk=6), by_hand)


def test_estimates_of_several_values_and_of_shares():
    """Student's t of three values: 4.303 deviations over root 3. Wilson's 10 of 10: 0.722 to 1."""
    assert Estimate.of([1.0, 2.0, 3.0]).written() == pytest.approx([2.0, 4.3027 / 3**0.5], rel=1e-4)
    assert Estimate.of([1.0]).margin == float("inf")
    assert share(10, 10).margin == pytest.approx(1 - 0.7225, abs=1e-3)
    assert share(50, 100).margin == pytest.approx(0.5 - 0.4038, abs=1e-3)


@pytest.mark.parametrize(("count", "groups"), [(100, 10), (81, 9), (12, 6)])
def test_the_interval_of_a_mean_is_that_of_the_means_of_its_groups(count, groups):
    """Of as many as there are, where ten equal ones cannot be made: so the jackknife is Student's t of them."""
    values, others = torch.randn(2, count, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    seen = []

    def mean(drawn, real):
        seen.append(len(drawn))
        return float(drawn.mean())

    found = jackknife(mean, values, others)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    means = values[order].reshape(groups, -1).mean(dim=1)
    assert found.written() == pytest.approx(Estimate.of(means.tolist()).written())
    assert seen == [count - count // groups] * groups + [count]


@pytest.mark.parametrize(("drawn", "real", "said"), [(81, 100, "9 and 10 groups"), (1, 1, "1 and 1 groups")])
def test_groups_that_do_not_match_or_are_none_are_refused(drawn, real, said):
    with pytest.raises(ValueError, match=f"{drawn} and {real} samples make {said}; .* as many of both, and at least 2"):
        jackknife(kernel_distance, torch.zeros(drawn, 2), torch.zeros(real, 2))


@pytest.mark.parametrize(
    ("drawn", "real", "said", "least"), [(16, 16, "16 and 16", 1), (160, 31, "16 and 16", 1), (64, 33, "16 and 11", 3)]
)
def test_blocks_too_small_for_a_distance_of_their_own_are_refused(drawn, real, said, least):
    """Of one sample the mean over its pairs would be 0 of 0; and blocks are compared in pairs."""
    with pytest.raises(
        ValueError,
        match=f"blocks is 16, which makes {said} blocks of {drawn} and {real} samples, the smallest of {least}",
    ):
        kernel_estimate(torch.zeros(drawn, 2), torch.zeros(real, 2))
