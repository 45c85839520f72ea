"""An exponential moving average of the student's weights, within one stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .sharding import part

_PREFIX = "average."


class Average:
    """average = decay * average + (1 - decay) * weights after every optimiser step, beginning at the weights.

    weights: the tensors that an optimiser steps. The average is float32 whatever they are, since a part of 1 - decay
    of a step would vanish in half precision.
    """

    def __init__(self, weights: list[Tensor], *, decay: float) -> None:
        self._weights = weights
        self._average = [weight.detach().float().clone() for weight in weights]
        # torch's own, for its fused kernel; its AveragedModel would copy a module, and a student may be bare tensors
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        self._blend(self._average, [weight.detach().float() for weight in self._weights], 0)

    @torch.no_grad()
    def to_weights(self) -> None:
        """Puts the average in place of the weights."""
        for weight, average in zip(self._weights, self._average, strict=True):
            weight.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{_PREFIX}{i}": value for i, value in enumerate(self._average)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of state_dict; other names are left alone."""
        for i, average in enumerate(self._average):
            average.copy_(part(tensors[f"{_PREFIX}{i}"], like=average))
