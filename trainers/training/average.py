"""Exponential moving averages of the student's weights, within one stage: what it results in, and what a method is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...samplers.noise import Denoiser
from ..processes.sharding import part

RESULT, TARGET = "average.", "target."
"""Prefixes in the state: of the average that a stage results in, and of the one that a method is given."""


class Average:
    """average = decay * average + (1 - decay) * weights after every optimiser step, beginning at the weights.

    weights: the tensors that an optimiser steps. prefix: of its names in the state. The average is float32 whatever they
    are, since a part of 1 - decay of a step would vanish in half precision.
    """

    def __init__(self, weights: list[Tensor], *, decay: float, prefix: str = RESULT) -> None:
        self._weights, self._prefix = weights, prefix
        self._average = [weight.detach().float().clone() for weight in weights]
        # torch's own, for its fused kernel; its AveragedModel would copy a module, and a student may be bare tensors
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        self._blend(self._average, [weight.detach().float() for weight in self._weights], 0)

    def to_weights(self) -> None:
        """Puts the average in place of the weights."""
        self._copy(self._average)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the weights are the average. They come back as copies: arithmetic would round."""
        held = [weight.detach().clone() for weight in self._weights]
        self.to_weights()
        try:
            yield
        finally:
            self._copy(held)

    def seen_by(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser of these weights with the average in their place. For passes without gradient."""

        def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
            with self.in_place():
                return denoiser(x, sigma, **condition)

        return denoise

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{self._prefix}{i}": value for i, value in enumerate(self._average)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of state_dict; other names are left alone."""
        for i, average in enumerate(self._average):
            average.copy_(part(tensors[f"{self._prefix}{i}"], like=average))


class Averages:
    """Those of a stage, as many as it wants. decay, target_decay: of the stage's result and of a method's target; 0 is none."""

    def __init__(self, weights: list[Tensor], *, decay: float, target_decay: float) -> None:
        self.result = Average(weights, decay=decay) if decay else None
        self._target = Average(weights, decay=target_decay, prefix=TARGET) if target_decay else None
        self._all = [average for average in (self.result, self._target) if average]

    def update(self) -> None:
        for average in self._all:
            average.update()

    def given(self, denoiser: Denoiser) -> Denoiser:
        """The student as a method is given it."""
        return self._target.seen_by(denoiser) if self._target else denoiser

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for average in self._all for name, value in average.state_dict().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for average in self._all:
            average.load_state_dict(tensors)
