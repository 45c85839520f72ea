"""The learning rate as a function of the position alone: there is no state to save, and a resumed run repeats it."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...objective.method import Stage

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}
"""The factor at a progress from 0 (the stage begins) to 1. linear: to 0 in every stage, as Salimans and Ho trained
(2022, their published configuration); cosine: Loshchilov and Hutter 2017, equation 5, without restarts."""


def learning_rate(stage: Stage, iteration: int, *, schedule: str, warmup: int) -> float:
    """At an iteration (0 is the first) of a stage: after its lead `warmup` iterations of rising, then the schedule over the rest.

    The rise is 1, 2, ... parts in warmup + 1 of the stage's rate, so that no iteration is wasted at 0.
    """
    done = iteration - stage.lead
    if done < warmup:
        return stage.learning_rate * ((done + 1) / (warmup + 1))
    progress = (done - warmup) / (stage.updates - warmup)
    return stage.learning_rate * SCHEDULES[schedule](progress)


def require_room_for_warmup(stage: Stage, *, warmup: int) -> None:
    """ValueError when the warm-up would take the whole stage."""
    if warmup >= stage.updates:
        raise ValueError(
            f"warmup is {warmup}, but the stage {stage.name!r} has {stage.updates} iterations; allowed is 0 to "
            f"{stage.updates - 1}."
        )
