"""The host made differentiable for the time of a run: its fast paths are for sampling and have no backward.

Five of them: paths that the host itself avoids while it trains, fused operators without an autograd formula, attention kernels
that give no gradient, or a wrong one, sums written into a given tensor, and what records how a network allocates on a card.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor

_QUANTISING = ("quantization", "awq", "convrot_w4a4", "svdquant", "w4a8_int8")
"""Modules of the fused operators' library that are about quantised weights, which layers ask for; see lending. The others'
operators stand between a network's layers."""
_WITH_BACKWARD = ("attention_basic", "attention_split", "attention_sub_quad", "attention_xformers", "attention_pytorch")
_CHOSEN = ("optimized_attention", "optimized_attention_masked")
"""Names under which the host's modules have what was chosen."""
ATTENTION_OVERRIDE = "optimized_attention_override"
"""The transformer option by which current hosts let a model say what computes its attention."""


@contextmanager
def possible() -> Iterator[None]:
    """Inside, what the host's networks compute has a backward; on leaving all is as it was.

    Attention that a MODEL brings besides, see `attention`: it is chosen call by call.
    """
    with as_in_training(), _without_compiler(), _plain_forms(), _plain_attention(), _plain_sums():
        yield


def as_in_training() -> AbstractContextManager[None]:
    """Inside, the host avoids those of its own paths that it knows to have no backward, and asks each layer for its forward."""
    return _set(comfy.model_management, "in_training", True)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Inside, hosts from 0.37 on do not record where the blocks of a network allocate, nor replay a block as a CUDA graph.

    They reckon with the same allocations again, and what autograd keeps outlives its block: memory is lost, or the process.
    """
    getattr(sys.modules.get("comfy.model_prefetch"), "cleanup_malloc_graph", lambda: None)()  # of the sampling before
    with _set(getattr(sys.modules.get("comfy.cli_args"), "args", None), "disable_comfy_compiler", True):
        yield


@contextmanager
def without_preferred_attention(network: torch.nn.Module) -> Iterator[None]:
    """Inside, no layer computes attention by a kernel of its own, which a checkpoint may name for it: in eight bits, say."""
    with ExitStack() as stack:
        for layer in preferring_attention(network):
            stack.enter_context(_set(layer, "function", None))
        yield


def may_prefer_attention(layer: object) -> bool:
    """Whether its function is a kernel that a file names for its attention."""
    return type(layer).__name__ == "ComfyAttention"


def preferring_attention(network: torch.nn.Module) -> Iterator[Any]:
    """The layers that may."""
    return filter(may_prefer_attention, network.modules())


def prefers_attention(network: torch.nn.Module) -> bool:
    """Whether a file names a kernel for the attention of one of its layers."""
    return any(layer.function is not None for layer in preferring_attention(network))


def heard_between_iterations() -> AbstractContextManager[None]:
    """Inside, a cancel is heard by signals.check_cancelled alone.

    Hosts of today look for one in every operation of a network too; an iteration that is left halfway cannot be saved.
    """
    return _set(comfy.ops, "run_every_op", lambda: None)


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Nothing where the owner has no such attribute."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _plain_forms() -> Iterator[None]:
    """Inside, the library's own plain torch forms stand in for its fused operators, which networks ask it for by name."""
    with ExitStack() as stack:
        for name, plain in _plain(sys.modules.get("comfy_kitchen")).items():
            stack.enter_context(_set(sys.modules["comfy_kitchen"], name, plain))
        yield


def _plain(library: ModuleType | None) -> dict[str, Callable[..., Any]]:
    """By the names that the library exports, of those that are called alike; empty in a host without it."""
    if library is None:
        return {}
    beginning = f"{library.__name__}.backends.eager."
    quantising = {beginning + name for name in _QUANTISING}
    modules = [sys.modules[name] for name in list(sys.modules) if name.startswith(beginning) and name not in quantising]
    found = {name: getattr(module, name) for name in library.__all__ for module in modules if hasattr(module, name)}
    alike = {name: plain for name, plain in found.items() if _inputs(plain) == _inputs(getattr(library, name))}
    return {name: _in_place(alike[name[:-1]]) if name[:-1] in alike else plain for name, plain in alike.items()}


def _inputs(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _in_place(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The form, named with a final _, that writes what `plain` returns into as many of its first inputs.

    The library's own refuses autograd, which may have kept what is written over: plain sees copies.
    """

    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def written(*given: Any, **named: Any) -> Any:
        arguments = signature.bind(*given, **named).arguments
        found = plain(**{name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()})
        results = found if isinstance(found, tuple) else (found,)
        into = tuple(x.copy_(result) for x, result in zip(arguments.values(), results, strict=False))
        return into if isinstance(found, tuple) else into[0]

    return written


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside, networks that import the host's attention by name, and tell it nothing of the MODEL, find one with a backward.

    Start options choose it (--use-sage-attention), and node packs put their own in its place, or in the place of torch's.
    """
    functional = torch.nn.functional
    with ExitStack() as stack:
        stack.enter_context(_set(functional, "scaled_dot_product_attention", torch._C._nn.scaled_dot_product_attention))
        for module, name in _chosen_attention():
            stack.enter_context(_set(module, name, comfy.ldm.modules.attention.attention_pytorch))
        yield


@contextmanager
def _plain_sums() -> Iterator[None]:
    """Inside, a sum that is to be written into a tensor (out=) has a backward: so blocks of language models add."""
    with _set(torch, "add", _copied_into(torch.add)):
        yield


def _copied_into(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator, whose `out`, which autograd refuses, is written afterwards where autograd watches."""

    @functools.wraps(operator)
    def written(*given: Any, out: Tensor | None = None, **named: Any) -> Tensor:
        if out is None or not torch.is_grad_enabled():
            return operator(*given, out=out, **named)
        return out.copy_(operator(*given, **named))

    return written


def _chosen_attention() -> list[tuple[ModuleType, str]]:
    """Where the host's choice of attention is imported, under whatever name, and what packs have put there; without backward."""
    own = [vars(comfy.ldm.modules.attention).get(name) for name in _CHOSEN]
    chosen = {id(attention) for attention in own if not _has_backward(attention)}
    loaded = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [
        (module, name)
        for module in loaded
        for name, value in list(vars(module).items())
        if id(value) in chosen or (name in _CHOSEN and _is_from_elsewhere(value, module) and not _has_backward(value))
    ]


def _is_from_elsewhere(value: Any, module: ModuleType) -> bool:
    """Some networks have a function of that name with arguments of its own."""
    return getattr(value, "__module__", None) != module.__name__


def _has_backward(attention: Any) -> bool:
    return not callable(attention) or getattr(attention, "__name__", "") in _WITH_BACKWARD


def attention(chosen: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """For ATTENTION_OVERRIDE: what the host chose if it has a backward, else torch's own attention."""
    if _has_backward(chosen):
        return chosen(*args, **kwargs)
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
