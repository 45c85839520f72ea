import diffusers.schedulers.scheduling_lcm as diffusers_lcm
import pytest
import torch
from comfyui_fewstep.samplers.few_step import (
    ancestral_gammas,
    draw_from_noise,
    fresh_noise,
    in_order,
    sample_few_step,
    tcd_gammas,
)
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import lcm_timesteps, timesteps_to_sigmas, trailing_sigmas, trailing_timesteps
from diffusers import EulerDiscreteScheduler, LCMScheduler
from gaussian import FAMILIES, gaussian_denoiser, table
from thorough import first_then_thorough

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VE = NoiseFamily.VARIANCE_EXPLODING
LEVELS = table(VE)
SHAPE = (2, 4, 6, 6)


def predicted_noise(x_vp, t):
    """A smooth network that is no denoiser of anything, as parity must hold for any; its pictures stay near [-1, 1]."""
    picture = torch.tanh(x_vp * (0.5 + t / 2000.0)) + 0.3 * torch.tanh(torch.roll(x_vp, 1, dims=-1))
    s = LEVELS[t]
    return (x_vp * (1.0 + s**2) ** 0.5 - picture) / s


def timestep_of(sigma):
    return int((LEVELS - sigma).abs().argmin())


def record(steps_taken):
    return lambda state: steps_taken.append(state["x"])


def in_vp_scale(x, sigma):
    return x / (1.0 + sigma**2) ** 0.5


@pytest.mark.parametrize("steps", first_then_thorough([1, 2, 7, 48], range(1, 51)))
def test_lightning_equals_diffusers_euler_trailing(steps):
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps)) * float(scheduler.init_noise_sigma)

    def denoiser(x, sigma):
        s = sigma[0]
        return x - s * predicted_noise(x / (1.0 + s**2) ** 0.5, timestep_of(s))

    ours = []
    sigmas = trailing_sigmas(steps, table=LEVELS)
    last = sample_few_step(denoiser, start, sigmas, callback=record(ours), disable=True, family=VE, gamma=0.0)
    x, theirs = start, []
    for t in scheduler.timesteps:
        theirs.append(x)
        x = scheduler.step(predicted_noise(scheduler.scale_model_input(x, t), int(t)), t, x).prev_sample
    for i, (mine, other) in enumerate(zip([*ours, last], [*theirs, x], strict=True)):
        error = in_vp_scale(mine - other, sigmas[i]).abs().max()
        assert error < 1e-5, f"step {i} of {steps}: {error}"


@pytest.mark.parametrize(
    ("steps", "strength"),
    first_then_thorough(
        [(1, 1.0), (4, 1.0), (7, 1.0), (50, 1.0), (4, 0.3), (35, 0.7)],
        [*((n, 1.0) for n in range(1, 51)), *((n, k / 10) for k in range(1, 10) for n in (1, 2, 4, 5 * k))],
    ),
)
def test_lcm_equals_diffusers(steps, strength, monkeypatch):
    """With the boundary scalings of Luo et al. in the network, as diffusers applies them; noise injected in both."""
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(steps, strength=strength)
    generator = torch.Generator().manual_seed(steps)
    fresh = [torch.randn(SHAPE, generator=generator) for _ in range(steps)]
    start = torch.randn(SHAPE, generator=generator)
    sigmas = timesteps_to_sigmas(lcm_timesteps(steps, strength=strength), table=LEVELS)

    def denoiser(x, sigma):
        s = sigma[0]
        t, x_vp = timestep_of(s), in_vp_scale(x, s)
        x0 = x - s * predicted_noise(x_vp, t)
        c_skip, c_out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
        return c_out * x0 + c_skip * x_vp

    draws = iter(fresh)
    ours = []
    last = sample_few_step(
        denoiser,
        start * (1.0 + sigmas[0] ** 2) ** 0.5,
        sigmas,
        callback=record(ours),
        disable=True,
        family=VE,
        gamma=1.0,
        noise_sampler=lambda *_: next(draws),
    )
    given = iter(fresh)
    monkeypatch.setattr(diffusers_lcm, "randn_tensor", lambda *_, **__: next(given))
    x, theirs = start, []
    for t in scheduler.timesteps:
        theirs.append(x)
        x = scheduler.step(predicted_noise(x, int(t)), t, x).prev_sample
    for i, (mine, other) in enumerate(zip([*ours, last], [*theirs, x], strict=True)):
        error = (in_vp_scale(mine, sigmas[i]) - other).abs().max()
        assert error < 1e-5, f"step {i} of {steps}: {error}"
    assert len(list(draws)) == 1, "LCM draws no noise on its last step"


