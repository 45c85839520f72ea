"""The hashes of files as a start before this one made them, so that gigabytes of pictures are not read again at each.

A file is taken for the same by its size and its times of change. So its hash is only compared: before anything is made of a
file, it is hashed anew.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from ..storage.files import write_atomically
from ..storage.reading import is_object, read_json, require
from .files import Hashed

_LONGEST_TICK = 3.0
"""Seconds. A file that was written just before it was hashed may be written again with the same times."""
log = logging.getLogger("comfyui_fewstep")


class Looked:
    """What is known of files, by their paths."""

    def __init__(self) -> None:
        self._known: dict[str, list[Any]] = {}
        self._there: dict[str, list[Any]] = {}

    def read(self, file: Path) -> None:
        """What keep wrote. Of a damaged file nothing, and a word in the log: it only saves time."""
        try:
            self._known = require(read_json(file), {"files": is_object}, what=file.name)["files"]
        except FileNotFoundError:
            self._known = {}
        except ValueError as error:
            log.warning("%s; all files are read again.", error)
            self._known = {}

    def hashed(self, path: Path) -> Hashed:
        """Without its blocks, where it is known. BrokenFile for what is no file that can be read."""
        told, now = _told(path), time.time()
        known = self._known.get(str(path))
        if told is not None and isinstance(known, list) and known[:-1] == told:
            self._there[str(path)] = known
            return Hashed(str(known[-1]), told[0], (), ())
        found = Hashed.of(path)
        if told is not None and told == _told(path) and max(told[1:]) < 1e9 * (now - _LONGEST_TICK):
            self._there[str(path)] = [*told, found.sha256]
        return found

    def forget(self) -> bool:
        """So that each is read that is asked for from here on. Whether any was known."""
        if not self._known:
            return False
        self._known, self._there = {}, {}
        return True

    def keep(self, file: Path) -> None:
        """Of the files that were asked for, where that is another thing than file says."""
        if self._there != self._known:
            write_atomically(file, json.dumps({"files": self._there}).encode())
            self._known = self._there


def _told(path: Path) -> list[int] | None:
    """Size and times of change. None where there is no file."""
    try:
        told = path.stat()
    except OSError:
        return None
    return [told.st_size, told.st_mtime_ns, told.st_ctime_ns]
