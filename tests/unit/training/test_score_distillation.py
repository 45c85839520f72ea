"""Score distillation of latents against its closed forms: SDS goes to the mode, VSD with many latents to the distribution."""

import contextlib
import dataclasses
import types

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.training.score_distillation import (
    Kind,
    LearningFake,
    ScoreDistillationOptions,
    Views,
    _drawn,
    _pull,
    distil_latent,
)
from gaussian import FAMILIES, gaussian_denoiser, table

VE, FLOW = NoiseFamily
MEAN, EMPTY, STD = 0.7, 0.2, 0.5


def teacher(family):
    """Of the prompts y: 1 the prompt, 0 the empty one, -1 the negative, 2 the source's."""
    means = {1.0: MEAN, 0.0: EMPTY, -1.0: -0.4, 2.0: -0.6}
    known = {y: gaussian_denoiser(family, mean=mean, std=STD) for y, mean in means.items()}

    def denoise(x, sigma, y):
        return known[float(y.flatten()[0])](x, sigma)

    return denoise


def views(family, **changed):
    prompt = {
        name: {"y": torch.full((1, 1), y)} for name, y in (("condition", 1.0), ("negative", -1.0), ("empty", 0.0))
    }
    return Views(denoiser=teacher(family), family=family, table=table(family), **(prompt | changed))


def chosen(**changed):
    return ScoreDistillationOptions(**{"guidance_scale": 1.0, "iterations": 150, "learning_rate": 0.1} | changed)


def start(count=400):
    return torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(8)) - 0.5


class Exact:
    """The companion that knows at once where the latents are, as Gaussian data."""

    def __init__(self, family, x0):
        self.family, self.learnt = family, 0
        self.learn(x0)

    def denoiser(self, x, sigma, **_):
        return gaussian_denoiser(self.family, mean=self.mean, std=self.std)(x, sigma)

    def learn(self, x0, *_):
        self.mean, self.std = float(x0.mean()), float(x0.std())
        self.learnt += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_sds_goes_to_the_mode(family):
    """All latents to the guided mean, and none spread: not samples."""
    for scale, mean in ((1.0, MEAN), (3.0, -0.4 + 3.0 * (MEAN + 0.4))):
        found = distil_latent(start(), chosen(guidance_scale=scale, iterations=300), views(family))
        assert float(found.mean()) == pytest.approx(mean, abs=0.1)
        assert float(found.std()) < 0.15


@pytest.mark.parametrize("family", FAMILIES)
def test_vsd_with_many_latents_goes_to_the_distribution(family):
    fake = Exact(family, start())
    found = distil_latent(start(), chosen(kind=Kind.VSD), views(family), fake=fake)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(found.std()) == pytest.approx(STD, abs=0.05)
    assert fake.learnt == 151


def test_the_companion_learns_the_latents_after_their_step():
    learnt, told = [], []

    class Heard(Exact):
        def learn(self, x0, *_):
            learnt.append(x0.clone())
            super().learn(x0)

    fake = Heard(FLOW, start(4))
    learnt.clear()
    distil_latent(
        start(4),
        chosen(kind=Kind.VSD, iterations=3),
        views(FLOW),
        fake=fake,
        observe=lambda _, x: told.append(x.clone()),
    )
    assert all(torch.equal(a, b) for a, b in zip(learnt, told, strict=True))


