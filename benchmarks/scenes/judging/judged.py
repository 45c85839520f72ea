"""What the judges say of pictures: one row of a table, and the floors that every table begins with."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....trainers.measures.fidelity import (
    copied_share,
    frechet_at_infinity,
    jackknife,
    kernel_estimate,
    neighbourhoods,
)
from ..model.world import Split, drawn
from .judges import load_judges, right

PICTURES, REAL, NEIGHBOURS, COPIES, MEMORY = 2048, 8192, 2048, 512, 2**14
"""In a row; real ones that it is compared with; of both for neighbourhoods; looked up among so many learnt and unseen."""
Row = dict[str, Any]


class Jury:
    """The judges, and real scenes of one split for them to compare with: TUNING while settings are chosen, TEST after."""

    def __init__(self, split: Split, *, pictures: int = PICTURES, real: int = REAL, memory: int = MEMORY) -> None:
        self._judges = load_judges()
        self.split, self.pictures, self._count, self._memory = split, pictures, real, memory

    @functools.cached_property
    def prompts(self) -> Tensor:
        """Captions (N, 30) of scenes that nothing is compared with."""
        return self.held_out[1]

    @functools.cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Real scenes in the place of drawn ones, for the floors."""
        return drawn(self.split, self.pictures, first=10**6)

    @functools.cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        pictures, _ = drawn(self.split, self._count)
        return self.features(pictures)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Learnt and random ones, (N, 32) each."""
        learnt, random = (
            torch.cat([of(part) for part in pictures.split(1024)]) for of in (self._judges.learnt, self._judges.random)
        )
        return learnt, random

    def distance(self, pictures: Tensor) -> float:
        """The Frechet distance alone, for tuning."""
        return frechet_at_infinity(self.features(pictures)[0], self._real[0])

    def row(self, pictures: Tensor, captions: Tensor) -> Row:
        """Every figure as [value, margin], of pictures (N, 3, 16, 16) that were to show captions (N, 30)."""
        learnt, random = self.features(pictures)
        near = neighbourhoods(learnt[:NEIGHBOURS], self._real[0][:NEIGHBOURS])
        return {
            "frechet": jackknife(frechet_at_infinity, learnt, self._real[0]).written(),
            "frechet_random": jackknife(frechet_at_infinity, random, self._real[1]).written(),
            "kernel": kernel_estimate(learnt, self._real[0]).written(),
            "precision": near.precision,
            "recall": near.recall,
            "density": near.density,
            "coverage": near.coverage,
            "accuracy": right(self._judges.reader, pictures, captions).written(),
            "copied": copied_share(pictures[:COPIES], *memory(self._memory)).written(),
        }


@functools.cache
def memory(count: int) -> tuple[Tensor, Tensor]:
    """(pictures of the training split that the teacher learnt from, as many that it did not)."""
    return drawn(Split.TRAIN, count)[0], drawn(Split.TRAIN, count, first=10**9)[0]


def spoiled(jury: Jury) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures and captions by what they are: the floors, and real scenes that one thing is wrong with."""
    pictures, captions = jury.held_out
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    of_one_thing = captions.sum(dim=1) == 1
    kept = pictures[of_one_thing].repeat(4, 1, 1, 1)[: len(pictures)]
    learnt = drawn(Split.TRAIN, len(pictures))
    few = torch.arange(len(pictures)) % 256
    return {
        "real scenes": (pictures, captions),
        "real scenes, prompts shuffled": (pictures, captions[order]),
        "real scenes, blurred": (F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1), captions),
        "real scenes of one thing alone": (kept, captions[of_one_thing].repeat(4, 1)[: len(pictures)]),
        "all that the teacher learnt from": learnt,
        "256 pictures that it learnt from": (learnt[0][few], learnt[1][few]),
    }
