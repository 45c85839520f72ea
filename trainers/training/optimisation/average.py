"""Exponential moving averages of the student's weights, within one stage: what it results in, and what a method is given."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ....samplers.noise import Denoiser
from ...objective.method import Decay
from ...processes.sharding import part

RESULT, TARGET = "average.", "target."
"""Prefixes in the state: of the average that a stage results in, and of the one that a method is given."""

AVERAGE_BEGUN_AT = "average_begun_at"
"""In a checkpoint's position: Average.begun_at of what the stage results in, where that is not 0."""


def is_averaged(tensors: Mapping[str, Tensor], *, prefix: str = RESULT) -> bool:
    """Whether a state holds the average of that prefix."""
    return f"{prefix}0" in tensors


def warmed_up(decay: float, done: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage: a few steps count too."""
    return min(decay, (1 + done) / (10 + done))


def start_left(decay: float, steps: int, *, warms_up: bool) -> float:
    """The share of the weights that it began at in an average after so many steps: the product of its decays."""
    return math.prod(warmed_up(decay, done) for done in range(steps)) if warms_up else decay**steps


class Average:
    """average = decay * average + (1 - decay) * weights after every optimiser step, beginning at the weights.

    weights: the tensors that an optimiser steps. prefix: of its names in the state. decay: always, or after n steps. The
    average is float32 whatever the weights are, since a part of 1 - decay of a step would vanish in half precision. begun_at:
    after how many of the stage's updates it begins: later than at the first where another run made those, without an average.
    """

    def __init__(self, weights: list[Tensor], *, decay: Decay, prefix: str = RESULT) -> None:
        self._weights, self._prefix, self._decay = weights, prefix, decay
        self.begun_at = 0
        self._average = [weight.detach().float().clone() for weight in weights]

    def update(self, done: int) -> None:
        """done: how many updates of the stage were made before."""
        decay = self._decay(max(done - self.begun_at, 0)) if callable(self._decay) else self._decay
        # torch's own, for its fused kernel; its AveragedModel would copy a module, and a student may be bare tensors
        get_ema_multi_avg_fn(decay)(self._average, [weight.detach().float() for weight in self._weights], 0)

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

    def is_in(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a state holds it."""
        return is_averaged(tensors, prefix=self._prefix)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of state_dict; other names are left alone."""
        for i, average in enumerate(self._average):
            average.copy_(part(tensors[f"{self._prefix}{i}"], like=average))


class Averages:
    """Those of a stage, as many as it wants. decay, target_decay: of the stage's result and of a method's target; 0 is none.

    warms_up: the result's; the target's decay is what the method's paper says, from the first step.
    """

    def __init__(self, weights: list[Tensor], *, decay: float, target_decay: Decay, warms_up: bool = False) -> None:
        given = functools.partial(warmed_up, decay) if warms_up else decay
        self.result = Average(weights, decay=given) if decay else None
        self._target = Average(weights, decay=target_decay, prefix=TARGET) if target_decay else None
        self._all = [average for average in (self.result, self._target) if average]

    def update(self, done: int) -> None:
        for average in self._all:
            average.update(done)

    def given(self, denoiser: Denoiser) -> Denoiser:
        """The student as a method is given it."""
        return self._target.seen_by(denoiser) if self._target else denoiser

    @property
    def position(self) -> dict[str, int]:
        """What a checkpoint's position says of them, see AVERAGE_BEGUN_AT."""
        return {AVERAGE_BEGUN_AT: self.result.begun_at} if self.result and self.result.begun_at else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for average in self._all for name, value in average.state_dict().items()}

    def load_state_dict(
        self, tensors: Mapping[str, Tensor], position: Mapping[str, Any], *, all_there: bool = True
    ) -> None:
        """all_there: unless it is another run's state, which may have no such average: that then begins at the weights."""
        if self.result:
            self.result.begun_at = position.get(AVERAGE_BEGUN_AT, 0)
        for average in self._all:
            if all_there or average.is_in(tensors):
                average.load_state_dict(tensors)
