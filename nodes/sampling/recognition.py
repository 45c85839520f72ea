"""Which recipe a model's files propose: by what FewStep wrote into them, names, titles, hashes; and by the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...samplers.presets import LARGEST, PRESETS, PUBLISHED, Preset, family_named_by, named_by
from ...samplers.recipe import METADATA_KEY
from ...trainers.storage.files import read_metadata
from .. import host
from ..host import folders
from .lists import lacks_timesteps
from .model_sampling import PREDICTIONS, takes_lcm_boundary

_TITLES = ("modelspec.title", "ss_output_name")
"""Metadata in which a trainer keeps a file's own name, whatever it is called now."""


@dataclass(frozen=True)
class Proposal:
    """recipe: one of PRESETS, or None where the file carries its own. file: what it was taken from. why: in words."""

    recipe: str | None
    file: str
    why: str


def proposal(files: Iterable[str], *, fits: Callable[[Preset], str | None]) -> Proposal:
    """Of the nearest file that says something. fits: why a recipe is not for the model, or None.

    ValueError, with what the files are and why none does, where no recipe is proposed.
    """
    files, refused = list(files), []
    for file in files:
        path = _safetensors(file)
        metadata = read_metadata(path) if path else {}
        if METADATA_KEY in metadata:
            return Proposal(None, _listed(file), f"FewStep's own recipe in {file}.")
        for said, name in _names(file, path, metadata):
            named = named_by(name)
            fitting = [recipe for recipe in named if fits(PRESETS[recipe]) is None]
            if fitting:
                return Proposal(fitting[0], file, _why(fitting, file=file, said=said))
            refused += [f"{recipe!r}, by {said} of {file}, {fits(PRESETS[recipe])}" for recipe in named[:1]]
    raise ValueError(_nothing(files, refused))


def _listed(file: str) -> str:
    """A file as the menu has it, of one that a loader names without its folder."""
    listed = folders.recipe_files()
    plain = file.replace("\\", "/")
    return next((name for name in listed if plain in (name.replace("\\", "/"), name.partition("/")[2])), file)


def _why(recipes: list[str], *, file: str, said: str) -> str:
    others = f" Others for it: {'; '.join(recipes[1:])}." if len(recipes) > 1 else ""
    return f"{recipes[0]}, by {said} of {file}.{others}"


def _nothing(files: list[str], refused: list[str]) -> str:
    if refused:
        return f"{'; '.join(refused)}. Connect the model of the file, or choose the recipe in the menu."
    if files:
        return (
            f"no recipe is known for {', '.join(files)}: neither name, metadata nor hash tell a few-step model. Choose the "
            "recipe in the menu."
        )
    return "no file of a model is known behind model. Choose the recipe in the menu, or its file in file."


def _names(file: str, path: Path | None, metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(by what, a name) of a file, the cheapest first: to be hashed, it is read as a whole."""
    yield "the name", file
    yield from ((f"{key} in the metadata", metadata.get(key, "")) for key in _TITLES)
    if path is not None and path.stat().st_size <= LARGEST:
        yield "the hash", PUBLISHED.get(folders.sha256_of(path), "")


def _safetensors(file: str) -> Path | None:
    """Where it lies; None of files that are not here, or of another format."""
    path = folders.recipe_file(file) or folders.model_file(file)
    return path if path and path.suffix == ".safetensors" else None


def misfit(model: Any) -> Callable[[Preset], str | None]:
    """Why a recipe is not for a MODEL, to be read after its name; None where it is."""
    sampling = host.models.model_sampling_of(model)
    own = family_named_by(host.models.classes_of(model)) or host.models.hosts_class(model)
    family, kind = host.models.noise_family(sampling), host.models.prediction_type(sampling)

    def said(preset: Preset) -> str | None:
        if preset.family is not family:
            return f"is no recipe for this kind of model ({kind})"
        if preset.models and own is not None and own not in preset.models:
            return f"is for models of ComfyUI's class {' or '.join(preset.models)}, but the connected model is a {own}"
        return _misread(sampling, preset, kind=kind)

    return said


def _misread(sampling: Any, preset: Preset, *, kind: str) -> str | None:
    """Why a recipe's levels or its reading mean nothing to a model of its family; kind: what the network predicts."""
    if lacks_timesteps(sampling, preset.schedule):
        return f"names training timesteps, and the connected model has none: its noise levels are continuous ({kind})"
    if preset.prediction and kind not in PREDICTIONS:
        return f"reads the network's output as {preset.prediction}, but the connected model's is {kind}"
    if preset.lcm_boundary and not takes_lcm_boundary(sampling):
        return "counts training timesteps from 0 to 999, and the connected model has none: its time goes from 0 to 1"
    return None


def strength_told(recipe: Preset, strength: float | None) -> list[str]:
    """Where a LoRA was loaded at another strength than its recipe asks for."""
    if strength is None or strength == recipe.lora_strength:
        return []
    return [f"It is loaded at strength {strength:g}; the recipe asks for {recipe.lora_strength:g}."]
