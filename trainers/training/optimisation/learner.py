"""Whoever learns: weights, their optimiser, and what one target does to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ...objective.loss import loss_scale
from ...objective.method import Target
from ...processes.group import Processes
from ...processes.sharding import whole
from .bands import NoiseBands
from .micro_batches import split

Loss = Callable[[Target], tuple[Tensor, Tensor]]
"""(the mean over the target's samples, its squared error (B, ...)), with a graph."""


class Learning(Protocol):
    """What learns, the student say; see Student."""

    def parameters(self) -> list[Tensor]: ...

    def autograd(self) -> AbstractContextManager[object]: ...


class Learner:
    """network: whose weights the optimiser steps. loss: of its targets. gradient_clip: largest norm.

    accumulation: pieces of a process's share. bands: in which errors are told.
    """

    def __init__(
        self,
        network: Learning,
        optimiser: torch.optim.Optimizer,
        *,
        loss: Loss,
        gradient_clip: float,
        accumulation: int,
        processes: Processes,
        bands: NoiseBands,
    ) -> None:
        self.optimiser, self.bands = optimiser, bands
        self._network, self._processes, self._loss = network, processes, loss
        self._gradient_clip, self._accumulation = gradient_clip, accumulation

    def update(self, target: Target, *, rate: float) -> Tensor:
        """One optimiser step: loss, gradient, update. Its figures, for a Tally of the target's measures, on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        scale, weights = loss_scale(target.x0), self._network.parameters()
        own = split(target, self._processes.count)[self._processes.rank]
        figures = [self._backward(piece, scale=scale) for piece in split(own, self._accumulation)]
        self._processes.mean_gradients(weights)
        torch._foreach_mul_([value.grad for value in weights if value.grad is not None], 1.0 / scale)
        norm = torch.nn.utils.clip_grad_norm_(weights, self._gradient_clip)
        self.optimiser.step()
        return torch.cat([whole(norm).detach().float().reshape(1), torch.stack(figures).sum(dim=0)])

    def _backward(self, piece: Target, *, scale: float) -> Tensor:
        """Adds a piece's gradient times scale. (2 + 2 * BANDS + measures,) of the batch's loss and x0 error its shares, its
        bands' sums, its shares of the measures."""
        share = 1.0 / self._accumulation
        loss, error = self._pass(piece, scale=scale)
        beside = piece.beside
        while beside is not None:  # consistency has the pull beside it, and that the anchor
            loss, beside = loss + self._pass(beside, scale=scale)[0], beside.beside
        means = torch.stack([loss, share * error.mean()])
        measures = [share * value.float().mean().reshape(1) for value in piece.measures.values()]
        return torch.cat([means, self.bands.sums(error.flatten(1).mean(dim=1), sigma=piece.sigma), *measures])

    def _pass(self, piece: Target, *, scale: float) -> tuple[Tensor, Tensor]:
        """(a share of the batch's loss, the piece's squared error (B, ...)), after the way back; nothing of the graph is left."""
        with self._network.autograd():
            loss, error = self._loss(piece)
            loss = (1.0 / self._accumulation) * loss
            (scale * loss).backward()
        return loss.detach(), error.detach()
