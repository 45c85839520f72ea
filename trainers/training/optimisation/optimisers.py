"""The optimisers by name, and their state as tensors and JSON values. Two need a library that not everybody has."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...processes.sharding import is_divided, part

STATE_PREFIX = "optimiser."


SCHEDULE_FREE, EIGHT_BIT = "schedule_free", "adamw8bit"
_LIBRARIES = {
    EIGHT_BIT: ("bitsandbytes.optim", "bitsandbytes", "AdamW8bit"),
    SCHEDULE_FREE: ("schedulefree", "schedulefree", "AdamWScheduleFree"),
}
"""(module, package, class) by optimiser."""


def _from_library(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class, from a library imported only now. ValueError, naming the package, when it is missing."""
    module, package, kind = _LIBRARIES[name]
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ValueError(
            f"optimiser is {name!r}, which needs the Python package {package} ({error}). Install it into ComfyUI's "
            f"Python (pip install {package}), or choose another optimiser: adam or adamw."
        ) from error


def _optional(name: str) -> Callable[..., torch.optim.Optimizer]:
    return lambda *args, **kwargs: _from_library(name)(*args, **kwargs)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    EIGHT_BIT: _optional(EIGHT_BIT),
    SCHEDULE_FREE: _optional(SCHEDULE_FREE),
}
"""schedule_free: Defazio et al. 2024, "The Road Less Scheduled"; its weights during training are not its result."""


def require_optimiser(name: str, *, betas: tuple[float, float] | None, library: bool) -> None:
    """ValueError when it cannot do without the momentum that a stage does without, or its library, if asked for, is missing."""
    if name == SCHEDULE_FREE and betas is not None and betas[0] == 0.0:
        raise ValueError(
            f"optimiser is {SCHEDULE_FREE!r}, which goes by momentum, but this method's students learn without any; choose adam, "
            f"adamw or {EIGHT_BIT}."
        )
    if library and name in _LIBRARIES:
        _from_library(name)


def new_optimiser(
    name: str, weights: list[Tensor], *, weight_decay: float, betas: tuple[float, float] | None = None
) -> torch.optim.Optimizer:
    """One of OPTIMISERS, ready to step, at rate 0 until the loop sets one. ValueError when its library is missing.

    Or, with weights divided over processes, for one whose kernels know whole weights only.
    """
    if name == EIGHT_BIT and is_divided(weights[0]):
        raise ValueError(
            f"optimiser is {EIGHT_BIT!r}, which cannot step full weights that are divided over several processes; choose "
            "adam or adamw, or train a LoRA."
        )
    chosen = {} if betas is None else {"betas": betas}
    optimiser = OPTIMISERS[name](weights, lr=0.0, weight_decay=weight_decay, **chosen)
    if hasattr(optimiser, "train"):
        optimiser.train()
    return optimiser


def result_to_weights(optimiser: torch.optim.Optimizer) -> None:
    """Puts what the optimiser found in place of the weights; nothing to do for all but schedule_free.

    Schedule-free's own way back to the weights of training rounds. So a checkpoint holds those and never goes through
    here, and whoever needs them again keeps copies.
    """
    if keeps_its_result_apart(optimiser):
        optimiser.eval()  # type: ignore[attr-defined]


def keeps_its_result_apart(optimiser: torch.optim.Optimizer) -> bool:
    """Whether the weights during training are not its result, as with schedule_free."""
    return hasattr(optimiser, "eval")


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors under names, and all else as JSON values."""
    state = optimiser.state_dict()
    flat = _flatten(state["state"], STATE_PREFIX)
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in flat.items() if name not in tensors}
    return tensors, {"optimiser": state["param_groups"], "optimiser_values": values}


def load_optimiser_state(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """The inverse of optimiser_state; other names are left alone."""
    state: dict[Any, Any] = {}
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for name, value in {**tensors, **values.get("optimiser_values", {})}.items():
        if name.startswith(STATE_PREFIX):
            index, *path = name.removeprefix(STATE_PREFIX).split(".")
            entry = state.setdefault(int(index), {})
            for key in path[:-1]:
                entry = entry.setdefault(key, {})
            entry[path[-1]] = part(value, like=weights[int(index)]) if isinstance(value, Tensor) else value
    optimiser.load_state_dict({"state": state, "param_groups": values["optimiser"]})


def result_in_state(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of a checkpoint's state, what state_to_result wants besides the weights; nothing but of schedule_free.

    Also of one that holds no optimiser's state yet, of a run that was itself started from another.
    """
    if not any("train_mode" in group for group in values.get("optimiser", ())):
        return {}, {}
    moments = {name: value for name, value in tensors.items() if name.startswith(STATE_PREFIX)}
    return moments, {name: values[name] for name in ("optimiser", "optimiser_values")}


def state_to_result(weights: list[Tensor], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Puts what an optimiser of before found in place of the weights that it trained, for another run to begin at.

    values: of result_in_state; without them the weights are the result.
    """
    if "optimiser" in values:
        before = new_optimiser(SCHEDULE_FREE, weights, weight_decay=0.0)
        load_optimiser_state(before, tensors, values)
        result_to_weights(before)


def _flatten(state: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """Nested entries under dotted names: newer versions of bitsandbytes keep a dictionary inside each weight's own."""
    flat: dict[str, Any] = {}
    for key, value in state.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
