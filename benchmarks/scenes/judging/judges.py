"""The judges, which see scenes of their own split alone, and never what the teacher or a student learnt from.

- `RandomFeatures`: fixed random convolutions, which have learnt nothing.
- `Reader`: reads a picture's caption, for counting whether a picture shows what its prompt said. What it makes of a picture
  before it decides are features too, and the ones that see whether a shape holds together; random ones hardly do.

    python launch.py bench scenes judges      trains the reader, in minutes, and says how good it is
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....trainers.measures.fidelity import Estimate, share
from ....trainers.storage.files import read_tensors, write_atomically, write_tensors
from ....trainers.storage.prefixes import below
from ..engine.machine import RESULTS, ROOT, computing_in, faster_precision, machine
from ..model.world import KINDS, Split, drawn

FILE = ROOT / "assets" / "scenes_judges.safetensors"
CPU = torch.device("cpu")
FEATURES, MOST = 32, 2
"""Of both kinds of features; the most things of one kind in a scene."""
SEED, LEARNT, TESTED, BATCH = 0, 40_000, 10_000, 128


class RandomFeatures:
    """(N, 3, 16, 16) in [0, 1] to (N, 288): three random convolutions, and how strongly each answers, in the mean and at most.

    No filter answers to a flat ground, so that edges, stripes and shapes are what is seen.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(20191)
        self._filters = [_random_filters(*sizes, generator) for sizes in ((3, 32, 4.0), (32, 48, 1.0), (48, 64, 1.0))]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        first = F.conv2d(pictures, self._filters[0]).relu()
        second = F.conv2d(F.avg_pool2d(first, 2), self._filters[1]).relu()
        third = F.conv2d(F.avg_pool2d(second, 2, ceil_mode=True), self._filters[2]).relu()
        found = [first.mean(dim=(2, 3)), first.square().mean(dim=(2, 3)).sqrt()]
        found += [of(h) for h in (second, third) for of in (lambda h: h.mean(dim=(2, 3)), lambda h: h.amax(dim=(2, 3)))]
        return torch.cat(found, dim=1)


def _random_filters(into: int, out: int, scale: float, generator: torch.Generator) -> Tensor:
    """(out, into, 3, 3), each with a sum of 0 and of length scale times root 2."""
    drawn_ = torch.randn(out, into, 3, 3, generator=generator)
    drawn_ = drawn_ - drawn_.mean(dim=(1, 2, 3), keepdim=True)
    return scale * 2.0**0.5 * drawn_ / drawn_.flatten(1).norm(dim=1)[:, None, None, None]


class Whitened(NamedTuple):
    """Features (N, F) as their 32 strongest directions on the judges' split, each at unit variance there: mean (F,), (F, 32).

    Otherwise a distance is of what varies most, the ground's light say, and hardly of what pictures are judged by.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Whitened:
        mean = features.double().mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(features.double().T))
        strongest = vectors[:, -FEATURES:] / values[-FEATURES:].sqrt()
        return cls(mean.float(), strongest.float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.directions


def _tower(width: int) -> nn.Sequential:
    """(N, 3, 16, 16) to (N, 4 width)."""

    def level(into: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, stride=stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]

    layers = [
        *level(3, width, 1),
        *level(width, width, 1),
        *level(width, 2 * width, 2),
        *level(2 * width, 2 * width, 1),
    ]
    layers += [*level(2 * width, 4 * width, 2), *level(4 * width, 4 * width, 1)]
    return nn.Sequential(*layers)


class Reader(nn.Module):
    """(N, 3, 16, 16) in [0, 1] to scores (N, 30, 3): of each kind there are none, one or two."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.out = _tower(32), nn.Linear(2 * 128, KINDS * (MOST + 1))

    def features(self, pictures: Tensor) -> Tensor:
        """(N, 256)."""
        h = self.tower(2.0 * pictures - 1.0)
        return torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(self.features(pictures)).unflatten(1, (KINDS, MOST + 1))

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Tensor:
        """Captions (N, 30)."""
        return torch.cat([self(part).argmax(dim=2) for part in pictures.split(1024)]).float()


def right(reader: Reader, pictures: Tensor, captions: Tensor) -> Estimate:
    """The share of pictures that are read as their captions say, in every count."""
    return share(float((reader.read(pictures) == captions).all(dim=1).sum()), len(captions))


# --- learning --------------------------------------------------------------------------------------------------------


def _learn(reader: Reader, pictures: Tensor, captions: Tensor, *, iterations: int) -> None:
    """Cross-entropy of every count, on slightly noisy pictures."""
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=iterations, pct_start=0.1)
    for k in range(iterations):
        index = torch.randint(len(pictures), (BATCH,), generator=generator)
        noisy = pictures[index] + 0.02 * torch.randn(pictures[index].shape, generator=generator)
        with computing_in(faster_precision(CPU), on=CPU):
            loss = F.cross_entropy(reader(noisy).flatten(0, 1), captions[index].long().flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if k % 500 == 0:
            print(f"{k} of {iterations}: {float(loss.detach()):.4f}", flush=True)


def train_judges(iterations: int) -> None:
    begun = time.monotonic()
    torch.manual_seed(SEED)
    reader = Reader()
    _learn(reader, *drawn(Split.JUDGE, LEARNT), iterations=iterations)
    reader.eval()
    tensors = {f"reader.{name}": value for name, value in reader.state_dict().items()} | whitening(reader)
    accuracy = right(reader, *drawn(Split.JUDGE_TEST, TESTED))
    command = f"python launch.py bench scenes judges --iterations {iterations}"
    report = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine(faster_precision(CPU)),
        "seed": SEED,
        "seconds": time.monotonic() - begun,
        "learnt": LEARNT,
        "tested": TESTED,
        "right on real scenes": accuracy.written(),
    }
    said = {"command": command, "right_on_real_scenes": f"{accuracy.value:.4f} of {TESTED}"}
    write_tensors(FILE, tensors, metadata=said)
    write_atomically(RESULTS / "scenes_judges.json", (json.dumps(report, indent=1) + "\n").encode())
    print(f"the reader is right on {accuracy.value:.4f} of {TESTED} real scenes")


@torch.no_grad()
def whitening(reader: Reader) -> dict[str, Tensor]:
    """Of both kinds of features, from the first scenes of the judges' split."""
    pictures, _ = drawn(Split.JUDGE, TESTED)
    named = {"learnt": reader.features(pictures), "random": RandomFeatures()(pictures)}
    found = {name: Whitened.of(features)._asdict() for name, features in named.items()}
    return {f"whitened.{name}.{part}": value for name, parts in found.items() for part, value in parts.items()}


class Judges(NamedTuple):
    """random, learnt: pictures (N, 3, 16, 16) in [0, 1] to features (N, 32)."""

    random: Callable[[Tensor], Tensor]
    learnt: Callable[[Tensor], Tensor]
    reader: Reader


@functools.cache
def load_judges() -> Judges:
    """The shipped ones."""
    tensors, _ = read_tensors(FILE)
    reader = Reader()
    reader.load_state_dict(below(tensors, "reader."))
    reader.eval().requires_grad_(False)
    random, learnt = (Whitened(**below(tensors, f"whitened.{name}.")) for name in ("random", "learnt"))
    raw = RandomFeatures()
    return Judges(lambda p: random(raw(p)), lambda p: learnt(reader.features(p)), reader)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2000)
    train_judges(parser.parse_args(arguments).iterations)
