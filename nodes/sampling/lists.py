"""The lists of noise levels that few-step models were trained on, on those of a model of the host; and in the stock menus."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import require_every_timestep
from ...samplers.noise import NoiseFamily
from ...samplers.schedules import (
    Levels,
    consistency_sigmas,
    dmd2_timesteps,
    even_shares,
    even_sigmas,
    flux2_mu,
    lcm_timesteps,
    log_snr_shares,
    parse_numbers,
    qwen_image_21_mu,
    shifted_sigmas,
    timestep_shares,
    turbo_timesteps,
    twice_shifted_sigmas,
)
from .. import host


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """The inputs that only some lists read. tokens: of 16 x 16 pixels, in the picture."""

    original_steps: int = 50
    strength: float = 1.0
    values: str = ""
    tokens: int = 4096


_Make = Callable[[Levels, int, _Asked], Tensor]


@dataclasses.dataclass(frozen=True)
class _List:
    """make: the levels (n + 1,) from what the model has. only: for one family. timesteps: names training timesteps.

    strength: what makes a shorter list from make. unshifted: make begins without the model's own shift. menu: what the stock
    menus get, where they may ask for any number of steps; make by default.
    """

    make: _Make
    only: NoiseFamily | None = None
    timesteps: bool = False
    strength: Callable[[_Make, Levels, int, _Asked], Tensor] | None = None
    unshifted: bool = False
    menu: _Make | None = None


def levels(
    model_sampling: Any,
    schedule: str,
    steps: int,
    original_steps: int = 50,
    strength: float = 1.0,
    shift: float = 1.0,
    values: str = "",
    absolute_shift: float = 0.0,
    width: int = 1024,
    height: int = 1024,
    latent: Any = None,
) -> Tensor:
    """(steps + 1,) of a schedule on the levels of the host's sampling object. ValueError for what does not go together."""
    made = _list_for(model_sampling, schedule)
    found = _with_shift(model_sampling, schedule, shift=shift, absolute_shift=absolute_shift)
    tokens = round(width * height / 256) if latent is None else _tokens_of(latent["samples"])
    asked = _Asked(original_steps=original_steps, strength=strength, values=values, tokens=tokens)
    if made.strength is None or strength == 1.0:
        return made.make(found, steps, asked)
    return made.strength(made.make, found, steps, asked)


def _list_for(model_sampling: Any, schedule: str, *, in_menu: bool = False) -> _List:
    """ValueError where the list means nothing to the model, whose picture would come out wrong. in_menu: of the stock nodes."""
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed are {', '.join(_SCHEDULES)}.")
    made, family = _SCHEDULES[schedule], host.models.noise_family(model_sampling)
    called = f"scheduler is '{_PREFIX}{schedule}', which" if in_menu else f"the {schedule} schedule"
    if made.only not in (None, family):
        others = f"{_PREFIX}trailing" if in_menu else _OTHERS[family]
        raise ValueError(f"{called} is for {_NOT_MEANT[family]}. Use {others}.")
    if lacks_timesteps(model_sampling, schedule):
        others = f"{_PREFIX}trailing or {_PREFIX}consistency" if in_menu else "trailing, consistency or sigmas"
        raise ValueError(
            f"{called} names training timesteps, and this model has none: its noise levels are continuous "
            f"({host.models.prediction_type(model_sampling)}). Use {others}."
        )
    return made


def lacks_timesteps(model_sampling: Any, schedule: str) -> bool:
    """Whether a list is of training timesteps, of which a model of continuous noise levels has none."""
    return _SCHEDULES[schedule].timesteps and not host.models.levels_of(model_sampling).has_timesteps


def _with_shift(model_sampling: Any, schedule: str, *, shift: float, absolute_shift: float) -> Levels:
    """The model's levels, a flow model's with the shift that is asked for in its formula."""
    found = host.models.levels_of(model_sampling)
    _require_shift(schedule, flow=found.flow is not None, shift=shift, absolute_shift=absolute_shift)
    if (own := found.flow) is None:
        return found
    bare = absolute_shift != 0.0 or _SCHEDULES[schedule].unshifted
    factor = absolute_shift or shift
    return dataclasses.replace(found, flow=lambda shares: shifted_sigmas(shares if bare else own(shares), shift=factor))


_SHIFT = "shift (shown as relative_shift)"


