"""The figures of many updates, kept on the device until somebody wants their means."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor

from ...processes.group import Processes
from .bands import BANDS, NoiseBands, band_means


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class Tally:
    """gradient_norm, loss, x0_error, band_errors, measures: means over what was pending when they were settled last.

    whose: "the student's", for messages.
    """

    def __init__(self, whose: str = "the") -> None:
        self._whose = whose
        self._names: tuple[str, ...] = ()
        self.measures: dict[str, float] = {}
        self._pending: list[tuple[int, Tensor]] = []
        self.gradient_norm = self.loss = self.x0_error = math.nan
        self.band_errors: list[float | None] = [None] * BANDS

    def add(self, iteration: int, figures: Tensor, *, measures: Iterable[str]) -> None:
        """Of one update, from `Learner.update`. measures: the names of its target's, the same in every update."""
        self._pending.append((iteration, figures))
        self._names = tuple(measures)

    def settle(self, processes: Processes, bands: NoiseBands, *, stage: str) -> None:
        """Reads what is pending from the device, all at once. NonFiniteLoss, naming the iteration, if one is not finite."""
        if not self._pending:
            return
        iterations, pending = zip(*self._pending, strict=True)
        self._pending.clear()
        rows = processes.mean(torch.stack(pending)).cpu()
        bad = (~torch.isfinite(rows[:, :3]).all(dim=1)).nonzero()
        if len(bad):
            _refuse(rows[bad[0, 0]], bands, whose=self._whose, iteration=iterations[int(bad[0, 0])], stage=stage)
        self.gradient_norm, self.loss, self.x0_error = rows[:, :3].mean(dim=0).tolist()
        self.band_errors = band_means(rows[:, 3 : 3 + 2 * BANDS])
        self.measures = dict(zip(self._names, rows[:, 3 + 2 * BANDS :].mean(dim=0).tolist(), strict=True))


def _refuse(row: Tensor, bands: NoiseBands, *, whose: str, iteration: int, stage: str) -> NoReturn:
    """Says what of an update is not finite and at which noise levels."""
    values = {"loss": row[1], "x0 error": row[2], "gradient norm": row[0]}
    what, value = next((name, value.item()) for name, value in values.items() if not torch.isfinite(value))
    wrong = (~torch.isfinite(row[3 : 3 + BANDS])).nonzero().flatten().tolist()
    where = f", from samples at {', '.join(bands.name(band) for band in wrong)}" if wrong else ""
    raise NonFiniteLoss(f"{whose} {what} became {value} at iteration {iteration} (stage {stage}){where}")
