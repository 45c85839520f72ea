"""The exported student: full weights or a LoRA under the host's own names, and how to sample it in the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...samplers.recipe import Recipe
from .files import CHECKSUM_KEY, is_whole, read_metadata, read_tensors, write_tensors
from .places import is_regular

TEACHER_KEY = "fewstep.teacher_sha256"
KIND_KEY = "fewstep.kind"
TEACHER_PREDICTION_KEY = "fewstep.teacher_prediction_type"
"""What the teacher's network predicts. The student's may differ from it, but not in files that are too old to say this."""
GUIDED_KEY = "fewstep.guided_by"
"""Whose functions the teacher's guidance went through, which the student has learnt with it."""
SCALE_INPUT_KEY = "fewstep.scale_input"
"""The guidance scales, as text, that the student was taught to take as an input."""
_SPECIFICATION = {"eps": "epsilon", "v_prediction": "v"}
"""Its own words for predictions (Stability-AI/ModelSpec), which has none for the others."""
FULL_WEIGHTS, LORA, CHECKPOINT = "full_weights", "lora", "checkpoint"


def write_student(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    recipe: Recipe,
    teacher_sha256: str,
    title: str,
    provenance: Mapping[str, str],
) -> None:
    """tensors: under the names that loaders know. kind: FULL_WEIGHTS or LORA. provenance: plain facts for the metadata.

    ValueError, naming one of them, for weights that are NaN or infinite: no picture can come of such a file.
    """
    metadata = {
        **recipe.to_metadata(),
        TEACHER_KEY: teacher_sha256,
        KIND_KEY: kind,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.implementation": "ComfyUI-FewStep",
        "modelspec.prediction_type": _SPECIFICATION.get(recipe.prediction_type, recipe.prediction_type),
        "modelspec.usage_hint": ", ".join(filter(None, (_usage(recipe), recipe.part))),
        **provenance,
    }
    write_model(path, tensors, metadata=metadata)


def _usage(recipe: Recipe) -> str:
    return f"{recipe.steps} steps, cfg 1, {recipe.schedule} schedule, gamma {recipe.gamma}"


def write_model(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str], new: bool = False) -> None:
    """A file of weights that somebody will load. ValueError, naming one of them, for weights that are NaN or infinite.

    new: see writing.
    """
    require_finite_weights(tensors, what=path.name)
    write_tensors(path, tensors, metadata=metadata, new=new)


def require_finite_weights(tensors: Mapping[str, Tensor], *, what: str) -> None:
    """ValueError, naming the first of them, for weights that are NaN or infinite."""
    bad = [name for name, value in tensors.items() if not _finite(value)]
    if bad:
        raise ValueError(
            f"{what} is not written or used: {len(bad)} of its {len(tensors)} tensors hold values that are NaN or infinite, "
            f"{min(bad)} for one. The training went wrong; lower the learning rate."
        )


def _finite(tensor: Tensor) -> bool:
    """float8 has no test of its own; its largest value is small in float32."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def is_one_of(file: Path, students: Iterable[Path]) -> bool:
    """Whether file is a copy of one of these students, whole: not only its metadata say so."""
    if not is_regular(file):
        return False
    others = list(students)
    if any(file.samefile(other) for other in others):
        return True
    try:
        return any(same_tensors(file, other) for other in others) and is_whole(file)
    except ValueError:  # damaged, or changed since it was copied: it is somebody's own now
        return False


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two files say that they hold the same tensors. ValueError for a damaged one."""
    checksums = [read_metadata(path).get(CHECKSUM_KEY) for path in (one, other)]
    return checksums[0] is not None and checksums[0] == checksums[1]


def about_merged(student: Mapping[str, str], *, kind: str, title: str) -> dict[str, str]:
    """The metadata of a file that a student was merged into, CHECKPOINT or LORA, from those of the student's file."""
    kept = {name: value for name, value in student.items() if name.startswith(("fewstep.", "modelspec."))}
    kept.pop(CHECKSUM_KEY, None)  # of other tensors
    return {**kept, KIND_KEY: kind, "modelspec.title": title}


def read_student(
    path: Path, *, heed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Tensor], Recipe, dict[str, str]]:
    """(tensors, recipe, metadata). Full weights under the diffusion model's own names, a LoRA as loaders name it.

    metadata[KIND_KEY] says which. heed: see read_tensors. ValueError, naming the file, when it is damaged or foreign.
    """
    tensors, metadata = read_tensors(path, heed=heed)
    recipe = Recipe.from_metadata(metadata, source=path.name)
    if metadata.get(KIND_KEY) not in (LORA, FULL_WEIGHTS):
        raise ValueError(f"{path.name} is no FewStep student: its metadata lack {KIND_KEY}.")
    return tensors, recipe, metadata
