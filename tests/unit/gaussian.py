"""Exact denoisers and the papers' variance-preserving formulas: the oracles of the closed-form tests."""

import torch
from comfyui_fewstep.samplers.noise import NoiseFamily

FAMILIES = list(NoiseFamily)


def table(family, count=1000):
    """Ascending noise levels: Stable Diffusion's, in float32 throughout as diffusers computes them, or a flow model's."""
    if family is NoiseFamily.FLOW:
        return torch.arange(1, count + 1) / count
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, count) ** 2
    alphas = torch.cumprod(1.0 - betas, dim=0)
    return ((1.0 - alphas) / alphas).sqrt()


def signal_and_noise(sigma, family):
    """(alpha, s) of z = alpha * x0 + s * noise; for variance-exploding models in the variance-preserving scale."""
    if family is NoiseFamily.FLOW:
        return 1.0 - sigma, sigma
    return 1.0 / (1.0 + sigma**2) ** 0.5, sigma / (1.0 + sigma**2) ** 0.5


def gaussian_denoiser(family, *, mean=0.7, std=0.5):
    """E[x0 | x] for data N(mean, std^2): linear regression of x0 on x."""

    def denoiser(x, sigma, **_):
        sigma = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        alpha = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoiser


def ddim(z_t, x0, *, alpha_t, s_t, alpha_s, s_s):
    """The DDIM step as Salimans and Ho write it, equation 4."""
    return alpha_s * x0 + s_s / s_t * (z_t - alpha_t * x0)


def paper_target(denoiser, x_t, *, levels, family):
    """Algorithm 2 of Salimans and Ho, literally, in the scale where z = alpha * x0 + s * noise; levels: three of them."""
    (a_t, s_t), (a_m, s_m), (a_s, s_s) = (signal_and_noise(level, family) for level in levels)

    def predict(z, alpha, level):
        x = z if family is NoiseFamily.FLOW else z / alpha
        return denoiser(x, level.reshape(1).expand(len(x)))

    z_t = x_t if family is NoiseFamily.FLOW else a_t * x_t
    z_m = ddim(z_t, predict(z_t, a_t, levels[0]), alpha_t=a_t, s_t=s_t, alpha_s=a_m, s_s=s_m)
    z_s = ddim(z_m, predict(z_m, a_m, levels[1]), alpha_t=a_m, s_t=s_m, alpha_s=a_s, s_s=s_s)
    return (z_s - s_s / s_t * z_t) / (a_s - s_s / s_t * a_t)


class Mixture:
    """A Gaussian mixture on the line: its noised versions, their distribution, denoiser and flow map, in float64.

    Everything is elementwise: a sigma must broadcast against x.
    """

    def __init__(self, *, weights, means, stds):
        self.weights, self.means, self.stds = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))

    def noised(self, sigma, family):
        """(alpha, means, stds) of the components at sigma, along a last axis of their own."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64).unsqueeze(-1)
        alpha = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
        return alpha, alpha * self.means, (alpha**2 * self.stds**2 + sigma**2).sqrt()

    def cdf(self, x, sigma, family):
        _, means, stds = self.noised(sigma, family)
        return torch.special.ndtr((x.unsqueeze(-1) - means) / stds) @ self.weights

    def quantile(self, level, sigma, family):
        """The x with cdf(x) = level, by bisection of +-10 deviations to 1e-12 of their width."""
        _, means, stds = self.noised(sigma, family)
        low, high = ((means + side * stds) for side in (-10.0, 10.0))
        low, high = low.amin(-1).expand_as(level), high.amax(-1).expand_as(level)
        for _ in range(40):
            middle = (low + high) / 2
            below = self.cdf(middle, sigma, family) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def denoiser(self, family):
        """E[x0 | x]: each component's regression, weighted by how likely x came from it."""

        def denoise(x, sigma, **_):
            alpha, means, stds = self.noised(sigma.reshape(-1, *(1,) * (x.ndim - 1)), family)
            score = (x.unsqueeze(-1) - means) / stds
            likely = torch.softmax(self.weights.log() - stds.log() - score**2 / 2, dim=-1)
            return (likely * (self.means + alpha * self.stds**2 / stds * score)).sum(-1)

        return denoise

    def flow_map(self, family, *, sigma_min=0.0):
        """The exact consistency function: the ODE keeps the order of points on a line, so a sample keeps its quantile."""

        def consistency(x, sigma, **_):
            level = self.cdf(x, sigma.reshape(-1, *(1,) * (x.ndim - 1)), family)
            return self.quantile(level, sigma_min, family)

        return consistency
