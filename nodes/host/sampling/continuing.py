"""Which samples of which seed a sampling draws, by which it knows their fresh noise. No host tells a sampler.

Of a picture that is drawn alone out of a batch (Latent From Batch) the host gives its initial noise alone; behind DisableNoise
the seed is 0, whatever began the run. So samples are known by the noise that they begin with, or by the latent that a run left.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from ....samplers.few_step import Sample, in_order
from ....trainers.storage.files import some_of

_KEPT = 64
"""Runs that ended above level 0, of which one may go on."""

_NUMBERS, _FEWEST, _MOST = 2**24, 16, 1024
"""Of a seed's noise so much is drawn in search of a sample's: a tenth of a second, but some samples always."""


@dataclass(frozen=True)
class _End:
    level: float
    shape: torch.Size
    values: Tensor
    samples: list[Sample]


_ends: deque[_End] = deque(maxlen=_KEPT)


def leave(x: Tensor, *, level: float, samples: list[Sample] | None) -> None:
    """A sampling has left x (B, ...), which are these samples, at a noise level."""
    if level > 0.0 and samples is not None:
        _ends.append(_End(level, x.shape[1:], _some_of(x), samples))


def samples_of(
    x: Tensor, *, level: float, seed: int | None, noise: Tensor | None, drawn_as: torch.Size
) -> list[Sample] | None:
    """What a sampling of x (B, ...) at its first level draws.

    noise: (B, ...) what the host noised with, zeros for none; None where another sampler wraps ours and hides it. drawn_as:
    (B, ...) the shape in which the host drew it.
    Where there is noise, it tells each sample's place, so that a picture drawn alone is its batch's. Where there is none, each
    sample is what it was in the run that left it at this level, and of that run's seed where the host tells 0. A sample that
    no run has left, since it was changed in between, has its place in the batch, and at seed 0 a seed of its own: other
    pictures draw other noise. Of noise that is not the seed's (another pack's) a sample has its place in the batch too.
    """
    if seed is None:
        return None
    if noise is not None and bool(noise.any()):
        places = _places(_some_of(noise.flatten(1)[:, : drawn_as[1:].numel()]), seed=seed, drawn_as=drawn_as)
        return in_order(len(x), seed=seed) if places is None else [(seed, place) for place in places]
    values = _some_of(x)
    known = _left_as(values, level=level, shape=x.shape[1:])
    if seed != 0:
        known = [sample and (seed, sample[1]) for sample in known]
    tells_none = seed == 0 and noise is not None
    return _filled(known, [(_seed_of(one), 0) if tells_none else (seed, i) for i, one in enumerate(values)])


def _places(wanted: Tensor, *, seed: int, drawn_as: torch.Size) -> list[int] | None:
    """Of initial noise (B, n) each sample's place in what ComfyUI draws of the seed; None where some is not among it."""
    whole = torch.randn(drawn_as, generator=_generator(seed))
    if _alike(_some_of(whole), wanted).all():
        return list(range(len(wanted)))
    one, generator = (1, *drawn_as[1:]), _generator(seed)
    found: dict[int, int] = {}
    for place in range(max(_FEWEST, min(_MOST, _NUMBERS // drawn_as[1:].numel()))):
        drawn = _some_of(torch.randn(one, generator=generator))
        found |= dict.fromkeys(_alike(drawn, wanted).nonzero().flatten().tolist(), place)
        if len(found) == len(wanted):
            return [found[i] for i in range(len(wanted))]
    return None


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**64)


def _alike(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Which of (B, n) are the same as far as the precision of any latent goes: (B,)."""
    return torch.isclose(drawn, wanted, rtol=1e-2, atol=1e-2).all(dim=1)


def _left_as(values: Tensor, *, level: float, shape: torch.Size) -> list[Sample | None]:
    """What the samples (B, n) were in the last run that left each; None where none did, and for the same once more."""
    near = 1e-3 * float(values.abs().mean())  # the host scales latents on their way from one node to the next
    ends = [end for end in reversed(_ends) if end.shape == shape and abs(end.level - level) <= 1e-5 * level]
    known: list[Sample | None] = []
    taken: set[tuple[int, int]] = set()
    for one in values:
        alike = ((n, _same_of(end, one, near=near)) for n, end in enumerate(ends))
        n, rows = next(((n, rows) for n, rows in alike if rows), (0, []))
        row = next((row for row in rows if (n, row) not in taken), None)
        known.append(None if row is None else ends[n].samples[row])
        taken |= set() if row is None else {(n, row)}
    return known


def _same_of(end: _End, one: Tensor, *, near: float) -> list[int]:
    """Which of its samples, the nearest first: at low levels the pictures of one latent are much alike."""
    same = torch.isclose(end.values, one, rtol=1e-3, atol=near).all(dim=1).tolist()
    nearest = (end.values - one).abs().sum(dim=1).argsort(stable=True).tolist()
    return [i for i in nearest if same[i]]


def _filled(known: list[Sample | None], others: list[Sample]) -> list[Sample]:
    """In the place of None the other sample of that seed, or the next that none of them is: repeated latents draw variants."""
    filled = list(known)
    for i, (seed, first) in enumerate(others):
        free = ((seed, place) for place in count(first) if (seed, place) not in filled)
        filled[i] = filled[i] or next(free)
    return [sample for sample in filled if sample is not None]


_PARTS = 8


def _seed_of(one: Tensor) -> int:
    """Of (n,) by what rounding does not move, which another batch size, card or release does: where its parts are largest."""
    parts = [part for part in one.tensor_split(_PARTS) if len(part)]
    largest = [int(part.abs().argmax()) for part in parts]
    said = [(place, bool(part[place] < 0.0)) for place, part in zip(largest, parts, strict=True)]
    return int.from_bytes(hashlib.blake2b(repr(said).encode(), digest_size=8).digest(), "little")


def _some_of(x: Tensor) -> Tensor:
    """(B, n) values spread over each sample of x (B, ...), on the CPU, by which a latent is known again."""
    return torch.stack([some_of(one) for one in x]).float().cpu()
