"""What several models drew from the same noise, measured: nearness to the first, agreement with the prompt, diversity, cost."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .evaluate import psnr

Distance = Callable[[Tensor, Tensor], Tensor]
"""(N,) of pictures (N, H, W, 3) in [0, 1] to others."""
Agreement = Callable[[Tensor, Sequence[str]], Tensor]
"""(N,) of pictures (N, H, W, 3) with a text each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """pictures: (prompts, seeds, H, W, 3) in [0, 1]. forwards, seconds: for one picture; the latter without the VAE.

    settings: of the model, as JSON values.
    """

    name: str
    steps: int
    forwards: float
    seconds: float
    pictures: Tensor
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def flat(self) -> Tensor:
        """(prompts * seeds, H, W, 3)."""
        return self.pictures.flatten(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one model, means over all pictures; None where something was not measured.

    psnr, least_psnr: in dB to the first model's picture of the same prompt and noise. diversity: see `diversity`.
    """

    name: str
    steps: int
    forwards: float
    seconds: float
    psnr: float | None
    least_psnr: float | None
    lpips: float | None
    clip_score: float | None
    diversity: float | None


@dataclasses.dataclass(frozen=True)
class Missing:
    """What is not measured, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judges:
    lpips: Distance | Missing
    clip_score: Agreement | Missing

    def of(self, drawn: Sequence[Drawn], prompts: Sequence[str] | None) -> list[Figures]:
        """Each model's, the first of which is what the others are compared with. prompts: None where their texts are unknown."""
        return [self._of(one, drawn[0], prompts) for one in drawn]

    def _of(self, one: Drawn, reference: Drawn, prompts: Sequence[str] | None) -> Figures:
        near = [] if one is reference else [psnr(a, b) for a, b in zip(one.flat, reference.flat, strict=True)]
        lpips = None
        if near and not isinstance(self.lpips, Missing):
            lpips = float(self.lpips(one.flat, reference.flat).mean())
        clip_score = None
        if prompts is not None and not isinstance(self.clip_score, Missing):
            texts = [text for text in prompts for _ in range(one.pictures.shape[1])]
            clip_score = float(self.clip_score(one.flat, texts).mean())
        return Figures(
            name=one.name,
            steps=one.steps,
            forwards=one.forwards,
            seconds=one.seconds,
            psnr=statistics.mean(near) if near else None,
            least_psnr=min(near) if near else None,
            lpips=lpips,
            clip_score=clip_score,
            diversity=diversity(one.pictures),
        )

    def told(self, prompts: Sequence[str] | None) -> list[str]:
        """What is not measured, a line each."""
        missing = {"LPIPS": self.lpips, "CLIP score": self.clip_score}
        said = [f"{name}: not measured: {one.reason}" for name, one in missing.items() if isinstance(one, Missing)]
        if prompts is None and not isinstance(self.clip_score, Missing):
            said.append("CLIP score: not measured: the texts of the prompts are not known")
        return said


def diversity(pictures: Tensor) -> float | None:
    """How far a prompt's pictures (prompts, seeds, H, W, 3) are from each other: the mean over pairs of seeds of the root of the
    mean squared difference, 0 for equal ones. None for one seed."""
    pairs = list(itertools.combinations(range(pictures.shape[1]), 2))
    if not pairs:
        return None
    squared = [(pictures[:, a] - pictures[:, b]).cpu().double().square().flatten(1).mean(dim=1) for a, b in pairs]
    return statistics.mean(float(each.sqrt().mean()) for each in squared)


def as_csv(figures: Sequence[Figures]) -> str:
    """A line for each model; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Figures)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**dataclasses.asdict(one), "name": no_formula(one.name)} for one in figures)
    return text.getvalue()


def no_formula(text: str) -> str:
    """The text as a table's program shows it: one that begins so it would compute, and a name may come from anywhere."""
    mark = "'" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else ""
    return mark + text.replace("\r", " ")  # which csv leaves bare before Python 3.13, and would end the row


COLUMNS: dict[str, Callable[[Figures], str]] = {
    "model": lambda one: one.name,
    "steps": lambda one: str(one.steps),
    "forwards a picture": lambda one: f"{one.forwards:g}",
    "seconds a picture": lambda one: f"{one.seconds:.3g}",
    "PSNR (least)": lambda one: "-" if one.psnr is None else f"{one.psnr:.1f} dB ({one.least_psnr:.1f})",
    "LPIPS": lambda one: _number(one.lpips),
    "CLIP score": lambda one: _number(one.clip_score),
    "diversity": lambda one: _number(one.diversity),
}
"""What a reader sees of a model, by heading."""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def as_markdown(figures: Sequence[Figures]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]
    cells = ([show(one).replace("|", "\\|") for show in COLUMNS.values()] for one in figures)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])
