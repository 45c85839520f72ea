"""The sampling recipe of a distilled model: how its file wants to be sampled, kept in the file's own metadata."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

METADATA_KEY = "fewstep.recipe"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a sampler must agree on with the training of a few-step model.

    sigmas: (steps + 1,) noise levels, descending, the last 0. gamma: see NoiseFamily.jump. guidance_scale: what was
    baked in during training, 1 for none; sample at cfg 1 in either case. prediction_type, noise_family: the host
    model's parameterisation, for a check against the model that the weights are loaded into.
    """

    method: str
    steps: int
    sigmas: tuple[float, ...]
    schedule: str
    gamma: float
    prediction_type: str
    noise_family: str
    guidance_scale: float

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

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata: one key, JSON text."""
        return {METADATA_KEY: json.dumps({"format": FORMAT, **dataclasses.asdict(self)})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, *, source: str) -> Recipe:
        """The recipe in a file's metadata. ValueError, naming source, when there is none or it is damaged."""
        if not metadata or METADATA_KEY not in metadata:
            raise ValueError(
                f"{source} carries no FewStep recipe in its metadata. Use a student that FewStep exported, or set "
                "sampler and schedule by hand."
            )
        try:
            fields: dict[str, Any] = json.loads(metadata[METADATA_KEY])
            if fields.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}; update the pack.")
            return cls(**{**fields, "sigmas": tuple(fields["sigmas"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The FewStep recipe in {source} cannot be read: {error}") from error
