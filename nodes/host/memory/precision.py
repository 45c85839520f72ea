"""What a host's network computes in, for the time of a run, by the host's own casting of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ....trainers.training.optimisation.options import AS_LOADED

_CASTS = "comfy_cast_weights"
"""The attribute of the host's layers that says whether they bring weights to their input's type in every forward."""


def require(model: Any, precision: str) -> None:
    """ValueError, naming what is allowed, for a precision that the MODEL or its device cannot compute in."""
    if precision == AS_LOADED:
        return
    dtype = _dtype(precision)
    known = [*getattr(model.model.model_config, "supported_inference_dtypes", [dtype]), torch.float32]
    if dtype not in known:
        names = ", ".join(sorted({str(one).removeprefix("torch.") for one in known}))
        raise ValueError(f"precision is {precision}, in which this model gives no pictures; allowed are {names}.")
    _require_layers_that_cast(model.model.diffusion_model, precision)
    _require_device(model.load_device, precision)


def _dtype(precision: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _require_layers_that_cast(diffusion_model: torch.nn.Module, precision: str) -> None:
    """torch's own layers among the host's, as a pack may put them there, compute in their weights' type only."""
    for path, layer in diffusion_model.named_modules():
        weight = getattr(layer, "weight", None)
        plain = type(layer).__module__.startswith("torch.nn") and not hasattr(layer, _CASTS)
        if plain and isinstance(weight, torch.Tensor) and weight.dtype != _dtype(precision):
            raise ValueError(
                f"precision is {precision}, but {path} is no layer of ComfyUI's own and stays {weight.dtype}; choose "
                f"{AS_LOADED}."
            )


def _require_device(device: torch.device, precision: str) -> None:
    """By trying, forward and backward, the operations that networks are made of."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.ones(1, 4, 4, 4, dtype=_dtype(precision), device=device, requires_grad=True)
            hidden = F.group_norm(F.conv2d(x, x.expand(4, 4, 4, 4), padding=1), 2)
            F.scaled_dot_product_attention(hidden, hidden, F.linear(hidden, hidden[0, 0])).sum().backward()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"precision is {precision}, which {device} cannot compute in ({error}); choose another: {AS_LOADED} or float32."
        ) from error


@contextmanager
def computing_in(network: Any, precision: str) -> Iterator[None]:
    """Inside, the host's network computes in the precision, its weights being what they are; then it is as it was."""
    if precision == AS_LOADED:
        yield
        return
    layers = [layer for layer in network.diffusion_model.modules() if hasattr(layer, _CASTS)]
    before, dtype = [layer.__dict__.get(_CASTS) for layer in layers], network.manual_cast_dtype
    try:
        network.manual_cast_dtype = _dtype(precision)
        for layer in layers:
            layer.__dict__[_CASTS] = True
        yield
    finally:
        network.manual_cast_dtype = dtype
        for layer, own in zip(layers, before, strict=True):
            layer.__dict__.pop(_CASTS, None)
            if own is not None:
                layer.__dict__[_CASTS] = own
