"""TCD and multistep consistency against diffusers' schedulers and the published rules."""

import diffusers.schedulers.scheduling_consistency_models as diffusers_cm
import diffusers.schedulers.scheduling_tcd as diffusers_tcd
import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step, tcd_gammas
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import consistency_sigmas, lcm_timesteps, timesteps_to_sigmas
from diffusers import CMStochasticIterativeScheduler, TCDScheduler
from gaussian import FAMILIES, gaussian_denoiser, table
from thorough import first_then_thorough
from torch.utils._python_dispatch import TorchDispatchMode

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VE = NoiseFamily.VARIANCE_EXPLODING
LEVELS = table(VE)
SHAPE = (2, 4, 6, 6)


def picture(x_vp, t):
    return torch.tanh(x_vp * (0.5 + t / 2000.0)) + 0.3 * torch.tanh(torch.roll(x_vp, 1, dims=-1))


def network_output(x_vp, t, kind):
    """What a network of that prediction type says when its clean picture is `picture`."""
    a, s = 1.0 / (1.0 + LEVELS[t] ** 2) ** 0.5, LEVELS[t] / (1.0 + LEVELS[t] ** 2) ** 0.5
    x0 = picture(x_vp, t)
    return {"sample": x0, "epsilon": (x_vp - a * x0) / s, "v_prediction": (a * x_vp - x0) / s}[kind]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.6, 1.0])
def test_tcd_equals_diffusers_at_every_step_count(kind, eta, every, monkeypatch):
    for steps in range(1, 51) if every else (1, 2, 7, 50):
        scheduler = TCDScheduler(**SD, prediction_type=kind)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(steps)
        fresh = [torch.randn(SHAPE, generator=generator) for _ in range(steps)]
        start = torch.randn(SHAPE, generator=generator)
        sigmas = timesteps_to_sigmas(lcm_timesteps(steps), table=LEVELS)
        sigmas[-1] = LEVELS[0]  # TCD's own end: the smallest level of the table, not 0

        def denoiser(x, sigma):
            t = int((LEVELS - sigma[0]).abs().argmin())
            return picture(x / (1.0 + sigma[0] ** 2) ** 0.5, t)

        draws = iter(fresh)
        gammas = tcd_gammas(sigmas, eta=eta, table=LEVELS, family=VE)
        shown = []
        ours = sample_few_step(
            denoiser,
            start * (1.0 + sigmas[0] ** 2) ** 0.5,
            sigmas,
            callback=lambda state, shown=shown: shown.append(state["x"]),
            disable=True,
            family=VE,
            gamma=gammas,
            noise_sampler=lambda *_, draws=draws: next(draws),
        )
        given = iter(fresh)
        monkeypatch.setattr(diffusers_tcd, "randn_tensor", lambda *_, given=given, **__: next(given))
        x, theirs = start, []
        for t in scheduler.timesteps:
            theirs.append(x)
            x = scheduler.step(network_output(x, int(t), kind), t, x, eta=eta).prev_sample
        for i, (mine, other) in enumerate(zip([*shown, ours], [*theirs, x], strict=True)):
            error = (mine / (1.0 + sigmas[i] ** 2) ** 0.5 - other).abs().max()
            assert error < 1e-5, f"step {i} of {steps}: {error}"


