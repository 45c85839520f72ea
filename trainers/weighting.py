"""Weights on the squared error of x0, as functions of the noise level (Salimans and Ho 2022, section 4).

SNR = 1 / sigma^2 for variance-exploding models. For flow models signal and noise are 1 - sigma and sigma, so
SNR = ((1 - sigma) / sigma)^2.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ..samplers.noise import NoiseFamily


class Weighting(Enum):
    """CONSTANT: 1. SNR: the eps-error. SNR_PLUS_ONE: the v-error.

    TRUNCATED_SNR: max(SNR, 1), the larger of the x0- and the eps-error.
    """

    TRUNCATED_SNR = "truncated_snr"
    SNR_PLUS_ONE = "snr_plus_one"
    SNR = "snr"
    CONSTANT = "constant"

    def __call__(self, sigma: Tensor, *, family: NoiseFamily) -> Tensor:
        """The weight (B,) at noise levels sigma (B,), all above 0."""
        signal = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
        snr = (signal / sigma) ** 2
        match self:
            case Weighting.TRUNCATED_SNR:
                return snr.clamp(min=1.0)
            case Weighting.SNR_PLUS_ONE:
                return snr + 1.0
            case Weighting.SNR:
                return snr
            case Weighting.CONSTANT:
                return torch.ones_like(sigma)