@pytest.mark.parametrize("family", FAMILIES)
def test_many_deterministic_steps_reach_the_data(family):
    """On an exact Gaussian denoiser the sampled mean and deviation converge to the data's."""
    levels = table(family)
    noise = torch.randn(40000, 1, generator=torch.Generator().manual_seed(0))
    sigmas = trailing_sigmas(500, table=levels)
    x = sample_few_step(
        gaussian_denoiser(family),
        family.initial(noise, sigma=sigmas[0]),
        sigmas,
        disable=True,
        family=family,
        gamma=0.0,
    )
    assert x.mean() == pytest.approx(0.7, abs=0.03)
    assert x.std() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_show_the_clean_picture(family):
    shown = []
    levels = trailing_sigmas(4, table=table(family))
    denoiser = gaussian_denoiser(family)
    sample_few_step(
        denoiser,
        torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        levels,
        callback=shown.append,
        disable=True,
        family=family,
        gamma=0.0,
    )
    assert [state["i"] for state in shown] == [0, 1, 2, 3]
    for state in shown:
        expected = denoiser(state["x"], state["sigma"].expand(2))
        torch.testing.assert_close(state["denoised"], expected)


def test_the_seed_decides_the_noise():
    def run(seed):
        return sample_few_step(
            gaussian_denoiser(VE),
            torch.ones(2, 3),
            trailing_sigmas(4, table=LEVELS),
            extra_args={"seed": seed},
            disable=True,
            family=VE,
            gamma=1.0,
        )

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_no_fresh_noise_is_the_noise_that_the_host_starts_from():
    """ComfyUI draws that from the seed itself, on the CPU: nothing that is drawn later may repeat it."""
    initial = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).flatten(1)
    x, samples = torch.zeros(SHAPE), in_order(len(torch.zeros(SHAPE)), seed=5)
    fresh = torch.cat([fresh_noise(x, samples=samples, level=level).flatten(1) for level in (3.0, 2.0, 1.0)])
    alike = torch.corrcoef(torch.cat([initial, fresh])).fill_diagonal_(0.0)
    assert alike.abs().max() < 0.4, "144 numbers: independent ones share a twelfth"


def test_a_picture_does_not_depend_on_its_batch():
    def run(count):
        start = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))[:count]
        return sample_few_step(
            gaussian_denoiser(VE),
            start,
            trailing_sigmas(4, table=LEVELS),
            extra_args={"seed": 5},
            disable=True,
            family=VE,
            gamma=1.0,
        )

    assert torch.equal(run(8)[:3], run(3))
    assert len(run(8).unique(dim=0)) == 8


def test_a_batch_of_several_seeds_has_the_noise_of_each():
    """Of a seed and a place in its own batch, wherever the sample is here."""

    def run(**whose):
        options = {"disable": True, "family": VE, "gamma": 1.0, **whose}
        return sample_few_step(gaussian_denoiser(VE), torch.ones(2, 3), trailing_sigmas(4, table=LEVELS), **options)

    (five, six), mixed = (
        (run(extra_args={"seed": s}) for s in (5, 6)),
        run(samples=[(6, 1), (5, 0)], extra_args={"seed": 7}),
    )
    assert torch.equal(mixed, torch.stack([six[1], five[0]]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_is_cut_up_gives_the_whole_runs_picture(family, gamma, cut):
    """Fresh noise belongs to the seed, the sample and the level, not to the call."""
    sigmas = trailing_sigmas(4, table=table(family))
    start = family.initial(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), sigma=sigmas[0])

    def run(x, levels):
        options = {"extra_args": {"seed": 5}, "disable": True, "family": family, "gamma": gamma}
        return sample_few_step(gaussian_denoiser(family), x, levels, **options)

    assert torch.equal(run(run(start, sigmas[: cut + 1]), sigmas[cut:]), run(start, sigmas))


def test_no_draw_is_anothers():
    """Nor the host's initial noise of this seed or the next, for any sample."""
    x, levels = torch.zeros(3, 1000), torch.tensor([14.6, 4.1, 1.6, 0.7])
    drawn = [
        fresh_noise(x, samples=in_order(3, seed=seed), level=float(level)) for seed in (7, 8) for level in levels[1:]
    ]
    drawn += [torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8, 9)]
    related = torch.corrcoef(torch.cat(drawn))
    assert (related - torch.eye(len(related))).abs().max() < 0.2


