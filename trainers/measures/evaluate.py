"""How good are few-step pictures: Frechet distance, accuracy, and PSNR to the teacher's picture of the same noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .digits import DigitClassifier


class FeatureStatistics(NamedTuple):
    """mean (F,) and covariance (F, F) in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Of features (N, F)."""
        features = features.double()
        return cls(features.mean(dim=0), torch.cov(features.T))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared Frechet (Wasserstein-2) distance of two Gaussians.

    Dowson and Landau 1982, equation 4. The trace of the square root is that of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which
    is symmetric, so eigenvalues suffice. On other features than Inception's this is not an FID.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0.0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2.0 * cross
    return float(distance)


MOST_PSNR = 100.0
"""Also of equal pictures, whose own is infinite: no mean could be taken of it."""


def psnr(pictures: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], from the squared error over all of them, at most MOST_PSNR."""
    try:
        from kornia.metrics import psnr as kornia_psnr
    except ImportError as error:
        raise ImportError(
            "PSNR is measured with kornia, which is not installed. Install it into ComfyUI's Python: python -m pip install kornia"
        ) from error

    return min(float(kornia_psnr(pictures, reference, max_val=1.0)), MOST_PSNR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the table. nfe: forwards of the network for one picture. psnr: to the reference picture, None for itself."""

    model: str
    steps: int
    nfe: int
    frechet: float
    accuracy: float
    psnr: float | None
    seconds_per_picture: float


@dataclasses.dataclass(frozen=True)
class DigitJudge:
    """Scores generated digits with a trained classifier and the feature statistics of the real ones."""

    classifier: DigitClassifier
    real: FeatureStatistics

    @torch.no_grad()
    def score(
        self,
        pictures: Tensor,
        labels: Tensor,
        *,
        reference: Tensor | None,
        model: str,
        steps: int,
        nfe: int,
        seconds: float,
    ) -> Score:
        """pictures: (N, 1, 8, 8) in [0, 1]. labels: (N,) what was asked for. seconds: what all N took to sample."""
        features = self.classifier.features(pictures)
        accuracy = (self.classifier.classify(features).argmax(dim=1) == labels).double().mean()
        return Score(
            model=model,
            steps=steps,
            nfe=nfe,
            frechet=frechet_distance(FeatureStatistics.of(features), self.real),
            accuracy=float(accuracy),
            psnr=None if reference is None else psnr(pictures, reference),
            seconds_per_picture=seconds / len(pictures),
        )


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| model | steps | forwards | Frechet distance | accuracy | PSNR to teacher | ms a picture |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for s in scores:
        decibel = "-" if s.psnr is None else f"{s.psnr:.1f} dB"
        lines.append(
            f"| {s.model} | {s.steps} | {s.nfe} | {s.frechet:.2f} | {s.accuracy:.3f} | {decibel} "
            f"| {1000 * s.seconds_per_picture:.2f} |"
        )
    return "\n".join(lines)
