"""Why a run folder is not the run that somebody wants to go on with, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def another_run(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any], differing: Sequence[str]) -> str:
    """Why a run does not go on, naming each of its entries that differs."""
    lines = [f"{key}: there {found.get(key)}, here {wanted.get(key)}" for key in differing]
    return (
        f"the run folder {name!r} holds another run. Choose another run name, or restore its settings. "
        f"What differs: {'; '.join(lines)}."
    )
