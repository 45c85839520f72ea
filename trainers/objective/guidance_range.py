"""Guidance scales that a training draws from, one for each sample."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, GuidanceRule, guided, needs_both
from ..data.batches import Batch
from ..data.conditions import Condition

SCALE = "guidance_scale"
"""The model input, (B,) or (1,), by which denoisers of students that take their scale as an input are given it."""


@dataclasses.dataclass(frozen=True)
class GuidanceRange:
    """Scales s = w + 1 from low to high, both included. ValueError, naming the inputs, for what is no range of scales.

    Meng et al. 2023, section 3.1, draw w evenly from [w_min, w_max].
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name, scale in (("guidance_scale", self.low), ("guidance_scale_max", self.high)):
            if not 1.0 <= scale <= 100.0:
                raise ValueError(f"{name} is {scale}; allowed is 1 (no guidance) to 100.")
        if self.high < self.low:
            raise ValueError(
                f"guidance_scale is {self.low} and guidance_scale_max is {self.high}; the second must not be below the first, "
                "and 0 is one scale for all."
            )

    @classmethod
    def of(cls, scale: float, largest: float) -> GuidanceRange:
        """As a user writes it: a largest scale of 0 is one scale for all."""
        return cls(scale, largest or scale)

    @property
    def usual(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def guides(self) -> bool:
        """Whether any scale of it is guidance at all."""
        return self.high != 1.0

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """(count,) evenly."""
        return self.low + (self.high - self.low) * torch.rand(count, generator=generator)

    def teaching(
        self,
        teacher: Denoiser,
        batch: Batch,
        scales: float | Tensor,
        *,
        takes_scale: bool = False,
        rule: GuidanceRule | None = None,
    ) -> Denoiser:
        """The teacher at a scale, or at one for each sample (B,): by both of its prompts, or as its own input.

        A range of 1 alone leaves it as it is, but for what its rule of guidance makes of it.
        """
        if self.guides and takes_scale:
            return taking(teacher, scales)
        scales = scales if self.guides else 1.0
        unconditional = batch.empty_prompt() if needs_both(scales, rule) else {}
        return guided(teacher, guidance_scale=scales, unconditional=unconditional, rule=rule)

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


def taking(denoiser: Denoiser, scales: float | Tensor) -> Denoiser:
    """A denoiser that takes its scale as an input, at this scale, or at these (B,)."""

    def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        return denoiser(x, sigma, **with_scale(condition, torch.as_tensor(scales).reshape(-1).to(x)))

    return denoise


def with_scale(condition: Condition, scales: Tensor) -> Condition:
    return {**condition, SCALE: scales}