def boundary(x, model_output, sigma, *, sigma_min=0.002, sigma_data=0.5):
    """Song et al. 2023, appendix C."""
    c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    c_out = (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    return c_skip * x + c_out * model_output


@pytest.mark.parametrize("steps", first_then_thorough([1, 2, 7, 40], range(1, 41)))
def test_multistep_consistency_equals_diffusers(steps, monkeypatch):
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(steps)
    fresh = [torch.randn(SHAPE, generator=generator) for _ in range(steps)]
    start = torch.randn(SHAPE, generator=generator) * 80.0
    sigmas = consistency_sigmas(steps)
    torch.testing.assert_close(sigmas[:-1], scheduler.sigmas[:-1].float(), rtol=1e-5, atol=1e-7)

    def output(x_scaled, sigma):
        return torch.tanh(x_scaled + sigma.log() / 10)

    def denoiser(x, sigma):
        s = sigma[0]
        return boundary(x, output(x / (s**2 + 0.25) ** 0.5, s), s)

    draws = iter(fresh)
    shown = []
    ours = sample_few_step(
        denoiser,
        start,
        sigmas,
        callback=lambda state: shown.append(state["x"]),
        disable=True,
        family=VE,
        gamma=1.0,
        sigma_min=0.002,
        noise_sampler=lambda *_: next(draws),
    )
    given = iter(fresh)
    monkeypatch.setattr(diffusers_cm, "randn_tensor", lambda *_, **__: next(given))
    x, theirs = start, []
    for i, t in enumerate(scheduler.timesteps):
        theirs.append(x)
        x = scheduler.step(output(scheduler.scale_model_input(x, t), sigmas[i]), t, x).prev_sample
    for i, (mine, other) in enumerate(zip([*shown, ours], [*theirs, x], strict=True)):
        scale = (1.0 + sigmas[i] ** 2) ** 0.5
        error = ((mine - other) / scale).abs().max()
        assert error < 1e-5, f"step {i} of {steps}: {error}"


def gaussian_flow_map(family, *, mean=0.7, std=0.5):
    """The exact consistency function for data N(mean, std^2): along the ODE a sample keeps its standard score."""

    def consistency(x, sigma, **_):
        sigma = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        alpha = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
        spread = (alpha**2 * std**2 + sigma**2).sqrt()
        return mean + std * (x - alpha * mean) / spread

    return consistency


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_consistency_sampling_is_exact_at_every_step_count(family, steps):
    """With the exact flow map, gamma = 1 gives the data's distribution after any number of steps."""
    levels = table(family)
    sigmas = timesteps_to_sigmas([999 - 1000 // steps * k for k in range(steps)], table=levels)
    count = 60000
    noise = torch.randn(60, count // 60, generator=torch.Generator().manual_seed(steps))
    alpha = 0.0 if family is NoiseFamily.FLOW else 1.0
    start = alpha * 0.7 + noise * (alpha * 0.25 + sigmas[0] ** 2) ** 0.5
    x = sample_few_step(
        gaussian_flow_map(family),
        start,
        sigmas,
        extra_args={"seed": steps},
        disable=True,
        family=family,
        gamma=1.0,
    )
    tolerance = 4 * 0.5 / count**0.5
    assert float(x.mean()) == pytest.approx(0.7, abs=tolerance)
    assert float(x.std()) == pytest.approx(0.5, abs=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_euler_converges_at_first_order(family):
    """The exact denoiser's error at the data falls in proportion to the step: a wrong level or sign breaks the slope."""
    denoiser, exact = gaussian_denoiser(family), gaussian_flow_map(family)
    start = 0.8 if family is NoiseFamily.FLOW else 10.0
    x = torch.linspace(-2.0, 2.0, 41)[:, None].double() * start
    errors = []
    for steps in (100, 200, 400):
        sigmas = torch.linspace(start, 0.0, steps + 1, dtype=torch.float64)
        landed = sample_few_step(denoiser, x, sigmas, disable=True, family=family, gamma=0.0)
        errors.append(float((landed - exact(x, torch.full((41,), start, dtype=torch.float64))).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.15)


def test_s_noise_scales_the_fresh_noise():
    sigmas = torch.tensor([2.0, 1.0])
    inputs = {"extra_args": {"seed": 3}, "disable": True, "family": VE, "gamma": 1.0}
    zero = lambda x, sigma, **_: torch.zeros_like(x)  # noqa: E731
    plain, half = (sample_few_step(zero, torch.zeros(4, 5), sigmas, s_noise=s, **inputs) for s in (1.0, 0.5))
    torch.testing.assert_close(half, 0.5 * plain)


def test_only_steps_that_forget_all_noise_land_below_their_level():
    """sigma_min is in the x0 of a consistency model; what keeps old noise keeps that too, and lands on the level itself."""
    generator = torch.Generator().manual_seed(0)
    start, *fresh = torch.randn(3, 4, 5, generator=generator)
    draws = iter(fresh)
    landed = sample_few_step(
        lambda x, sigma: torch.zeros_like(x),
        2.0 * start,
        torch.tensor([2.0, 1.0, 0.5]),
        callback=(shown := []).append,
        disable=True,
        family=VE,
        gamma=[0.6, 1.0],
        sigma_min=0.3,
        noise_sampler=lambda *_: next(draws),
    )
    torch.testing.assert_close(shown[1]["x"], 0.8 * start + 0.6 * fresh[0])
    torch.testing.assert_close(landed, 0.4 * fresh[1])


def test_one_gamma_for_each_step_is_required():
    with pytest.raises(ValueError, match=r"2 gammas for a schedule of 1 steps"):
        sample_few_step(gaussian_denoiser(VE), torch.zeros(1, 1), torch.tensor([1.0, 0.0]), family=VE, gamma=[0.0, 0.5])


def test_tcd_etas_ends_are_lightning_and_lcm():
    sigmas = timesteps_to_sigmas(lcm_timesteps(4), table=LEVELS)
    assert tcd_gammas(sigmas, eta=0.0, table=LEVELS, family=VE) == [0.0] * 4
    assert min(tcd_gammas(sigmas, eta=1.0, table=LEVELS, family=VE)[:3]) > 0.99
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        tcd_gammas(sigmas, eta=1.5, table=LEVELS, family=VE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_tcd_goes_down_to_s_and_up_again(family, eta):
    """Literally: an Euler step to the lower timestep, then the forward process up to the next, with the same fresh noise."""
    levels = table(family)
    sigma, t_next = levels[900], 601
    s = {0.3: 420, 0.7: 180}[eta]  # of 420.7 and 180.3, downwards
    generator = torch.Generator().manual_seed(0)
    x, x0, fresh = (torch.randn(3, 4, generator=generator) for _ in range(3))
    down = family.jump(x, x0, sigma=sigma, sigma_next=levels[s])
    keep = (1 - levels[t_next]) / (1 - levels[s]) if family is NoiseFamily.FLOW else 1.0
    expected = keep * down + (levels[t_next] ** 2 - (keep * levels[s]) ** 2).sqrt() * fresh
    sigmas = torch.stack([sigma, levels[t_next]])
    (gamma,) = tcd_gammas(sigmas, eta=eta, table=levels, family=family)
    landed = family.jump(x, x0, sigma=sigma, sigma_next=levels[t_next], gamma=gamma, noise=fresh)
    torch.testing.assert_close(landed, expected, atol=1e-5, rtol=1e-5)


class _CountsReads(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a tensor's value in Python."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sigma_min", [0.0, 0.002])
def test_the_loop_never_waits_for_the_device(family, gamma, sigma_min):
    """No read of a single value at 4 steps or at 40: all levels are read at once before the loop."""
    if sigma_min and family is NoiseFamily.FLOW:
        pytest.skip("a flow model has no sigma_min")
    reads = []
    for steps in (4, 40):
        sigmas = torch.linspace(0.9, 0.0, steps + 1)
        with _CountsReads() as counter:
            sample_few_step(
                lambda x, sigma, **_: 0.5 * x,
                torch.ones(2, 3),
                sigmas,
                {"seed": 1},
                disable=True,
                family=family,
                gamma=gamma,
                sigma_min=sigma_min,
            )
        reads.append(counter.reads)
    assert reads == [0, 0]
    with _CountsReads() as counter:
        float(sigmas[0])
    assert counter.reads == 1, "it counts"


def test_a_flow_model_has_no_sigma_min():
    with pytest.raises(ValueError, match=r"sigma_min is 0\.002, but a flow model's levels end at 0"):
        sample_few_step(
            lambda x, sigma: x,
            torch.ones(1, 1),
            torch.tensor([1.0, 0.0]),
            family=NoiseFamily.FLOW,
            gamma=1.0,
            sigma_min=0.002,
        )


def test_a_level_below_the_models_smallest_is_no_nan():
    """The noise at it would have a variance below 0: there is none then."""
    seen = []

    def model(x, sigma, seed):
        seen.append(x)
        return torch.zeros_like(x)

    levels = torch.tensor([4.0, 1.0, 0.001, 0.0])
    sample_few_step(model, torch.ones(1, 4), levels, {"seed": 1}, disable=True, family=VE, gamma=1.0, sigma_min=0.002)
    assert torch.equal(seen[2], torch.zeros(1, 4))
