"""Tables in parts that resume: a part is minutes of work, its figures are written as they come and never made twice."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....trainers.storage.files import write_atomically
from .machine import machine

Figures = dict[str, Any]


class Parts:
    """The figures of one table in a JSON file, by the names of their parts.

    command: what regenerates it. sources: the files that the figures depend on; figures of others are made again, and so are
    those of a part whose settings are others now. learning_in: as in machine.
    """

    def __init__(
        self, file: Path, *, command: str, sources: list[Path], learning_in: torch.dtype | None = None
    ) -> None:
        self._file, self._learning_in = file, learning_in
        made_of = {source.name: self.sha256(source)[:16] for source in sources}
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        kept = earlier.get("parts", {}) if earlier.get("made of") == made_of else {}
        self.written: Figures = {"command": command, "made of": made_of, "parts": kept}

    @staticmethod
    def sha256(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def part(self, name: str, settings: Figures, work: Callable[[], Figures]) -> Figures:
        """The figures that work makes, or made earlier with the same settings (JSON values)."""
        known = self.written["parts"].get(name)
        if known and known["settings"] == settings:
            return dict(known["figures"])
        begun = time.monotonic()
        figures = work()
        self.written["parts"][name] = {
            "settings": settings,
            "figures": figures,
            "seconds": round(time.monotonic() - begun, 1),
            "date": datetime.date.today().isoformat(),
            "machine": machine(self._learning_in),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, (json.dumps(self.written, indent=1) + "\n").encode())
        print(f"{name}: {self.written['parts'][name]['seconds']} s", flush=True)
        return figures
