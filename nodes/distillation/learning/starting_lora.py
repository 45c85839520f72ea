"""A LoRA that begins as another: a finished student's, or a speed LoRA of others, which need only be made to suit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....samplers.recipe import METADATA_KEY, Recipe
from ....trainers.storage.export import TEACHER_KEY
from ....trainers.storage.files import read_metadata
from ....trainers.students.adapters import LoRAOptions, adaptable_layers, require_adapters
from ....trainers.students.student import LoRAStudent
from ... import host
from ...host import folders

NOTHING = "nothing"
FEW = 0.01
"""Share of a change that may be lost without a word, of squares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingLoRA(LoRAOptions):
    """start_lora: the file among the host's LoRAs. start_strength: that it counts. start_sha256: of the file."""

    start_lora: str
    start_strength: float
    start_sha256: str

    @classmethod
    def of(cls, lora: LoRAOptions, *, file: str, strength: float) -> StartingLoRA:
        """ValueError for a file that is not there, or a strength at which it is nothing."""
        if strength == 0.0:
            raise ValueError(f"start_strength is 0, at which {file} is nothing; set start_lora to {NOTHING!r} instead.")
        own = {field.name: getattr(lora, field.name) for field in dataclasses.fields(lora)}
        return cls(
            **own, start_lora=file, start_strength=strength, start_sha256=folders.sha256_of(folders.lora_file(file))
        )

    def file(self) -> Path:
        """ValueError where it is not there, or is another by now."""
        found = folders.lora_file(self.start_lora)
        if folders.sha256_of(found) != self.start_sha256:
            raise ValueError(f"start_lora: {self.start_lora} is another file now than when the run was described.")
        return found

    @functools.cached_property
    def gamma(self) -> float | None:
        """With which it draws, if it is a student of ours; None for others' files. ValueError where it cannot be read."""
        metadata = _metadata(self.file())
        return Recipe.from_metadata(metadata, source=self.start_lora).gamma if METADATA_KEY in metadata else None


def _metadata(file: Path) -> dict[str, str]:
    return read_metadata(file) if file.suffix == ".safetensors" else {}


def require_suits(options: StartingLoRA, *, model: Any, teacher_sha256: str, prediction: str) -> None:
    """ValueError, naming the file, for one that the run could not begin as, by all that is known before its data are made.

    Of a student of ours also for another teacher's, or one that predicts otherwise: nobody knows its effect here. A LoRA of the
    same weights that makes them predict v says nothing of eps. prediction: what the run's student does.
    """
    _require_known_effect(options, teacher_sha256=teacher_sha256, prediction=prediction)
    layers = adaptable_layers(model.model.diffusion_model, options.layers)
    with _named(options):
        changes = _changes(model, options)
        require_adapters(changes, on=layers)
        host.training.require_sizes(changes)


def _require_known_effect(options: StartingLoRA, *, teacher_sha256: str, prediction: str) -> None:
    metadata = _metadata(options.file())
    said = metadata.get(TEACHER_KEY)
    if said is None:
        return
    if said != teacher_sha256:
        raise ValueError(
            f"start_lora is {options.start_lora}, a student of another teacher (of weights {said[:12]}, and the connected MODEL "
            f"has {teacher_sha256[:12]}). Connect the MODEL that it was distilled from, or choose another file."
        )
    predicts = Recipe.from_metadata(metadata, source=options.start_lora).prediction_type
    if predicts != prediction:
        raise ValueError(
            f"start_lora is {options.start_lora}, a student that predicts {predicts}, and this run's predicts {prediction}; "
            f"allowed are students that predict {prediction}. Choose another file, or a method whose student predicts "
            f"{predicts}."
        )


def begin(student: LoRAStudent, options: StartingLoRA, *, model: Any) -> None:
    """Before its first iteration. ValueError, naming the file, for one that does not fit the MODEL or the student's layers."""
    with _named(options):
        lost = student.begin_as(_changes(model, options).items())
    if lost > FEW:
        host.models.log.warning(
            "start_lora: of what %s changes, %.3g percent is lost at rank %d",
            options.start_lora,
            100.0 * lost,
            options.rank,
        )


def _changes(model: Any, options: StartingLoRA) -> host.training.Changes:
    return host.training.changes_of(model, options.file(), strength=options.start_strength)


@contextmanager
def _named(options: StartingLoRA) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"start_lora is {options.start_lora}: {error}") from error
