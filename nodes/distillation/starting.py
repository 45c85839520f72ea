"""Beginning a run where another one stopped, on the MODEL of both."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...trainers.storage.places import require_name
from ...trainers.storage.run_folder import RunFolder
from ...trainers.training.distillation import Distillation, Recorded
from ...trainers.training.starting import Start, require_started_from, start_from
from ..host import folders
from . import running


def require_there(name: str) -> None:
    """ValueError where there is no run of that name to begin at; "" is none."""
    if name:
        _recorded(name)


def _recorded(name: str) -> tuple[RunFolder, Recorded]:
    source = folders.run_named(require_name(name, what="start_from"))
    return source, Recorded.of(source)


def started(new: Distillation, name: str, *, model: Any) -> tuple[Distillation, Start | None]:
    """The run, and the last good checkpoint of the run of that name, which it is to begin at; "" is none.

    A run that is begun already goes on. ValueError for a run that does not fit, and where the folder holds one that was begun
    otherwise.
    """
    run = new.run
    if run.begun:
        if name:
            require_started_from(run, name)
        return new, None
    if not name:
        return new, None
    source, recorded = _recorded(name)
    method = running.method_on(model, recorded.chosen, empty_prompt=new.data.unconditional is not None)
    start = start_from(source, new, method=method)
    return dataclasses.replace(new, started_from=start.said), start
