"""Few-step samplers as plain functions of the k-diffusion shape: a schedule and a gamma."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from .noise import Denoiser, NoiseFamily, expand_like
from .schedules import TRAIN_TIMESTEPS

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise_sampler(sigma, sigma_next) -> fresh unit noise in the shape of x."""


Sample = tuple[int, int]
"""(seed, place): whose fresh noise a sample of a batch gets, of a graph's seed and by its place among that seed's samples."""


def in_order(count: int, *, seed: int | None) -> list[Sample] | None:
    """The samples of a batch that is a seed's whole batch; None without a seed."""
    return None if seed is None else [(seed, place) for place in range(count)]


def fresh_noise(x: Tensor, *, samples: Sequence[Sample] | None, level: float, visit: int = 0) -> Tensor:
    """In the shape of x (B, ...), one draw for each of its samples at a level; None: whatever torch draws.

    visit: how often the schedule has come to this level before: a restart is there to draw anew.

    So a picture depends neither on what else is in its batch nor on how many samplings its steps are spread over. None of
    these draws is another's, nor the initial noise of this seed or the next, which ComfyUI draws from the seed itself.
    """
    if samples is None:
        return torch.randn_like(x)
    seeds = (_hashed(seed, place, level, visit) for seed, place in samples)
    generators = (torch.Generator(device=x.device).manual_seed(own) for own in seeds)
    return torch.stack([torch.randn(x.shape[1:], dtype=x.dtype, device=x.device, generator=g) for g in generators])


def _hashed(seed: int, place: int, level: float, visit: int) -> int:
    """63 bits of BLAKE2b: generators on the CPU take 32 of them, and seeds in a row must not draw the same numbers."""
    key = struct.pack("<QQf", seed % 2**64, place, level) + (struct.pack("<Q", visit) if visit else b"")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 2**63


@torch.no_grad()
def sample_few_step(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    family: NoiseFamily,
    gamma: float | Sequence[float],
    s_noise: float = 1.0,
    s_noise_end: float | None = None,
    noise_clip: float = 0.0,
    noise_scale: float = 1.0,
    sigma_min: float = 0.0,
    noise_sampler: NoiseSampler | None = None,
    samples: Sequence[Sample] | None = None,
) -> Tensor:
    """Walks a schedule with `NoiseFamily.jump`: gamma 0 is Euler (Lightning), 1 is LCM / multistep consistency.

    model: D(x (B, ...), sigma (B,), **extra_args) -> x0. x: (B, ...) at sigmas[0]. sigmas: (n + 1,), descending.
    gamma: one for all steps, or one for each of the n. sigma_min: the smallest level of a consistency model, whose x0 still
    holds that much noise, so that gamma 1 fills up to sqrt(sigma^2 - sigma_min^2) only (Song et al. 2023, Algorithm 1;
    variance-exploding models).
    The fresh noise is clipped at noise_clip of its own deviations (0: not), and scaled: by s_noise, which goes evenly to
    s_noise_end at the last step (None: stays), and by noise_scale, what the model calls noise of 1 (HiDream-O1: 8).
    samples: what each of x is, for its fresh noise (None: those of the seed in extra_args, in order).
    callback gets i, x, sigma, sigma_hat and denoised (the x0 of the step: previews never show an intermediate).
    A step to sigma 0 returns x0 and draws no noise.
    """
    extra_args = extra_args or {}
    gammas = [gamma] * (len(sigmas) - 1) if isinstance(gamma, (int, float)) else list(gamma)
    if len(gammas) != len(sigmas) - 1:
        raise ValueError(
            f"there are {len(gammas)} gammas for a schedule of {len(sigmas) - 1} steps; give one for each."
        )
    if sigma_min > 0.0 and family is NoiseFamily.FLOW:
        raise ValueError(f"sigma_min is {sigma_min}, but a flow model's levels end at 0; set it to 0.")
    levels = sigmas.cpu().double().numpy().tolist()  # all at once: asked one by one, each would wait for the device
    _require_noise_to_keep(levels, gammas)
    ones = x.new_ones([x.shape[0]])
    ends_clean = levels[-1] == 0.0
    draws: list[Callable[[], Tensor]]
    if noise_sampler is None:
        samples = samples or in_order(len(x), seed=extra_args.get("seed"))
        visits = [levels[1:i].count(level) for i, level in enumerate(levels) if i]
        made = partial(fresh_noise, x, samples=samples)
        draws = [partial(made, level=level, visit=visit) for level, visit in zip(levels[1:], visits, strict=True)]
    else:
        draws = [partial(noise_sampler, *levels) for levels in pairwise(sigmas)]
    end = s_noise if s_noise_end is None else s_noise_end
    scales = [noise_scale * (s_noise + (end - s_noise) * i / max(len(gammas) - 1, 1)) for i in range(len(gammas))]
    landings = (sigmas**2 - sigma_min**2).clamp(min=0.0).sqrt() if sigma_min > 0.0 else sigmas
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if ends_clean and i == len(sigmas) - 2 and gammas[i] > 0.0:
            x = denoised
            continue
        noise = None
        if gammas[i] > 0.0:
            noise = _clipped(draws[i](), deviations=noise_clip)
            noise = noise if scales[i] == 1.0 else scales[i] * noise
        landing = landings[i + 1] if gammas[i] == 1.0 else sigmas[i + 1]
        x = family.jump(x, denoised, sigma=sigmas[i], sigma_next=landing, gamma=gammas[i], noise=noise)
    return x


