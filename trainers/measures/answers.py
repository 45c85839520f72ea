"""What a denoiser answers to a fixed question, in few numbers: enough to tell whether two of them are one and the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, NoiseFamily
from ..data.batches import Batch

NUMBERS = 64
"""Of an answer that are kept. What is estimated from them is right to within a fifth or so."""


@torch.no_grad()
def answers(denoiser: Denoiser, batch: Batch, *, sigmas: Sequence[float], family: NoiseFamily) -> list[list[float]]:
    """To the first sample of batch in fixed noise, at each of the levels: NUMBERS numbers of (x - D(x)) / sigma.

    That is what the network adds, whatever it predicts: at low noise D(x) itself is mostly x. One forward each of one sample.
    """
    x0 = batch.x0[:1]
    condition = {name: value[:1] for name, value in batch.condition.items()}
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    return [_answer(denoiser, x0, noise, sigma, condition, family) for sigma in sigmas]


def _answer(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: float, condition: dict[str, Tensor], family: NoiseFamily
) -> list[float]:
    level = torch.full((1,), sigma, dtype=x0.dtype, device=x0.device)
    x = family.add_noise(x0, noise, sigma=level)
    added = (x - denoiser(x, level, **condition)) / sigma
    return [float(f"{number:.6g}") for number in sketch(added).tolist()]


def sketch(values: Tensor) -> Tensor:
    """(NUMBERS,) sums over values of any shape with fixed random signs, which keep distances on average.

    The count sketch of Charikar, Chen and Farach-Colton (2002), section 3: the expectation of ||sketch(a) - sketch(b)||^2
    is ||a - b||^2.
    """
    flat = values.detach().cpu().double().flatten()
    signs = torch.randint(0, 2, flat.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    padded = torch.nn.functional.pad(flat * signs, (0, -len(flat) % NUMBERS))
    return padded.view(-1, NUMBERS).sum(dim=0)
