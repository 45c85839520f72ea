"""The judges: networks that see scenes of their own split alone, and never what the teacher or a student learnt from.

- `RandomFeatures`: fixed random convolutions, which have learnt nothing.
- `Encoder`: self-supervised; it learns which two changed views are of one picture (Chen et al. 2020), and sees no caption.
- `Reader`: reads a picture's caption, for counting whether a picture shows what its prompt said.

    python launch.py bench scenes judges      trains the last two, in minutes, and says how good the reader is
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...trainers.measures.fidelity import Estimate, share
from ...trainers.storage.files import read_tensors, write_atomically, write_tensors
from ...trainers.storage.prefixes import below
from .machine import RESULTS, ROOT, machine
from .world import KINDS, Split, drawn

FILE = ROOT / "assets" / "scenes_judges.safetensors"
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


class Encoder(nn.Module):
    """features: (N, 3, 16, 16) in [0, 1] to (N, 64). A head, which is for learning alone, stands behind them."""

    WIDTH = 64

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.out = _tower(24), nn.Linear(96, self.WIDTH)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.WIDTH, 64))

    def features(self, pictures: Tensor) -> Tensor:
        return self.out(self.tower(2.0 * pictures - 1.0).mean(dim=(2, 3)))


class Reader(nn.Module):
    """(N, 3, 16, 16) in [0, 1] to scores (N, 30, 3): of each kind there are none, one or two."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.out = _tower(32), nn.Linear(2 * 128, KINDS * (MOST + 1))

    def forward(self, pictures: Tensor) -> Tensor:
        h = self.tower(2.0 * pictures - 1.0)
        return self.out(torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)).unflatten(1, (KINDS, MOST + 1))

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Tensor:
        """Captions (N, 30)."""
        return torch.cat([self(part).argmax(dim=2) for part in pictures.split(1024)]).float()


def right(reader: Reader, pictures: Tensor, captions: Tensor) -> Estimate:
    """The share of pictures that are read as their captions say, in every count."""
    return share(float((reader.read(pictures) == captions).all(dim=1).sum()), len(captions))


# --- learning --------------------------------------------------------------------------------------------------------


def _views(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each turned or mirrored in one of eight ways, moved by up to 2 pixels, a little noisy, and of another brightness.

    What a view keeps is what the features are of; shapes, colours, stripes and sharpness are kept.
    """
    way = int(torch.randint(8, (), generator=generator))
    turned = torch.rot90(pictures, way % 4, dims=(2, 3))
    turned = turned.flip(3) if way >= 4 else turned
    dx, dy = torch.randint(0, 5, (2,), generator=generator).tolist()
    moved = F.pad(turned, (2, 2, 2, 2), mode="replicate")[:, :, dy : dy + 16, dx : dx + 16]
    light = 0.1 * torch.randn(len(moved), 1, 1, 1, generator=generator)
    return (moved + light + 0.02 * torch.randn(moved.shape, generator=generator)).clamp(0.0, 1.0)


def _contrast(encoder: Encoder, pictures: Tensor, _captions: Tensor, generator: torch.Generator) -> Tensor:
    """NT-Xent (Chen et al. 2020, equation 1) at temperature 0.2, of the two views against each other."""
    views = (_views(pictures, generator) for _ in range(2))
    a, b = (F.normalize(encoder.head(encoder.features(view)), dim=1) for view in views)
    alike = a @ b.T / 0.2
    own = torch.arange(len(a))
    return 0.5 * (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own))


def _reading(reader: Reader, pictures: Tensor, captions: Tensor, generator: torch.Generator) -> Tensor:
    noisy = pictures + 0.02 * torch.randn(pictures.shape, generator=generator)
    return F.cross_entropy(reader(noisy).flatten(0, 1), captions.long().flatten())


def _learn(network: Any, loss_of: Callable[..., Tensor], data: tuple[Tensor, Tensor], *, iterations: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=iterations, pct_start=0.1)
    for k in range(iterations):
        index = torch.randint(len(data[0]), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(network, data[0][index], data[1][index], generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if k % 500 == 0:
            print(f"{type(network).__name__} {k} of {iterations}: {float(loss.detach()):.4f}", flush=True)


def train_judges(iterations: int) -> None:
    begun = time.monotonic()
    torch.manual_seed(SEED)
    data = drawn(Split.JUDGE, LEARNT)
    encoder, reader = Encoder(), Reader()
    _learn(encoder, _contrast, data, iterations=iterations // 5)
    _learn(reader, _reading, data, iterations=iterations)
    named = {"encoder": encoder.eval(), "reader": reader.eval()}
    tensors = {f"{of}.{name}": value for of, network in named.items() for name, value in network.state_dict().items()}
    tensors |= whitening(encoder)
    accuracy = right(reader, *drawn(Split.JUDGE_TEST, TESTED))
    command = f"python launch.py bench scenes judges --iterations {iterations}"
    report = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
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
def whitening(encoder: Encoder) -> dict[str, Tensor]:
    """Of both kinds of features, from the first scenes of the judges' split."""
    pictures, _ = drawn(Split.JUDGE, TESTED)
    named = {"learnt": encoder.features(pictures), "random": RandomFeatures()(pictures)}
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
    encoder, reader = Encoder(), Reader()
    for prefix, network in {"encoder.": encoder, "reader.": reader}.items():
        network.load_state_dict(below(tensors, prefix))
        network.eval().requires_grad_(False)
    random, learnt = (Whitened(**below(tensors, f"whitened.{name}.")) for name in ("random", "learnt"))
    raw = RandomFeatures()
    return Judges(lambda p: random(raw(p)), lambda p: learnt(encoder.features(p)), reader)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=3000)
    train_judges(parser.parse_args(arguments).iterations)
