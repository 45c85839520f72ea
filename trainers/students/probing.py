"""Found before a run: adapters that would never learn, for what stands between them and the output has no backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .adapters import Adapters, AdapterSet, LowRank

Output = Callable[[], Tensor]
"""A forward pass of the network with the adapters that are active."""


def require_gradients(adapters: Adapters, chosen: AdapterSet, output: Output) -> None:
    """ValueError naming a layer on which the output depends and whose adapter gets no gradient.

    Kernels made for sampling, of attention above all, may return a tensor that autograd takes for a constant; the loss then
    looks as it should. Many networks compute parts that they do not use, so an adapter without a gradient is no error as
    such: it is one if switching the adapter on changes the output.
    """
    silent = _without_gradient(adapters, chosen, output)
    if not silent or not _felt(adapters, chosen, silent, output):
        return
    felt = next((path for path in silent if _felt(adapters, chosen, [path], output)), None)
    if felt is not None:
        raise ValueError(
            f"{felt} would never learn, nor perhaps {len(silent) - 1} other layers of {len(chosen)}: the model's output depends "
            "on it, but no gradient comes back. Something between has no backward: remove nodes that replace the model's "
            "attention or its blocks (SageAttention and their kind), or start ComfyUI with its PyTorch attention."
        )


def _without_gradient(adapters: Adapters, chosen: AdapterSet, output: Output) -> list[str]:
    """By the gradient of `up` at zero, where the adapters count for nothing yet."""
    trial = {path: LowRank(a.down.detach(), torch.zeros_like(a.up, requires_grad=True)) for path, a in chosen.items()}
    with torch.enable_grad(), adapters.active(trial):
        found = output()
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)
        ups = [a.up for a in trial.values()]
        gradients = torch.autograd.grad((found * weights).sum(), ups, allow_unused=True)
    return [path for path, grad in zip(trial, gradients, strict=True) if grad is None or not grad.any()]


@torch.no_grad()
def _felt(adapters: Adapters, chosen: AdapterSet, paths: list[str], output: Output) -> bool:
    """Whether the output is another with the adapters of these layers on, beyond what two equal passes differ by."""
    generator = torch.Generator().manual_seed(1)
    on = {
        p: LowRank(chosen[p].down, torch.randn(chosen[p].up.shape, generator=generator).to(chosen[p].up)) for p in paths
    }
    with adapters.active({}):
        bare, again = output(), output()
    with adapters.active(on):
        moved = output()
    return bool((moved - bare).abs().max() > 10.0 * (again - bare).abs().max())
