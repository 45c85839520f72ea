"""What is said of folders, kept for as long as nothing in them changes: a long list of runs is asked for again and again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

_LONGEST_TICK = 3.0
"""Seconds. Some disks tell no more changes apart than one in two seconds."""


class _Entry(NamedTuple):
    """A file, or a folder, which changes when something in it comes or goes."""

    name: str
    changed: int
    rights_changed: int
    size: int


class Unchanged(Generic[V]):
    """most: folders of which something is kept."""

    def __init__(self, *, most: int) -> None:
        self._most, self._keeping = most, threading.Lock()
        self._kept: dict[Path, tuple[list[_Entry], V]] = {}

    def of(
        self,
        folder: Path,
        say: Callable[[], V],
        *,
        keep: Callable[[V], bool] = lambda _: True,
        only: Collection[str] | None = None,
    ) -> V:
        """What say says, which is not asked again while the folder is as it was.

        keep: whether it holds for so long. only: what it is about, if not all of the folder: what comes and goes there and in the
        folders of these names.
        """
        # before it is read: what changes meanwhile is another folder
        found = _entries(folder) if only is None else _entries_of(folder, only)
        before, said = self._kept.get(folder, (None, None))
        if found is not None and before == found and said is not None:
            return said
        now = say()
        if found is not None and keep(now) and _is_over(found):
            with self._keeping:  # several threads answer the browser
                self._kept.pop(folder, None)
                while len(self._kept) >= self._most:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[folder] = (found, now)
        return now


def _entries(folder: Path) -> list[_Entry] | None:
    """But its lock, whose file some versions of filelock write or remove whenever somebody looks at it. None of a folder that is
    just being deleted, or cannot be looked into."""
    try:
        with os.scandir(folder) as entries:
            told = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.name != ".lock"]
    except OSError:
        return None
    return sorted(_Entry(name, of.st_mtime_ns, of.st_ctime_ns, of.st_size) for name, of in told)


def _entries_of(folder: Path, names: Collection[str]) -> list[_Entry] | None:
    """The folder itself, and folders in it as far as they are there."""
    found = []
    for path in (folder, *(folder / name for name in names)):
        try:
            of = path.lstat()
        except OSError:
            if path == folder:
                return None
            continue
        found.append(_Entry(path.name, of.st_mtime_ns, of.st_ctime_ns, of.st_size))
    return found


def _is_over(found: list[_Entry]) -> bool:
    """Whether a change that comes now would be told apart from the last one."""
    return all(entry.changed < 1e9 * (time.time() - _LONGEST_TICK) for entry in found)
