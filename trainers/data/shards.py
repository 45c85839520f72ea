"""A file of training data: what is in it, and its samples as they are read, copies or not.

A shard holds one or more parts, each a TensorData: <part>.x0, .noise, .repeats, .prompts, .condition.<name> and
.unconditional.<name>.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.files import CHECKSUM_KEY, read_tensors
from ..storage.prefixes import below
from ..storage.stored import Place, Stored, in_memory
from .batches import TensorData
from .joining import sample_of


def named(parts: Iterable[TensorData]) -> dict[str, Tensor]:
    """What a shard of these parts holds."""
    tensors = {}
    for number, part in enumerate(parts):
        tensors[f"{number}.x0"] = in_memory(part.x0)
        beside = {"noise": part.noise, "repeats": part.repeats, "prompts": part.prompts}
        tensors |= {f"{number}.{name}": in_memory(value) for name, value in beside.items() if value is not None}
        for name, value in part.condition.items():
            tensors[f"{number}.condition.{name}"] = in_memory(value)
        tensors |= {
            f"{number}.unconditional.{name}": in_memory(value) for name, value in (part.unconditional or {}).items()
        }
    return tensors


def read_shard(file: Path, checksum: str, *, stored: bool, heed: Callable[[], None] = lambda: None) -> list[TensorData]:
    """Its parts as views of the file, which joined copies: else all data would lie in memory twice while that is done.

    ValueError, naming the file, for another than that of the checksum, and a damaged one. stored: its rows stay in the file, once
    all of it was compared with its checksum. heed: called again and again meanwhile, which it stops by raising.
    """
    try:
        tensors, metadata = read_tensors(file, heed=heed, views=True)
    except ValueError as error:
        raise ValueError(f"the training data cannot be read: {error} Delete {file} to have it made again.") from error
    if metadata.get(CHECKSUM_KEY) != checksum:
        raise ValueError(
            f"the training data cannot be read: {file.name} is not the file that index.json names. Delete {file} to have "
            "it made again."
        )
    by_part: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        by_part.setdefault(part, {})[rest] = value
    parts = {number: _part(by_part[number]) for number in sorted(by_part, key=int)}
    return [_left_in(file, number, part) if stored else part for number, part in parts.items()]


def _left_in(file: Path, number: str, part: TensorData) -> TensorData:
    def left(name: str, value: Any) -> Stored:
        """Of a view."""
        places = [Place(file, f"{number}.{name}", row) for row in range(len(value))]
        return Stored(places, [sample_of(row) for row in value], shape=value.shape[1:], dtype=value.dtype)

    return dataclasses.replace(
        part,
        x0=left("x0", part.x0),
        condition={name: left(f"condition.{name}", value) for name, value in part.condition.items()},
        unconditional=part.unconditional
        and {name: left(f"unconditional.{name}", value) for name, value in part.unconditional.items()},
        noise=None if part.noise is None else left("noise", part.noise),
        repeats=None if part.repeats is None else part.repeats.clone(),
        prompts=None if part.prompts is None else part.prompts.clone(),
    )


def _part(named: Mapping[str, Tensor]) -> TensorData:
    unconditional = below(named, "unconditional.") or None
    condition = below(named, "condition.")
    beside: dict[str, Any] = {name: named.get(name) for name in ("noise", "repeats", "prompts")}
    return TensorData(x0=named["x0"], condition=condition, unconditional=unconditional, **beside)
