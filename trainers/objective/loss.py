"""The student's loss, the same for every method: the weighted mean of a distance between its x0 and the target's."""

from __future__ import annotations

import math

from torch import Tensor

from ...samplers.noise import Denoiser, expand_like
from .distance import Distance
from .method import Target
from .perceptual import Perceptual


def loss_and_error(
    denoiser: Denoiser, target: Target, *, perceptual: Perceptual | None = None
) -> tuple[Tensor, Tensor]:
    """(weighted distance, squared error (B, ...) of x0), in float32. perceptual: for targets whose distance is LPIPS."""
    if target.x0.requires_grad:
        raise RuntimeError("the target carries a gradient; a method's target must be computed under no_grad.")
    found, wanted = denoiser(target.x_t, target.sigma, **target.condition).float(), target.x0.float()
    if target.pull is not None:
        return _pulled(found, target.pull, target.weight)
    error = (found - wanted).square()
    if target.distance is not Distance.LPIPS:
        return _weighted_mean(target.distance(error, unit=target.unit), target), error
    if perceptual is None:
        raise ValueError("distance is lpips, which compares pictures, but nothing was given that decodes and compares.")
    return _weighted_mean(perceptual(target.compared(found), target.compared(wanted)), target), error.detach()


def _pulled(found: Tensor, pull: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared pull, whose gradient is the pull itself: the found x0 less itself adds a gradient and no value.

    So two passes of the student that differ by rounding leave none of it in the gradient, as x0 - (x0 - pull) would.
    """
    each = 0.5 * pull.square() + pull * (found - found.detach())
    return (expand_like(weight, found) * each).mean(), pull.square()


def weighted_error(
    denoiser: Denoiser, target: Target, *, perceptual: Perceptual | None = None
) -> tuple[Tensor, Tensor]:
    """(weighted distance, mean squared error) of x0, in float32."""
    loss, error = loss_and_error(denoiser, target, perceptual=perceptual)
    return loss, error.mean()


def loss_scale(values: Tensor) -> float:
    """What the loss is multiplied with on its way back through the network, and its gradient divided by afterwards.

    values: what the loss is a mean over. A mean over all elements has gradients near 1 / elements, which float16 rounds to
    nothing; times about their number they are of the error's own size. A power of two, so that in float32 not a bit of the
    result changes.
    """
    return 2.0 ** int(math.log2(values.numel()))


def _weighted_mean(distance: Tensor, target: Target) -> Tensor:
    return (expand_like(target.weight, distance) * distance).mean()
