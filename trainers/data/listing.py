"""The files of a folder that are to be trained on: which there are, their captions, what is passed over and why.

Captions lie beside the files, as trainers since kohya's sd-scripts keep them: name.txt, name.caption, name.png.txt.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..storage.places import is_link
from .files import NO_FILE, BrokenFile, Hashed, content

CAPTION_ENDINGS = (".txt", ".caption")
"""In any case of letters; the first that is there counts."""
NOT_READ, READ, REPEATED = "not read", "read", "read, with repeats"
SUBFOLDERS = (NOT_READ, READ, REPEATED)
"""What becomes of folders below. With repeats the files below `10_name` count ten times, and `name` describes those that no
file of their own does, as in kohya's sd-scripts."""
log = logging.getLogger("comfyui_fewstep")
_CONCEPT = re.compile(r"(\d+)_(.+)")


@dataclasses.dataclass(frozen=True)
class Found:
    """A file, its name below the folder (what is no text in it is written as \\x..), and what describes it."""

    path: Path
    name: str
    caption_file: Path | None
    repeats: int = 1
    concept: str = ""


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files by name. passed_over: how many things of each kind are in the folder and no part of the data."""

    folder: Path
    what: str
    files: tuple[Found, ...]
    passed_over: Mapping[str, int]

    @property
    def described(self) -> int:
        """How many have a caption file."""
        return sum(file.caption_file is not None for file in self.files)

    def said(self) -> str:
        """For the user, before any file is opened."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.passed_over.items()))
        passed = f" Passed over: {kinds}." if kinds else ""
        return f"{len(self.files)} {self.what} in {self.folder}, {self.described} with a caption file.{passed}"


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A file, the text that describes it, and what its content was. broken: why it cannot be read, as far as it shows."""

    path: Path
    name: str
    caption: str
    hashed: Hashed
    repeats: int = 1
    broken: str = ""

    @property
    def sha256(self) -> str:
        return self.hashed.sha256


def listed(folder: Path, endings: Collection[str], *, what: str = "pictures", subfolders: str = NOT_READ) -> Listing:
    """The files with these endings, in lower case. ValueError when folder is none, cannot be read, or holds no such file."""
    if subfolders not in SUBFOLDERS:
        raise ValueError(f"subfolders is {subfolders!r}; allowed are {', '.join(SUBFOLDERS)}.")
    if not is_folder(folder):
        raise ValueError(f"the folder of training {what} is {str(folder)!r}, which is no folder.")
    passed: collections.Counter[str] = collections.Counter()
    files = [
        file
        for inside in _walk(_Inside(folder), endings, below=subfolders != NOT_READ, passed=passed)
        for file in _in_one_folder(inside, endings, what=what, repeated=subfolders == REPEATED, passed=passed)
    ]
    passed[f"{what} in folders of 0 repeats"] = sum(file.repeats == 0 for _, file in files)
    found = tuple(file for _, file in sorted(files, key=lambda pair: pair[0]) if file.repeats)
    if not found:
        below = ", not below it" if subfolders == NOT_READ else ""
        raise ValueError(f"the folder {str(folder)!r} holds no {what}; looked for are {', '.join(endings)}{below}.")
    return Listing(folder, what, found, +passed)


def require_any(folder: Path, endings: Collection[str], *, what: str, subfolders: str) -> None:
    """ValueError as of listed, which is asked where a first look meets no file: to list thousands takes a while, and hosts answer
    nobody while they check what is queued."""
    if subfolders not in (NOT_READ, READ) or not _holds_one(folder, endings, below=subfolders == READ):
        listed(folder, endings, what=what, subfolders=subfolders)


def _holds_one(folder: Path, endings: Collection[str], *, below: bool) -> bool:
    """No also for what cannot be looked into."""
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _ends(entry.name, endings):
                    return True
                inner += [Path(entry.path)] if below and entry.is_dir(follow_symlinks=False) else []
    except (OSError, ValueError):  # a path that no system takes
        return False
    return any(_holds_one(path, endings, below=True) for path in inner if not is_link(path))


def is_folder(path: Path) -> bool:
    """No also for what no system takes as a path, which Path.is_dir raises for."""
    return os.path.isdir(path)  # noqa: PTH112


def content_of(folder: Path, *, below: bool = False) -> str:
    """A hash of name, time of the last change and size of all that is in folder: empty where there is no folder.

    Short however much there is: hosts write it into every picture that they save, and send it to every page. below: what lies
    in folders in it counts too; links to folders are not followed.
    """
    if not is_folder(folder):
        return ""
    digest = hashlib.sha256()
    for name, told in sorted(_told_of(folder, "", below=below)):
        digest.update(os.fsencode(f"{name}\0{told}\0"))
    return digest.hexdigest()


def _told_of(folder: Path | str, prefix: str, *, below: bool) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                told = entry.stat()
            except OSError:  # a link to nothing
                told = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, f"{told.st_mtime_ns} {told.st_size}"
            if below and entry.is_dir(follow_symlinks=False) and not is_link(Path(entry.path)):
                yield from _told_of(entry.path, f"{prefix}{entry.name}/", below=True)


# --- what is in the folder -------------------------------------------------------------------------------------------


class _Inside(NamedTuple):
    """A folder that is looked into. parts: its path below the one that is listed. names: in it, but of folders to look into."""

    path: Path
    parts: tuple[str, ...] = ()
    names: Sequence[str] = ()

    def inner(self, name: str) -> _Inside:
        return _Inside(self.path / name, (*self.parts, name))


def _walk(
    start: _Inside, endings: Collection[str], *, below: bool, passed: collections.Counter[str]
) -> Iterator[_Inside]:
    """The folder, and those in it where below."""
    try:
        with os.scandir(start.path) as entries:  # which says of each what it is, without a look at any
            kinds = {entry.name: not _ends(entry.name, endings) and _is_folder(entry) for entry in entries}
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"the folder {readable(str(start.path))} cannot be read ({reason}).") from error
    yield start._replace(names=sorted(name for name, is_inner in kinds.items() if not is_inner))
    for name in sorted(name for name, is_inner in kinds.items() if is_inner):
        inner = start.inner(name)
        kind = _passed_folder(inner.path, below=below)
        if kind:
            passed[kind] += 1
        else:
            yield from _walk(inner, endings, below=below, passed=passed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also by a link, of which is_dir would raise for one that leads round and round."""
    return is_folder(Path(entry.path)) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def _passed_folder(folder: Path, *, below: bool) -> str:
    """Why a folder is not looked into, or nothing."""
    if not below:
        return "folders in it"
    if is_link(folder):
        return "links to folders"
    return "hidden folders" if folder.name.startswith(".") else ""


