"""What a node declares of its inputs holds wherever it is called: for linked values too, which no host checks.

The host skips the declared limits also for inputs that a node's VALIDATE_INPUTS names.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from .graph import menu_of
from .lists import as_given
from .signals import error_of

_SHOWN = 60
"""Choices of a menu that an error names."""


def seed(tooltip: str) -> tuple[str, dict[str, Any]]:
    """A seed's declaration. Editors draw another number at every start unless they hear that it is fixed: no run of that seed
    could be gone on with.
    """
    limits = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": "fixed"}
    return ("INT", {**limits, "tooltip": tooltip})


def enforce(nodes: Mapping[str, Any]) -> None:
    """Has every node class check its inputs before its function sees them, and before its VALIDATE_INPUTS does.

    nodes: by id, as the host gets them. Names and signatures stay as they are, since hosts ask for them.
    """
    for node in set(nodes.values()):
        setattr(node, node.FUNCTION, _checking(getattr(node, node.FUNCTION), node))
        if hasattr(node, "VALIDATE_INPUTS"):
            node.VALIDATE_INPUTS = _answering(node.VALIDATE_INPUTS, node)
        if hasattr(node, "IS_CHANGED") and hasattr(node, "INPUT_IS_LIST"):
            node.IS_CHANGED = _of_lists(node.IS_CHANGED, node)


def require(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError, naming the input, for a value that its declaration does not allow.

    declared: a node's INPUT_TYPES. given: values by input; those that are not declared are the host's own.
    """
    needed, optional = declared.get("required", {}), declared.get("optional", {})
    for name, value in given.items():
        if name in needed or (name in optional and value is not None):
            require_value(name, value, *{**needed, **optional}[name])


def require_value(name: str, value: Any, kind: Any, options: Mapping[str, Any] | None = None, *_: Any) -> None:
    """The same of one input, declared as (kind, options)."""
    menu = menu_of(kind, options)
    if menu is not None:
        _require_choice(name, value, menu)
    elif kind in ("INT", "FLOAT"):
        _require_number(name, value, options or {}, whole=kind == "INT")
    elif kind == "STRING" and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); give a text.")
    elif kind == "BOOLEAN" and (not isinstance(value, numbers.Real) or value not in (0, 1)):
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); allowed are true and false.")


def require_links(declared: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """ValueError, naming the input, for one that is linked to another type than it declares; a menu takes a text too.

    given: types by input, as hosts hand them to a VALIDATE_INPUTS that asks for input_types, and then do not look themselves.
    """
    inputs = {**declared.get("required", {}), **declared.get("optional", {})}
    for name, received in given.items():
        kind, *options = inputs[name]
        wanted = {"STRING", "COMBO"} if menu_of(kind, *options) is not None else {kind}
        offered = set(str(received).replace(" ", "").split(","))
        if isinstance(received, str) and not offered & {*wanted, "*"}:
            raise ValueError(f"{name} is linked to {received}; it takes {' or '.join(sorted(wanted))}.")


def _require_choice(name: str, value: Any, menu: list[Any]) -> None:
    if value not in menu:
        more = f" and {len(menu) - _SHOWN} more" if len(menu) > _SHOWN else ""
        shown = ", ".join(map(str, menu[:_SHOWN])) or "none yet"
        raise ValueError(f"{name} is {value!r}; allowed are {shown}{more}.")


def _require_number(name: str, value: Any, options: Mapping[str, Any], *, whole: bool) -> None:
    if not isinstance(value, numbers.Integral if whole else numbers.Real):
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); give a {'whole ' if whole else ''}number.")
    least, most = options.get("min", -math.inf), options.get("max", math.inf)
    if not (least <= value <= most and (whole or math.isfinite(value))):  # NaN is in no range
        raise ValueError(f"{name} is {value}; allowed is {least} to {most}.")


def _checking(function: Any, node: Any) -> Any:
    @functools.wraps(function)
    def checked(self: Any, *values: Any, **inputs: Any) -> Any:
        inputs = as_given(node, inputs)
        require(node.INPUT_TYPES(), _by_name(function, values, inputs))
        return function(self, *values, **inputs)

    return checked


def _by_name(function: Any, values: Iterable[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a method is called with, its first parameter aside."""
    return {**dict(zip(list(inspect.signature(function).parameters)[1:], values, strict=False)), **inputs}


def _answering(validate: Any, node: Any) -> Any:
    """As a class method of the same signature, from which hosts read the names of the inputs that it wants to see."""
    original: Any = validate.__func__

    def answer(cls: Any, *values: Any, **inputs: Any) -> bool | str:
        inputs = as_given(node, inputs)
        given = _by_name(original, values, inputs)
        known = {name: value for name, value in given.items() if value is not None}  # what is linked is None here
        said = error_of(lambda: require(node.INPUT_TYPES(), known))
        return original(cls, *values, **inputs) if said is True else said

    functools.update_wrapper(answer, original)
    answer.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return classmethod(answer)


def _of_lists(function: Any, node: Any) -> Any:
    """A class method of single values, for a host that gives lists."""
    original: Any = function.__func__

    def single(cls: Any, /, **inputs: Any) -> Any:
        return original(cls, **as_given(node, inputs))

    functools.update_wrapper(single, original)
    return classmethod(single)
