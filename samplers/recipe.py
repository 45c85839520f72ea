"""The sampling recipe of a distilled model: how its file wants to be sampled, kept in the file's own metadata."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from .noise import NoiseFamily

METADATA_KEY = "fewstep.recipe"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a sampler must agree on with the training of a few-step model.

    sigmas: (steps + 1,) noise levels, descending, the last 0. gamma: see NoiseFamily.jump. guidance_scale: what was
    baked in during training, 1 for none; sample at cfg 1 in either case. prediction_type, noise_family: the host
    model's parameterisation, for a check against the model that the weights are loaded into. level_from, level_to: the levels
    that an expert's student is for, of the sigmas that it shares with its partner; shares of the model's time.
    """

    method: str
    steps: int
    sigmas: tuple[float, ...]
    schedule: str
    gamma: float
    prediction_type: str
    noise_family: str
    guidance_scale: float
    level_from: float = 0.0
    level_to: float = 1.0

    @property
    def boundary(self) -> float | None:
        """Where the expert for high noise hands over to the one for low; None for a student of all levels."""
        return self.level_from or (self.level_to if self.level_to < 1.0 else None)

    @property
    def part(self) -> str:
        """Which levels the student is for, in words; empty for all."""
        if self.boundary is None:
            return ""
        return f"noise levels {self.level_from:g} to {self.level_to:g}"

    def __post_init__(self) -> None:
        if self.steps < 1 or len(self.sigmas) != self.steps + 1:
            raise ValueError(
                f"the recipe names {self.steps} steps but {len(self.sigmas)} noise levels; one more than steps is right."
            )
        descending = all(a > b for a, b in pairwise(self.sigmas))
        if not descending or self.sigmas[-1] != 0.0 or not all(map(math.isfinite, self.sigmas)):
            raise ValueError(f"the recipe's sigmas must fall to 0, but they are {list(self.sigmas)}.")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"the recipe's gamma is {self.gamma}; allowed is 0 to 1.")
        if not 0.0 <= self.level_from < self.level_to <= 1.0:
            raise ValueError(
                f"the recipe is for levels {self.level_from} to {self.level_to}; allowed is 0 to 1, rising."
            )

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata: one key, JSON text."""
        fields = dataclasses.asdict(self)
        if self.boundary is None:  # as students of all levels have always been written, and read by older packs
            del fields["level_from"], fields["level_to"]
        return {METADATA_KEY: json.dumps({"format": FORMAT, **fields})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, *, source: str) -> Recipe:
        """The recipe in a file's metadata. ValueError, naming source, when there is none or it is damaged."""
        if not metadata or METADATA_KEY not in metadata:
            raise ValueError(
                f"{source} carries no FewStep recipe in its metadata. Use a student that FewStep exported, or set "
                "sampler and schedule by hand."
            )
        try:
            return cls(**_fields(metadata[METADATA_KEY]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The FewStep recipe in {source} cannot be read: {error}") from error


_TEXTS = ("method", "schedule", "prediction_type", "noise_family")
_OPTIONAL = ("level_from", "level_to")
_READ_AS = ("eps", "v_prediction", "edm", "x0", "x0_and_eps", "rflow", "flow")


def _fields(text: str) -> dict[str, Any]:
    """Of a recipe's JSON text. ValueError, naming what is wrong, for any that is damaged."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError(f"it is no object but {type(given).__name__}.")
    if given.pop("format", None) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; update the pack.")
    declared = {field.name for field in dataclasses.fields(Recipe)}
    if lacking := sorted(declared - given.keys() - set(_OPTIONAL)):
        raise ValueError(f"it has no {', '.join(lacking)}.")
    if unknown := sorted(given.keys() - declared):
        raise ValueError(f"it has {', '.join(unknown)}, which no recipe has.")
    for name, value in given.items():
        if not _is_of_kind(name, value):
            raise ValueError(f"its {name} is {str(value)[:80]!r} ({type(value).__name__}).")
    return {**given, "sigmas": tuple(map(float, given["sigmas"]))}


def _is_of_kind(name: str, value: Any) -> bool:
    if name == "sigmas":
        return isinstance(value, list) and all(map(_is_number, value))
    if name == "prediction_type":
        return value in _READ_AS
    if name == "noise_family":
        return value in [family.value for family in NoiseFamily]
    if name in _TEXTS:
        return isinstance(value, str)
    return _is_number(value) and (name != "steps" or isinstance(value, int))


def _is_number(value: Any) -> bool:
    """A finite one; JSON of Python's has NaN and whole numbers of any length."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
