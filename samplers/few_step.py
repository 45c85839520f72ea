"""Few-step samplers as plain functions of the k-diffusion shape: a schedule and a gamma."""

from __future__ import annotations

from collections.abc import Callable
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
    gamma: float,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Walks a schedule with `NoiseFamily.jump`: gamma 0 is Euler (Lightning), 1 is LCM / multistep consistency.

    model: D(x (B, ...), sigma (B,), **extra_args) -> x0. x: (B, ...) at sigmas[0]. sigmas: (n + 1,), descending.
    callback gets i, x, sigma, sigma_hat and denoised (the x0 of the step: previews never show an intermediate).
    A step to sigma 0 returns x0 and draws no noise.
    """
    extra_args = extra_args or {}
    if noise_sampler is None and gamma > 0.0:
        noise_sampler = seeded_noise_sampler(x, seed=extra_args.get("seed"))
    ones = x.new_ones([x.shape[0]])
    last = _index_of_zero(sigmas)
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if i + 1 == last and gamma > 0.0:
            x = denoised
            continue
        noise = noise_sampler(sigmas[i], sigmas[i + 1]) if noise_sampler is not None else None
        x = family.jump(x, denoised, sigma=sigmas[i], sigma_next=sigmas[i + 1], gamma=gamma, noise=noise)
    return x


def _index_of_zero(sigmas: Tensor) -> int:
    """Where the schedule reaches 0, asked once: a comparison inside the loop would wait for the device each step."""
    return len(sigmas) - 1 if float(sigmas[-1]) == 0.0 else -1
