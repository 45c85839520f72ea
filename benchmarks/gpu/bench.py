"""One process of the GPU book: the model that its cells are about, and the card made as small as they want it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ...trainers.processes.group import Processes
from .room import Room
from .shapes import SHAPES
from .subject import Subject


class Bench:
    """One process's cells, one after the other. folder: of the runs, the same for all processes."""

    def __init__(self, folder: str, parts: Mapping[str, Part]) -> None:
        self.folder, self._parts = Path(folder), parts
        self.processes = Processes.from_environment()
        self.is_first = self.processes.is_first
        self._cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if self._cuda else torch.device("cpu")
        self._room = Room() if self._cuda and self.processes.count == 1 else None
        self._subject: tuple[Any, Subject] | None = None

    def measured(self, name: str, precision: str, part: str, room: float) -> dict[str, Any]:
        """The figures of a cell, or the words of what ended it, too little memory say."""
        try:
            return self._parts[part](self._subject_of(name, precision), self, room)
        except Exception as error:  # a cell like another: it tells what does not go
            words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if self._cuda:
            torch.cuda.synchronize()  # where the device itself has failed, this process ends
        return {"error": words}

    def _subject_of(self, name: str, precision: str) -> Subject:
        if self._subject is None or self._subject[0] != (name, precision):
            self._subject = None
            self.leave(0.0)
            made = Subject(SHAPES[name], precision, self.device, batch=self.processes.count)
            self._subject = ((name, precision), made)
        return self._subject[1]

    def leave(self, gibibytes: float) -> None:
        """Nothing on the device, and so much of it to use, 0 for all."""
        import comfy.model_management

        with torch.inference_mode():  # as they were loaded: a quantised model cannot be unloaded otherwise
            comfy.model_management.unload_all_models()
            if self._subject is not None and hasattr(self._subject[1].model, "detach"):
                self._subject[1].model.detach()  # what a student's clone of it loaded, a host that pages leaves there
        gc.collect()
        comfy.model_management.soft_empty_cache()
        if self._room is not None:
            self._room.leave(gibibytes)
            torch.cuda.reset_peak_memory_stats()

    def leave_free(self, size: float) -> None:
        if self._room is not None:
            self._room.leave_free(size)

    def peak(self) -> dict[str, float]:
        """bytes: the most that torch held at a time since `leave`. pool: what it had from the device for that."""
        if not self._cuda:  # of a process's own memory the training benchmark tells
            return dict.fromkeys(("bytes", "pool"), math.nan)
        return {"bytes": float(torch.cuda.max_memory_allocated()), "pool": float(torch.cuda.max_memory_reserved())}

    def __enter__(self) -> Self:
        self.processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._room is not None:
            self._room.__exit__(kind, value, trace)
        self.processes.__exit__(kind, value, trace)


Part = Callable[[Subject, Bench, float], dict[str, Any]]
"""Figures of a model, with so many GiB of the card; 0 for all."""
