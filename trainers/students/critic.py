"""Who tells what a student draws from pictures: small heads on what the teacher's own blocks say of either.

The discriminator of DMD2 (Yin et al. 2024, arXiv 2405.14867, section 4.3), with heads for any architecture: as in LADD (Sauer et
al. 2024, arXiv 2403.12015) the teacher's network is left as it is, and each place of its feature maps is judged by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..data.conditions import by_shape
from ..objective.loss import loss_scale
from ..objective.method import Target
from .adapters import require_same_shapes
from .features import Features

WIDTH = 128
"""Of a head's hidden layer."""
SMOOTHNESS = 100.0
"""What the squared difference of the logits of a picture and of one a little noisier counts beside the loss (the approximate R1
of Lin et al. 2025, arXiv 2501.08316, section 3.2). Without it heads grow steep, and what they pull at is noise."""


class _Head(nn.Module):
    """(B, places, channels) to the logits of real (B, places)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.take, self.give = nn.Linear(channels, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, seen: Tensor) -> Tensor:
        found: Tensor = self.give(nn.functional.silu(self.take(self.norm(seen)))).squeeze(-1)
        return found


class Critic:
    """seed: of the heads' initial values. around: of CompanionNetwork."""

    def __init__(
        self,
        features: Features,
        *,
        device: torch.device,
        seed: int,
        around: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._features, self._around = features, around
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone: devices' own streams go on
            self._heads = nn.ModuleList([_Head(tap.channels) for tap in features.taps])
        self._heads.to(device)

    def gradient(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """(B, ...) where x (B, ...) at sigma would have to go to look less real: that of softplus(-logit) on each sample alone.

        Nothing learns by it, and nothing else has a gradient of it.
        """
        scale = loss_scale(x[0])
        with torch.enable_grad(), self._features.bare(), self._around():
            x = x.detach().requires_grad_()
            loss = by_shape(self._found_drawn, x, sigma, condition=condition).sum()
            (found,) = torch.autograd.grad(scale * loss, x)
        return found.float() / scale

    def loss(self, target: Target) -> tuple[Tensor, Tensor]:
        """(weighted mean, (B, 1) of each pair) for pairs of what was drawn, x_t, and a picture, x0, noised to one level.

        softplus(-logit) of the picture and softplus(logit) of what was drawn, 2 log 2 where they are not told apart, and
        the smoothness between the picture and `near`. The network below is asked without gradient.
        """
        if target.near is None:
            raise ValueError("a critic's target has no picture that is a little noisier.")
        pairs = target.x_t, target.x0, target.near, target.sigma
        told, steep = by_shape(self._told_and_steep, *pairs, condition=dict(target.condition)).unbind(dim=1)
        return (target.weight * (told + SMOOTHNESS * steep)).mean(), told.detach()[:, None]

    def _found_drawn(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """(B,) softplus(-logit)."""
        return _mean([softplus(-logits) for logits in self._logits(x, sigma, condition, through=True)])

    def _told_and_steep(self, drawn: Tensor, real: Tensor, near: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """(B, 2) how ill each pair is told apart, and the difference that the smoothness counts."""
        of_drawn, of_real, of_near = (self._logits(x, sigma, condition, through=False) for x in (drawn, real, near))
        told = _mean([softplus(-a) + softplus(b) for a, b in zip(of_real, of_drawn, strict=True)])
        steep = _mean([(a - b).square() for a, b in zip(of_real, of_near, strict=True)])
        return torch.stack([told, steep], dim=1)

    def _logits(self, x: Tensor, sigma: Tensor, condition: dict[str, Tensor], *, through: bool) -> list[Tensor]:
        """(B, places) of each tap. through: whether a gradient goes through the network below."""
        with torch.set_grad_enabled(through):
            seen = self._features(x, sigma, **condition)
        return [head(value) for head, value in zip(self._heads, seen, strict=True)]

    def parameters(self) -> list[Tensor]:
        return list(self._heads.parameters())

    def autograd(self) -> AbstractContextManager[object]:
        """Nothing to enter: the way back ends in the heads."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._heads.state_dict())

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of state_dict. ValueError when names or shapes differ."""
        require_same_shapes(self.state_dict(), tensors, what="heads")
        self._heads.load_state_dict(tensors)


def _mean(of_taps: list[Tensor]) -> Tensor:
    """(B,) over the places of each tap and then over the taps."""
    return torch.stack([value.mean(dim=1) for value in of_taps]).mean(dim=0)
