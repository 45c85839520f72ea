"""A companion's network: one more set of adapters on the teacher's, which nothing else ever sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ...samplers.noise import Denoiser
from .adapters import Adapters, flattened, load_into


class CompanionNetwork:
    """adapters: on the teacher's network. denoise: that network as D(x, sigma, **condition). seed: of the initial values.

    around: entered for each pass with gradient, where the network needs something for it, see Student.writes_in_place.
    """

    def __init__(
        self,
        adapters: Adapters,
        denoise: Denoiser,
        *,
        rank: int,
        seed: int,
        around: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._adapters, self._denoise, self._around = adapters, denoise, around
        self._own = adapters.new_set(generator=torch.Generator().manual_seed(seed), rank=rank)

    def denoiser(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        with self._adapters.active(self._own):
            return self._denoise(x, sigma, **condition)

    def parameters(self) -> list[Tensor]:
        return list(flattened(self._own).values())

    @contextlib.contextmanager
    def autograd(self) -> Iterator[None]:
        """As Student.autograd: with checkpointing, the way back computes blocks again with the adapters that are active then."""
        with self._adapters.active(self._own), self._around():
            yield

    def state_dict(self) -> dict[str, Tensor]:
        return flattened(self._own)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of state_dict. ValueError when names or shapes differ."""
        load_into(self._own, tensors)
