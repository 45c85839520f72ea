"""Found before a run: weights that would never learn, for what stands between them and the output has no backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .adapters import Adapters, AdapterSet, LowRank

Output = Callable[[], Tensor]
"""A forward pass of the network, with the adapters that are active."""
_FELT = 1e-3
"""Of the largest output: by what a weight must move it to be missed. A bias of keys moves it by rounding alone."""


def require_gradients(adapters: Adapters, chosen: AdapterSet, output: Output, *, between: Sequence[str] = ()) -> None:
    """ValueError naming a layer on which the output depends and whose adapter gets no gradient.

    Kernels made for sampling, of attention above all, may return a tensor that autograd takes for a constant; the loss then
    looks as it should. Many networks compute parts that they do not use, so an adapter without a gradient is no error as
    such: it is one if switching the adapter on changes the output. between: what is known to stand there, by names for people.
    """
    silent = _without_gradient(adapters, chosen, output)
    felt = _first_felt(silent, lambda paths: _felt(adapters, chosen, paths, output))
    if felt is not None:
        raise ValueError(_message(felt, len(silent) - 1, f"layers of {len(chosen)}", between))


def require_gradients_of_weights(weights: Mapping[str, Tensor], output: Output, *, between: Sequence[str] = ()) -> None:
    """As require_gradients, of weights that learn themselves."""
    reached = _reached(weights, output)
    silent = [name for name in weights if name not in reached]
    felt = _first_felt(silent, lambda names: _weights_felt({name: weights[name] for name in names}, output))
    if felt is not None:
        raise ValueError(_message(felt, len(silent) - 1, f"weights of {len(weights)}", between))


def _message(felt: str, others: int, kind: str, between: Sequence[str]) -> str:
    known = f"Into the network are wired {'; '.join(between)}. " if between else ""
    return (
        f"{felt} would never learn, nor perhaps {others} other {kind}: the model's output depends "
        f"on it, but no gradient comes back. Something between has no backward. {known}Remove nodes that replace the model's "
        "attention or its blocks (SageAttention and their kind), or start ComfyUI with its PyTorch attention."
    )


def _first_felt(silent: list[str], felt: Callable[[list[str]], bool]) -> str | None:
    """The first that is felt alone; at the cost of two passes where all together are not."""
    if not silent or not felt(silent):
        return None
    return next((name for name in silent if felt([name])), None)


def _without_gradient(adapters: Adapters, chosen: AdapterSet, output: Output) -> list[str]:
    """By the gradient of `up` at zero, where the adapters count for nothing yet."""
    trial = {path: LowRank(a.down.detach(), torch.zeros_like(a.up, requires_grad=True)) for path, a in chosen.items()}
    with adapters.active(trial):
        reached = _reached({path: a.up for path, a in trial.items()}, output)
    return [path for path in trial if path not in reached]


@torch.enable_grad()
def _reached(weights: Mapping[str, Tensor], output: Output) -> set[str]:
    """The names of those that a gradient other than 0 comes back to, of the output, each value with a weight of its own.

    No gradient is kept: full weights may be about to be divided, and all of theirs at once would not fit.
    """
    reached: set[str] = set()

    def noting(name: str) -> Callable[[Tensor], None]:
        def note(weight: Tensor) -> None:
            if weight.grad is not None and weight.grad.any():
                reached.add(name)
            weight.grad = None

        return note

    with ExitStack() as stack:
        for name, weight in weights.items():
            stack.callback(weight.register_post_accumulate_grad_hook(noting(name)).remove)
        found = output()
        if found.requires_grad:
            weighted = found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)
            torch.autograd.backward(weighted.sum())
    return reached


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


@torch.no_grad()
def _weights_felt(weights: Mapping[str, Tensor], output: Output) -> bool:
    """Whether the output is another where these weights are others, beyond rounding and what two equal passes differ by."""
    bare, again = output(), output()
    with _others_in_place_of(weights):
        moved = output()
    least = torch.maximum(_FELT * bare.abs().max(), 10.0 * (again - bare).abs().max())
    return bool((moved - bare).abs().max() > least)


@contextmanager
def _others_in_place_of(weights: Mapping[str, Tensor]) -> Iterator[None]:
    own = {name: value.clone() for name, value in weights.items()}
    generator = torch.Generator().manual_seed(1)
    try:
        for value in weights.values():
            scale = value.abs().mean().clamp(min=0.02)
            value.add_(scale * torch.randn(value.shape, generator=generator).to(value))
        yield
    finally:
        for name, value in weights.items():
            value.copy_(own[name])
