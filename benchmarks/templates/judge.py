"""Whether a recipe samples as a template's nodes do: on the sampling object of the family's own class."""

from __future__ import annotations

import importlib
import inspect
import math
import types
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...samplers.presets import PRESETS, Preset, named_by
from .samplings import Sampling, Unknown

TOLERANCE = 1e-3
CONFIGURATIONS = {"WAN21": "WAN21_T2V", "Lumina2": "ZImage", "Flux": "FluxSchnell"}
"""Of the host, where they are not called as the class of their models."""
_SAMPLERS = {
    "lightning": ("euler", {}),
    "lcm": ("lcm", {}),
    "ancestral": ("euler_ancestral", {"eta": 1.0, "s_noise": 1.0}),
}
_NAMES = {"SamplerEulerAncestral": "euler_ancestral", "SamplerLCM": "lcm"}


def sampling_of_family(model_class: str) -> Any | None:
    """The host's sampling object of a family of flow models, with its own shift; None where this host has no such class."""
    import comfy.model_base
    import comfy.supported_models

    config = getattr(comfy.supported_models, CONFIGURATIONS.get(model_class, model_class), None)
    made = getattr(comfy.model_base, model_class, None)
    if config is None or made is None:
        return None
    kind = inspect.signature(made.__init__).parameters["model_type"].default
    if model_class == "Flux":  # schnell's, which its configuration names in the place of dev's
        kind = comfy.model_base.ModelType.FLOW
    return comfy.model_base.model_sampling(types.SimpleNamespace(sampling_settings=config.sampling_settings), kind)


def covered_by(one: Sampling) -> tuple[str | None, str]:
    """(the recipe that covers it, or None; why none does)"""
    proposed = list(dict.fromkeys(recipe for file in one.files for recipe in named_by(file)))
    if not proposed:
        return None, "no recipe knows the files"
    if one.denoise != 1.0:
        return None, f"denoise {one.denoise:g}"
    reasons = {}
    for recipe in proposed:
        try:
            reasons[recipe] = _differs(PRESETS[recipe], one)
        except Unknown as error:
            reasons[recipe] = str(error)
        if reasons[recipe] is None:
            return recipe, ""
    nearest = max(reasons, key=lambda recipe: PRESETS[recipe].steps == one.steps)
    return None, f"{nearest}: {reasons[nearest]}"


def _differs(preset: Preset, one: Sampling) -> str | None:
    """What is different, in words; None where nothing is."""
    if preset.steps != one.steps:
        return f"{one.steps} steps"
    if preset.cfg != one.cfg:
        return f"cfg {one.cfg:g}"
    if preset.guidance_scale != one.guidance:
        return f"guidance {one.guidance}"
    if _same_sampler(preset, one) is False:
        return f"sampler {one.sampler[0]} {dict(one.sampler[1])}"
    ours, theirs = _levels(preset, one)
    away = float((ours - theirs).abs().max())
    if away > TOLERANCE:
        return f"levels differ by {away:.4f}"
    if one.cut and (preset.boundary is None or int((ours[:-1] >= preset.boundary).sum()) != one.cut):
        return f"split at step {one.cut}"
    return None


def _same_sampler(preset: Preset, one: Sampling) -> bool:
    kind, values = one.sampler
    options = dict(values)
    name = options.pop("sampler_name", None) or _NAMES.get(kind, kind)
    if name == "euler_ancestral" and options.get("eta") == 0:
        name, options = "euler", {}
    wanted, defaults = _SAMPLERS.get(preset.sampler, (preset.sampler, {}))
    if name == "lcm" and options:
        return wanted == "lcm" and list(options.values()) == [1, 1, preset.noise_clip]
    return name == wanted and all(options.get(key, value) == value for key, value in defaults.items())


def _levels(preset: Preset, one: Sampling) -> tuple[Tensor, Tensor]:
    """(the recipe's, the template's): (steps + 1,), on the family's own class."""
    from ...nodes.sampling.recipes import preset_levels

    kind, values = one.schedule
    if kind == "ManualSigmas" and not preset.models:
        return preset_levels(_any_flow(), preset), _typed(dict(values))
    sampling = _family(preset)
    ours = preset_levels(sampling, preset)
    if preset.audio_shift is not None and preset.audio_shift != _sound(sampling, one):
        raise Unknown(f"shift of sound {_sound(sampling, one)}")
    return ours, _template_levels(sampling, one)


@cache
def _any_flow() -> Any:
    from ...nodes import host

    return host.models.example_sampling(flow_shift=1.0)


def _family(preset: Preset) -> Any:
    from ...nodes import host

    if preset.family.value != "flow":
        return host.models.example_sampling()
    found = next((made for made in map(sampling_of_family, preset.models) if made is not None), None)
    if found is None:
        raise Unknown(f"this ComfyUI has no models of {' or '.join(preset.models) or 'this family'}")
    return found


def _sound(sampling: Any, one: Sampling) -> float:
    told = dict(one.shift[1]) if one.shift else {}
    return float(told.get("audio_shift") or sampling.audio_shift)


def _typed(values: dict[str, Any]) -> Tensor:
    return torch.tensor([float(part) for part in str(values["sigmas"]).replace(",", " ").split()])


def _template_levels(sampling: Any, one: Sampling) -> Tensor:
    import comfy.samplers

    kind, values = one.schedule
    given = dict(values)
    if kind == "ManualSigmas":
        return _typed(given)
    if kind == "Flux2Scheduler":  # of linked sizes; both lists take the picture's
        return _node("comfy_extras.nodes_flux", "Flux2Scheduler").execute(one.steps, 1024, 1024).args[0]  # type: ignore[no-any-return]
    if kind == "SDTurboScheduler":
        return sampling.sigmas[[999 - 100 * k for k in range(one.steps)] + [-1]] * torch.tensor(
            [1.0] * one.steps + [0.0]
        )  # type: ignore[no-any-return]
    if kind != "BasicScheduler" or given["scheduler"] not in comfy.samplers.SCHEDULER_NAMES:
        raise Unknown(f"levels of {kind} {given.get('scheduler', '')}".strip())
    discards = one.node.startswith("KSampler") and one.sampler[1][0][1] in (
        "uni_pc",
        "uni_pc_bh2",
        "dpm_2",
        "dpm_2_ancestral",
    )
    levels = comfy.samplers.calculate_sigmas(_shifted(sampling, one), given["scheduler"], one.steps + discards)
    return torch.cat([levels[:-2], levels[-1:]]) if discards else levels


def _node(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _shifted(sampling: Any, one: Sampling) -> Any:
    if one.shift is None:
        return sampling
    kind, values = one.shift
    given = dict(values)
    if any(not isinstance(value, (int, float)) for value in given.values()):
        raise Unknown(f"a shift by {kind} from a size that is linked")
    if kind == "ModelSamplingFlux":
        tokens = given["width"] * given["height"] / 256
        slope = (given["max_shift"] - given["base_shift"]) / (4096 - 256)
        return _flow(math.exp(tokens * slope + given["base_shift"] - 256 * slope))
    if kind == "MiniMaxH3SigmaShift":
        sampling.set_parameters(shift=given["shift"], audio_shift=given["audio_shift"])
        return sampling
    return _flow(given["shift"])


def _flow(shift: float) -> Any:
    from ...nodes import host

    return host.models.example_sampling(flow_shift=shift)
