"""Weights that autograd does not keep: layers that do not learn ask the host for their weight again in backward.

What the host lends a layer for one forward pass may be a view of a buffer that the next layer overwrites, or of a page that
is somebody else's soon after, and no version counter tells. Autograd, which saves that tensor, then gives wrong gradients
without an error. It may also be a tensor made under inference mode, or of a quantised class, which autograd refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .aliases import same_memory
from .weights import CASTS, UNPACKS, plain

_LOOKS_UP = "num_embeddings"
"""The attribute by which tables are known. Autograd keeps nothing of those, which may be large: what is looked up is a copy."""
Forward = Callable[..., Any]


def _unwatched(function: Forward) -> Forward:
    """Without modes of ours around it, in which torch.Tensor(x) of a tensor class gives one of that class again."""

    def unwatched(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return unwatched


def _as_sampled(function: Forward) -> Forward:
    """Of a quantised class: outside of inference mode torch takes some products apart, and the host rounds them otherwise."""

    def sampled(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            output = function(*args, **kwargs)
        return same_memory(output) if output.is_inference() else output

    return sampled


@contextmanager
def lent_again(network: nn.Module) -> Iterator[None]:
    """Inside, no pass of the network keeps what the host lent its layers; on leaving there is no trace of it.

    The weights are taken for constants: only what stands beside them, or before them, learns. Outputs are the host's own,
    bit for bit. Passes without gradient are the host's own.
    """
    layers = [layer for layer in network.modules() if hasattr(layer, CASTS)]
    with ExitStack() as stack:
        stack.enter_context(_copies_lent_to(layers))
        for layer in layers:
            gradient = _gradient_of(layer)
            if gradient is not None:
                stack.enter_context(
                    _forward_replaced(layer, functools.partial(_forward, layer, layer.forward, gradient))
                )
        yield


Gradient = Callable[[Any, Tensor, torch.Size], Tensor]
"""Of a layer: its input's gradient from its output's and its input's shape."""


def _gradient_of(layer: Any) -> Gradient | None:
    """Known by what the layer has, as the host's quantised ones are of no class of torch's. None for another kind."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None
    if hasattr(layer, "in_features") and hasattr(layer, "out_features") and len(weight.shape) == 2:
        return _linear_gradient
    plain = getattr(layer, "padding_mode", None) == "zeros" and not isinstance(layer.padding, str)
    if plain and not layer.transposed:
        return _convolution_gradient
    return None


def _forward(layer: Any, own: Forward, gradient: Gradient, *args: Any, **kwargs: Any) -> Any:
    x = args[0] if args else kwargs.get("input")
    if hasattr(layer, UNPACKS):
        own = _unwatched(own)
    if hasattr(layer.weight, "__tensor_flatten__"):
        own = _as_sampled(own)
    if len(args) + len(kwargs) > 1 or not isinstance(x, Tensor) or not torch.is_grad_enabled():
        return own(*args, **kwargs)
    if x.requires_grad:
        return _Frozen.apply(x, layer, own, gradient)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return _own(own(x))


def _own(output: Tensor) -> Tensor:
    """Torch computes some products as a view, on which blocks could not add in place then; nobody else has its memory."""
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


class _Frozen(torch.autograd.Function):
    """A layer's own forward; backward with the weight as the host lends it then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, own: Forward, gradient: Gradient) -> Tensor:
        ctx.layer, ctx.gradient, ctx.shape = layer, gradient, x.shape
        x = x.detach()
        # the host's product of float8 clamps its input in place
        return _own(own(x.clone() if layer.weight.dtype.itemsize == 1 else x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient(ctx.layer, grad, ctx.shape), None, None, None


def _linear_gradient(layer: Any, grad: Tensor, shape: torch.Size) -> Tensor:
    with _lent(layer, like=grad) as weight:
        result = (grad.reshape(-1, grad.shape[-1]) @ weight).view(shape)
    smoothing = getattr(layer, "pre_quant_scale", None)  # by which the host's quantised layers multiply their input
    return result if smoothing is None else result * smoothing.to(result)


def _convolution_gradient(layer: Any, grad: Tensor, shape: torch.Size) -> Tensor:
    nowhere = grad.new_empty(shape)  # the operator reads no more than its shape for this
    with _lent(layer, like=grad) as weight:
        result, _, _ = torch.ops.aten.convolution_backward(
            grad, nowhere, weight, None, layer.stride, layer.padding, layer.dilation, False,
            [0] * len(layer.kernel_size), layer.groups, [True, False, False],
        )  # fmt: skip
    return result


@contextmanager
def _lent(layer: Any, *, like: Tensor) -> Iterator[Tensor]:
    """The layer's weight on the device and in the type of a tensor, the host's patches applied; good for the time inside."""
    own = getattr(layer, UNPACKS, None)
    if own is not None:
        yield _unwatched(own)(like)[0]
        return
    given_back = getattr(comfy.ops, "uncast_bias_weight", None)
    wishes = {} if given_back is None else {"offloadable": True}
    weight, bias, *stream = comfy.ops.cast_bias_weight(layer, like, **wishes)
    try:
        yield plain(weight).to(like.dtype)
    finally:
        if given_back is not None:
            given_back(layer, weight, bias, *stream)


@contextmanager
def _copies_lent_to(layers: list[Any]) -> Iterator[None]:
    """Inside, the host lends as it does when it samples, and what autograd may keep of it, a norm's weight, is a copy."""
    own, mine = comfy.ops.cast_bias_weight, {id(layer) for layer in layers}

    def lend(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) not in mine:
            return own(layer, *args, **kwargs)
        with torch.inference_mode():  # its buffers are of that mode, which nobody else may write to
            weight, bias, *stream = own(layer, *args, **kwargs)
        if torch.is_grad_enabled() and not hasattr(layer, _LOOKS_UP):
            weight, bias = (value if value is None else value.clone() for value in (weight, bias))
        return (weight, bias, *stream)

    try:
        comfy.ops.cast_bias_weight = lend
        yield
    finally:
        comfy.ops.cast_bias_weight = own


@contextmanager
def _forward_replaced(layer: nn.Module, forward: Forward) -> Iterator[None]:
    before = layer.__dict__.get("forward")
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if before is not None:
            layer.__dict__["forward"] = before