def _in_one_folder(
    inside: _Inside,
    endings: Collection[str],
    *,
    what: str,
    repeated: bool,
    passed: collections.Counter[str],
) -> Iterator[tuple[str, Found]]:
    """The files of one folder with their captions, each with its path below the one that is listed, by which they are sorted."""
    kinds = {name: _split(name) for name in inside.names}
    captions = {kind: name for name, kind in kinds.items() if kind[1] in CAPTION_ENDINGS}
    wanted = [name for name, kind in kinds.items() if kind[1] in endings]
    beside = {name: _caption_beside(name, captions) for name in wanted if not name.startswith(".")}
    passed[f"hidden {what}"] += len(wanted) - len(beside)
    of_texts = {name for name, kind in kinds.items() if kind[1] in CAPTION_ENDINGS}
    passed["caption files of no use"] += len(of_texts - set(beside.values()))
    for name in kinds.keys() - of_texts - set(wanted):
        passed[f"{readable(kinds[name][1]) or 'other'} files"] += 1
    repeats, concept = _concept(inside.parts) if repeated else (1, "")
    for name, caption in beside.items():
        below = "/".join((*inside.parts, name))
        described = None if caption is None else inside.path / caption
        yield below, Found(inside.path / name, readable(below), described, repeats, concept)


def _concept(folders: Sequence[str]) -> tuple[int, str]:
    """(repeats, text) that the folders' names say, the last that says any."""
    concepts = [match for part in folders if (match := _CONCEPT.fullmatch(part))]
    return (int(concepts[-1][1]), concepts[-1][2]) if concepts else (1, "")


def _caption_beside(name: str, captions: Mapping[tuple[str, str], str]) -> str | None:
    stem = os.path.splitext(name)[0]  # noqa: PTH122 (of a name that begins with a dot too)
    places = [(each, ending) for each in (stem, name) for ending in CAPTION_ENDINGS]
    return next((captions[place] for place in places if place in captions), None)


def _split(name: str) -> tuple[str, str]:
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return stem, ending.lower()


def _ends(name: str, endings: Collection[str]) -> bool:
    return _split(name)[1] in endings


def readable(name: str) -> str:
    """What is no text in a file's name is written as \\x.., so that logs and JSON can hold it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# --- what is in the files --------------------------------------------------------------------------------------------


def captioned(
    files: Sequence[Found],
    *,
    caption: str | None,
    looked: Callable[[], None] = lambda: None,
    hashed: Callable[[Path], Hashed] = Hashed.of,
) -> list[Captioned]:
    """Each with the text of its caption file or, where there is none, of its folder's concept or caption.

    What cannot be read is broken, and wants no caption. looked: is called before each. hashed: of a file. ValueError, naming
    the files, when a text is missing while caption is None.
    """
    found, missing = [], []
    for file in files:
        looked()
        made = _captioned(file, caption or "", hashed)
        found.append(made)
        if caption is None and not (file.caption_file or file.concept or made.broken):
            missing.append(file.name)
    if missing:
        raise ValueError(f"{len(missing)} of the files have no caption file beside them: {some_of(missing, ', ')}.")
    return found


_SHOWN = 20


def some_of(said: Sequence[str], joint: str) -> str:
    """The first of them and how many more there are, which the log names: an error stands in a dialog, and beside its run."""
    if len(said) <= _SHOWN:
        return joint.join(said)
    log.warning("%s", joint.join(said))
    return f"{joint.join(said[:_SHOWN])}{joint}and {len(said) - _SHOWN} more, which the log names"


def _captioned(file: Found, caption: str, hashed: Callable[[Path], Hashed]) -> Captioned:
    try:
        _require_text(str(file.path))
        text = file.concept or caption if file.caption_file is None else _caption(file.caption_file)
        return Captioned(file.path, file.name, text, hashed(file.path), file.repeats)
    except BrokenFile as error:
        return Captioned(file.path, file.name, "", NO_FILE, file.repeats, str(error))


def _require_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BrokenFile("its name is no UTF-8 text; rename it") from error


def _caption(file: Path) -> str:
    """The text on one line. The encoding's mark that Windows' editors write is no text."""
    try:
        text = content(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenFile(f"its caption {readable(file.name)} is no UTF-8 text ({error})") from error
    except BrokenFile as error:
        raise BrokenFile(f"its caption {readable(file.name)}: {error}") from error
    if "\0" in text:  # as UTF-16 without its mark, which is read as such without an error
        raise BrokenFile(f"its caption {readable(file.name)} is no UTF-8 text (it holds zero bytes)")
    return " ".join(text.split())
