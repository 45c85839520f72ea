"""Files that are either whole or not there: atomic writes, and safetensors whose damage is found."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .places import remove_unless_read
from .stored import Values

CHECKSUM_KEY = "fewstep.sha256"
_AT_ONCE = 16
"""Rows that are put together to be hashed."""
_COPIED_AT_ONCE = 2**24
"""Bytes."""
_LEFT_SECONDS = 3600.0
"""After which nobody is writing any more: what is written is also brought to the disk, which may take minutes."""
_WINDOWS = os.name == "nt"
_WAITS = (0.01, 0.05, 0.2, 0.5, 1.0)
"""Seconds between tries to replace a file that somebody reads."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside, of a full disk or missing rights, becomes one of the same kind that says what was written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} could not be written: {reason}; the files before it are whole") from error


@contextlib.contextmanager
def writing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A place to write in, which becomes path when the block ends well and all is on the disk: a crash at any moment leaves the
    old file or the new.

    OSError, of a full disk say, names path. new: FileExistsError where there is a file at the end, which stays.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            yield unfinished
            with unfinished.open("r+b") as file:  # which Windows wants to be writable
                os.fsync(file.fileno())
            (_place if new else _replace)(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def _replace(unfinished: Path, path: Path) -> None:
    """On Windows whoever reads path at that moment, a list of runs or a virus scanner, keeps it from being replaced."""
    for wait in _WAITS if _WINDOWS else ():
        with contextlib.suppress(PermissionError):
            unfinished.replace(path)
            return
        time.sleep(wait)
    unfinished.replace(path)


def _place(unfinished: Path, path: Path) -> None:
    """Where no file is: whoever looked for one before may have written for minutes since. Of disks without links it is looked for
    once more."""
    try:
        os.link(unfinished, path)
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there is a file by now; choose another name") from None
        _replace(unfinished, path)
    else:
        unfinished.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes path whole, through to the disk; see writing."""
    with writing(path) as unfinished, unfinished.open("wb") as file:
        file.write(content)


def copy_atomically(
    source: Path, target: Path, *, one_file: bool = True, new: bool = False, heed: Callable[[], None] = lambda: None
) -> None:
    """target becomes source's content: a second name of the same file where the disk can, else a copy.

    one_file: no, where others may write to target: what they write must not become source's content. new: see writing. heed:
    called again and again while it is copied, which it stops by raising.
    """
    with writing(target, new=new) as unfinished:
        if one_file and _linked(source, unfinished):
            return
        with source.open("rb") as given, unfinished.open("wb") as made:
            _remove_left(target, now=unfinished.stat().st_mtime)
            while part := given.read(_COPIED_AT_ONCE):
                heed()
                made.write(part)


def _remove_left(path: Path, *, now: float) -> None:
    """What killed processes left of path. now: by its disk's clock.

    Others may be writing it, on other machines too: the process that trained and who watched it put one student among the models.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if now - left.stat().st_mtime > _LEFT_SECONDS:
                remove_unless_read(left)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        return False
    return True


def remove_unfinished(folder: Path, *, but: Collection[str] = ()) -> None:
    """Removes what write_atomically left below folder when its process was killed; nobody may be writing there now.

    but: names of files and folders in it that others may be writing.
    """
    for path in folder.rglob(".*.part"):
        first = path.relative_to(folder).parts[0]
        if not any(first == name or first.startswith(f".{name}.") for name in but):
            path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Makes a rename in directory durable; Windows neither needs nor allows it, and some network disks do not know it."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


class Rows(NamedTuple):
    """A tensor (N, ...) whose row i is of[at[i]], and which is nowhere whole."""

    of: Values
    at: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.at), *self.of.shape[1:])

    def whole(self) -> Tensor:
        return self.of[self.at]

    def in_parts(self) -> Iterator[Tensor]:
        """What is held at once of those that are nowhere whole."""
        return (self.of[rows] for rows in self.at.split(_AT_ONCE))


