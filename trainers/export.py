"""The exported student: weights under the host's own names, and how to sample them in the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..samplers.recipe import Recipe
from .files import read_tensors, write_tensors

PREFIX = "model.diffusion_model."
"""What a checkpoint calls the diffusion model's weights; ComfyUI's loaders strip it."""
TEACHER_KEY = "fewstep.teacher_sha256"


def write_student(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    recipe: Recipe,
    teacher_sha256: str,
    title: str,
    provenance: Mapping[str, str],
) -> None:
    """weights: the diffusion model's own state dict. provenance: plain facts for the metadata, each key prefixed."""
    metadata = {
        **recipe.to_metadata(),
        TEACHER_KEY: teacher_sha256,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.implementation": "ComfyUI-FewStep",
        "modelspec.prediction_type": recipe.prediction_type,
        "modelspec.usage_hint": f"{recipe.steps} steps, cfg 1, {recipe.schedule} schedule, gamma {recipe.gamma}",
        **{f"fewstep.{key}": value for key, value in provenance.items()},
    }
    write_tensors(path, {PREFIX + name: value for name, value in weights.items()}, metadata=metadata)


def read_student(path: Path) -> tuple[dict[str, Tensor], Recipe, dict[str, str]]:
    """(the diffusion model's state dict, recipe, metadata). ValueError, naming the file, when it is damaged or foreign."""
    tensors, metadata = read_tensors(path)
    recipe = Recipe.from_metadata(metadata, source=path.name)
    foreign = [name for name in tensors if not name.startswith(PREFIX)]
    if foreign:
        raise ValueError(f"{path.name} is no FewStep student: it holds {foreign[0]!r}, not only {PREFIX}* weights.")
    return {name.removeprefix(PREFIX): value for name, value in tensors.items()}, recipe, metadata
