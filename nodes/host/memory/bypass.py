"""LoRAs beside the layers instead of in their weights, by the host's own bypass adapters, where it has them.

A weight of eight bits or less that a LoRA is merged into is rounded anew, which may lose as much as a short training changed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import comfy.sd
import torch
from torch import Tensor, nn

from .aliases import same_memory
from .backward import as_in_training

_KEY = "bypass_lora"
"""Under which the host keeps them on a MODEL."""


def rounds_anew(model: Any) -> bool:
    """Whether merging a LoRA would round weights below 16 bits, and this host can put the LoRA beside them instead."""
    known = hasattr(comfy.sd, "load_bypass_lora_for_models")
    return known and any(_is_coarse(layer) for layer in model.model.diffusion_model.modules())


def _is_coarse(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or hasattr(layer, "cast_bias_weight"):  # layers of GGUF add LoRAs as they unpack
        return False
    return hasattr(weight, "__tensor_flatten__") or weight.dtype.itemsize < 2


def with_bypass(model: Any, tensors: dict[str, Tensor]) -> Any:
    """A clone with the tensors of a LoRA file beside its layers, and all that was beside them before."""
    from comfy.patcher_extension import PatcherInjection  # not in older hosts

    clone, _ = comfy.sd.load_bypass_lora_for_models(model, None, tensors, 1.0, 0.0)
    # the host would replace those before, and takes several off in the order in which it put them on
    every = [*(model.get_injections(_KEY) or []), *clone.get_injections(_KEY)]

    def inject(patcher: Any) -> None:
        _begin_asking()
        for one in every:
            one.inject(patcher)

    def eject(patcher: Any) -> None:
        for one in reversed(every):
            one.eject(patcher)
        _end_asking()

    clone.set_injections(_KEY, [PatcherInjection(inject=inject, eject=eject)])
    return clone


_loaded: list[None] = []
"""One for each loaded MODEL with LoRAs beside its layers."""
_replaced: dict[tuple[str, str], Any] = {}
"""The host's own functions in whose place ours are while there is one, by module and name."""


def _begin_asking() -> None:
    """Has each layer with something beside it asked for its own forward.

    The host multiplies int8 weights of some layers in one with what comes before or after, past what is beside the layer: the
    last of a feed-forward part with its activation (Wan, LTX-Video), in hosts from 0.37 on those of Lumina and Z-Image too.
    """
    _loaded.append(None)
    for (module, name), ours in _PAST_THE_LAYER.items():
        if (module, name) not in _replaced and hasattr(sys.modules.get(module), name):
            _replaced[module, name] = getattr(sys.modules[module], name)
            setattr(sys.modules[module], name, functools.partial(ours, _replaced[module, name]))


def _end_asking() -> None:
    if _loaded:
        _loaded.pop()
    if not _loaded:
        for (module, name), own in _replaced.items():
            setattr(sys.modules[module], name, own)
        _replaced.clear()


def _linear_input_act(own: Callable[..., Tensor], linear: nn.Module, *given: Any, **named: Any) -> Tensor:
    """The host's linear(act(x)), and whatever newer ones do besides, by the layer's own forward where something is beside it."""
    if "forward" not in linear.__dict__:
        return own(linear, *given, **named)
    with as_in_training():
        return own(linear, *given, **named)


def _is_int8(own: Callable[[nn.Module], bool], linear: nn.Module) -> bool:
    """Whether the host takes the layer's weight itself; not where something is beside it."""
    return "forward" not in linear.__dict__ and own(linear)


_PAST_THE_LAYER: dict[tuple[str, str], Callable[..., Any]] = {
    ("comfy.ops", "linear_input_act"): _linear_input_act,
    ("comfy.ldm.lumina.model", "_int8_convrot_linear"): _is_int8,
}


def require_none(model: Any) -> None:
    """ValueError for a MODEL whose LoRAs are not in its weights, where they must be."""
    if getattr(model, "injections", None):
        raise ValueError(
            f"the MODEL carries {', '.join(model.injections)} beside its weights, which neither merged weights nor one LoRA file "
            "can take over; load that LoRA by Load LoRA instead."
        )


@contextmanager
def over(model: Any, beneath: AbstractContextManager[object]) -> Iterator[None]:
    """Enters a context that changes the layers' forward beneath what the MODEL carries beside them, not above it.

    A MODEL that the host has put away meanwhile is left without: nobody would take that off its layers, which others share.
    """
    if not getattr(model, "injections", None):
        with beneath:
            yield
        return
    model.eject_model()
    stays = True
    try:
        with beneath:
            model.inject_model()
            try:
                with _learnable_through(model.model):
                    yield
            finally:
                stays = model.is_injected
                model.eject_model()
    finally:
        if stays:
            model.inject_model()


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Of all that is beside the layers of a loaded network, by names of our own."""
    found = {}
    for path, layer in network.named_modules():
        for i, adapter in enumerate(_beside(layer)):
            found[f"{path}.bypass.{i}.strength"] = torch.tensor(float(adapter.multiplier))
            parts = {str(j): part for j, part in enumerate(adapter.weights)}
            found |= {f"{path}.bypass.{i}.{j}": torch.as_tensor(part) for j, part in parts.items() if part is not None}
    return found


@contextmanager
def _learnable_through(network: nn.Module) -> Iterator[None]:
    """Inside, their weights are tensors that autograd may save."""
    adapters = [adapter for layer in network.modules() for adapter in _beside(layer)]
    own = [adapter.weights for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.weights = tuple(same_memory(one) if isinstance(one, Tensor) else one for one in adapter.weights)
        yield
    finally:
        for adapter, before in zip(adapters, own, strict=True):
            adapter.weights = before


def _beside(layer: nn.Module) -> Iterator[Any]:
    """The host's adapters on a layer, the last first: each replaces the forward by a method of a hook that knows the former."""
    hook: Any = getattr(layer.__dict__.get("forward"), "__self__", None)
    while hasattr(hook, "original_forward") and hasattr(hook.adapter, "weights"):
        yield hook.adapter
        hook = getattr(hook.original_forward, "__self__", None)