def some_of(values: Tensor) -> Tensor:
    """(n,) about 64 of the values, evenly spread: what differs there need not be compared whole."""
    flat = values.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 64)]


def file_sha256(path: Path) -> str:
    """Of the whole file, as hubs list it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def tensors_sha256(
    tensors: Mapping[str, Tensor | Rows], *, heard: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """A hash of names, types, shapes and bytes, in the order of the names. heard: is told after how many tensors of how many."""
    digest = hashlib.sha256()
    for done, name in enumerate(sorted(tensors)):
        value = tensors[name]
        digest.update(_kind_of(name, value))
        for part in value.in_parts() if isinstance(value, Rows) else [value]:
            heard(done, len(tensors))
            digest.update(_content(part))
    return digest.hexdigest()


def _kind_of(name: str, value: Tensor | Rows) -> bytes:
    return f"{name} {value.dtype} {tuple(value.shape)}\n".encode()


def _content(tensor: Tensor) -> memoryview:
    """Its bytes; a copy on the CPU only of what lies elsewhere."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str], new: bool = False) -> None:
    """A safetensors file, written atomically, with a checksum of its tensors in the metadata. ValueError for types it lacks.

    new: see writing.

    Each tensor is brought to the CPU once: written where it belongs as it is hashed, and the checksum after all of them.
    """
    digest, entries = hashlib.sha256(), _entries(tensors)
    begin = len(_header(entries, {**metadata, CHECKSUM_KEY: digest.hexdigest()}))
    with writing(path, new=new) as unfinished, unfinished.open("wb") as file:
        for name in sorted(tensors):
            content = _content(tensors[name])
            digest.update(_kind_of(name, tensors[name]))
            digest.update(content)
            file.seek(begin + entries[name]["data_offsets"][0])
            file.write(content)
        file.seek(0)
        file.write(_header(entries, {**metadata, CHECKSUM_KEY: digest.hexdigest()}))


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Each tensor's type, shape and place, as the header has them."""
    entries: dict[str, Any] = {}
    end = 0
    for name in _in_file_order(tensors):
        value = tensors[name]
        begin, end = end, end + value.numel() * value.element_size()
        if value.dtype not in _TYPES:
            raise ValueError(f"{name} holds {value.dtype} values, of which safetensors files have none.")
        entries[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    return entries


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Of the safetensors format, which is written here because its library holds a whole second copy of all tensors.

    8 bytes of length, then JSON with the entries, filled up with spaces to a multiple of 8.
    """
    text = json.dumps({"__metadata__": dict(metadata), **entries}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Widest types first, so that every tensor lies at a multiple of its width."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.bool: "BOOL",
}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone. ValueError, naming the file, when it is not a whole safetensors file."""
    if not path.is_file():  # a pipe might never end
        raise ValueError(f"{path.name} is no file.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged or not a safetensors file ({error}).") from error


def require_whole(path: Path, *, heed: Callable[[], None] = lambda: None) -> None:
    """ValueError, naming the file, when it is truncated or its checksum does not match. heed: see read_tensors."""
    read_tensors(path, heed=heed, views=True)


def is_whole(path: Path) -> bool:
    try:
        require_whole(path)
    except ValueError:  # none, or damaged
        return False
    return True


def read_tensors(
    path: Path, *, heed: Callable[[], None] = lambda: None, views: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. ValueError, naming the file, when it is truncated or its checksum does not match.

    The tensors are copies: one that is a view of the file would keep it on the disk after it was deleted, and Windows would not
    delete it at all.

    heed: called before each tensor is checked, which it stops by raising. views: of the file, in no memory of their own, for
    whoever copies them at once and keeps none.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        read = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a dict)
        tensors = {name: value if views else value.clone() for name, value in read}
    if CHECKSUM_KEY in metadata and metadata[CHECKSUM_KEY] != tensors_sha256(tensors, heard=lambda *_: heed()):
        raise ValueError(f"{path.name} is damaged: its content does not match its checksum.")
    return tensors, metadata
