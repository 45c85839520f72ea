"""What a schedule, a recipe or a method means in numbers, before any model is loaded: by the functions that the nodes call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..samplers.noise import NoiseFamily
from ..samplers.presets import Preset
from . import host
from .distillation import running
from .distillation.learning import matching_method, methods
from .sampling import recipes, recognition
from .sampling.lists import levels
from .sampling.schedules import Schedule

METHODS: dict[str, Any] = {
    "FewStepProgressiveDistillation": methods.ProgressiveDistillation,
    "FewStepGuidanceDistillation": methods.GuidanceDistillation,
    "FewStepConsistencyDistillation": methods.ConsistencyDistillation,
    "FewStepConsistencyTraining": methods.ConsistencyTraining,
    "FewStepDistributionMatching": matching_method.DistributionMatching,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("Stable Diffusion 1.5, 2 and XL", {}),
    "flow": ("a flow model of shift 1 (FLUX.1 schnell)", {"flow_shift": 1.0}),
    "flow3": ("a flow model of shift 3 (Stable Diffusion 3, Z-Image)", {"flow_shift": 3.0}),
    "flow8": ("a flow model of shift 8 (Wan)", {"flow_shift": 8.0}),
    "flux": ("FLUX.1 dev at its shift of 1.15, as Qwen-Image", {"flow_shift": math.exp(1.15)}),
    "flux2": ("FLUX.2 at its shift of 2.02", {"flow_shift": math.exp(2.02)}),
    "consistency": ("a consistency model, levels 0.002 to 80", {"consistency": True}),
}
"""Kinds of models that a schedule can be shown for: name, and what makes an example of the host's."""
_OF_SHIFT = "flow at "
"""Begins a kind that is none of MODELS: a flow model of another shift, which a node before it sets."""


_SIZE = ("width", "height")
_MOST_SHIFT = 100.0
"""That the host's nodes set."""


def of_schedule(given: Mapping[str, str]) -> dict[str, Any]:
    """Of Few-Step Schedule. given: its inputs as text, and model, of MODELS or a shift. ValueError as the node has it."""
    inputs = _read(Schedule.INPUT_TYPES(), given)
    kind = given.get("model") or "sd"
    return _shown(kind, levels(_sampling(kind), **inputs))


def of_recipe(given: Mapping[str, str]) -> dict[str, Any]:
    """Of Apply Recipe. given: recipe and file, and files, those behind its model, one a line, to recognise it by.

    A known recipe names its kind of model; a file says its levels itself.
    """
    name = given.get("recipe", "")
    if name == recipes.FROM_FILE:
        recipe = recipes.recipe_of(given.get("file", ""))
        kind = "flow" if recipe.noise_family == NoiseFamily.FLOW.value else "sd"
        part = [f"One of two experts, for {recipe.part}; see Two Experts."] if recipe.part else []
        return {**_shown(kind, torch.tensor(recipe.sigmas)), "told": part}
    taken = []
    if name == recipes.RECOGNISED:
        found = _recognised(given)
        if found.recipe is None:
            return {**of_recipe({"recipe": recipes.FROM_FILE, "file": found.file}), "source": found.why}
        name, taken = found.recipe, [found.why]
    preset = recipes.preset_of(name)
    kind = _kind_of(preset)
    size = {name: value for name, value in _read(recipes.ApplyRecipe.INPUT_TYPES(), given).items() if name in _SIZE}
    shown = _shown(kind, recipes.preset_levels(_sampling(kind), preset, **size))
    if kind == "flow" and preset.models and "Flux" not in preset.models:
        shown["models"] |= {kind: f"models of ComfyUI's class {' or '.join(preset.models)}"}
    return {**shown, "source": preset.source, "told": [*taken, *preset.told()]}


def _recognised(given: Mapping[str, str]) -> recognition.Proposal:
    """By the file that is chosen, or by those behind the model, whose class is known when the node runs."""
    chosen = given.get("file", recipes.NO_FILE)
    files = [chosen] if chosen != recipes.NO_FILE else given.get("files", "").split("\n")
    return recognition.proposal(filter(None, files), fits=lambda _: None)


def of_method(given: Mapping[str, str]) -> dict[str, Any]:
    """Of a node of METHODS: its stages, and the levels that the student is sampled at. given: node, its inputs, and model."""
    if given.get("node") not in METHODS:
        raise ValueError(f"node is {given.get('node')!r}; allowed are {', '.join(METHODS)}.")
    node = METHODS[given["node"]]
    kind = given.get("model") or "sd"
    sampling = _sampling(kind)
    (options,) = node().make(**_read(node.INPUT_TYPES(), given))
    stages = options.on(running.teacher_kind(sampling, empty_prompt=True)).stages()
    told = [{"name": stage.name, "iterations": stage.iterations} for stage in stages]
    return {**_shown(kind, stages[-1].sigmas), "stages": told}


def _kind_of(preset: Preset) -> str:
    """Of the flow models in the presets, those that take their guidance as an input are of FLUX.1 dev's kind."""
    if preset.family is not NoiseFamily.FLOW:
        return "sd"
    return "flux" if preset.guidance_scale is not None and "Flux" in preset.models else "flow"


def _sampling(kind: str) -> Any:
    return host.models.example_sampling(**_models(kind)[kind][1])


def _models(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """MODELS, and the kind where it is of a shift of its own."""
    if kind in MODELS:
        return MODELS
    try:
        shift = float(kind.removeprefix(_OF_SHIFT)) if kind.startswith(_OF_SHIFT) else math.nan
    except ValueError:
        shift = math.nan
    if not 0.0 < shift <= _MOST_SHIFT:
        raise ValueError(
            f"model is {kind!r}; allowed are {', '.join(MODELS)}, and {_OF_SHIFT}5, say: any shift above 0 and up to "
            f"{_MOST_SHIFT:g}."
        )
    return MODELS | {kind: (f"a flow model of shift {shift:g}, as set before it", {"flow_shift": shift})}


def _shown(kind: str, sigmas: Tensor) -> dict[str, Any]:
    """timesteps: what the host feeds the network at each level but the final 0; None where it feeds something else."""
    timesteps = None if kind == "consistency" else _sampling(kind).timestep(sigmas[:-1]).tolist()
    return {
        "model": kind,
        "models": {name: label for name, (label, _) in _models(kind).items()},
        "sigmas": sigmas.tolist(),
        "timesteps": timesteps,
    }


def _read(declared: Mapping[str, Mapping[str, Any]], given: Mapping[str, str]) -> dict[str, Any]:
    """The inputs of a node that are no connections, from text, each in its declared type and range."""
    types = {**declared["required"], **declared["optional"]}
    missing = [name for name in declared["required"] if name not in given and name != "model"]
    if missing:
        raise ValueError(f"{missing[0]} is not given; allowed is what its input on the node takes.")
    return {name: _value(name, given[name], types[name]) for name in types if name in given and name != "model"}


def _value(name: str, text: str, declared: Any) -> Any:
    value = _typed(name, text, declared[0])
    host.limits.require_value(name, value, *declared)
    return value


def _typed(name: str, text: str, kind: Any) -> Any:
    if kind == "BOOLEAN":
        return text == "true"
    if kind == "STRING" or isinstance(kind, list):
        return text
    if kind not in ("INT", "FLOAT"):
        raise ValueError(f"{name} is {text!r}; it is a connection on the node, and no text stands for one.")
    try:
        return int(text) if kind == "INT" else float(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; give a number.") from error
