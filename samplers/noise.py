"""The two noise families and the one update rule that every few-step sampler and every target is built on.

Both families mix a clean sample with Gaussian noise at a noise level sigma, and in both a deterministic step of
the probability-flow ODE is the same straight line through x and x0 (Karras et al. 2022, section 2; Liu et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]
"""D(x (B, ...), sigma (B,), **condition) -> x0 (B, ...): the clean sample that the model sees in x."""


def expand_like(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma () or (B,) with trailing axes of size one, so that it broadcasts against x (B, ...)."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


class NoiseFamily(Enum):
    """How a clean sample and noise are mixed at a noise level.

    VARIANCE_EXPLODING: x = x0 + sigma * noise, for eps-, v-, x0- and EDM-models in k-diffusion's convention.
    FLOW: x = (1 - sigma) * x0 + sigma * noise, for rectified-flow models, sigma in [0, 1].
    """

    VARIANCE_EXPLODING = "variance_exploding"
    FLOW = "flow"

    def signal(self, sigma: Tensor) -> Tensor:
        """What add_noise multiplies the clean sample with, as sigma: 1 - sigma for flow models, 1 for others."""
        return 1.0 - sigma if self is NoiseFamily.FLOW else torch.ones_like(sigma)

    def add_noise(self, x0: Tensor, noise: Tensor, *, sigma: Tensor) -> Tensor:
        """x (B, ...) at noise level sigma () or (B,)."""
        sigma = expand_like(sigma, x0)
        if self is NoiseFamily.FLOW:
            return sigma * noise + (1.0 - sigma) * x0
        return sigma * noise + x0

    def noise_in(self, x: Tensor, x0: Tensor, *, sigma: Tensor) -> Tensor:
        """The noise that add_noise mixed into x; the inverse of add_noise for sigma > 0."""
        sigma = expand_like(sigma, x)
        if self is NoiseFamily.FLOW:
            return (x - (1.0 - sigma) * x0) / sigma
        return (x - x0) / sigma

    def initial(self, noise: Tensor, *, sigma: Tensor) -> Tensor:
        """x at the first noise level of a schedule, from unit noise, when there is no picture to start from.

        A variance-exploding model was trained on data of about unit variance plus sigma of noise, hence
        sqrt(1 + sigma^2); ComfyUI starts its samplers so at sigma_max.
        """
        sigma = expand_like(sigma, noise)
        return noise * sigma if self is NoiseFamily.FLOW else noise * torch.sqrt(1.0 + sigma**2)

    def jump(
        self,
        x: Tensor,
        x0: Tensor,
        *,
        sigma: Tensor,
        sigma_next: Tensor,
        gamma: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """From x at sigma, with the denoiser's x0, to sigma_next.

        gamma = 0 follows the ODE (an Euler step, DDIM: SDXL-Lightning). gamma = 1 forgets x and noises x0 afresh
        (LCM, multistep consistency: Song et al. 2023, Algorithm 1). Between, the step goes down to
        sqrt(1 - gamma^2) of the target's noise and fills up with fresh noise (Kim et al. 2023, Algorithm 3, for
        variance-exploding models; the same mixture of old and fresh noise for flow models).

        x, x0, noise: (B, ...). sigma, sigma_next: () or (B,). noise is required when gamma > 0.
        """
        if gamma == 0.0:
            sigma, sigma_next = expand_like(sigma, x), expand_like(sigma_next, x)
            return x + (x - x0) / sigma * (sigma_next - sigma)
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma is {gamma}; allowed is 0 (deterministic) to 1 (all noise fresh).")
        if noise is None:
            raise ValueError(f"gamma is {gamma}, so the jump adds fresh noise, but noise is None.")
        if gamma < 1.0:
            noise = (1.0 - gamma**2) ** 0.5 * self.noise_in(x, x0, sigma=sigma) + gamma * noise
        return self.add_noise(x0, noise, sigma=sigma_next)


def solved_x0(x_t: Tensor, x_s: Tensor, *, sigma_t: Tensor, sigma_s: Tensor) -> Tensor:
    """The x0 with which one deterministic step from x_t at sigma_t lands exactly on x_s at sigma_s < sigma_t.

    x0 = x_t - sigma_t (x_s - x_t) / (sigma_s - sigma_t), the secant of Salimans and Ho (2022), equation 8, in both
    noise families. It is computed as x_s plus a correction: at sigma_s = 0 (the last step of a schedule) that is
    x_s itself, with no cancellation. Computed in the inputs' precision: give float32 or better.

    x_t, x_s: (B, ...). sigma_t, sigma_s: () or (B,).
    """
    sigma_t, sigma_s = expand_like(sigma_t, x_t), expand_like(sigma_s, x_t)
    return x_s + sigma_s * (x_s - x_t) / (sigma_t - sigma_s)


def unconditioned(denoiser: Denoiser, unconditional: dict[str, Tensor]) -> Denoiser:
    """The denoiser of the empty prompt, whatever condition it is given. unconditional: (1, ...) or (B, ...) each."""

    def denoise(x: Tensor, sigma: Tensor, **_: Tensor) -> Tensor:
        negative = {name: value.expand(len(x), *value.shape[1:]) for name, value in unconditional.items()}
        return denoiser(x, sigma, **negative)

    return denoise


class Answers(NamedTuple):
    """What a denoiser sees in x (B, ...) at sigma (B,), by its prompts.

    without: None where nobody asked. denoiser, condition, unconditional: what it was asked of, for rules that ask once more.
    """

    x: Tensor
    sigma: Tensor
    with_prompt: Tensor
    without: Tensor | None
    denoiser: Denoiser
    condition: dict[str, Tensor]
    unconditional: dict[str, Tensor]


class GuidanceRule(Protocol):
    """What is made of a network's answers with its prompt and without, where that is not classifier-free guidance alone.

    needs_both: whether it wants both at a scale of 1, too.
    """

    @property
    def needs_both(self) -> bool: ...

    def __str__(self) -> str:
        """Whose it is, for people."""

    def __call__(self, answers: Answers, *, scale: float | Tensor) -> Tensor:
        """x0 (B, ...). scale: one, or (B,)."""


def guided(
    denoiser: Denoiser,
    *,
    guidance_scale: float | Tensor,
    unconditional: dict[str, Tensor],
    rule: GuidanceRule | None = None,
) -> Denoiser:
    """Classifier-free guidance: x0 = uncond + guidance_scale * (cond - uncond) (Ho and Salimans 2021, with w = s - 1).

    guidance_scale: one, or one for each sample (B,). unconditional: the model inputs of the empty prompt, (1, ...) or
    (B, ...) each. A scale of 1 for all is the denoiser itself. rule: takes that formula's place.
    """
    both = needs_both(guidance_scale, rule)
    if rule is None and not both:
        return denoiser
    without_prompt, combined = unconditioned(denoiser, unconditional), rule or _classifier_free

    def guided_denoiser(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        without = without_prompt(x, sigma) if both else None
        with_prompt = denoiser(x, sigma, **condition)
        answers = Answers(x, sigma, with_prompt, without, denoiser, condition, unconditional)
        return combined(answers, scale=guidance_scale)

    return guided_denoiser


def _classifier_free(answers: Answers, *, scale: float | Tensor) -> Tensor:
    with_prompt, without = answers.with_prompt, answers.without
    if without is None:
        return with_prompt
    return without + (expand_like(scale, without) if isinstance(scale, Tensor) else scale) * (with_prompt - without)


def needs_both(guidance_scale: float | Tensor, rule: GuidanceRule | None) -> bool:
    """Whether guidance asks for what is seen without the prompt, besides."""
    return isinstance(guidance_scale, Tensor) or guidance_scale != 1.0 or (rule is not None and rule.needs_both)
