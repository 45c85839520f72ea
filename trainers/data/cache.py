"""A run's training data on disk, so that neither a second start nor another process needs what they were made with.

data/source.json        what the data were made from, JSON
data/00000.safetensors  shards, written one after another as they are made
data/index.json         the shards and their checksums; written last, its presence says that the data are whole

A shard holds one or more parts, each a TensorData: <part>.x0, .noise, .repeats, .prompts, .condition.<name> and
.unconditional.<name>. Parts of one shape are one bucket, in the order of their first samples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..storage.files import CHECKSUM_KEY, read_metadata, read_tensors, write_atomically, write_tensors
from ..storage.places import place, regular_files
from ..storage.prefixes import below
from ..storage.reading import Check, is_text_by_name, read_json, require
from .batches import Batch, Buckets, Data, TensorData
from .conditions import chosen
from .joining import in_buckets

SHARD_SAMPLES = 256
"""In one file of data that are in memory already."""
_FILE = "{:05d}.safetensors"
_FIRST = _FILE.format(0)
_NAMED_DIFFERENCES = 5

_OF_KEY = "fewstep.of"
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
) -> Data:
    """The data in folder, of which only those shards are made that are not there yet.

    source: JSON values that decide the data; None for what is not known this time, which is then not compared. plan: the
    shards, asked for only when one is missing. replace: data of another source give way; otherwise ValueError, naming what
    differs. ValueError too when a shard is damaged, or the folder goes meanwhile. device: where batches go. newer: names of
    source that folders of before lack; a run that has begun without them keeps its data. made_with: names of source that count
    only while something is to be made, with the dtype that each computes in. say: is told where data give way, or are not of
    what they would be made with.
    """
    fill(folder, source=source, plan=plan, replace=replace, newer=newer, made_with=made_with, say=say)
    data = read_data(folder, device=device)
    if data is None:
        raise _gone(folder)
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
    if another is None and _complete(folder):
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
            made = _named(shard.make())  # which may take an hour
            if not (folder / "source.json").exists():
                raise _gone(folder)
            write_tensors(file, made, metadata={_OF_KEY: json.dumps(shard.of)})
    _write_json(folder / "index.json", {"format": 1, "shards": {file.name: _checksum(file) for file in files}})


def _gone(folder: Path) -> ValueError:
    return ValueError(
        f"{folder} was moved or deleted while the training data in it were made. Put it back and queue again, which makes what "
        "is missing."
    )


def read_data(folder: Path, *, device: torch.device | None = None) -> Data | None:
    """The data as they were made, in the CPU's memory, or None when they are not whole yet.

    ValueError, naming the file, when one is missing or damaged.
    """
    parts = [part for shard in _shards(folder) for part in shard]
    return in_buckets(parts, device) if parts else None


def read_first(folder: Path, *, device: torch.device | None = None) -> Batch | None:
    """The first sample of the data, for which only the first file is read; None and ValueError as read_data."""
    first = next(_shards(folder), None)
    return in_buckets(first, device).first(1) if first else None


def first_made(folder: Path, *, device: torch.device | None = None) -> Batch | None:
    """As read_first, of data that need not be whole yet."""
    file = folder / _FIRST
    return in_buckets(_read_shard(file, _checksum(file)), device).first(1) if file.exists() else None


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


def _shards(folder: Path) -> Iterator[list[TensorData]]:
    """The parts of each file in turn; none while they are not whole yet."""
    if (folder / "index.json").exists():
        for name, checksum in _read_index(folder).items():
            yield _read_shard(place(folder, name), checksum)


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
    whole = _complete(folder)
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


def _complete(folder: Path) -> bool:
    index = folder / "index.json"
    return index.exists() and all(place(folder, name).exists() for name in _read_index(folder))


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
    noise, repeats, prompts = (
        None if each is None else each[samples] for each in (data.noise, data.repeats, data.prompts)
    )
    kept: slice | Tensor = samples
    if prompts is not None:
        kept, prompts = prompts.unique(return_inverse=True)
    return dataclasses.replace(
        data,
        x0=data.x0[samples],
        condition=chosen(data.condition, kept),
        unconditional=data.unconditional and chosen(data.unconditional, samples),
        noise=noise,
        repeats=repeats,
        prompts=prompts,
    )


def _named(parts: Iterable[TensorData]) -> dict[str, Tensor]:
    named = {}
    for number, part in enumerate(parts):
        named[f"{number}.x0"] = part.x0
        beside = {"noise": part.noise, "repeats": part.repeats, "prompts": part.prompts}
        named |= {f"{number}.{name}": value for name, value in beside.items() if value is not None}
        for name, value in part.condition.items():
            named[f"{number}.condition.{name}"] = value
        named |= {f"{number}.unconditional.{name}": value for name, value in (part.unconditional or {}).items()}
    return named


def _read_shard(file: Path, checksum: str) -> list[TensorData]:
    """Its parts as views of the file, which joined copies: else all data would lie in memory twice while that is done."""
    try:
        tensors, metadata = read_tensors(file, views=True)
    except ValueError as error:
        raise ValueError(f"the training data cannot be read: {error} Delete {file} to have it made again.") from error
    if metadata.get(CHECKSUM_KEY) != checksum:
        raise ValueError(
            f"the training data cannot be read: {file.name} is not the file that index.json names. Delete {file} to have "
            "it made again."
        )
    by_part: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        by_part.setdefault(part, {})[rest] = value
    return [_part(by_part[number]) for number in sorted(by_part, key=int)]


def _part(named: Mapping[str, Tensor]) -> TensorData:
    unconditional = below(named, "unconditional.") or None
    condition = below(named, "condition.")
    beside: dict[str, Any] = {name: named.get(name) for name in ("noise", "repeats", "prompts")}
    return TensorData(x0=named["x0"], condition=condition, unconditional=unconditional, **beside)


def _checksum(file: Path) -> str:
    return read_metadata(file)[CHECKSUM_KEY]


# --- JSON ------------------------------------------------------------------------------------------------------------


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def _read_index(folder: Path) -> dict[str, str]:
    """Checksums of the shards, by the names of their files."""
    shards: dict[str, str] = _read_json(folder / "index.json", shards=is_text_by_name)["shards"]
    return shards


def _read_json(file: Path, **schema: Check) -> dict[str, Any]:
    try:
        return require(read_json(file), schema, what=file.name)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete {file.parent} to have the data made again.") from error
