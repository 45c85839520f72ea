"""Weights on the squared error of x0, as functions of the noise level (Salimans and Ho 2022, section 4).

With z = alpha x0 + s eps an error e in x0 is one of (alpha / s) e in eps, so the squared error in eps is SNR e^2 with
SNR = alpha^2 / s^2, and the paper's max(|x0 error|^2, |eps error|^2) is max(SNR, 1) e^2 (equation 9). v = alpha eps - s x0
has an error of (alpha^2 / s + s) e = e / s where alpha^2 + s^2 = 1, and e^2 / s^2 = (SNR + 1) e^2 (equation 10).

SNR = 1 / sigma^2 for variance-exploding models. For flow models alpha = 1 - sigma and s = sigma, so
SNR = ((1 - sigma) / sigma)^2. SNR + 1 is then the error in the v of z scaled to alpha^2 + s^2 = 1. The error in the flow's own
velocity eps - x0 = (z - x0) / sigma is e^2 / sigma^2 = (sqrt(SNR) + 1)^2 e^2, between once and twice that.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ...samplers.noise import NoiseFamily

NO_SIGNAL = 1e-4
"""SNR. Stable Diffusion begins at 5e-3, rescaled to zero terminal SNR at 5e-8."""


class Weighting(Enum):
    """CONSTANT: 1. SNR: the eps-error. SNR_PLUS_ONE: the v-error.

    TRUNCATED_SNR: max(SNR, 1), the larger of the x0- and the eps-error.
    """

    TRUNCATED_SNR = "truncated_snr"
    SNR_PLUS_ONE = "snr_plus_one"
    SNR = "snr"
    CONSTANT = "constant"

    def require_for(self, family: NoiseFamily, *, table: Tensor, unit: float = 1.0) -> None:
        """ValueError where a model would never learn its first level: pure noise, with next to no signal.

        table: (T,) its noise levels, ascending. Flow models begin so, and those of zero terminal SNR. unit: see __call__.
        """
        first = float(self(table[-1:], family=family, unit=unit))
        if self is Weighting.SNR and first < NO_SIGNAL:
            others = ", ".join(weighting.value for weighting in Weighting if weighting is not Weighting.SNR)
            raise ValueError(
                f"weighting is {self.value}, which is {first:.2g} at this model's first noise level, where "
                f"students begin; allowed are {others}."
            )

    def __call__(self, sigma: Tensor, *, family: NoiseFamily, unit: float = 1.0) -> Tensor:
        """The weight (B,) at noise levels sigma (B,), all above 0.

        unit: of the data, see TeacherKind. Errors of x0 and the signal are in it, so that what is 1 here is 1 of their own.
        """
        signal = unit * family.signal(sigma)
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
