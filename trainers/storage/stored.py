"""Tensors whose rows lie in safetensors files and are read when they are asked for: of data that no memory would hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class Place(NamedTuple):
    """Of a row: the file, the tensor's name there, the row of that."""

    file: Path
    name: str
    row: int


class Stored:
    """A tensor (N, ...) that is nowhere whole. As of a tensor, a slice of it is no copy, and rows by their numbers are one.

    shape: of a row. samples: some bytes of each row, the same of equal ones, by which others are told apart without reading.
    No file stays open: a run's folder may be moved, and Windows would not delete what is.
    """

    device = torch.device("cpu")

    def __init__(
        self, places: Sequence[Place], samples: Sequence[bytes], *, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._places, self.samples, self._row, self.dtype = places, samples, torch.Size(shape), dtype

    @classmethod
    def joined(cls, several: Sequence[Stored]) -> Stored:
        """One after another, of rows that are alike."""
        places = [place for one in several for place in one._places]
        samples = [sample for one in several for sample in one.samples]
        return cls(places, samples, shape=several[0]._row, dtype=several[0].dtype)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._row))

    def numel(self) -> int:
        return self.shape.numel()

    @overload
    def __getitem__(self, rows: slice) -> Stored: ...

    @overload
    def __getitem__(self, rows: Tensor) -> Tensor: ...

    def __getitem__(self, rows: slice | Tensor) -> Stored | Tensor:
        """ValueError, naming the file, where that is gone or damaged by now."""
        if isinstance(rows, slice):
            return Stored(self._places[rows], self.samples[rows], shape=self._row, dtype=self.dtype)
        return self._read([self._places[row] for row in rows.tolist()])

    def at(self, rows: Iterable[int]) -> Stored:
        """These, unread."""
        picked = list(rows)
        places, samples = [self._places[row] for row in picked], [self.samples[row] for row in picked]
        return Stored(places, samples, shape=self._row, dtype=self.dtype)

    def whole(self) -> Tensor:
        return self._read(self._places)

    def _read(self, places: Sequence[Place]) -> Tensor:
        made = torch.empty(len(places), *self._row, dtype=self.dtype)
        by_file: dict[Path, list[int]] = {}
        for i, place in enumerate(places if self._row.numel() else ()):
            by_file.setdefault(place.file, []).append(i)
        for file, wanted in by_file.items():
            try:
                with safe_open(file, framework="pt") as content:
                    for i in wanted:
                        row = places[i].row
                        made[i : i + 1] = content.get_slice(places[i].name)[row : row + 1]
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"the training data cannot be read any more: {file} was moved, deleted or damaged meanwhile ({error}). Put "
                    "it back and start once more."
                ) from error
        return made


Values = Tensor | Stored
Inputs = Mapping[str, Values]
"""Of a network, by name."""


def in_memory(value: Values) -> Tensor:
    """A tensor as it is, or all rows read."""
    return value.whole() if isinstance(value, Stored) else value
