"""The difference of two denoisers as a pull on a sample: what distribution matching and score distillation have in common.

By Tweedie's formula a denoiser is the score of the noised data: D(x, sigma) = (x + sigma^2 grad log p(x)) / alpha. So the
gradient of the reverse Kullback-Leibler divergence between the student's noised samples and the teacher's is, on the sample,
D_fake - D_real times a weight that only depends on the level (Yin et al. 2023, arXiv 2311.18828, section 3.2).
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ...samplers.noise import NoiseFamily, expand_like

FLOOR = 0.05
"""Of the normaliser, in units of a latent: where the teacher agrees with a sample, its difference to the companion is not
blown up. Implementations have 1e-6 to 0.1; small batches need a large one."""


class Strength(Enum):
    """What the difference of two denoisers is multiplied with.

    NORMALISED: one over the mean absolute difference of the sample and what the teacher sees in it, at least FLOOR, for each
    sample (DMD: Yin et al. 2023, equation 8), in the data's unit. PLAIN: 1 (Diff-Instruct: Luo et al. 2023, arXiv 2305.18455).
    SCORE: r / (1 + r^2) with r the noise over the signal, which makes it (1 - alpha-bar) times the difference of two eps (score
    distillation; SwiftBrush: Nguyen and Tran 2023, arXiv 2312.05239).
    """

    NORMALISED = "normalised"
    PLAIN = "plain"
    SCORE = "score"

    def of(self, x0: Tensor, real: Tensor, *, sigma: Tensor, family: NoiseFamily, unit: float = 1.0) -> Tensor:
        """(B, 1, ...) for samples x0 (B, ...) in which the teacher sees `real` at sigma (B,). unit: see TeacherKind."""
        match self:
            case Strength.NORMALISED:
                strength = unit / (x0 - real).abs().flatten(1).mean(dim=1).clamp(min=FLOOR * unit)
            case Strength.PLAIN:
                strength = torch.ones_like(sigma)
            case Strength.SCORE:
                signal = family.signal(sigma)
                strength = sigma * signal / (signal**2 + sigma**2)
        return expand_like(strength, x0)


def noised(x_s: Tensor, noise: Tensor, *, sigma_s: Tensor, sigma: Tensor, family: NoiseFamily) -> Tensor:
    """x (B, ...) at sigma (B,) from x_s (B, ...), which is at sigma_s (B,) below it, and unit noise; from 0 it is add_noise."""
    signal, added = _path(sigma_s, sigma, family=family)
    return expand_like(signal, x_s) * x_s + expand_like(added, x_s) * noise


def seen_in(x_s: Tensor, noise: Tensor, *, sigma_s: Tensor, sigma: Tensor, family: NoiseFamily) -> Tensor:
    """What a denoiser of noised samples x_s is taught to see in `noised` of them: (B, ...), its mean is their denoiser.

    x_s / alpha_s - alpha sigma_s^2 / (alpha_s^2 added) noise, from Tweedie's formula at sigma, where `added` is the noise
    that came on top (Phased DMD: arXiv 2510.27684). Of clean samples, sigma_s = 0, it is x_s itself.
    """
    signal, added = _path(sigma_s, sigma, family=family)
    alpha_s = family.signal(sigma_s)
    back = signal * sigma_s**2 / (alpha_s * added)
    return x_s / expand_like(alpha_s, x_s) - expand_like(back, x_s) * noise


def weight_of_seen(sigma_s: Tensor, sigma: Tensor, *, family: NoiseFamily) -> Tensor:
    """(B,) for squared errors to `seen_in`: the eps-loss, the flow's v-loss, where samples are clean, at most 100.

    Of noised samples it is less, by b^2 / (b^2 + sigma_s^2) with b = alpha_s * added, since the noise in the target grows as
    sigma_s / b does: weighted, it stays within (alpha sigma_s / (alpha_s sigma))^2, so at most 1. Without this the landings near
    the top of a flow model, where little signal is left, drown all others. In variance-exploding models it is (added / sigma)^2.
    """
    _, added = _path(sigma_s, sigma, family=family)
    told = (family.signal(sigma_s) * added) ** 2
    return (1.0 / sigma**2).clamp(max=100.0) * told / (told + sigma_s**2)


def _path(sigma_s: Tensor, sigma: Tensor, *, family: NoiseFamily) -> tuple[Tensor, Tensor]:
    """(what is left of x_s, the deviation of the noise that comes on top) from sigma_s up to sigma."""
    left = family.signal(sigma) / family.signal(sigma_s)
    return left, (sigma**2 - (left * sigma_s) ** 2).clamp(min=0.0).sqrt()
