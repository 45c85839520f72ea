"""The files of a folder that are to be trained on: which there are, their captions, what is passed over and why.

Captions lie beside the files, as trainers since kohya's sd-scripts keep them: name.txt, name.caption, name.png.txt.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..storage.places import is_link
from .files import NO_FILE, BrokenFile, Hashed, content

CAPTION_ENDINGS = (".txt", ".caption")
"""In any case of letters; the first that is there counts."""
NOT_READ, READ, REPEATED = "not read", "read", "read, with repeats"
SUBFOLDERS = (NOT_READ, READ, REPEATED)
"""What becomes of folders below. With repeats the files below `10_name` count ten times, and `name` describes those that no
file of their own does, as in kohya's sd-scripts."""
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
    found = [
        file
        for parent, names in _walk(folder, endings, below=subfolders != NOT_READ, passed=passed)
        for file in _in_one_folder(parent, names, endings, what=what, passed=passed)
    ]
    files = [_of_folder(file, folder, repeated=subfolders == REPEATED) for file in found]
    passed[f"{what} in folders of 0 repeats"] = sum(file.repeats == 0 for file in files)
    files = sorted((file for file in files if file.repeats), key=lambda file: file.path.relative_to(folder).as_posix())
    if not files:
        below = ", not below it" if subfolders == NOT_READ else ""
        raise ValueError(f"the folder {str(folder)!r} holds no {what}; looked for are {', '.join(endings)}{below}.")
    return Listing(folder, what, tuple(files), +passed)


def is_folder(path: Path) -> bool:
    """No also for what no system takes as a path, which Path.is_dir raises for."""
    return os.path.isdir(path)  # noqa: PTH112


def content_of(folder: Path, *, below: bool = False) -> list[tuple[str, int, int]]:
    """Name, time of the last change in nanoseconds and size of all that is in folder: empty where there is no folder.

    below: what lies in folders in it counts too; links to folders are not followed.
    """
    if not is_folder(folder):
        return []
    paths = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names] if below else []
    paths += folder.iterdir()
    known = [(path, path.stat() if path.exists() else path.lstat()) for path in sorted(set(paths))]
    return [(path.relative_to(folder).as_posix(), each.st_mtime_ns, each.st_size) for path, each in known]


# --- what is in the folder -------------------------------------------------------------------------------------------


def _walk(
    folder: Path, endings: Collection[str], *, below: bool, passed: collections.Counter[str]
) -> Iterator[tuple[Path, list[str]]]:
    """folder, and those in it where below, each with the names in it that are no folders to look into."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (of names that are no text too)
    except OSError as error:
        raise ValueError(f"the folder {readable(str(folder))} cannot be read ({error.strerror or error}).") from error
    inner = [name for name in names if not _ends(name, endings) and is_folder(folder / name)]
    yield folder, sorted(set(names) - set(inner))
    for name in inner:
        kind = _passed_folder(folder / name, below=below)
        if kind:
            passed[kind] += 1
        else:
            yield from _walk(folder / name, endings, below=below, passed=passed)


def _passed_folder(folder: Path, *, below: bool) -> str:
    """Why a folder is not looked into, or nothing."""
    if not below:
        return "folders in it"
    if is_link(folder):
        return "links to folders"
    return "hidden folders" if folder.name.startswith(".") else ""


def _in_one_folder(
    parent: Path, names: Sequence[str], endings: Collection[str], *, what: str, passed: collections.Counter[str]
) -> list[Found]:
    """The files of one folder with their captions."""
    wanted = [name for name in names if _ends(name, endings)]
    texts = [name for name in names if _ends(name, CAPTION_ENDINGS)]
    captions = {_split(name): name for name in texts}
    beside = {name: _caption_beside(name, captions) for name in wanted if not name.startswith(".")}
    passed[f"hidden {what}"] += len(wanted) - len(beside)
    passed["caption files of no use"] += len(set(texts) - set(beside.values()))
    for name in set(names) - set(wanted) - set(texts):
        passed[f"{readable(_split(name)[1]) or 'other'} files"] += 1
    return [
        Found(parent / name, name, None if caption is None else parent / caption) for name, caption in beside.items()
    ]


def _caption_beside(name: str, captions: Mapping[tuple[str, str], str]) -> str | None:
    stem = os.path.splitext(name)[0]  # noqa: PTH122 (of a name that begins with a dot too)
    places = [(each, ending) for each in (stem, name) for ending in CAPTION_ENDINGS]
    return next((captions[place] for place in places if place in captions), None)


def _split(name: str) -> tuple[str, str]:
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return stem, ending.lower()


def _ends(name: str, endings: Collection[str]) -> bool:
    return _split(name)[1] in endings


def _of_folder(file: Found, folder: Path, *, repeated: bool) -> Found:
    """With its name below folder, and what the folder's name says where that counts."""
    below = file.path.relative_to(folder)
    named = dataclasses.replace(file, name=readable(below.as_posix()))
    concepts = [match for part in below.parts[:-1] if (match := _CONCEPT.fullmatch(part))]
    if not (repeated and concepts):
        return named
    return dataclasses.replace(named, repeats=int(concepts[-1][1]), concept=concepts[-1][2])


def readable(name: str) -> str:
    """What is no text in a file's name is written as \\x.., so that logs and JSON can hold it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# --- what is in the files --------------------------------------------------------------------------------------------


def captioned(
    files: Sequence[Found], *, caption: str | None, looked: Callable[[], None] = lambda: None
) -> list[Captioned]:
    """Each with the text of its caption file or, where there is none, of its folder's concept or caption.

    What cannot be read is broken, and wants no caption. looked: is called before each. ValueError, naming the files, when
    a text is missing while caption is None.
    """
    found, missing = [], []
    for file in files:
        looked()
        made = _captioned(file, caption or "")
        found.append(made)
        if caption is None and not (file.caption_file or file.concept or made.broken):
            missing.append(file.name)
    if missing:
        raise ValueError(f"{len(missing)} of the files have no caption file beside them: {', '.join(missing)}.")
    return found


def _captioned(file: Found, caption: str) -> Captioned:
    try:
        _require_text(str(file.path))
        text = file.concept or caption if file.caption_file is None else _caption(file.caption_file)
        return Captioned(file.path, file.name, text, Hashed.of(file.path), file.repeats)
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
