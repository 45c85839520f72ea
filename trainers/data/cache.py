"""A run's training data on disk, so that neither a second start nor another process needs what they were made with.

data/source.json        what the data were made from, JSON
data/00000.safetensors  shards, see shards.py, written one after another as they are made
data/index.json         the shards and their checksums; written last, its presence says that the data are whole. Once they
                        were read, also the hash of them all
data/files.json         of a folder's data, the hashes of its files, see looked.py

Parts of one shape are one bucket, in the order of their first samples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..storage.files import CHECKSUM_KEY, read_metadata, write_atomically, write_tensors
from ..storage.places import place, regular_files
from ..storage.reading import Check, is_text_by_name, read_json, require
from .batches import Batch, Buckets, Data, TensorData
from .conditions import chosen
from .joining import in_buckets
from .shards import named, read_shard

SHARD_SAMPLES = 256
"""In one file of data that are in memory already."""
HELD = 2**31
"""Bytes. Of data of more than that each row is read from its file when it is drawn: the prompts of 10,000 pictures alone, as a T5
encodes them, are 80 GB."""
_FILE = "{:05d}.safetensors"
_FIRST = _FILE.format(0)
_NAMED_DIFFERENCES = 5

_OF_KEY = "fewstep.of"
_WHOLE = "data_sha256"
"""Of index.json."""
_MADE_IN = "made_in"
"""Of source.json, and not compared: what each of those that the data are made with computes in."""


class Shard(NamedTuple):
    """make: the parts of one shard; it must give the same, bit for bit, whenever it is called.

    of: names of what it is made of, where the source does not say how that is divided into shards: which files can be read,
    and so who is beside whom, may be another thing at the next start. A shard of other names is made again.
    """

    make: Callable[[], Sequence[TensorData]]
    of: tuple[str, ...] = ()


def cached_data(
    folder: Path,
    *,
    source: Mapping[str, Any],
    plan: Callable[[], Sequence[Shard]],
    replace: bool,
    device: torch.device | None = None,
    newer: Collection[str] = (),
    made_with: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    heed: Callable[[], None] = lambda: None,
) -> Data:
    """The data in folder, of which only those shards are made that are not there yet.

    source: JSON values that decide the data; None for what is not known this time, which is then not compared. plan: the
    shards, asked for only when one is missing. replace: data of another source give way; otherwise ValueError, naming what
    differs. ValueError too when a shard is damaged, or the folder goes meanwhile. device: where batches go. newer: names of
    source that folders of before lack; a run that has begun without them keeps its data. made_with: names of source that count
    only while something is to be made, with the dtype that each computes in. say: is told where data give way, or are not of
    what they would be made with. heed: called again and again while they are read, which it stops by raising.
    """
    fill(folder, source=source, plan=plan, replace=replace, newer=newer, made_with=made_with, say=say)
    data = read_data(folder, device=device, heed=heed)
    if data is None:
        raise _gone(folder)
    shards, known = _read_index(folder)
    if not known:
        _write_index(folder, shards, data_sha256=data.sha256(heed=heed))
    return data


def write_data(folder: Path, data: Data, *, replace: bool = True) -> None:
    """Data that are in memory, for another process; what is there already is not written again."""
    source = {"kind": "tensors", "data_sha256": data.sha256()}
    fill(folder, source=source, plan=lambda: _slices(data), replace=replace)


def fill(
    folder: Path,
    *,
    source: Mapping[str, Any],
    plan: Callable[[], Sequence[Shard]],
    replace: bool,
    newer: Collection[str] = (),
    made_with: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Makes what is missing in folder; see cached_data."""
    made_with = made_with or {}
    another = _another_source(folder, source, replace=replace, newer=newer, made_with=made_with, say=say)
    if another is None and is_whole(folder):
        return
    shards = plan()  # which may refuse, and then what is there stays
    if another is not None:
        if another and any(folder.glob("*.safetensors")):
            say(f"the training data in {folder} are made anew, for they are of another source: {another}.")
        forget(folder)
    if not (folder / "source.json").exists():
        _write_json(folder / "source.json", {**source, **({_MADE_IN: made_with} if made_with else {})})
    files = [folder / _FILE.format(number) for number in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        if not file.exists() or not _is_of(file, shard.of):
            made = named(shard.make())  # which may take an hour
            if not (folder / "source.json").exists():
                raise _gone(folder)
            write_tensors(file, made, metadata={_OF_KEY: json.dumps(shard.of)})
    _write_index(folder, {file.name: _checksum(file) for file in files})


def _gone(folder: Path) -> ValueError:
    return ValueError(
        f"{folder} was moved or deleted while the training data in it were made. Put it back and queue again, which makes what "
        "is missing."
    )


def read_data(
    folder: Path, *, device: torch.device | None = None, heed: Callable[[], None] = lambda: None
) -> TensorData | Buckets | None:
    """The data as they were made, on the CPU, or None when they are not whole yet. Of more than HELD bytes rows stay in files.

    ValueError, naming the file, when one is missing or damaged. heed: see cached_data.
    """
    parts = [part for shard in _shards(folder, heed=heed) for part in shard]
    if not parts:
        return None
    data, known = in_buckets(parts, device), _read_index(folder)[1]
    if known:
        data.known_by(known)
    return data


def read_first(folder: Path, *, device: torch.device | None = None) -> Batch | None:
    """The first sample of the data, for which only the first file is read; None and ValueError as read_data."""
    first = next(_shards(folder), None)
    return in_buckets(first, device).first(1) if first else None


def first_made(folder: Path, *, device: torch.device | None = None) -> Batch | None:
    """As read_first, of data that need not be whole yet."""
    file = folder / _FIRST
    return in_buckets(read_shard(file, _checksum(file), stored=False), device).first(1) if file.exists() else None


def made_so_far(folder: Path, *, of: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What each shard says it is made of. of: JSON values; shards of a source without these entries do not count."""
    file = folder / "source.json"
    there = _read_json(file) if file.exists() else {}
    if any(name not in there or there[name] != value for name, value in json.loads(json.dumps(of)).items()):
        return []
    # beside them lies what tools that keep folders in step put there: ._00000.safetensors, 00000 (conflicted copy).safetensors
    shards = (folder / name for name in regular_files(folder, ending=".safetensors"))
    return [tuple(json.loads(read_metadata(shard).get(_OF_KEY, "[]"))) for shard in shards if shard.stem.isdecimal()]


def forget(folder: Path) -> None:
    """All that was made, and from what."""
    for path in (folder / "index.json", *folder.glob("*.safetensors"), folder / "source.json"):
        path.unlink(missing_ok=True)


def _shards(folder: Path, *, heed: Callable[[], None] = lambda: None) -> Iterator[list[TensorData]]:
    """The parts of each file in turn; none while they are not whole yet."""
    if not (folder / "index.json").exists():
        return
    shards = {place(folder, name): checksum for name, checksum in _read_index(folder)[0].items()}
    stored = sum(file.stat().st_size for file in shards if file.exists()) > HELD
    for file, checksum in shards.items():
        yield read_shard(file, checksum, stored=stored, heed=heed)


# --- whose data they are ---------------------------------------------------------------------------------------------


def _another_source(
    folder: Path,
    source: Mapping[str, Any],
    *,
    replace: bool,
    newer: Collection[str],
    made_with: Mapping[str, str],
    say: Callable[[str], None],
) -> str | None:
    """How the source of what is to give way differs, nothing where it has none; None for what may stay.

    ValueError where another run's data are there.
    """
    file = folder / "source.json"
    there = _read_json(file) if file.exists() else None
    if there is None:  # without it no shard says what it is
        return ""
    said = there.pop(_MADE_IN, {})
    made_in = said if is_text_by_name(said) else {}
    if not replace:
        source = {name: value for name, value in source.items() if name in there or name not in newer}
    differing = _differing(there, json.loads(json.dumps(source)))
    lines = {
        name: f"{name}: there {_short(was)}{_in(made_in.get(name))}, here {_short(now)}{_in(made_with.get(name))}"
        for name, (was, now) in differing.items()
    }
    if not lines:
        return None
    if replace:
        return _listed(lines)
    whole = is_whole(folder)
    if not whole or lines.keys() - made_with.keys():
        as_then = "" if whole or not lines.keys() & made_with.keys() else _AS_THEN
        raise ValueError(
            f"this run has begun on other training data, which are in {folder}. Choose another run name, or restore the "
            f"data. What differs: {_listed(lines)}.{as_then}"
        )
    say(
        f"the run goes on with the training data that it has, in {folder}, which were not made with what is connected: "
        f"{_listed(lines)}. Nothing is encoded anew; choose another run name for data of what is connected."
    )
    return None


_AS_THEN = (
    " Not all of the data are there, so the VAE and CLIP that made the others must make the rest. They are known by their "
    "weights as these are loaded, and the same ones in another dtype, of another card or of --fp32-vae and its like, encode "
    "otherwise: load them as they were then."
)


def _in(dtype: str | None) -> str:
    return f" in {dtype}" if dtype else ""


def _listed(lines: Mapping[str, str]) -> str:
    more = f"; and {len(lines) - _NAMED_DIFFERENCES} more" if len(lines) > _NAMED_DIFFERENCES else ""
    return f"{'; '.join([*lines.values()][:_NAMED_DIFFERENCES])}{more}"


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values by name; without what is None here."""
    found, wanted = _flat(there), _flat(here)
    unknown = [name for name, value in wanted.items() if value is None]
    keys = [key for key in sorted(found.keys() | wanted.keys()) if not any(_within(key, name) for name in unknown)]
    return {key: (found.get(key), wanted.get(key)) for key in keys if found.get(key) != wanted.get(key)}


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:76]} ..."


