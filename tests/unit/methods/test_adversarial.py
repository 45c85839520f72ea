"""The critic's part in distribution matching: what it learns from, and what of its gradient reaches the student's x0."""

import dataclasses

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.objective.score import noised
from gaussian import FAMILIES
from test_distribution_matching import lesson_of, method, options

VE, FLOW = NoiseFamily
COUNT, SHAPE = 6, (6, 3, 2, 2)
WEIGHT = 0.4


def realness(x):
    """(B,) some function of each sample, of which the critic of these tests says the gradient."""
    return (x * torch.arange(1, 13, dtype=x.dtype).reshape(3, 2, 2)).sin().flatten(1).sum(dim=1)


class Critic:
    def __init__(self):
        self.asked = []

    def __call__(self, x, sigma, y):
        self.asked.append((x, sigma))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(realness(x).sum(), x)[0]


def lesson(family, critic, *, seed=0, iteration=0, x0=None, examples=None):
    made = lesson_of(family, count=COUNT, seed=seed, teacher=lambda x, sigma, y: 0.3 * x, examples=examples)
    x0 = torch.zeros(SHAPE) if x0 is None else x0
    batch = Batch(x0, {"y": torch.ones(COUNT, 1)}, unconditional={"y": torch.zeros(1, 1)})
    companions = {"fake": lambda x, sigma, y: 0.5 * x, "critic": critic}
    student = lambda x, sigma, y: 0.2 * x + 0.1  # noqa: E731
    return dataclasses.replace(made, batch=batch, companions=companions, student=student, iteration=iteration)


def adversarial(family, **changed):
    return method(family, **({"steps": 4, "companion_first": 0, "adversarial_weight": WEIGHT} | changed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rollout", ["fresh_noise", "deterministic", "segments", "landings"])
def test_the_pull_is_the_gradient_on_x0_through_the_landing_and_the_noise(family, rollout):
    """By autograd through the jump and the noising, whatever the step; over the matching's own, times the root of the size."""
    critic = Critic()
    made, plain = adversarial(family, rollout=rollout), method(family, steps=4, rollout=rollout)
    levels = set()
    for seed in range(8):
        examples = made.examples(lesson(family, critic, seed=seed))
        critic.asked.clear()
        target = made.target(lesson(family, critic, seed=50 + seed, examples=examples))
        without = plain.target(lesson(family, critic, seed=50 + seed, examples=examples))
        ((x, sigma),) = critic.asked
        x0 = examples["x0"].detach().clone().requires_grad_()
        x_s, sigma_s = x0, examples["sigma_s"]
        if made._samples.rollout.matches_landings:
            x_s = family.jump(examples["x_t"], x0, sigma=examples["sigma"], sigma_next=sigma_s)
        again = noised(x_s, torch.zeros_like(x_s), sigma_s=sigma_s, sigma=sigma, family=family)
        (expected,) = torch.autograd.grad(realness(again + (x - again).detach()).sum(), x0)
        added = target.pull - without.pull
        torch.testing.assert_close(added, WEIGHT * 12**0.5 * expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(target.x0, examples["x0"] - target.pull)
        share = added.flatten(1).norm(dim=1) / without.pull.flatten(1).norm(dim=1)
        torch.testing.assert_close(target.measures["adversarial"], share)
        levels.add(float(examples["sigma"][0]))
    assert len(levels) > 1


def test_a_slope_on_smaller_data_is_steeper_and_pulls_them_less():
    """Of data of an eighth a critic that sees the same is eight times as steep, and an eighth of the way is as far."""
    made = adversarial(VE)
    critic = Critic()
    examples = made.examples(lesson(VE, critic))
    whole = made._looking_real(lesson(VE, critic, examples=examples), examples["x0"], torch.ones(COUNT))
    eighth = adversarial(VE, unit=1 / 8)._looking_real(
        lesson(VE, lambda x, sigma, y: 8.0 * critic(x, sigma, y), examples=examples), examples["x0"], torch.ones(COUNT)
    )
    torch.testing.assert_close(eighth, whole / 8)


@pytest.mark.parametrize(("unit", "shakes"), [(1.0, 0.01), (0.125, 0.00125)])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_from_samples_and_pictures_at_one_level(family, unit, shakes):
    """The same noise in both pictures, of which one is a hundredth of noise in the data's unit noisier before."""
    made, count = adversarial(family, steps=1, unit=unit), 4000
    x0 = torch.full((count, 3, 2, 2), 2.0)
    given = lesson_of(family, count=count)
    batch = Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})
    given = dataclasses.replace(given, batch=batch, student=lambda x, sigma, y: torch.zeros_like(x))
    given = dataclasses.replace(given, examples=made.examples(given))
    target = made.companion_target("critic", given)
    level = target.sigma[:, None, None, None]
    alpha = 1.0 - level if family is FLOW else torch.ones_like(level)
    noise = {"drawn": target.x_t / level, "real": (target.x0 - alpha * 2.0) / level}
    for what, values in noise.items():
        assert abs(float(values.mean())) < 0.03, what
        assert float(values.std()) == pytest.approx(1.0, abs=0.02), what
    shaken = ((target.near - target.x0) / alpha).flatten()
    assert float(shaken.mean()) == pytest.approx(0.0, abs=3e-4)
    assert float(shaken.std()) == pytest.approx(shakes, rel=0.02)
    assert torch.equal(target.weight, torch.ones(count))
    assert target.pull is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noisier_of_the_two_pictures_is_not_the_one_told_from_samples(family):
    """Seen where there is little other noise: at the lowest level that there is."""
    made, count = adversarial(family, steps=1, renoise_from=0.0, renoise_to=0.001), 4000
    x0 = torch.full((count, *SHAPE[1:]), 2.0)
    batch = Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})
    given = dataclasses.replace(lesson_of(family, count=count), batch=batch, student=lambda x, sigma, y: 0.0 * x)
    target = made.companion_target("critic", dataclasses.replace(given, examples=made.examples(given)))
    level = float(target.sigma.max())
    assert level == float(target.sigma.min()) < 0.03
    left = float(family.signal(target.sigma[0]))
    told, near = (float((seen - left * 2.0).std()) for seen in (target.x0, target.near))
    assert told == pytest.approx(level, rel=0.02)
    assert near == pytest.approx((level**2 + (0.01 * left) ** 2) ** 0.5, rel=0.02)