def _require_shift(schedule: str, *, flow: bool, shift: float, absolute_shift: float) -> None:
    if not flow and shift != 1.0:
        raise ValueError(f"{_SHIFT} is {shift}, but only flow models have one; set it to 1.")
    if absolute_shift == 0.0:
        return
    if not flow:
        raise ValueError(f"absolute_shift is {absolute_shift}, but only flow models have one; set it to 0.")
    if shift != 1.0:
        raise ValueError(
            f"{_SHIFT} is {shift} and absolute_shift is {absolute_shift}, but the first multiplies the shift that the second "
            f"replaces; set {_SHIFT} to 1 or absolute_shift to 0."
        )
    if absolute_shift < 0.01:  # 0 / 0 in a tiny one's formula
        raise ValueError(f"absolute_shift is {absolute_shift}; allowed are 0, the model's own, and 0.01 to 100.")
    if schedule in ("flux2", "qwen_image_21"):
        raise ValueError(f"absolute_shift is {absolute_shift}, but {schedule} computes its own; set it to 0.")


def _tokens_of(samples: Tensor) -> int:
    """FLUX.2's and Qwen-Image 2.1's own latents have a token at every place; others are of 8 x 8 pixels, four to a token."""
    places = samples.shape[-1] * samples.shape[-2]
    return places if samples.shape[1] in (64, 128) else round(places / 4)


# --- where image-to-image begins -------------------------------------------------------------------------------------


def _tail(make: _Make, found: Levels, steps: int, asked: _Asked) -> Tensor:
    """The last steps of as many more as the strength leaves out: what the host does with denoise."""
    return make(found, int(steps / asked.strength), asked)[-(steps + 1) :]


def _last_of_list(make: _Make, found: Levels, steps: int, asked: _Asked) -> Tensor:
    """The list's own last levels, strength times as many: diffusers' image-to-image pipelines."""
    whole = make(found, steps, asked)
    kept = int((len(whole) - 1) * asked.strength)
    if kept < 1:
        raise ValueError(
            f"strength is {asked.strength}, which leaves not one step of {len(whole) - 1}; "
            f"{math.ceil(100 / (len(whole) - 1)) / 100:g} leaves one."
        )
    return whole[-(kept + 1) :]


# --- one by one ------------------------------------------------------------------------------------------------------


def _trailing(found: Levels, steps: int, _: _Asked) -> Tensor:
    return even_sigmas(steps, levels=found)


def _lcm(found: Levels, steps: int, asked: _Asked) -> Tensor:
    timesteps = lcm_timesteps(steps, original_steps=asked.original_steps, strength=asked.strength)
    return found.at(timestep_shares(timesteps))


def _lcm_in_menu(found: Levels, steps: int, asked: _Asked) -> Tensor:
    """Beyond LCM's own levels, of which denoise takes the last, even ones: at as many steps as levels, they are the same."""
    return _lcm(found, steps, asked) if steps <= asked.original_steps else even_sigmas(steps, levels=found)


def _ending_at_smallest(make: _Make) -> _Make:
    """As TCD ends."""

    def made(found: Levels, steps: int, asked: _Asked) -> Tensor:
        require_every_timestep(found.table)
        sigmas = make(found, steps, asked)
        sigmas[-1] = found.table[0]
        return sigmas

    return made


def _turbo(found: Levels, steps: int, asked: _Asked) -> Tensor:
    """Image-to-image as in ComfyUI's SDTurboScheduler: its ten levels from the strength's on, as many as there are."""
    start = 10 - int(10 * asked.strength)
    timesteps = turbo_timesteps(steps if start == 0 else 10)[start:][:steps]
    if not timesteps:
        raise ValueError(
            f"strength is {asked.strength}; the turbo schedule has ten levels, so allowed is 0.1 and above."
        )
    return found.at(timestep_shares(timesteps))


def _dmd2(found: Levels, steps: int, _: _Asked) -> Tensor:
    return found.at(timestep_shares(dmd2_timesteps(steps)))


def _consistency(found: Levels, steps: int, _: _Asked) -> Tensor:
    ends = {"sigma_min": float(found.table[0]), "sigma_max": float(found.table[-1])}
    return consistency_sigmas(steps, train_levels=max(40, steps), **ends)


def _typed_timesteps(found: Levels, _: int, asked: _Asked) -> Tensor:
    numbers = parse_numbers(asked.values, name="values")
    if any(number != int(number) for number in numbers):
        raise ValueError(
            f"values is {asked.values!r}; timesteps are whole numbers. For noise levels choose the sigmas schedule."
        )
    return found.at(timestep_shares([int(number) for number in numbers]))


def _typed_sigmas(found: Levels, _: int, asked: _Asked) -> Tensor:
    sigmas = _typed(found, asked)
    return sigmas if found.flow is None else found.at(sigmas)


