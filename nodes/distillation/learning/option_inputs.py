"""Inputs that several method nodes have in common, as the host declares them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ....trainers.objective.distance import Distance
from ....trainers.objective.grid import Grid
from ....trainers.objective.weighting import Weighting
from ... import host

Input = tuple[Any, dict[str, Any]]


def count(default: int, tooltip: str, *, least: int = 0, most: int = 1000000) -> Input:
    return ("INT", {"default": default, "min": least, "max": most, "tooltip": tooltip})


def number(default: float, tooltip: str, *, least: float = 0.0, most: float = 1.0, step: float = 0.01) -> Input:
    return ("FLOAT", {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip})


def learning_rate(default: float, tooltip: str) -> Input:
    limits = {"default": default, "min": 0.0, "max": 1.0, "step": 0.000001, "round": False}
    return ("FLOAT", {**limits, "tooltip": tooltip})


def guidance_scale(default: float, tooltip: str, *, least: float = 1.0) -> Input:
    return number(default, tooltip, least=least, most=100.0, step=0.1)


def new_name(default: str) -> Input:
    return ("STRING", {"default": default, "tooltip": "Of the new file. An existing one is never overwritten."})


def weighting(default: Weighting, tooltip: str) -> Input:
    return ([choice.value for choice in Weighting], {"default": default.value, "tooltip": tooltip})


def distance(default: Distance, tooltip: str) -> Input:
    choices = [choice.value for choice in Distance]
    return (choices, {"default": default.value, "tooltip": f"{tooltip} {ABOUT_LPIPS}"})


ABOUT_LPIPS = (
    "lpips compares how the decoded pictures look: it needs vae on Distill Model, the Python package lpips and VGG16's weights, "
    "and much more time and memory."
)


ABOUT_SCALE_INPUT = (
    "the student takes any scale from guidance_scale to this as an input, a slider when it is sampled. Connect Full-Weights "
    "Student."
)


PREVIEWS: Input = (
    "FEWSTEP_PREVIEWS",
    {"tooltip": "From Preview Prompts: what is drawn at every checkpoint. Unconnected: training samples."},
)


def grid(tooltip: str) -> Input:
    return ([choice.value for choice in Grid], {"default": Grid.TRAILING.value, "tooltip": tooltip})


def folded(declared: dict[str, Any], rare: Collection[str]) -> dict[str, Any]:
    """What a node declares, the rare inputs marked so that editors that fold such do so; their order stays."""
    for group in (declared["required"], declared["optional"]):
        for name in group.keys() & rare:
            kind, about = group[name]
            group[name] = (kind, {**about, "advanced": True})
    return declared


def options_folded(declared: dict[str, Any], *, but: Collection[str] = ()) -> dict[str, Any]:
    """The same of all optional inputs that hold a value, but for those named."""
    options = [name for name, (kind, about) in declared["optional"].items() if "default" in about and name not in but]
    return folded(declared, options)


def defaults(node: Any) -> dict[str, Any]:
    """What a node's inputs hold before anybody touches them: of a menu without a default its first choice."""
    declared = node.INPUT_TYPES()
    found = {**declared["required"], **declared.get("optional", {})}
    return {name: about.get("default", kind[0]) for name, (kind, about) in found.items()}


def checked(make: Callable[[], object], *typed: Any) -> bool | str:
    """For VALIDATE_INPUTS: the error of make where all values are typed in; linked ones are checked when they arrive."""
    return host.signals.error_of(make) if all(isinstance(value, int | float) for value in typed) else True
