"""Errors by band of the noise level: a mean over all levels hides the few at which a student goes wrong."""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = 4


class NoiseBands:
    """A stage's schedule in BANDS parts of as many levels each, low noise first.

    sigmas: (steps + 1,) the stage's schedule; the 0 at its end is no level that anything is trained at. A schedule of
    fewer than BANDS steps leaves bands without a level.
    """

    def __init__(self, sigmas: Tensor, *, device: torch.device) -> None:
        self._levels = sigmas[sigmas > 0].sort().values.to(device)

    def of(self, sigma: Tensor) -> Tensor:
        """(B,) the band of each sigma (B,). What lies between two levels belongs to the upper one's band."""
        levels = self._levels.to(sigma)
        index = torch.searchsorted(levels, sigma.contiguous()).clamp(max=len(levels) - 1)
        return index * BANDS // len(levels)

    def sums(self, errors: Tensor, *, sigma: Tensor) -> Tensor:
        """(2 * BANDS,) the sum of errors (B,) in each band, then the count; nothing is read from the device.

        By `where` and not by products or scattering: NaN stays in its own band, and the order of summing is fixed.
        """
        inside = self.of(sigma)[:, None] == torch.arange(BANDS, device=sigma.device)
        summed = torch.where(inside, errors[:, None], 0.0).sum(dim=0)
        return torch.cat([summed, inside.sum(dim=0).to(summed)])

    def name(self, band: int) -> str:
        """Its range of sigma, for messages."""
        levels = self._levels[self.of(self._levels) == band].tolist()
        return f"sigma {levels[0]:.4g} to {levels[-1]:.4g} (band {band + 1} of {BANDS})"


def band_means(sums: Tensor) -> list[float | None]:
    """The mean error of each band from rows of `NoiseBands.sums` (iterations, 2 * BANDS); None without a sample."""
    summed, counts = sums.double().sum(dim=0).reshape(2, BANDS).tolist()
    return [error / count if count else None for error, count in zip(summed, counts, strict=True)]
