"""Few-step samplers as plain functions of the k-diffusion shape: a schedule and a gamma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from .noise import Denoiser, NoiseFamily

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise_sampler(sigma, sigma_next) -> fresh unit noise in the shape of x."""


def seeded_noise_sampler(x: Tensor, *, seed: int | None) -> NoiseSampler:
    """Fresh noise from the graph's seed, from one generator on x's device.

    ComfyUI draws the initial noise from the same seed on the CPU. There the first fresh noise would be that very
    draw again, so on the CPU the next seed is taken.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(device=x.device).manual_seed(seed + (x.device.type == "cpu"))
    return lambda sigma, sigma_next: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


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
    sigma_min: float = 0.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Walks a schedule with `NoiseFamily.jump`: gamma 0 is Euler (Lightning), 1 is LCM / multistep consistency.

    model: D(x (B, ...), sigma (B,), **extra_args) -> x0. x: (B, ...) at sigmas[0]. sigmas: (n + 1,), descending.
    gamma: one for all steps, or one for each of the n. s_noise: scale of the fresh noise. sigma_min: the smallest
    level of a consistency model, whose x0 still holds that much noise, so that gamma 1 fills up to
    sqrt(sigma^2 - sigma_min^2) only (Song et al. 2023, Algorithm 1; variance-exploding models).
    callback gets i, x, sigma, sigma_hat and denoised (the x0 of the step: previews never show an intermediate).
    A step to sigma 0 returns x0 and draws no noise.
    """
    extra_args = extra_args or {}
    gammas = [gamma] * (len(sigmas) - 1) if isinstance(gamma, (int, float)) else list(gamma)
    if len(gammas) != len(sigmas) - 1:
        raise ValueError(
            f"there are {len(gammas)} gammas for a schedule of {len(sigmas) - 1} steps; give one for each."
        )
    if noise_sampler is None and any(gammas):
        noise_sampler = seeded_noise_sampler(x, seed=extra_args.get("seed"))
    ones = x.new_ones([x.shape[0]])
    ends_clean = float(sigmas[-1]) == 0.0  # asked once: inside the loop it would wait for the device at each step
    landings = (sigmas**2 - sigma_min**2).clamp(min=0.0).sqrt() if sigma_min > 0.0 else sigmas
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if ends_clean and i == len(sigmas) - 2 and gammas[i] > 0.0:
            x = denoised
            continue
        noise = None
        if gammas[i] > 0.0 and noise_sampler is not None:
            noise = noise_sampler(sigmas[i], sigmas[i + 1])
            noise = noise if s_noise == 1.0 else s_noise * noise
        landing = landings[i + 1] if gammas[i] == 1.0 else sigmas[i + 1]
        x = family.jump(x, denoised, sigma=sigmas[i], sigma_next=landing, gamma=gammas[i], noise=noise)
    return x


def tcd_gammas(sigmas: Tensor, *, eta: float, table: Tensor) -> list[float]:
    """The gamma of each step that is TCD's eta (Zheng et al. 2024, section 4.2, as diffusers' TCDScheduler has it).

    A step goes down to timestep s = floor((1 - eta) t_next) and up again to t_next, so sqrt(1 - gamma^2) =
    sigma_s / sigma_next. A step to 0 adds no noise. sigmas: (n + 1,) on the model's ascending table of levels (T,).
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; allowed is 0 (deterministic) to 1 (all noise fresh).")
    gammas = []
    levels = table.double().cpu()
    for sigma_next in sigmas[1:].double().cpu():
        if sigma_next == 0.0 or eta == 0.0:
            gammas.append(0.0)
            continue
        t_next = int((levels - sigma_next).abs().argmin())
        s = int((1.0 - eta) * t_next)
        gammas.append(float((1.0 - (levels[s] / levels[t_next]) ** 2).clamp(min=0.0).sqrt()))
    return gammas