def _require_noise_to_keep(levels: Sequence[float], gammas: Sequence[float]) -> None:
    """ValueError for a level of 0 that a step leaves by other than fresh noise alone: it would divide by it."""
    for i, (level, gamma) in enumerate(zip(levels[:-1], gammas, strict=True)):
        if level == 0.0 and gamma < 1.0:
            raise ValueError(
                f"level {i + 1} of the {len(levels)} sigmas is 0, where x has no noise that a step with gamma {gamma:g} could "
                "keep; end the schedule there, or take gamma 1."
            )


def _clipped(noise: Tensor, *, deviations: float) -> Tensor:
    """noise (B, ...) within so many of the deviations of each sample; 0 leaves it."""
    if deviations == 0.0:
        return noise
    most = expand_like(deviations * noise.flatten(1).std(dim=1), noise)
    return noise.clamp(min=-most, max=most)


def draw_from_noise(
    model: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    condition: dict[str, Tensor] | None = None,
    *,
    family: NoiseFamily,
    seed: int,
    gamma: float = 0.0,
    x0: Tensor | None = None,
) -> Tensor:
    """What a few-step model makes of unit noise (B, ...): `sample_few_step` from `initial`, the same every time.

    sigmas: (n + 1,), moved to the noise. condition: the model's further inputs. gamma: of every step. seed: of the fresh
    noise, hashed, so that it may be the noise's own. x0: (B, ...) what the noise is added to, where the levels begin
    below the top.
    """
    sigmas = sigmas.to(noise)
    start = family.initial(noise, sigma=sigmas[0]) if x0 is None else family.add_noise(x0, noise, sigma=sigmas[0])
    samples = in_order(len(noise), seed=seed)
    return sample_few_step(model, start, sigmas, condition, disable=True, family=family, gamma=gamma, samples=samples)


def sample_tcd(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *walk: Any,
    family: NoiseFamily,
    table: Tensor,
    eta: float = 0.3,
    **options: Any,
) -> Tensor:
    """Trajectory consistency sampling: `sample_few_step` with the gammas of TCD's eta on the model's table of levels (T,).

    walk, options: what else sample_few_step takes, by position and by name.
    """
    gammas = tcd_gammas(sigmas, eta=eta, table=table, family=family)
    return sample_few_step(model, x, sigmas, *walk, family=family, gamma=gammas, **options)


def sample_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *walk: Any,
    family: NoiseFamily,
    eta: float = 1.0,
    **options: Any,
) -> Tensor:
    """Ancestral Euler (SDXL-Turbo at more than one step, LTX-2.5): `sample_few_step` with the gammas of that rule.

    walk, options: what else sample_few_step takes, by position and by name.
    """
    gammas = ancestral_gammas(sigmas, eta=eta, family=family)
    return sample_few_step(model, x, sigmas, *walk, family=family, gamma=gammas, **options)


def _gamma(down: Tensor, up: Tensor, *, family: NoiseFamily) -> float:
    """The gamma of a step that goes down to one level and is noised up to the next.

    What is left of the old noise is sqrt(1 - gamma^2) = r_down / r_up, with r the noise over the signal: sigma, or
    sigma / (1 - sigma) for flow models.
    """
    if family is NoiseFamily.FLOW:
        down, up = down / (1.0 - down), up / (1.0 - up)
    return float((1.0 - (down / up) ** 2).clamp(min=0.0).sqrt())


def ancestral_gammas(sigmas: Tensor, *, family: NoiseFamily, eta: float = 1.0) -> list[float]:
    """The gamma of each step that is ancestral sampling; a step to 0 adds no noise. sigmas: (n + 1,).

    Variance-exploding models get fresh noise of eta sqrt(sigma_next^2 (1 - sigma_next^2 / sigma^2)), as k-diffusion has it.
    Flow models go down to sigma_next (1 + eta (sigma_next / sigma - 1)), as ComfyUI's euler_ancestral has it. At eta 1 both
    go down to sigma_next^2 / sigma; at 0 both are Euler.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; allowed is 0 (deterministic) to 1.")
    levels = sigmas.cpu().double()
    return [
        _ancestral_gamma(before, after, eta=eta, family=family) if 0.0 < after < before else 0.0
        for before, after in pairwise(levels)
    ]


def _ancestral_gamma(before: Tensor, after: Tensor, *, eta: float, family: NoiseFamily) -> float:
    if family is NoiseFamily.FLOW:
        return _gamma(after * (1.0 + eta * (after / before - 1.0)), after, family=family)
    return eta * _gamma(after**2 / before, after, family=family)


def require_every_timestep(table: Tensor) -> None:
    """ValueError where the model's table (T,) has fewer levels than it learnt: TCD ends, and turns round, on the finest ones."""
    if len(table) < TRAIN_TIMESTEPS:
        raise ValueError(
            f"this model has {len(table)} noise levels (ModelSamplingDiscrete with lcm gives it 50), and TCD wants all "
            f"{TRAIN_TIMESTEPS} that it learnt; take that node out."
        )


def tcd_gammas(sigmas: Tensor, *, eta: float, table: Tensor, family: NoiseFamily) -> list[float]:
    """The gamma of each step that is TCD's eta (Zheng et al. 2024, section 4.2, as diffusers' TCDScheduler has it).

    A step goes down to timestep s = floor((1 - eta) t_next) and up again to t_next. A step to 0 adds no noise.
    sigmas: (n + 1,) on the model's ascending table of levels (T,).
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; allowed is 0 (deterministic) to 1 (all noise fresh).")
    require_every_timestep(table)
    levels = table.cpu().double()
    gammas = []
    for sigma_next in sigmas[1:].cpu().double():
        if sigma_next == 0.0 or eta == 0.0:
            gammas.append(0.0)
            continue
        t_next = int((levels - sigma_next).abs().argmin())
        gammas.append(_gamma(levels[int((1.0 - eta) * t_next)], levels[t_next], family=family))
    return gammas