def test_a_companion_of_latents_counts_each_by_its_level():
    """1 / sigma^2, at most 100: the gradient of the mean of w (c - x0)^2 by c, small enough not to be clipped."""
    weight = torch.zeros(1, requires_grad=True)
    network = types.SimpleNamespace(
        parameters=lambda: [weight], autograd=contextlib.nullcontext, denoiser=lambda x, sigma: weight.expand_as(x)
    )
    errors, sigma = torch.tensor([1e-3, -0.1, 0.2]), torch.tensor([0.05, 0.5, 2.0])
    fake = LearningFake(network, learning_rate=0.1, views=views(VE), start=errors)
    fake.learn(errors.reshape(-1, 1, 1, 1), torch.ones(3, 1, 1, 1), sigma, {})
    expected = -2.0 * (torch.tensor([100.0, 4.0, 0.25]) * errors).mean()
    assert weight.grad.item() == pytest.approx(float(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_nfsd_has_no_noise_in_its_pull(family):
    """Above a fifth of the time it is D_neg - D_empty - s (D_prompt - D_empty): of equal spreads the same for every sample."""
    options, seen = chosen(kind=Kind.NFSD, guidance_scale=4.0), views(family)
    x0 = start(50)
    sigma, noise = torch.full((50,), float(table(family)[700])), torch.randn(50, 1, 1, 1)
    pull = _pull(x0, sigma, noise, options, seen, None)
    kept = gaussian_denoiser(family, mean=1.0, std=STD)(torch.zeros(1), sigma[:1])  # what one unit of mean changes
    wanted = ((-0.4 - EMPTY) - 4.0 * (MEAN - EMPTY)) * kept
    ratio = sigma[0] / (1.0 - sigma[0]) if family is FLOW else sigma[0]
    torch.testing.assert_close(pull.flatten(), (wanted * ratio / (1 + ratio**2)).expand(50), rtol=1e-4, atol=1e-6)
    low = torch.full((50,), float(table(family)[100]))
    pull = _pull(x0, low, noise, options, seen, None)
    own = gaussian_denoiser(family, mean=EMPTY, std=STD)(family.add_noise(x0, noise, sigma=low), low)
    ratio = (low / (1.0 - low) if family is FLOW else low).reshape(-1, 1, 1, 1)
    less = 4.0 * (MEAN - EMPTY) * gaussian_denoiser(family, mean=1.0, std=STD)(torch.zeros(1), low[:1])
    torch.testing.assert_close(pull, (x0 + ratio * noise - own - less) * ratio / (1 + ratio**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Kind.SDS, Kind.NFSD])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_that_is_the_prompt_moves_nothing(kind, family):
    """To the bit: what the prompt of the start pulls is subtracted, at the same noise."""
    same = views(family, source={"y": torch.ones(1, 1)})
    assert torch.equal(distil_latent(start(20), chosen(kind=kind, iterations=5), same), start(20))


def test_vsd_has_no_source():
    """Its companion knows the latents as they are, so that the pull of the start would hold none of the way back to it."""
    with pytest.raises(ValueError, match=r"kind is vsd, .* disconnect source, or choose sds"):
        views(VE, source={"y": torch.ones(1, 1)}).require_for(chosen(kind=Kind.VSD))


@pytest.mark.parametrize("family", FAMILIES)
def test_editing_moves_by_the_difference_of_the_prompts(family):
    """Without guidance each latent keeps its own place beside the mean, which goes from the source's to the prompt's."""
    found = distil_latent(start(), chosen(iterations=300), views(family, source={"y": torch.full((1, 1), 2.0)}))
    moved = (found - start()).flatten()
    assert float(moved.mean()) == pytest.approx(MEAN + 0.6, abs=0.1)
    assert float(moved.std()) < 0.05


def test_what_the_mask_leaves_is_left_to_the_bit():
    mask = (torch.arange(20) % 2).reshape(-1, 1, 1, 1).float()
    found = distil_latent(start(20), chosen(iterations=5), views(VE), mask=mask)
    changed = (found != start(20)).flatten()
    assert changed.tolist() == [False, True] * 10


def test_the_seed_decides_all_and_levels_narrow():
    one, same, other = (distil_latent(start(4), chosen(iterations=3, seed=seed), views(VE)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    options = chosen(iterations=10, level_from=0.1, level_to=0.9, last_level_to=0.3)
    levels = table(VE)
    for done, top in ((0, 0.9), (9, 0.3)):
        sigma, _ = _drawn(start(2000), options, views(VE), done)
        assert levels[100] <= sigma.min() < levels[110]
        assert levels[int(1000 * top) - 10] < sigma.max() < levels[int(1000 * top)]


def test_nobody_who_is_asked_keeps_what_gradients_would_want():
    """A network whose weights could learn would keep all that it computed, for each of the steps."""
    asked = []

    def denoise(x, sigma, y):
        asked.append(torch.is_grad_enabled())
        return teacher(FLOW)(x, sigma, y)

    for kind in (Kind.SDS, Kind.NFSD):
        seen = dataclasses.replace(views(FLOW), denoiser=denoise)
        distil_latent(start(2), chosen(kind=kind, iterations=2, guidance_scale=2.0), seen)
    assert asked
    assert not any(asked)


def test_no_two_draws_are_one():
    """Of a companion least of all: noise that the latents are pulled by would be what it has just learnt."""
    draws = [_drawn(start(2), chosen(), views(VE), done, of_companion=fake)[1] for done in range(4) for fake in (0, 1)]
    assert len(torch.stack(draws).flatten(1).unique(dim=0)) == 8


def test_each_step_is_shorter_than_the_one_before_evenly_down_to_none():
    """Where all pulls are alike Adam's step is its learning rate, to rounding."""
    seen, ways = views(FLOW, negative=None), []
    seen = dataclasses.replace(seen, denoiser=lambda x, sigma, y: torch.full_like(x, -1e4))
    options = chosen(iterations=4, learning_rate=0.1, level_from=0.5, level_to=0.501, last_level_to=0.501)
    distil_latent(start(3), options, seen, observe=lambda _, x: ways.append(x.clone()))
    steps = -torch.stack([start(3), *ways]).diff(dim=0)
    wanted = torch.tensor([0.1, 0.075, 0.05, 0.025]).reshape(4, 1, 1, 1, 1)
    torch.testing.assert_close(steps, wanted.expand_as(steps), rtol=1e-3, atol=0.0)


def test_it_tells_how_far_it_is_and_can_be_stopped():
    told = []

    def stop(done, x):
        told.append((done, x.clone()))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil_latent(start(2), chosen(), views(VE), observe=stop)
    assert [done for done, _ in told] == [1, 2, 3]
    assert not torch.equal(told[0][1], told[1][1])


@pytest.mark.parametrize(
    ("changed", "prompts", "named"),
    [
        ({"guidance_scale": 7.5}, {"negative": None}, r"guidance_scale is 7.5 and kind is sds, .* connect negative"),
        ({"kind": Kind.NFSD}, {"empty": None}, "kind is nfsd, which needs the empty prompt beside the negative one"),
        ({"kind": Kind.VSD}, {}, "kind is vsd, which needs a companion"),
    ],
)
def test_a_prompt_that_is_missing_is_named_before_work(changed, prompts, named):
    with pytest.raises(ValueError, match=named):
        distil_latent(start(2), chosen(**changed), views(VE, **prompts))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"level_from": 0.6}, "level_from is 0.6, level_to is 0.98 and last_level_to is 0.5"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed is above 0"),
        ({"guidance_scale": 0.0}, "guidance_scale is 0.0; allowed is 1"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        chosen(**changed)


def test_a_grey_mask_lets_its_share_of_each_step_go():
    """Adam's step is as long for a small gradient, so that a mask of the gradient would let all of it go."""
    begin = start(4)
    whole = distil_latent(begin, chosen(iterations=1), views(VE)) - begin
    share = torch.tensor([0.0, 0.01, 0.5, 1.0]).reshape(-1, 1, 1, 1)
    found = distil_latent(begin, chosen(iterations=1), views(VE), mask=share) - begin
    torch.testing.assert_close(found, share * whole, atol=1e-6, rtol=1e-5)
    assert whole.abs().min() > 1e-3