def test_a_schedule_that_stops_early_keeps_its_noise():
    """Advanced workflows hand a half-denoised latent on: the last level is then not 0, and noise must be there."""
    sigmas = trailing_sigmas(4, table=LEVELS)[:3]
    x = sample_few_step(
        gaussian_denoiser(VE), torch.zeros(5000, 1), sigmas, extra_args={"seed": 1}, disable=True, family=VE, gamma=1.0
    )
    assert x.std() == pytest.approx(float(sigmas[-1]), rel=0.05)
    assert trailing_timesteps(4)[2] == 499


@pytest.mark.parametrize(
    ("family", "levels", "left"), [(VE, [2.0, 1.0], 5**0.5 / 2), (NoiseFamily.FLOW, [0.8, 0.4], 0.4)]
)
def test_a_picture_from_unit_noise_begins_at_the_familys_own_scale(family, levels, left):
    """Of a model that sees 0 everywhere a step leaves the noise, at the next level's share of the start."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    seen = []

    def model(x, sigma, y):
        seen.append(y)
        return torch.zeros_like(x)

    drawn = draw_from_noise(
        model, noise, torch.tensor(levels, dtype=torch.float64), {"y": noise}, family=family, seed=0
    )
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, left * noise)
    assert seen[0] is noise


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_steps_add_as_much_fresh_noise_as_their_rules_say(eta):
    """From a to b k-diffusion's eta sqrt(b^2 (1 - b^2 / a^2)); a flow's keep the noise over the signal that they go down to."""
    a, b = 0.8, 0.5
    sigmas = torch.tensor([a, b, 0.0], dtype=torch.float64)
    (exploding, last), (flow, _) = (ancestral_gammas(sigmas, family=family, eta=eta) for family in FAMILIES)
    assert b * exploding == pytest.approx(eta * (b**2 * (1.0 - b**2 / a**2)) ** 0.5)
    down = b * (1.0 + eta * (b / a - 1.0))
    assert (1.0 - flow**2) ** 0.5 == pytest.approx(down / (1.0 - down) * (1.0 - b) / b)
    assert last == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ancestral_step_between_equal_levels_adds_nothing(family):
    """At the top of a flow model too, where the noise over the signal is infinite on both sides."""
    gammas = ancestral_gammas(torch.tensor([1.0, 1.0, 0.5, 0.5, 0.0]), family=family)
    assert [gammas[0], gammas[2], gammas[3]] == [0.0, 0.0, 0.0]
    assert 0.0 < gammas[1] < 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_level_of_zero_before_the_end_is_left_by_fresh_noise_alone(family):
    """What keeps noise of x would divide by zero. A restart that noises all afresh is the sampling from there on."""
    x, restart = torch.full((1, 2), 0.3), torch.tensor([0.8, 0.0, 0.5, 0.0])

    def sampled(gamma):
        return sample_few_step(
            gaussian_denoiser(family), x, restart, {"seed": 3}, disable=True, family=family, gamma=gamma
        )

    for gamma in (0.0, 0.5, [1.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="level 2 of the 4 sigmas is 0"):
            sampled(gamma)
    assert torch.isfinite(sampled(1.0)).all()
    kept = [0.0, 1.0, 0.0]
    assert torch.isfinite(sampled(kept)).all()


def test_a_level_that_comes_again_draws_anew():
    """Restarts are there for that. The first time it is the noise of that level, whatever else the schedule holds."""
    drawn = []

    def model(x, sigma, **_):
        drawn.append(x.clone())
        return torch.zeros_like(x)

    def draws(levels):
        drawn.clear()
        sample_few_step(
            model,
            torch.zeros(2, 5),
            torch.tensor(levels),
            {"seed": 3},
            disable=True,
            family=NoiseFamily.FLOW,
            gamma=1.0,
        )
        return [x / level for x, level in zip(drawn[1:], levels[1:], strict=False)]

    again, once = draws([1.0, 0.5, 0.8, 0.5, 0.8, 0.5, 0.0]), draws([1.0, 0.8, 0.5, 0.0])
    torch.testing.assert_close(again[0], once[1])
    torch.testing.assert_close(again[1], once[0])
    halves, eights = again[0::2], again[1::2]
    for one, other in [(halves[0], halves[1]), (halves[0], halves[2]), (halves[1], halves[2]), tuple(eights)]:
        assert not torch.isclose(one, other, atol=1e-4).any()


def test_tcd_wants_every_timestep():
    """Of 50 levels it would end at the 20th timestep, and turn round at another than was meant."""
    coarse = table(NoiseFamily.VARIANCE_EXPLODING)[19::20]
    with pytest.raises(ValueError, match=r"this model has 50 noise levels .* wants all 1000"):
        tcd_gammas(coarse[[49, 24, 0]], eta=0.3, table=coarse, family=NoiseFamily.VARIANCE_EXPLODING)


def fresh_noise_of_steps(noise, sigmas, **options):
    """What each later step of a model that sees 0 everywhere begins with: its fresh noise alone."""
    seen = []

    def model(x, sigma):
        seen.append(x)
        return torch.zeros_like(x)

    levels = torch.tensor(sigmas)
    options = {"family": VE, "gamma": 1.0, "noise_sampler": lambda *_: noise} | options
    sample_few_step(model, torch.zeros_like(noise), levels, disable=True, **options)
    return seen[1:]


@pytest.mark.parametrize(("end", "scales"), [(None, (1.2, 1.2, 1.2)), (0.6, (1.2, 1.0, 0.8)), (0.0, (1.2, 0.8, 0.4))])
def test_fresh_noise_goes_evenly_to_its_last_scale(end, scales):
    """To the fourth step's, which goes to 0 and draws none; 0 is a scale, not none given."""
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    levels = [4.0, 1.0, 1.0, 1.0, 0.0]
    seen = fresh_noise_of_steps(noise, levels, s_noise=1.2, s_noise_end=end, noise_scale=8.0)
    for x, scale in zip(seen, scales, strict=True):
        torch.testing.assert_close(x, 8.0 * scale * noise)


