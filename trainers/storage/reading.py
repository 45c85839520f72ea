"""The JSON files of a run folder, each read through one schema: whatever lies there, the answer is its values or why not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .places import is_regular

LONGEST_LINE = 65536
"""Of metrics.jsonl, in bytes, with much to spare, and of what is shown of a text."""
_FIRST_READ = 8192
"""Of a file's end, in bytes: some twenty lines, of which whoever looks each second wants one."""
_MOST_BYTES = 256 * 2**20
"""Of any other JSON file of ours. An editor's graph is some megabytes at most."""
_DEEPEST = 100
"""Objects and lists within each other. An editor's graph has some twenty; Python itself could not write out a thousand."""

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_number(value: Any) -> bool:
    """None stands for one that was NaN or infinite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308)


def is_finite(value: Any) -> bool:
    return value is not None and is_number(value)


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def is_levels(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_finite, value))


def is_numbers_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_text_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_texts, value.values()))


def is_of(schema: Mapping[str, Check], value: Any) -> bool:
    return isinstance(value, dict) and all(name in value and check(value[name]) for name, check in schema.items())


def is_answers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(several, list) and all(is_of(ANSWER, one) for one in several) for several in value.values()
    )


def is_nodes(value: Any) -> bool:
    return isinstance(value, dict) and all(is_of(NODE, node) for node in value.values())


def is_links(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_link, value.values()))


def is_link(value: Any) -> bool:
    """[node id, number of its output]"""
    return isinstance(value, list) and len(value) == 2 and is_text(value[0]) and is_count(value[1])


METRICS: Mapping[str, Check] = {
    "iteration": is_count,
    "iterations": is_count,
    "stage": is_count,
    "stage_name": is_text,
    "loss": is_number,
    "x0_error": is_number,
    "gradient_norm": is_number,
    "learning_rate": is_number,
    "band_errors": is_numbers,
}
"""Of each line of metrics.jsonl, at least."""
DESCRIPTION: Mapping[str, Check] = {"run": is_object}
POSITION: Mapping[str, Check] = {"stage": is_count, "stage_iteration": is_count}
"""Of a checkpoint, at least."""
RUN: Mapping[str, Check] = {"method": is_text, "teacher_sha256": is_text}
"""Of "run" in run.json, at least."""
NODE: Mapping[str, Check] = {"class_type": is_text, "inputs": is_object}
ORIGIN: Mapping[str, Check] = {"nodes": is_nodes, "outputs": is_links}
"""Of "teacher" in run.json, where it has one: how it is made."""
ANSWER: Mapping[str, Check] = {"sigma": is_finite, "numbers": is_numbers}
TEACHER: Mapping[str, Check] = {
    "weights": is_text,
    "patches": is_text,
    "beside": is_text,
    "levels": is_levels,
    "changes": is_texts_by_name,
    "answers": is_answers,
}
"""Of "teacher_is" in run.json, where it has one."""
COMPARISON: Mapping[str, Check] = {
    "stage": is_text,
    "steps": is_count,
    "mean_squared_distance": is_number,
    "teacher_mean_square": is_number,
}
"""Of each entry of stages.json, at least."""
SCORE: Mapping[str, Check] = {
    "model": is_text,
    "steps": is_count,
    "frechet": is_number,
    "accuracy": is_number,
}
"""Of each score in report.json, at least."""


def require(value: Any, schema: Mapping[str, Check], *, what: str) -> dict[str, Any]:
    """The value. ValueError, saying what is wrong with it, unless it is an object that has all of the schema."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_short(value)}, not an object")
    wrong = [name for name, check in schema.items() if name not in value or not check(value[name])]
    if wrong:
        said = [f"{name} is {_short(value[name])}" if name in value else f"{name} is missing" for name in wrong]
        raise ValueError(f"{what} is not of this form: {', '.join(said[:3])}")
    return value


def require_description(value: Any) -> dict[str, Any]:
    """The same of run.json."""
    described = require(value, DESCRIPTION, what="run.json")
    for name, schema in {"teacher": ORIGIN, "teacher_is": TEACHER}.items():
        if described.get(name) is not None:  # runs that are older have none
            require(described[name], schema, what=f"{name} in run.json")
    return described


def identity_in(description: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the run that run.json describes. ValueError where its method or its teacher is missing."""
    return require(description["run"], RUN, what="run in run.json")


def require_all(value: Any, schema: Mapping[str, Check], *, what: str) -> list[dict[str, Any]]:
    """The same of a list of objects."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {_short(value)}, not a list")
    return [require(entry, schema, what=f"entry {number} of {what}") for number, entry in enumerate(value, 1)]


