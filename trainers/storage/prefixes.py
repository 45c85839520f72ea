"""Flat dictionaries that hold several others, each below a prefix: state dicts, cached data, run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def below(values: Mapping[str, V], prefix: str) -> dict[str, V]:
    """The entries whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
