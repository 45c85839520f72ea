"""The parts of distribution matching one by one, against their formulas: weights, measures, and guidance apart."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.methods.distribution_matching import _measures
from comfyui_fewstep.trainers.objective.score import FLOOR, Strength
from gaussian import FAMILIES, table
from test_distribution_matching import assert_mean, drawn, lesson_of, method


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rollout", ["fresh_noise", "landings"])
def test_what_a_companion_is_taught_is_weighted_by_where_it_lands(family, rollout):
    """1 / sigma^2, at most 100, times b^2 / (b^2 + sigma_s^2), b of the noise on top and the signal that is left."""
    made, landed = method(family, steps=4, rollout=rollout), set()
    for seed in range(6):
        examples = made.examples(lesson_of(family, count=50, seed=seed))
        target = made.companion_target("fake", lesson_of(family, count=50, seed=seed, examples=examples))
        sigma, sigma_s = target.sigma, examples["sigma_s"]
        signal, signal_s = (1.0 - s if family is NoiseFamily.FLOW else torch.ones_like(s) for s in (sigma, sigma_s))
        b = (signal_s**2 * sigma**2 - signal**2 * sigma_s**2).sqrt()
        expected = (1.0 / sigma**2).clamp(max=100.0) * b**2 / (b**2 + sigma_s**2)
        torch.testing.assert_close(target.weight, expected)
        landed.add(float(sigma_s[0]))
    assert (landed == {0.0}) is (rollout == "fresh_noise")


def test_the_measures_are_of_the_sample_and_of_what_each_sees_in_it():
    """By hand: from a sample (0, 2) the companion's view (1, 2) is (1, 0) away and the teacher's (2, 6) is (2, 4)."""
    sample, fake, real = (torch.tensor([values]) for values in ([0.0, 2.0], [1.0, 2.0], [2.0, 6.0]))
    found = {name: value.item() for name, value in _measures(sample, fake=fake, real=real).items()}
    wanted = {"gap": (17 / 20) ** 0.5, "cosine": 5**-0.5, "mean": 1.0, "std": 1.0, "real_mean": 4.0, "real_std": 2.0}
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("unit", [1.0, 1 / 8])
@pytest.mark.parametrize("strength", Strength)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pull_is_the_difference_of_both_views_as_strong_as_was_chosen(family, strength, unit):
    """Away from what the companion sees, 0.5, to what the teacher does, 2."""
    asked = []

    def teacher(x, sigma, y):
        asked.append(sigma.reshape(-1, 1, 1, 1).double())
        return torch.full_like(x, 2.0)

    examples = drawn(2.0, 1.0, sigma=table(family)[-1])
    lesson = lesson_of(family, teacher=teacher, fake=lambda x, sigma, y: torch.full_like(x, 0.5), examples=examples)
    target = method(family, strength=strength, unit=unit).target(lesson)
    (sigma,) = asked
    signal = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
    expected = {
        Strength.NORMALISED: unit / (examples["x0"] - 2.0).abs().clamp(min=FLOOR * unit),
        Strength.PLAIN: torch.ones_like(sigma),
        Strength.SCORE: sigma * signal / (signal**2 + sigma**2),
    }
    torch.testing.assert_close(target.pull.double(), -1.5 * expected[strength])


@pytest.mark.parametrize("unit", [1.0, 1 / 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_apart_is_of_the_sample_in_noise_and_as_strong_as_the_matching(family, unit):
    """(1 - s) (D_prompt - D_empty) over the distance of sample and teacher, where the companion is the teacher."""
    made = method(family, guidance_scale=3.0, guidance="decoupled", strength=Strength.NORMALISED, unit=unit)
    seen = []

    def teacher(x, sigma, y):
        seen.append((x, sigma.reshape(-1, 1, 1, 1)))
        return 2.0 * float(y.flatten()[0]) * torch.ones_like(x)

    examples = drawn(0.0, 1.0, sigma=table(family)[-1])
    target = made.target(lesson_of(family, teacher=teacher, fake=teacher, examples=examples))
    x0 = examples["x0"]
    torch.testing.assert_close(target.pull, -4.0 * unit / (x0 - 2.0).abs().clamp(min=FLOOR * unit))
    *_, (x, sigma), (again, _) = seen
    assert torch.equal(x, again)
    noise = (x - x0 * (1.0 - sigma if family is NoiseFamily.FLOW else 1.0)) / sigma
    assert_mean(noise, 0.0)
    assert_mean(noise**2, 1.0)
    assert_mean(noise * x0, 0.0)