def test_it_pulls_only_after_its_own_beginning():
    critic = Critic()
    made = adversarial(VE, companion_first=3, adversarial_from=2, iterations=10)
    found = []
    for iteration in (4, 5):
        examples = made.examples(lesson(VE, critic, iteration=iteration))
        target = made.target(lesson(VE, critic, iteration=iteration, examples=examples))
        found.append((len(critic.asked), bool(target.measures["adversarial"].any())))
    assert found == [(0, False), (1, True)]


def test_who_learns_and_what_from():
    made = adversarial(VE, critic_learning_rate=3e-4, companion_updates=3, companion_rank=5)
    fake, critic = made.companions(stage=0)
    assert (fake.name, fake.is_critic, fake.rank) == ("fake", False, 5)
    assert (critic.name, critic.is_critic, critic.updates, critic.learning_rate) == ("critic", True, 3, 3e-4)
    assert made.needs_pictures
    assert [one.name for one in method(VE).companions(stage=0)] == ["fake"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"adversarial_weight": -0.1}, "adversarial_weight is -0.1; it must not be negative"),
        ({"adversarial_weight": float("inf")}, "adversarial_weight is inf; it must be a finite number"),
        ({"adversarial_weight": 1.0, "adversarial_from": 10}, "adversarial_from is 10 and iterations is 10"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate is 0.0; allowed is above 0"),
    ],
)
def test_options_of_no_use_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


def test_a_run_older_than_the_critic_means_none():
    assert method(VE, adversarial_weight=WEIGHT).options_of_old()["adversarial_weight"] == 0.0
