"""Why a run folder is not the run that somebody wants to go on with, in words.

What identifies a teacher, "teacher_is" in run.json: hashes of its weights, of the patches in them and of what is beside its
layers; some of its noise levels; the patches of its forward; and what it answers to a fixed question, by what it computes in and
where ("float32 on cpu"). Also "held_in", the type of its weights, which tells people why hashes differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

_HASHED = {
    "weights": "the teacher's weights",
    "patches": "the LoRAs and other patches in its weights",
    "beside": "what is beside its layers (LoRAs by Load LoRA (Bypass), a guidance embedding)",
}
_SEED = "training.seed"
_LEVELS_APART = 1e-4
"""Relative, far above what two machines' tables differ by."""
ROUNDING = {"float32": 0.01, "float16": 0.01, "bfloat16": 0.06}
"""Answers that are further apart, relative to their norm, are another teacher's. Where that was measured (tiny models of the
kinds of SD1.5, SD2, SDXL, SD3 and Flux, on a CPU) another number of threads came to 3e-6, float16 to 4e-3 and bfloat16 to 3e-2 of
what float32 answers; TF32 rounds as float16 does. Nodes that change the answers, FreeU, say, change them by a tenth and more."""
_COARSE = 0.1
"""The same of any other type: weights and inputs of 8 bits and fewer."""
EXACT = {"float32 on cpu": 1e-4}
"""The same where both were computed so."""


def gone_on_with(
    name: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    finished: bool,
    absent: Mapping[str, Any],
    free: Collection[str],
    extends: Callable[[Mapping[str, Any], Sequence[str]], bool],
) -> tuple[dict[str, Any], bool]:
    """(what run.json is to hold, whether the run is now one with more in it); see RunFolder.claim.

    before, now: run.json as it is, and as a new run's would be. ValueError, naming what differs, for another run.
    """
    wanted, found = now["run"], _as_now(before["run"], absent=absent, free=free)
    differing = _differing(found, wanted)
    teacher = another_teacher(before.get("teacher_is"), now.get("teacher_is"))
    extending = bool(differing) and not teacher and extends(found, differing)
    if teacher or (differing and not extending):
        raise ValueError(_another_run(name, found, wanted, differing, teacher))
    known = _known_of_teacher(before.get("teacher_is"), now.get("teacher_is"))
    kept = now if extending else {**before, "free": before.get("free") if finished else now.get("free")}
    said = {"teacher_is": known, "started_from": before.get("started_from")}
    return {**kept, **{name: value for name, value in said.items() if value}}, extending


def others(
    wanted: Mapping[str, Any],
    before: Mapping[str, Any],
    *,
    absent: Mapping[str, Any],
    free: Collection[str],
    extends: Callable[[Mapping[str, Any], Sequence[str]], bool],
) -> list[str]:
    """Which entries of "run", as a checkpoint has them, are another run's. See gone_on_with."""
    found = _as_now(before, absent=absent, free=free)
    differing = _differing(found, wanted)
    return [] if differing and extends(found, differing) else differing


def _as_now(before: Mapping[str, Any], *, absent: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in {**absent, **before}.items() if key not in free}


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]


def _another_run(
    name: str, found: Mapping[str, Any], wanted: Mapping[str, Any], differing: Sequence[str], teacher: Sequence[str]
) -> str:
    """Why a run does not go on, naming each of its entries that differs, and what of the teacher does."""
    if list(differing) == [_SEED] and not teacher:
        return (
            f"the run {name!r} was begun with the seed {found[_SEED]}, and seed is {wanted[_SEED]} here; all else is the same. "
            f"Set seed to {found[_SEED]}, with control after generate on fixed, to go on with it, or choose another run name "
            "for a new run with the new seed."
        )
    lines = [f"{key}: there {found.get(key)}, here {wanted.get(key)}" for key in differing]
    return (
        f"the run folder {name!r} holds another run. Choose another run name, or restore its settings. "
        f"What differs: {'; '.join([*lines, *teacher])}."
    )


def another_teacher(found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> list[str]:
    """What differs between two teachers, by their "teacher_is"; nothing where one is of a run older than that."""
    if not found or not wanted:
        return []
    kinds = (other_hashes, _other_levels, _other_changes)
    lines = [line for kind in kinds for line in kind(found, wanted)]
    return [*lines, *other_answers(found["answers"], wanted["answers"])]


def _known_of_teacher(found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a run is to keep of its teacher, which is the same: as it was begun, and what was not known of it yet."""
    if not found or not wanted:
        return found or wanted
    return {**found, "answers": {**wanted["answers"], **found["answers"]}}


def other_hashes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which of two teachers' hashes differ, in words."""
    differing = [key for key in _HASHED if found[key] != wanted[key]]
    return [f"{_HASHED[key]} differ{_other_type(found, wanted) if key == 'weights' else ''}" for key in differing]


def _other_type(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Why weights of one file may differ; runs that are older do not say in which type they were."""
    there, here = found.get("held_in"), wanted.get("held_in")
    if there is None or here is None or there == here:
        return ""
    return (
        f" (there {there}, here {here}: by another file, the loader's weight_dtype, or an option that ComfyUI is started with, "
        "--fp8_e4m3fn-unet, say)"
    )


def _other_levels(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    there, here = found["levels"], wanted["levels"]
    if len(there) != len(here) or not all(map(_near, there, here)):
        yield (
            f"the teacher's noise levels (its shift, zero terminal SNR): there {_span(there)}, here {_span(here)} from the "
            "least by the middle to the most"
        )


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_LEVELS_APART)


def _span(levels: Sequence[float]) -> str:
    return ", ".join(f"{levels[i]:.4g}" for i in (0, len(levels) // 2, -1))


def _other_changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    there, here = found["changes"], wanted["changes"]
    for kind in sorted(there.keys() | here.keys()):
        one, other = there.get(kind, []), here.get(kind, [])
        if len(one) != len(other):  # not by name, for hosts move their nodes
            yield f"{kind} of the teacher: there {_names(one)}, here {_names(other)}"


def _names(names: Sequence[str]) -> str:
    return " and ".join(names) or "none"


def other_answers(answered: Mapping[str, Any], answers: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two teachers' answers to one question, beyond rounding."""
    for there, here in itertools.product(sorted(answered), sorted(answers)):
        dtype, *_ = here.split(" ")
        if there.split(" ")[0] == dtype:
            allowed = EXACT.get(here, ROUNDING.get(dtype, _COARSE)) if there == here else ROUNDING.get(dtype, _COARSE)
            yield from _apart_at(answered[there], answers[here], allowed=allowed, dtype=dtype)


def _apart_at(there: Sequence[Any], here: Sequence[Any], *, allowed: float, dtype: str) -> Iterator[str]:
    for one, other in zip(there, here, strict=False):
        apart = _apart(one["numbers"], other["numbers"])
        if _near(one["sigma"], other["sigma"]) and not apart <= allowed:
            yield (
                f"the teacher's answers at noise level {one['sigma']:.4g}, by {100.0 * apart:.3g} percent, where rounding in "
                f"{dtype} explains {100.0 * allowed:.3g}: a node changes the model otherwise"
            )


def _apart(one: Sequence[float | None], other: Sequence[float | None]) -> float:
    """Relative to the first. None is a number that is NaN or infinite, and equal to none but another such."""
    if len(one) != len(other) or None in one or None in other:
        return 0.0 if one == other else math.inf
    return math.dist(one, other) / max(math.hypot(*one), 1e-30)  # type: ignore[arg-type]
