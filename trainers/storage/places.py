"""Names that people give, and the places they lead to: every path of ours that has such a name in it is made here."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

_MOST_LETTERS, _MOST_BYTES = 100, 200
"""Of a name. File systems take 255 bytes of UTF-8, and our files add endings to it."""
_MOST_TRIES = 10
_JOINERS = "\u200c\u200d"
"""Invisible, and part of words in Persian and in many scripts of India."""
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789\u00b9\u00b2\u00b3"),
}
"""Windows opens a device for these names, whatever ending follows."""


def is_name(text: str) -> bool:
    """Whether a run or a file of ours may be called so: on every system it names one thing, and no path may be in it.

    Letters, marks and numbers of any script, spaces and . _ - may be in it, so no terminal and no file system reads it as
    anything else.
    """
    return (
        0 < len(text) <= _MOST_LETTERS
        and all(_allowed(letter) for letter in text)
        and unicodedata.category(text[0])[0] in "LN"
        and not text.endswith((".", " "))
        and text.split(".")[0].rstrip().upper() not in _DEVICES
        and len(text.encode()) <= _MOST_BYTES
    )


def _allowed(letter: str) -> bool:
    return letter in " ._-" or letter in _JOINERS or unicodedata.category(letter)[0] in "LMN"


def require_name(text: Any, *, what: str) -> str:
    """The text. ValueError, naming what is called so, when it could lead elsewhere."""
    if not isinstance(text, str) or not is_name(text):
        shown = repr(text)
        shown = shown if len(shown) <= 120 else f"{shown[:110]}... ({len(shown)} characters)"
        raise ValueError(
            f"the {what} is {shown}; allowed are 1 to {_MOST_LETTERS} letters of any script, digits, spaces and . _ - "
            "beginning with a letter or digit and not ending in a dot or space, and no name that Windows keeps for a device "
            "(CON, NUL): it names a folder or file, so no path may be in it."
        )
    _require_writable(text, what=what)
    return text


def _require_writable(name: str, *, what: str) -> None:
    """ValueError where this process cannot write a name's letters: under LC_ALL=C and PYTHONUTF8=0, say."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        letter, encoding = name[error.start], sys.getfilesystemencoding()
        raise ValueError(
            f"the {what} is {name!r}, but Python was started in a locale ({encoding}) whose file names have no {letter!r}; start "
            "ComfyUI with PYTHONUTF8=1 set, or choose another name."
        ) from error


def place(root: Path, *names: str) -> Path:
    """root/name/name ..., of which nothing below root is a link. ValueError for a part that is one, or that is a path.

    root itself is the user's own choice, and may be a link.
    """
    path = root
    for name in names:
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise ValueError(f"{name!r} is no name of a file in {path}.")
        path = path / name
        if is_link(path):
            raise ValueError(f"{path} is a link, and nothing below {root} is followed when it is one; delete the link.")
    return path


def is_link(path: Path) -> bool:
    """A symbolic link, or a junction of Windows. What it points to need not be there."""
    try:
        found = path.lstat()
    except OSError:
        return False
    junction = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == junction


def is_regular(path: Path) -> bool:
    """Whether there is a file with content: no link, folder, pipe or device, of which some never end."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def regular_files(folder: Path, *, ending: str) -> list[str]:
    """Names of those with such an ending that lie in it, in order, and not hidden; none where there is no folder.

    The folder's own list says what each of them is: a look at every picture of a long run would take many times as long.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        found = (entry for entry in entries if entry.name.endswith(ending) and not entry.name.startswith("."))
        return sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False))
    return []


def require_no_links(folder: Path) -> None:
    """ValueError, naming it, for a link anywhere below folder, or for folder itself."""
    if is_link(folder):
        raise ValueError(f"{folder} is a link, which is not followed; delete it, or choose another run name.")
    for parent, folders, files in os.walk(folder, followlinks=False):
        linked = next((path for name in [*folders, *files] if is_link(path := Path(parent) / name)), None)
        if linked is not None:
            raise ValueError(
                f"{linked} is a link, and nothing in a run's folder is followed when it is one; delete it."
            )


def remove(path: Path) -> None:
    """A file, a folder with all that is in it, or a link alone."""
    if path.is_dir() and not is_link(path):
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_all(folder: Path, *, but: Collection[str]) -> None:
    """What is in a folder but these names: also what others put there or remove meanwhile, unless they go on and on."""
    for tries in range(1, _MOST_TRIES + 1):
        try:
            for path in [path for path in folder.iterdir() if path.name not in but]:
                remove(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or tries == _MOST_TRIES:
                raise


def remove_unless_read(file: Path) -> None:
    """Windows keeps a file that somebody reads, a virus scanner say: it stays, for whoever removes it the next time.

    Nothing where somebody else was there first.
    """
    with contextlib.suppress(PermissionError, FileNotFoundError):
        file.unlink()


def last_change(folder: Path) -> float:
    """When anything directly in folder changed last, in seconds of the clock, or an empty one itself; links are not followed.

    But its lock, whose file some versions of filelock write or remove whenever somebody looks at it. What goes meanwhile, as
    everything does that is half written, is none of it.
    """
    times = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != ".lock":
                with contextlib.suppress(FileNotFoundError):
                    times.append(entry.stat(follow_symlinks=False).st_mtime)
    return max(times, default=folder.stat().st_mtime)
