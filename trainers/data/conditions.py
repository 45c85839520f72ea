"""What a network is told of each sample, and of samples whose inputs are of several shapes: of prompts of any length, say.

In one batch of those, what differs in shape is laid flat, zeros behind it up to the longest, and what it was stands beside it,
(B, axes): 1 and its sizes, or 0 where a sample has none of that name. So its rows are chosen, cut into pieces and shared out as
any others are; whoever asks a network gives it those of one shape at a time. What it was is on the CPU wherever the rest is, for
it is read before each pass of a network; so rows are chosen by slices, or by numbers on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..storage.stored import Inputs, in_memory

Condition = dict[str, Tensor]
"""Model inputs by name, as the denoiser takes them by keyword; each (N, ...), or (1, ...) when all samples share it.

What samples of one batch must have in common, and is no tensor, may stand in a name, with an empty tensor (N, 0).
"""
_SHAPE = "shape of "
"""Before the name of what was laid flat; no input of a network has spaces in its name."""


def chosen(condition: Inputs, rows: Tensor | slice) -> Condition:
    """Of these rows, in which what all share stays (1, ...). What lies in files is read."""
    return {name: in_memory(value[rows]) if len(value) > 1 else in_memory(value) for name, value in condition.items()}


# --- of several shapes -----------------------------------------------------------------------------------------------


def one_batch(rows: Sequence[Condition]) -> Condition:
    """Conditions of one sample each, (1, ...), as one of all: (B, ...) where all are of one shape."""
    joined: Condition = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if len({None if value is None else value.shape for value in values}) == 1:
            joined[name] = torch.cat([row[name] for row in rows])
        else:
            joined |= {name: _flat(values), _SHAPE + name: _shapes(values)}
    return joined


def _flat(values: Sequence[Tensor | None]) -> Tensor:
    there = [value for value in values if value is not None]
    flat = there[0].new_zeros(len(values), max(value.numel() for value in there))
    for row, value in zip(flat, values, strict=True):
        if value is not None:
            row[: value.numel()] = value.flatten()
    return flat


def _shapes(values: Sequence[Tensor | None]) -> Tensor:
    there = [value for value in values if value is not None]
    shapes = torch.zeros(len(values), max(value.ndim for value in there), dtype=torch.int64)
    for row, value in zip(shapes, values, strict=True):
        if value is not None:
            row[: value.ndim] = torch.tensor([1, *value.shape[1:]])
    return shapes


def is_mixed(condition: Condition) -> bool:
    """Whether its samples may be of several shapes."""
    return any(name.startswith(_SHAPE) for name in condition)


def of_row(condition: Condition, row: int) -> Condition:
    """Of one sample, (1, ...) each, as it was before it stood in a batch."""
    return _as_it_was(chosen(condition, slice(row, row + 1)))


def by_shape(
    function: Callable[..., Tensor], *tensors: Tensor, condition: Condition, each_alone: bool = False
) -> Tensor:
    """function(*tensors, **condition) (B, ...) of tensors (B, ...) each, where it takes conditions of one shape alone.

    It is called once for all samples of a shape, or for each by itself, and what it says comes back in the samples' order.
    """
    if not is_mixed(condition) and (not each_alone or len(tensors[0]) == 1):
        return function(*tensors, **condition)

    def asked(rows: Sequence[int]) -> Tensor:
        own = {name: _taken(value, rows) for name, value in condition.items()}
        return function(*(_taken(tensor, rows) for tensor in tensors), **_as_it_was(own))

    alike = _rows_alike(condition, len(tensors[0]), each_alone=each_alone)
    order = [row for rows in alike for row in rows]
    return _taken(torch.cat(list(map(asked, alike))), sorted(range(len(order)), key=order.__getitem__))


def _taken(values: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows, in which what all share stays (1, ...). A tensor of numbers a graphics card would have to be sent, and wait."""
    if len(values) == 1:
        return values
    each = values.split(1)
    return torch.cat([each[row] for row in rows])


def _rows_alike(condition: Condition, count: int, *, each_alone: bool) -> list[list[int]]:
    """The numbers of those rows that may pass a network together."""
    shapes = [value.tolist() for name, value in condition.items() if name.startswith(_SHAPE)]
    alike: dict[str, list[int]] = {}
    for row in range(count):
        alike.setdefault(str([row] if each_alone else [shape[row] for shape in shapes]), []).append(row)
    return list(alike.values())


def _as_it_was(condition: Condition) -> Condition:
    """Of samples of one shape, without what was put behind."""
    found: Condition = {}
    for name, value in condition.items():
        shape = condition.get(_SHAPE + name)
        if shape is None:
            found |= {} if name.startswith(_SHAPE) else {name: value}
            continue
        there, *sizes = shape[0].tolist()
        if there:
            found[name] = value[:, : math.prod(sizes)].reshape(len(value), *sizes)
    return found
