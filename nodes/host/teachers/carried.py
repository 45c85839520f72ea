"""What a MODEL carries beside its weights: each kind is honoured in a training step, stands aside, or is refused by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch

from ..memory import backward


class Part(Enum):
    """What a kind of patch is in a training step."""

    HONOURED = "called as a sampler calls it"
    GUIDES = "called on the network's answers with its prompt and without, see guiding"
    ASIDE = "no part of what the model means"
    REFUSED = "what a training step cannot call"


OPTIONS = {
    "transformer_options": Part.HONOURED,
    "model_function_wrapper": Part.REFUSED,
    "sampler_cfg_function": Part.GUIDES,
    "sampler_pre_cfg_function": Part.GUIDES,
    "sampler_post_cfg_function": Part.GUIDES,
    "sampler_calc_cond_batch_function": Part.GUIDES,
    "denoise_mask_function": Part.REFUSED,
    "context_handler": Part.REFUSED,
    "disable_cfg1_optimization": Part.ASIDE,
    "registered_hooks": Part.ASIDE,  # act by conditioning alone, which is refused with hooks
    "to_load_options": Part.ASIDE,
    "multigpu_clones": Part.ASIDE,
    "multigpu_options": Part.ASIDE,
    "multigpu_thread_pool": Part.ASIDE,
    "ignore_multigpu": Part.ASIDE,
}
"""All that hosts read in a MODEL's options. Others are data of what is itself in one of these tables."""

WRAPPERS = {
    "apply_model": Part.HONOURED,
    "diffusion_model": Part.HONOURED,
    "outer_sample": Part.REFUSED,
    "prepare_sampling": Part.REFUSED,
    "sampler_sample": Part.REFUSED,
    "predict_noise": Part.REFUSED,
    "calc_cond_batch": Part.REFUSED,
}
"""By what they stand around."""

CALLBACKS = {
    "on_clone": Part.HONOURED,
    "on_load_after": Part.HONOURED,
    "on_detach_after": Part.HONOURED,
    "on_inject_model": Part.HONOURED,
    "on_eject_model": Part.HONOURED,
    "on_cleanup": Part.ASIDE,
    "on_deepclone_multigpu": Part.ASIDE,
    "on_match_multigpu_clones": Part.ASIDE,
    "on_register_all_hook_patches": Part.ASIDE,
    "on_apply_hooks": Part.ASIDE,
    "on_pre_run": Part.REFUSED,
    "on_prepare_state": Part.REFUSED,
}

_ONLY_FASTER = ("torch.compile", "easycache", "lazycache")
"""Keys of wrappers that stand aside: compiled code, and the host's caches over the steps of one sampling."""
_CACHES = ("easycache", "animate2_cache")
"""In transformer options: what networks keep over the steps of one sampling, whose weights do not change (Wan Animate 2's)."""
_NOT_TOLD = (*_CACHES, "patches", "patches_replace", "wrappers", "callbacks", backward.ATTENTION_OVERRIDE)
"""There too: what has a place of its own here, or means nothing; all others are for a network to read."""
_DATA = ("model_sampling", "latent_format", "manual_cast_dtype")
"""Objects that nodes exchange and that are asked for by name, see models."""


def require_supported(model: Any) -> None:
    """ValueError naming what a training step has no place for, and whose it is."""
    refused = {k: v for k, v in model.model_options.items() if OPTIONS.get(k) is Part.REFUSED and v}
    if refused:
        raise ValueError(f"the MODEL carries {listed(refused)}, which training does not support; remove that node.")
    around = {kind: keyed for kind, keyed in wrappers(model).items() if WRAPPERS.get(kind) is not Part.HONOURED}
    if around:
        raise ValueError(
            f"the MODEL carries wrappers around {listed(around)}, which training does not support; remove that node."
        )
    called = {
        kind: keyed for kind, keyed in _callbacks(model).items() if CALLBACKS.get(kind, Part.REFUSED) is Part.REFUSED
    }
    if called:
        raise ValueError(
            f"the MODEL carries callbacks {listed(called)}, which training does not support; remove that node."
        )


def require_in_a_copy(model: Any) -> None:
    """ValueError for what full weights would lose: all that is neither a number nor a module with its weights."""
    if wrappers(model):
        raise ValueError(
            f"the MODEL carries wrappers around {listed(wrappers(model))}, which full weights cannot take over; remove that "
            "node or train a LoRA."
        )
    functions = {k: v for k, v in _replaced(model).items() if callable(v) and not isinstance(v, torch.nn.Module)}
    lost = _patches(model) | functions
    if lost:
        raise ValueError(
            f"the MODEL carries patches ({listed(lost)}), which full weights cannot take over; remove that node or train a LoRA."
        )


def wrappers(model: Any) -> dict[str, dict[Any, list[Any]]]:
    """The host's wrappers by what they stand around and by key, but for those that only make sampling faster."""
    return {
        kind: kept
        for kind, keyed in _every_wrapper(model).items()
        if (kept := {key: several for key, several in keyed.items() if key not in _ONLY_FASTER})
    }


