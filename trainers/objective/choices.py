"""Options as JSON values, in which nodes and run.json have them, and checks that methods share."""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from ...samplers.noise import GuidanceRule

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What dataclasses of a method's options inherit: reading and writing them as JSON values."""

    @classmethod
    def read(cls: type[Options], values: Mapping[str, Any]) -> Options:
        """From a node's or run.json's JSON values; see read_options."""
        return read_options(cls, values)

    @classmethod
    def as_begun(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """run.json's JSON values, which may be older than some options, with what a run did then where it is not the default."""
        return values

    def written(self) -> dict[str, Any]:
        """As JSON values; the inverse of read."""
        return {name: _json(value) for name, value in dataclasses.asdict(self).items()}


def read_options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """A dataclass of options from JSON values, enums by their values; what has a default may be absent.

    ValueError, naming the option, for one that is missing or that there is none of, and for a value of another type or choice.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    wrong = sorted(values.keys() - {field.name for field in fields}) + sorted(needed - values.keys())
    if wrong:
        raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in needed else 'no option that this version knows'}.")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _typed(kinds[name], name, value) for name, value in values.items()})


def defaults(kind: Any) -> dict[str, Any]:
    """What the options of a dataclass that have a default mean where they are absent, as JSON values."""
    fields = dataclasses.fields(kind)
    return {field.name: _json(field.default) for field in fields if field.default is not dataclasses.MISSING}


_TYPES: Mapping[Any, tuple[type, str]] = {
    bool: (numbers.Real, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


def _typed(kind: type, name: str, value: Any) -> Any:
    if issubclass(kind, Enum):
        return _chosen(kind, name, value)
    wanted, words = _TYPES[kind]
    if not isinstance(value, wanted) or (kind is bool and value not in (0, 1)):
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); it must be {words}.")
    return value


def _chosen(kind: type[Enum], name: str, value: Any) -> Enum:
    allowed = [choice.value for choice in kind]
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
    return kind(value)


def _json(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def require_learning_rate(rate: float, *, name: str = "learning_rate") -> None:
    if not 0.0 < rate < 1.0:
        raise ValueError(f"{name} is {rate}; allowed is above 0 and below 1.")


def require_guided_once(scale: float) -> None:
    """ValueError for guidance by two prompts of a teacher that has its guidance inside."""
    if scale != 1.0:
        raise ValueError(
            f"guidance_scale is {scale}, but the connected model takes its scale as an input, which Guidance Embedding has set; "
            "allowed is 1, or a student that takes a range of scales as an input too."
        )


def require_target_decay(decay: float) -> None:
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"target_decay is {decay}; allowed is 0 (the student itself) to below 1: 0.95.")


def require_empty_prompt(scale: float, *, given: bool) -> None:
    """ValueError for guidance without the data's empty prompt."""
    if scale != 1.0 and not given:
        raise ValueError(
            f"guidance_scale is {scale}, which needs the empty prompt: connect the negative conditioning. Only 1, which is no "
            "guidance, needs none."
        )


def require_rule(rule: GuidanceRule, *, takes_scale: bool, empty_prompt: bool) -> None:
    """ValueError where a rule of guidance has not what it is a rule of."""
    if takes_scale:
        raise ValueError(
            f"the connected model takes its guidance scale as an input, but it also carries {rule}, which acts on guidance by "
            "two prompts; remove that node."
        )
    if rule.needs_both and not empty_prompt:
        raise ValueError(
            f"the MODEL carries {rule}, which wants the empty prompt at every guidance_scale: connect the negative conditioning, "
            "or remove that node."
        )


def require_finite(options: Any) -> None:
    """ValueError for the first number of a dataclass that is NaN or infinite: no comparison with a limit finds a NaN."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}; it must be a finite number.")


def require_not_negative(options: object, *names: str) -> None:
    """ValueError for the first of these numbers of options that is below 0."""
    for name in names:
        if getattr(options, name) < 0:
            raise ValueError(f"{name} is {getattr(options, name)}; it must not be negative.")


def require_at_least_one(options: object, *names: str) -> None:
    """ValueError for the first of these numbers of options that is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least 1.")
