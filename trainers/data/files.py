"""Reading the files of a data set: what is no file, or cannot be read, is broken; what was hashed once is what is read later.

Everything that is made of a file is called by its SHA-256, so what it is made of must be what was hashed, which may be hours ago.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_BLOCK = 2**22
"""Bytes that are read and compared at once."""
_BLOCKS_HELD = 4
"""A file may keep what it shows and what it sounds like far from each other."""


class BrokenFile(ValueError):
    """A file that cannot be trained on; the message says why."""


def require_file(path: Path) -> None:
    """BrokenFile for a folder, a link to nothing, and a pipe or device, which might never end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(mode):
        raise BrokenFile("it is a folder, pipe or device, not a file")


def _unreadable(error: OSError) -> BrokenFile:
    return BrokenFile(f"it cannot be read ({error.strerror or error})")


def opened(path: Path) -> BinaryIO:
    """BrokenFile for what is no file that can be read."""
    require_file(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(error) from error


def content(path: Path) -> bytes:
    """BrokenFile for what is no file that can be read."""
    with opened(path) as file:
        return _read(file)


def _read(file: BinaryIO, size: int = -1) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise _unreadable(error) from error


_NOTHING = hashlib.sha256()


class Hashed(NamedTuple):
    """Of a file: its SHA-256, its bytes, and for each block the hash of all before it and the digest of all up to its end.

    SHA-256 goes on from any block, so that each can be compared without those before it.
    """

    sha256: str
    size: int
    before: tuple[Any, ...]
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, path: Path) -> Hashed:
        """BrokenFile for what is no file that can be read."""
        running, digests, size = [_NOTHING], list[bytes](), 0
        with opened(path) as file:
            while block := _read(file, _BLOCK):
                running.append(running[-1].copy())
                running[-1].update(block)
                digests.append(running[-1].digest())
                size += len(block)
        return cls(running[-1].hexdigest(), size, tuple(running[: len(digests)]), tuple(digests))

    def has(self, number: int, block: bytes) -> bool:
        """Whether it is the block of that number."""
        if number >= len(self.digests):
            return False
        found = self.before[number].copy()
        found.update(block)
        return bool(found.digest() == self.digests[number])


NO_FILE = Hashed("", 0, (), ())


def hashed_content(path: Path, hashed: Hashed) -> bytes:
    """BrokenFile where it is no longer what was hashed."""
    found = content(path)
    if hashlib.sha256(found).hexdigest() != hashed.sha256:
        raise _another()
    return found


def _another() -> BrokenFile:
    return BrokenFile("its content is not what it was when this start looked at it")


class HashedFile(io.RawIOBase):
    """A file that was hashed, open to be read in any order: each block is compared before anything of it is given.

    BrokenFile where the file is no longer what was hashed, on reading, after which it ends, and again from `require_read`:
    whoever decodes may take an error in the middle for the end.
    """

    def __init__(self, path: Path, hashed: Hashed) -> None:
        super().__init__()
        self._file, self._hashed, self._at = opened(path), hashed, 0
        self.name = str(path)
        self._broken, self._ended = os.fstat(self._file.fileno()).st_size != hashed.size, False
        self._block: Callable[[int], bytes] = functools.lru_cache(maxsize=_BLOCKS_HELD)(self._compared)

    def _compared(self, number: int) -> bytes:
        self._file.seek(number * _BLOCK)
        block = _read(self._file, _BLOCK)
        self._broken = self._broken or not self._hashed.has(number, block)
        self._ended = self._broken
        self.require_read()
        return block

    def require_read(self) -> None:
        """BrokenFile where something else than what was hashed was met."""
        if self._broken:
            raise _another()

    def readinto(self, buffer: Any) -> int:
        inside = self._at % _BLOCK
        block = b"" if self._ended or self._at >= self._hashed.size else self._block(self._at // _BLOCK)
        part = block[inside : inside + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._hashed.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
