"""Parts of training data put together: those of one shape as one, with each prompt once.

Parts whose rows lie in files stay there; see storage/stored.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..storage.files import some_of
from ..storage.stored import Inputs, Stored, Values, in_memory
from .batches import Buckets, Shape, TensorData, shape_of


def in_buckets(parts: Iterable[TensorData], device: torch.device | None = None) -> TensorData | Buckets:
    """Those of one shape together, in the order of their first samples. device: where batches go."""
    by_shape: dict[Shape, list[TensorData]] = {}
    for part in parts:
        by_shape.setdefault(shape_of(part), []).append(part)
    buckets = [joined(alike, device) for alike in by_shape.values()]
    return buckets[0] if len(buckets) == 1 else Buckets(buckets)


def joined(parts: Sequence[TensorData], device: torch.device | None = None) -> TensorData:
    """Data of one shape as one, each prompt once, all of it copied that is in memory. device: where batches go.

    ValueError when the parts do not belong together.
    """
    condition, prompts = _joined_condition(parts)
    return TensorData(
        x0=_cat([part.x0 for part in parts]),
        condition=condition,
        unconditional=_joined_empty(parts),
        noise=None if parts[0].noise is None else _cat([part.noise for part in parts if part.noise is not None]),
        batch_device=device,
        repeats=_joined_repeats(parts),
        prompts=prompts,
    )


def _joined_empty(parts: Sequence[TensorData]) -> Inputs | None:
    """What all share once; else each sample's own. ValueError where they are of several shapes."""
    empty = [part.unconditional or {} for part in parts]
    shapes = [{name: value.shape[1:] for name, value in one.items()} for one in empty]
    if any(one != shapes[0] for one in shapes):
        raise ValueError("the training data hold samples of one shape with empty prompts of several.")
    if all(len(value) == 1 for one in empty for value in one.values()) and all(_equal(one, empty[0]) for one in empty):
        return {name: _copied(value) for name, value in empty[0].items()} or None
    counts = [len(part.x0) for part in parts]
    return {name: _cat([_for_each(one[name], n) for one, n in zip(empty, counts, strict=True)]) for name in empty[0]}


def _joined_repeats(parts: Sequence[TensorData]) -> Tensor | None:
    if all(part.repeats is None for part in parts):
        return None
    return torch.cat([torch.ones(len(p.x0), dtype=torch.int64) if p.repeats is None else p.repeats for p in parts])


def _joined_condition(parts: Sequence[TensorData]) -> tuple[Inputs, Tensor | None]:
    """The prompts, and which of them describes each sample where several have one.

    Where a part of several samples holds one value for all, so must the others; a last part of a single sample cannot tell.
    """
    if any(_is_shared(value, part) for part in parts for value in part.condition.values()):
        return {name: _joined_value(name, parts) for name in parts[0].condition}, None
    distinct = _Distinct()
    prompts = [number for part in parts for number in distinct.numbers_of(part)]
    condition = {name: _cat([prompt[name] for prompt in distinct.found]) for name in parts[0].condition}
    return condition, torch.tensor(prompts) if len(distinct.found) < len(prompts) and condition else None


def _is_shared(value: Values, part: TensorData) -> bool:
    return part.prompts is None and len(value) < len(part.x0)


def _joined_value(name: str, parts: Sequence[TensorData]) -> Values:
    values = [part.condition[name] for part in parts]
    if any(_is_shared(value, part) for value, part in zip(values, parts, strict=True)):
        if any(not _is_equal(value, values[0]) for value in values):
            raise ValueError(f"the training data share their conditioning ({name}), and parts of them differ in it.")
        return _copied(values[0])
    each = zip(values, parts, strict=True)
    return _cat([value if part.prompts is None else _at(value, part.prompts) for value, part in each])


class _Distinct:
    """Prompts, each once, in the order in which they came."""

    def __init__(self) -> None:
        self.found: list[Inputs] = []
        self._alike: dict[bytes, list[int]] = {}

    def numbers_of(self, part: TensorData) -> list[int]:
        """Of the prompt of each sample."""
        rows = range(len(part.x0)) if part.prompts is None else part.prompts.tolist()
        numbers = {
            row: self._number({name: value[row : row + 1] for name, value in part.condition.items()})
            for row in dict.fromkeys(rows)
        }
        return [numbers[row] for row in rows]

    def _number(self, prompt: Inputs) -> int:
        alike = self._alike.setdefault(b"".join(map(_sample, prompt.values())), [])
        known = next((number for number in alike if _equal(self.found[number], prompt)), None)
        if known is not None:
            return known
        alike.append(len(self.found))
        self.found.append(prompt)
        return len(self.found) - 1


def sample_of(row: Tensor) -> bytes:
    """Some of its bytes, the same of equal ones."""
    return bytes(some_of(row).contiguous().view(torch.uint8).cpu().numpy())


# --- of values in memory or in files ---------------------------------------------------------------------------------


def _sample(row: Values) -> bytes:
    return row.samples[0] if isinstance(row, Stored) else sample_of(row)


def _equal(one: Inputs | None, other: Inputs | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(_is_equal(one[name], other[name]) for name in one)


def _is_equal(one: Values, other: Values) -> bool:
    return one is other or torch.equal(in_memory(one), in_memory(other))


def _copied(value: Values) -> Tensor:
    return value.whole() if isinstance(value, Stored) else value.clone()


def _at(value: Values, rows: Tensor) -> Values:
    return value.at(rows.tolist()) if isinstance(value, Stored) else value[rows]


def _for_each(value: Values, count: int) -> Values:
    """A single row as so many."""
    if isinstance(value, Stored):
        return value.at([0] * count) if len(value) == 1 else value
    return value.expand(count, *value.shape[1:])


def _cat(values: Sequence[Values]) -> Values:
    """Of rows in files a single one is in memory: all share it."""
    stored = [value for value in values if isinstance(value, Stored)]
    if len(stored) < len(values):
        return torch.cat([in_memory(value) for value in values])
    joined = Stored.joined(stored)
    return joined if len(joined) > 1 else joined.whole()
