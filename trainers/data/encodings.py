"""What a VAE and a text encoder make of pictures and texts, kept for every run: a file each, called by all that decides it.

A run's own folder holds what it trains on; these files only save another run the work, and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..storage.files import read_tensors, write_tensors
from ..storage.places import place, remove_unless_read

MOST_BYTES = 16 * 2**30
"""Of all files together; those that were used longest ago give way."""
_LOOKS = 8
"""How often the files are counted while so much is written."""

log = logging.getLogger("comfyui_fewstep")
Encoded = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and texts by name."""
Made = TypeVar("Made")


class Encodings:
    """The files below folder, at most most_bytes of them."""

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most = folder, most_bytes
        self._written = most_bytes  # by others, for all that is known: the first look is at the first file

    def get(
        self,
        decided_by: Mapping[str, Any] | None,
        make: Callable[[], Made],
        *,
        written: Callable[[Made], Encoded | None],
        read: Callable[[Encoded], Made],
    ) -> Made:
        """What was made before of the same, else what make gives, which is kept.

        decided_by: JSON values, all that the result depends on; None where they are not known, and nothing is kept.
        written: what a file holds of it, None for what no file should. read: the inverse.
        """
        if decided_by is None:
            return make()
        file = self._file(decided_by)
        known = _read(file) if file.exists() else None
        if known is not None:
            return read(known)
        made = make()
        content = written(made)
        if content is not None:
            self._keep(file, *content)
        return made

    def _keep(self, file: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
        """Where the disk refuses, that is said and ends nothing: it would only save work."""
        try:
            write_tensors(file, tensors, metadata=texts)
        except OSError as error:
            log.warning("an encoding is not kept, and made again the next time: %s", error)
        else:
            self._make_room(sum(value.nbytes for value in tensors.values()))

    def _file(self, decided_by: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
        return place(self._folder, name[:2], f"{name}.safetensors")

    def _make_room(self, written: int) -> None:
        self._written += written
        if self._written * _LOOKS < self._most:
            return
        self._written = total = 0
        found = []
        for path in self._folder.glob("*/*.safetensors*"):  # what a killed process left half written, too
            with contextlib.suppress(FileNotFoundError):  # another process, in want of room, was there first
                known = path.stat()
                found.append((known.st_mtime_ns, known.st_size, path))
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self._most:
                remove_unless_read(path)


def _read(file: Path) -> Encoded | None:
    """None, and a word in the log, for a damaged file: it is made again."""
    try:
        found = read_tensors(file)
        os.utime(file)  # it was used now
        return found
    except (ValueError, OSError) as error:
        log.warning("The kept encoding %s is made again: %s", file, error)
        return None
