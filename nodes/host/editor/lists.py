"""Nodes that take lists as one data set: the host gives them every input as a list, and all others must hold one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_given(node: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a node class's function is called with: single values, but lists for the inputs that its GATHERED names.

    Where the node is called otherwise than by a host that gives lists, all stays as it is. ValueError, naming the input, for a
    list of several values that cannot be one.
    """
    if not getattr(node, "INPUT_IS_LIST", False) or not all(type(value) in (list, tuple) for value in inputs.values()):
        return dict(inputs)
    return {name: list(value) if name in node.GATHERED else _only(name, value, node) for name, value in inputs.items()}


def _only(name: str, values: Any, node: Any) -> Any:
    if len(values) != 1:
        raise ValueError(
            f"{name} comes as a list of {len(values)}, of which there can be one alone; as one data set are taken lists of "
            f"{', '.join(node.GATHERED)}. Choose one of them."
        )
    return values[0]