def _typed(found: Levels, asked: _Asked) -> Tensor:
    """(n + 1,) as they stand in values, and a final 0."""
    numbers = parse_numbers(asked.values, name="values")
    if numbers == [0.0]:
        raise ValueError("values is 0 alone, which leaves no step to take; give at least one level above it.")
    if found.flow is not None and numbers[0] > 1.0:
        raise ValueError(
            f"values is {asked.values!r}, but the noise levels of a flow model end at 1. For 1000, 750, 500, 250 choose "
            "the timesteps schedule."
        )
    if found.flow is None and numbers[0] > 1.001 * (largest := float(found.table[-1])):  # lists are rounded
        raise ValueError(
            f"values is {asked.values!r}, but this model's noise levels end at {largest:g}: give that or less, or connect the "
            "model whose list it is."
        )
    return torch.tensor(numbers if numbers[-1] == 0.0 else [*numbers, 0.0])


def _flux2(found: Levels, steps: int, asked: _Asked) -> Tensor:
    shift = math.exp(flux2_mu(steps, tokens=asked.tokens))
    return found.at(shifted_sigmas(even_shares(steps), shift=shift))


def _qwen_image_21(found: Levels, steps: int, asked: _Asked) -> Tensor:
    """Typed values, or else even steps: so its few-step LoRAs name theirs. Nothing is stretched to a last level."""
    shift = math.exp(qwen_image_21_mu(tokens=asked.tokens))
    shares = _typed(found, asked) if asked.values.strip() else even_shares(steps)
    return found.at(shifted_sigmas(shares, shift=shift))


def _twice_shifted(found: Levels, steps: int, _: _Asked) -> Tensor:
    return twice_shifted_sigmas(steps, levels=found)


def _log_snr(found: Levels, steps: int, asked: _Asked) -> Tensor:
    """Strength scales the whole list, as Stable Audio 3's sigma_max does."""
    return found.at(log_snr_shares(steps) * asked.strength)


_VE, _FLOW = NoiseFamily.VARIANCE_EXPLODING, NoiseFamily.FLOW
_NOT_MEANT = {
    _FLOW: "eps-, v- and x0-models; this is a flow model",
    _VE: "flow models; this is none",
}
_OTHERS = {_FLOW: "trailing or sigmas", _VE: "trailing, timesteps or sigmas"}
_SCHEDULES: dict[str, _List] = {
    "trailing": _List(_trailing, strength=_tail),
    "lcm": _List(_lcm, only=_VE, timesteps=True, menu=_lcm_in_menu),
    "tcd": _List(_ending_at_smallest(_lcm), only=_VE, timesteps=True, menu=_ending_at_smallest(_lcm_in_menu)),
    "turbo": _List(_turbo, only=_VE, timesteps=True, menu=_trailing),
    "dmd2": _List(_dmd2, only=_VE, timesteps=True, strength=_last_of_list),
    "consistency": _List(_consistency, only=_VE, strength=_tail),
    "timesteps": _List(_typed_timesteps, timesteps=True, strength=_last_of_list),
    "sigmas": _List(_typed_sigmas, strength=_last_of_list, unshifted=True),
    "flux2": _List(_flux2, only=_FLOW, strength=_tail, unshifted=True),
    "qwen_image_21": _List(_qwen_image_21, only=_FLOW, strength=_last_of_list, unshifted=True),
    "twice_shifted": _List(_twice_shifted, only=_FLOW, strength=_tail),
    "log_snr": _List(_log_snr, only=_FLOW, unshifted=True),
}
NAMES = tuple(_SCHEDULES)
_IN_MENU = ("trailing", "lcm", "tcd", "turbo", "consistency", "twice_shifted", "log_snr")
_PREFIX = "fewstep_"
"""Of the names in the stock menus."""


def add_to_menu() -> None:
    """For the stock KSampler and BasicScheduler, where the host allows it."""
    host.models.add_to_scheduler_menu({f"{_PREFIX}{name}": _from_menu(name) for name in _IN_MENU})


def _from_menu(name: str) -> Callable[[Any, int], Tensor]:
    """Asked for more steps than are taken when denoise is below 1: of these the host takes the last."""

    def made(model_sampling: Any, steps: int) -> Tensor:
        found = _list_for(model_sampling, name, in_menu=True)
        levels = _with_shift(model_sampling, name, shift=1.0, absolute_shift=0.0)
        return (found.menu or found.make)(levels, steps, _Asked())

    return made
