"""Training data as tensors: clean samples and, per sample, the model inputs that describe them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

Condition = dict[str, Tensor]
"""Model inputs by name, as the denoiser takes them by keyword; each (N, ...), or (1, ...) when all samples share it."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """x0: (B, ...) clean samples in the model's own latent scale. condition: (B, ...) each."""

    x0: Tensor
    condition: Condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorData:
    """x0: (N, ...), condition: (N, ...) or (1, ...) each, unconditional: the empty prompt, (1, ...) each, or None.

    ValueError, naming the input, when counts do not match or a value is not finite.
    """

    x0: Tensor
    condition: Condition
    unconditional: Condition | None = None

    def __post_init__(self) -> None:
        if len(self.x0) == 0:
            raise ValueError("the training latents are empty; give at least one.")
        _require_finite(self.x0, name="training latents")
        for name, value in self.condition.items():
            if len(value) not in (1, len(self.x0)):
                raise ValueError(
                    f"the conditioning holds {len(value)} entries ({name}) but there are {len(self.x0)} latents; give "
                    "one entry for each latent in the same order, or a single one for all."
                )
            _require_finite(value, name=f"conditioning ({name})")
        for name, value in (self.unconditional or {}).items():
            if len(value) != 1:
                raise ValueError(f"the negative conditioning holds {len(value)} entries ({name}); give exactly one.")
            _require_finite(value, name=f"negative conditioning ({name})")

    def batch(self, size: int, *, generator: torch.Generator) -> Batch:
        """`size` samples drawn with replacement, so that what is drawn depends on the generator alone."""
        return self.take(torch.randint(len(self.x0), (size,), generator=generator))

    def take(self, index: Tensor) -> Batch:
        """The samples at index (B,), each with its own condition or the one that all share."""
        condition = {
            name: value[index] if len(value) > 1 else value.expand(len(index), *value.shape[1:])
            for name, value in self.condition.items()
        }
        return Batch(self.x0[index], condition)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a stable name, for hashing."""
        named = {"x0": self.x0} | {f"condition.{k}": v for k, v in self.condition.items()}
        return named | {f"unconditional.{k}": v for k, v in (self.unconditional or {}).items()}


def _require_finite(values: Tensor, *, name: str) -> None:
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"the {name} hold {bad} values that are NaN or infinite, of {values.numel()}; all must be finite."
        )
