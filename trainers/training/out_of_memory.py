"""Out of memory: said in terms of what the user can lower, and with nothing of the run left in memory."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from .optimisation.options import AS_LOADED, TrainOptions

Result = TypeVar("Result")
_NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")


class OutOfMemory(torch.cuda.OutOfMemoryError):
    """The device's memory did not suffice for a run. Of the kind that a host knows, which then puts its models away."""


@contextmanager
def naming_what_to_lower(options: TrainOptions, *, student: Mapping[str, Any]) -> Iterator[None]:
    """Turns an out-of-memory error of any device into OutOfMemory, whose message names the options that need less.

    What the failed calls held, the graph and the optimiser's state above all, is let go of: an error that a host keeps
    for its log must not keep them. student: what of the model learns, as JSON values.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_no_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemory(f"training ran out of memory. {_advice(options, student)} ({reason})") from error


def unless_no_memory(work: Callable[[], Result]) -> Result | None:
    """What work gives; None where no device's memory suffices for it, and nothing of it is held then."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not _is_no_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return None


def _is_no_memory(error: Exception) -> bool:
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or any(part in str(error).lower() for part in _NO_MEMORY)


def _advice(options: TrainOptions, student: Mapping[str, Any]) -> str:
    same_run = " or ".join(_for_the_same_run(options))
    advice = f"{same_run} and queue again: the run goes on, to the same result. " if same_run else ""
    other_run = "; ".join(_smaller_runs(options, student))
    return f"What was saved stays. {advice[:1].upper()}{advice[1:]}Under another run name: {other_run}."


def _for_the_same_run(options: TrainOptions) -> Iterator[str]:
    if not options.gradient_checkpointing:
        yield "switch gradient_checkpointing on"
    if options.accumulation < options.batch_size:
        yield f"raise accumulation (it is {options.accumulation}), up to batch_size,"


def _smaller_runs(options: TrainOptions, student: Mapping[str, Any]) -> Iterator[str]:
    if options.batch_size > 1:
        yield f"lower batch_size (it is {options.batch_size})"
    if options.precision in (AS_LOADED, "float32"):
        yield f"set precision to bfloat16 (it is {options.precision})"
    yield f"lower the LoRA's rank (it is {student['rank']})" if "rank" in student else "train a LoRA, not full weights"
    yield "use smaller pictures"