def options(model: Any, *, instead: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The MODEL's transformer options as a training step tells them to the network, its wrappers among them.

    instead: options that take their place.
    """
    options = _transformer_options(model) if instead is None else instead
    told = {name: value for name, value in options.items() if name not in _CACHES}
    return {**told, "wrappers": wrappers(model)}


def aside(model: Any) -> list[str]:
    """What is left out of a training step, by names for people."""
    faster = {key for keyed in _every_wrapper(model).values() for key in keyed if key in _ONLY_FASTER}
    faster |= {name for name in _CACHES if name in _transformer_options(model)}
    own = override(model)
    return sorted(faster) + ([f"{backward.ATTENTION_OVERRIDE} ({whose(own)})"] if own else [])


def guiding(model: Any) -> dict[str, Any]:
    """What acts on the network's answers with its prompt and without, by where a sampler calls it."""
    return {name: held for name, held in model.model_options.items() if OPTIONS.get(name) is Part.GUIDES and held}


def override(model: Any) -> Any:
    """What the MODEL has its attention computed by; None where the host chooses."""
    return _transformer_options(model).get(backward.ATTENTION_OVERRIDE)


def acting(model: Any) -> list[str]:
    """What acts in the network's forward, each with whose it is."""
    several = _patches(model) | wrappers(model) | _replaced(model)
    own = override(model)
    return _each(several | ({backward.ATTENTION_OVERRIDE: own} if own else {}))


def in_no_file(model: Any) -> list[str]:
    """What changes the MODEL's answers and no file of weights holds: patches, with whose they are, and what networks are told."""
    told = {name for name, value in _transformer_options(model).items() if value and name not in _NOT_TOLD}
    return [*_each(_patches(model) | wrappers(model) | _replaced(model)), *sorted(told)]


def _patches(model: Any) -> dict[str, Any]:
    """By the place in the network's forward."""
    told = _transformer_options(model)
    kinds = [told[kind] for kind in ("patches", "patches_replace") if kind in told]
    return {name: held for kind in kinds for name, held in kind.items() if held}


def models_beside(model: Any) -> list[Any]:
    """Other MODELs that what is carried needs on the device; not the copies for other devices of several."""
    several = getattr(model, "additional_models", {})
    return [one for key, models in several.items() if key != "multigpu" for one in models]


def _replaced(model: Any) -> dict[str, Any]:
    """Parts of the network that nodes put others in the place of."""
    return {
        name: value
        for name, value in model.object_patches.items()
        # what a LoRA's file says of attention stands aside, see following
        if name.split(".")[0] not in _DATA and not backward.may_prefer_attention(value)
    }


def _every_wrapper(model: Any) -> dict[str, dict[Any, list[Any]]]:
    return _keyed(_transformer_options(model).get("wrappers", {}), getattr(model, "wrappers", {}))


def _callbacks(model: Any) -> dict[str, dict[Any, list[Any]]]:
    return _keyed(getattr(model, "callbacks", {}))


def _keyed(*holders: dict[str, dict[Any, list[Any]]]) -> dict[str, dict[Any, list[Any]]]:
    found: dict[str, dict[Any, list[Any]]] = {}
    for holder in holders:
        for kind, keyed in holder.items():
            for key, several in keyed.items():
                if several:
                    found.setdefault(kind, {}).setdefault(key, []).extend(several)
    return found


def _transformer_options(model: Any) -> Any:
    return model.model_options.get("transformer_options", {})


# --- whose it is -----------------------------------------------------------------------------------------------------


def whose(thing: Any) -> str:
    """Of a function or an object of some node pack: the name that its author gave it, and its file's."""
    if isinstance(thing, functools.partial):
        return whose(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    file = PurePath(str(named.__module__)).name.split(".")[-1]
    return f"{named.__qualname__.split('.<locals>')[0]} of {file}"


def _each(several: dict[str, Any]) -> list[str]:
    """Names with whose they are, one for all that are the same one's: packs replace a part in every block."""
    owned: dict[str, list[str]] = {}
    for name, held in several.items():
        owners = dict.fromkeys(whose(one) for one in functions(held) if not _is_plain(one))
        owned.setdefault(", ".join(owners), []).append(name)
    return [_shortened(names) + (f" ({owner})" if owner else "") for owner, names in owned.items()]


def _is_plain(thing: Any) -> bool:
    """A number or a tensor, which says nothing of whose it is."""
    return not callable(thing) and type(thing).__module__.split(".")[0] in ("builtins", "torch")


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def listed(several: dict[str, Any]) -> str:
    """Names with whose they are, as one text."""
    return ", ".join(_each(several))


def functions(held: Any) -> Iterator[Any]:
    """All that is called in a holder of whatever form."""
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list | tuple):
        for one in held:
            yield from functions(one)
    else:
        yield held
