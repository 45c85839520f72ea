"""The demo's data: scikit-learn's 8 x 8 digits as latents, and the small classifier that judges generated digits.

A digit picture is (1, 8, 8) in [0, 1]. Its latent is the picture at zero mean and unit variance, folded 2 x 2 into
channels: (4, 4, 4). Four channels are what ComfyUI's own empty latents and previews expect.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import TensorData
from ..data.conditions import Condition

DIGITS = 10
MEAN, STD = 0.3053, 0.3760
"""Of all pixels of the 1797 pictures, scaled to [0, 1]."""


def load_pictures() -> tuple[Tensor, Tensor]:
    """(pictures (1797, 1, 8, 8) in [0, 1], labels (1797,)) from scikit-learn, which carries the data set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits data set comes with scikit-learn, which is not installed. Install it into ComfyUI's Python: "
            "python -m pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 16.0, torch.from_numpy(bunch.target).long()


def to_latents(pictures: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [0, 1] to latents (N, 4, 4, 4)."""
    return F.pixel_unshuffle((pictures - MEAN) / STD, 2)


def to_pictures(latents: Tensor) -> Tensor:
    """(N, 4, h, w) latents to (N, 1, 2h, 2w) in [0, 1], clamped."""
    return (F.pixel_shuffle(latents, 2) * STD + MEAN).clamp(0.0, 1.0)


def training_data(*, unconditional: Condition | None = None) -> TensorData:
    """All pictures as latents, each with its digit's class vector y (N, 10). unconditional: the empty prompt's, or None."""
    pictures, labels = load_pictures()
    condition = {"y": F.one_hot(labels, DIGITS).float()}
    return TensorData(x0=to_latents(pictures), condition=condition, unconditional=unconditional)


def split(count: int) -> tuple[Tensor, Tensor]:
    """A fixed shuffle of range(count) into (train, held out) at four to one."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = count // 5
    return order[held_out:], order[:held_out]


class DigitClassifier(nn.Module):
    """Two convolutions and one hidden layer; `features` (N, 64) are what the Frechet distance is measured in."""

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "conv1": (32, 1, 3, 3),
            "conv2": (64, 32, 3, 3),
            "hidden": (self.FEATURES, 64 * 4 * 4),
            "output": (DIGITS, self.FEATURES),
        }
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape[0])) for name, shape in shapes.items()})

    def initialise(self, generator: torch.Generator) -> None:
        for weight in self.weights.values():
            nn.init.kaiming_normal_(weight, generator=generator)

    def features(self, pictures: Tensor) -> Tensor:
        """(N, 1, 8, 8) in [0, 1] to (N, 64)."""
        w, b = self.weights, self.biases
        x = F.relu(F.conv2d(pictures * 2.0 - 1.0, w["conv1"], b["conv1"], padding=1))
        x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2"], b["conv2"], padding=1)), 2)
        return F.relu(F.linear(F.dropout(x.flatten(1), 0.3, self.training), w["hidden"], b["hidden"]))

    def classify(self, features: Tensor) -> Tensor:
        """(N, 64) to class scores (N, 10)."""
        return F.linear(F.dropout(features, 0.3, self.training), self.weights["output"], self.biases["output"])