def read_json(file: Path) -> Any:
    """The values of a JSON file. ValueError, naming the file, for a damaged one; FileNotFoundError where there is none."""
    return parsed(_content(file), what=file.name)


def read_text(file: Path) -> str:
    """A text for people, its beginning if it is long. What is no UTF-8 is shown as such; ValueError as read_json has it."""
    _require_file(file)
    with file.open("rb") as content:
        return content.read(LONGEST_LINE).decode(errors="replace")


def _content(file: Path) -> bytes:
    _require_file(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file.name} is larger than {_MOST_BYTES} bytes")
    return file.read_bytes()


def _require_file(file: Path) -> None:
    if not is_regular(file):
        file.lstat()  # FileNotFoundError where there is nothing at all
        raise ValueError(f"{file.name} is no file")


def parsed(content: bytes, *, what: str) -> Any:
    """JSON values of a text, None for numbers that are none: no browser reads NaN. ValueError, naming what, for no JSON."""
    try:
        value = _DECODER.decode(content.decode("utf-8-sig"))  # with the mark that Windows' Notepad puts before a text
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is no JSON text (its byte {error.start + 1} is no UTF-8)") from error
    except ValueError as error:
        raise ValueError(f"{what} is no JSON text ({error})") from error
    if content.count(b"[") + content.count(b"{") > _DEEPEST and _is_deep(value):
        raise ValueError(f"{what} is nested too deeply")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for several in inner for one in several]
    return bool(level)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)
"""One for all: to make it takes as long as to read a line."""


class Lines(NamedTuple):
    """Of a file of JSON lines: the whole ones, and what is wrong with each of the others."""

    lines: list[dict[str, Any]]
    wrong: list[str]


class Line(NamedTuple):
    """One of these: what it holds, or None and what is wrong with it. end: of it, in bytes. number: of it, from 1."""

    value: dict[str, Any] | None
    wrong: str
    end: int
    number: int


def each_line(file: Path, schema: Mapping[str, Check], *, begin: int = 0, number: int = 0) -> Iterator[Line]:
    """What stands there from a byte on at which a line begins, before which there are so many lines.

    A last line without an end was cut by a crash, or is being written: it counts as none, and is not read. ValueError where
    something else than a file is.
    """
    _require_file(file)
    with file.open("rb") as content:
        content.seek(begin)
        while line := content.readline(LONGEST_LINE):
            whole = line.endswith(b"\n")
            if not whole and not _skip(content) and len(line) < LONGEST_LINE:
                break
            number += 1
            value, wrong = _read(line if whole else None, schema, what=f"line {number} of {file.name}")
            yield Line(value, wrong, content.tell(), number)


def _read(line: bytes | None, schema: Mapping[str, Check], *, what: str) -> tuple[dict[str, Any] | None, str]:
    try:
        return read_line(line, schema, what=what), ""
    except ValueError as error:
        return None, str(error)


def read_lines(file: Path, schema: Mapping[str, Check], *, begin: int = 0) -> Lines:
    """All of `each_line`."""
    found = list(each_line(file, schema, begin=begin))
    return Lines([one.value for one in found if one.value is not None], [one.wrong for one in found if one.wrong])


def read_last_lines(
    file: Path, schema: Mapping[str, Check], *, enough: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """The whole lines at the file's end, from one on that is enough or earlier; all, where none is."""
    _require_file(file)
    size, wanted = file.stat().st_size, _FIRST_READ
    while True:
        begin = _next_line(file, at=max(0, size - wanted))
        lines = read_lines(file, schema, begin=begin).lines
        if not begin or (lines and enough(lines[0])):
            return lines
        wanted *= 2


def _next_line(file: Path, *, at: int) -> int:
    """Where the first line begins that does not begin before this byte."""
    if not at:
        return 0
    with file.open("rb") as content:
        content.seek(at - 1)
        _skip(content)
        return content.tell()


def read_line(line: bytes | None, schema: Mapping[str, Check], *, what: str) -> dict[str, Any]:
    """None is a line that was too long to be read. ValueError, saying what is wrong, for what is none of this form."""
    if line is None:
        raise ValueError(f"{what} is longer than {LONGEST_LINE} bytes")
    if not line.strip():
        raise ValueError(f"{what} is empty")
    return require(parsed(line, what=what), schema, what=what)


def _skip(content: Any) -> bool:
    """Past the end of this line; whether it has one."""
    while part := content.readline(LONGEST_LINE):
        if part.endswith(b"\n"):
            return True
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def without_nan(value: Any) -> Any:
    """JSON values, None in place of what is no number: browsers refuse a whole answer with one NaN in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value