def test_noise_is_clipped_by_each_samples_own_deviation():
    noise = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [3.0]])
    (x,) = fresh_noise_of_steps(noise, [4.0, 1.0, 0.0], noise_clip=1.5)
    (alone,) = fresh_noise_of_steps(noise[:1], [4.0, 1.0, 0.0], noise_clip=1.5)
    assert torch.equal(x[:1], alone)
    most = 1.5 * noise.std(dim=1, keepdim=True)
    torch.testing.assert_close(x, torch.maximum(-most, torch.minimum(noise, most)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_from_a_picture_begins_at_it_in_noise(family):
    noise, x0 = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    seen = []

    def model(x, sigma):
        seen.append(x)
        return torch.zeros_like(x)

    draw_from_noise(model, noise, torch.tensor([0.8, 0.0]), family=family, seed=0, x0=x0)
    assert torch.equal(seen[0], family.add_noise(x0, noise, sigma=torch.tensor(0.8)))


def test_drawing_from_noise_has_the_samplers_own_fresh_noise():
    """Of the same seed, sample and level: a student measured is the student that is sampled."""
    noise, sigmas = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([9.0, 3.0, 1.0, 0.0])
    drawn = draw_from_noise(gaussian_denoiser(VE), noise, sigmas, family=VE, seed=7, gamma=1.0)
    start = VE.initial(noise, sigma=sigmas[0])
    same = sample_few_step(gaussian_denoiser(VE), start, sigmas, {"seed": 7}, disable=True, family=VE, gamma=1.0)
    assert torch.equal(drawn, same)