# --- shards ----------------------------------------------------------------------------------------------------------


def is_whole(folder: Path) -> bool:
    """Whether all data are there, so that nothing is to be made if they are of the source that is wanted."""
    index = folder / "index.json"
    return index.exists() and all(place(folder, name).exists() for name in _read_index(folder)[0])


def _is_of(file: Path, names: Sequence[str]) -> bool:
    """Yes also of a file that is older than what it says of that."""
    return read_metadata(file).get(_OF_KEY) in (None, json.dumps(names))


def _slices(data: Data) -> list[Shard]:
    """Shards of at most SHARD_SAMPLES samples each."""
    if not isinstance(data, (TensorData, Buckets)):
        raise TypeError(f"{type(data).__name__} cannot be kept in files; known are TensorData and Buckets.")
    buckets = [data] if isinstance(data, TensorData) else data.buckets
    return [
        Shard(lambda bucket=bucket, start=start: [_slice(bucket, start)])  # type: ignore[misc]
        for bucket in buckets
        for start in range(0, len(bucket.x0), SHARD_SAMPLES)
    ]


def _slice(data: TensorData, start: int) -> TensorData:
    samples = slice(start, start + SHARD_SAMPLES)
    repeats, prompts = (None if each is None else each[samples] for each in (data.repeats, data.prompts))
    kept: slice | Tensor = samples
    if prompts is not None:
        kept, prompts = prompts.unique(return_inverse=True)
    return dataclasses.replace(
        data,
        x0=data.x0[samples],
        condition=chosen(data.condition, kept),
        unconditional=data.unconditional and chosen(data.unconditional, samples),
        noise=None if data.noise is None else data.noise[samples],
        repeats=repeats,
        prompts=prompts,
    )


def _checksum(file: Path) -> str:
    return read_metadata(file)[CHECKSUM_KEY]


# --- JSON ------------------------------------------------------------------------------------------------------------


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def _write_index(folder: Path, shards: Mapping[str, str], *, data_sha256: str = "") -> None:
    """data_sha256: of all data, where it is known: to hash them takes as long as to compare them with their checksums."""
    _write_json(folder / "index.json", {"format": 1, "shards": shards} | ({_WHOLE: data_sha256} if data_sha256 else {}))


def _read_index(folder: Path) -> tuple[dict[str, str], str]:
    """Checksums of the shards, by the names of their files, and the hash of all data, nothing where it is not known."""
    index = _read_json(folder / "index.json", shards=is_text_by_name)
    return index["shards"], str(index.get(_WHOLE, ""))


def _read_json(file: Path, **schema: Check) -> dict[str, Any]:
    try:
        return require(read_json(file), schema, what=file.name)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete {file.parent} to have the data made again.") from error
