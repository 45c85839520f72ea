"""What data hold, and their hash, whether that is in memory or in files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..storage.files import Rows, tensors_sha256
from ..storage.stored import Values


class OfRows:
    """What data have in common that say what they hold."""

    def rows(self) -> dict[str, Tensor | Rows]:
        """As tensors(), what several samples share, or lies in files, as it is held."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.whole() if isinstance(value, Rows) else value for name, value in self.rows().items()}

    def sha256(self, *, heed: Callable[[], None] = lambda: None) -> str:
        if _KNOWN not in vars(self):
            self.known_by(tensors_sha256(self.rows(), heard=lambda done, total: heed()))
        return str(vars(self)[_KNOWN])

    def known_by(self, sha256: str) -> None:
        """Tells these data their hash, which whoever read them knows. Of others that are made of them it is none."""
        vars(self)[_KNOWN] = sha256


_KNOWN = "_sha256"


def rows_of(values: Values, at: Tensor | None = None) -> Tensor | Rows:
    """Of these numbers, None for all."""
    if at is None and isinstance(values, Tensor):
        return values
    return Rows(values, torch.arange(len(values)) if at is None else at)
