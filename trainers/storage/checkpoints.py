"""A checkpoint's file: the state of a run between two iterations, where that is, and of which run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import reading
from .files import CHECKSUM_KEY, read_metadata, read_tensors, write_tensors

_POSITION, _POSITION_CHECKSUM = "fewstep.position", "fewstep.position_sha256"
OF_RUN = "run"
"""In the position: what run.json said under the same name. Files of before say nothing of it."""


class Checkpoint(NamedTuple):
    """position: JSON values, where to go on. sha256: of the tensors, nothing where the file does not say it."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]
    sha256: str


def write(path: Path, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
    """Whole or not at all; see write_tensors, whose checksum is of the tensors alone."""
    text = json.dumps(position)
    write_tensors(path, tensors, metadata={_POSITION: text, _POSITION_CHECKSUM: _sha256(text)})


def read(path: Path) -> Checkpoint:
    """ValueError, naming the file, when it is damaged or no checkpoint."""
    tensors, metadata = read_tensors(path)
    return Checkpoint(tensors, _position(path, metadata), metadata.get(CHECKSUM_KEY, ""))


def require_of(path: Path, differing: Callable[[Mapping[str, Any]], Sequence[str]]) -> None:
    """ValueError for another run's, which somebody put there, and as of read; the tensors are not read.

    differing: which entries of "run" in run.json are another run's.
    """
    said = _position(path, read_metadata(path)).get(OF_RUN)
    if isinstance(said, dict) and (names := differing(said)):
        raise ValueError(f"{path.name} is another run's checkpoint, which differs in {', '.join(names)}.")


def _position(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(_POSITION)
    if text is None:
        raise ValueError(f"{path.name} is no checkpoint: its metadata lack {_POSITION}.")
    if metadata.get(_POSITION_CHECKSUM, _sha256(text)) != _sha256(text):  # files of before have none
        raise ValueError(f"{path.name} is damaged: its position does not match its checksum.")
    what = f"the position in {path.name}"
    try:
        return reading.require(json.loads(text), reading.POSITION, what=what)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no JSON text ({error}).") from error
    except ValueError as error:
        raise ValueError(f"{error}.") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
