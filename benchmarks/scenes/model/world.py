"""The drawn world: scenes of one or two coloured, turned, striped shapes on a shaded ground, each drawn from its number.

A scene is a function of its number alone, so that sets have no end, cost no download and are the same everywhere. Shapes
lie whole in the picture, and none touches another: what the caption says can be seen. A picture is (3, 16, 16) in
[0, 1], in steps of 1 / 255. Its latent is the picture at zero mean and unit variance, folded 2 x 2 into channels: (12, 8, 8).
"""

from __future__ import annotations

import dataclasses
import itertools
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.uint64]
"""Of scenes."""
SHAPES = ("disc", "square", "triangle", "cross", "ring")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
KINDS = len(SHAPES) * len(COLOURS)
"""Of things that a caption counts: kind number shape * 6 + colour."""
SIDE, CHANNELS = 16, 12
MEAN, STD = 0.4832, 0.1854
"""Of all values of the first 10,000 pictures of the training split."""
_PALETTE = torch.tensor(
    [
        [0.90, 0.15, 0.12],
        [0.92, 0.85, 0.10],
        [0.15, 0.75, 0.18],
        [0.10, 0.80, 0.85],
        [0.15, 0.25, 0.92],
        [0.86, 0.15, 0.80],
    ]
)
_GAP = 0.6
"""Pixels that are left at least between two shapes, and half of it to the border."""
_DRAWS = 24
"""Uniform numbers that a scene is made of, before those of its places."""


class Split(Enum):
    """Which numbers are whose; no number is in two. JUDGE: what judges learn from, JUDGE_TEST: what tells how good they are."""

    TRAIN = 0
    TUNING = 1
    TEST = 2
    JUDGE = 3
    JUDGE_TEST = 4

    def numbers(self, count: int, *, first: int = 0) -> Numbers:
        """(count,) numbers of scenes, from the split's first-th on. ValueError beyond its end."""
        if first < 0 or first + count > _EACH:
            raise ValueError(f"first is {first} and count is {count}; a split has the scenes 0 to {_EACH - 1}.")
        return np.arange(first, first + count, dtype=np.uint64) + np.uint64(self.value * _EACH)


_EACH = 2**40


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N scenes. things: (N,) 1 or 2. shape, colour, radius, angle, period, phase, light: (N, 2). centre: (N, 2, 2) as (x, y).

    stripes: (N, 2) the angle of the stripes. ground: (N, 3) in the middle, slope: (N, 2) its change from the middle to the
    right and to the lower edge. Lengths are in pixels of 16 to a side. The second thing of a scene of one is not drawn.
    """

    things: Tensor
    shape: Tensor
    colour: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    stripes: Tensor
    period: Tensor
    phase: Tensor
    light: Tensor
    ground: Tensor
    slope: Tensor

    @classmethod
    def of(cls, numbers: Numbers) -> Scenes:
        """The scenes of numbers (N,)."""
        u = _uniform(numbers, range(_DRAWS))
        pairs = u[:, : 2 * 8].reshape(len(u), 2, 8).unbind(dim=2)
        things = 1 + (u[:, 16] < 0.5).long()
        most = torch.where(things == 1, 5.0, 4.0)[:, None]
        radius = 3.2 + pairs[2] * (most - 3.2)
        turn = 2.0 * torch.pi * u[:, 17]
        slope = 0.3 * u[:, 18:19] * torch.stack([turn.cos(), turn.sin()], dim=1)
        return cls(
            things=things,
            shape=(pairs[0] * len(SHAPES)).long(),
            colour=(pairs[1] * len(COLOURS)).long(),
            centre=_places(numbers, radius, things=things),
            radius=radius,
            angle=2.0 * torch.pi * pairs[3],
            stripes=torch.pi * pairs[4],
            period=radius * (0.8 + 0.4 * pairs[5]),
            phase=pairs[6],
            light=0.9 + 0.2 * pairs[7],
            ground=0.3 + 0.4 * u[:, 19:20] + 0.08 * (u[:, 20:23] - 0.5),
            slope=slope,
        )

    def captions(self) -> Tensor:
        """(N, 30): how many of each kind there are, in no order."""
        kind = F.one_hot(self.shape * len(COLOURS) + self.colour, KINDS)
        drawn = torch.arange(2) < self.things[:, None]
        return (kind * drawn[..., None]).sum(dim=1).float()

    def pictures(self, *, side: int = SIDE, samples: int = 4) -> Tensor:
        """(N, 3, side, side) in [0, 1], each pixel the mean of samples x samples points. Chunked, so that N may be large."""
        parts = [_drawn(part, side=side, samples=samples) for part in self._chunks(256)]
        return torch.cat(parts)

    def _chunks(self, size: int) -> list[Scenes]:
        fields = {field.name: getattr(self, field.name).split(size) for field in dataclasses.fields(self)}
        return [Scenes(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]


def words(caption: Tensor) -> str:
    """A caption (30,) as text: "a red disc and a blue ring"; empty for the empty prompt."""
    kinds = [kind for kind in range(KINDS) for _ in range(int(caption[kind]))]
    return " and ".join(f"a {COLOURS[kind % len(COLOURS)]} {SHAPES[kind // len(COLOURS)]}" for kind in kinds)


def drawn(split: Split, count: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """(pictures (count, 3, 16, 16), captions (count, 30)) of a split, from its first-th scene on."""
    scenes = Scenes.of(split.numbers(count, first=first))
    return scenes.pictures(), scenes.captions()


def to_latents(pictures: Tensor) -> Tensor:
    """(N, 3, 16, 16) in [0, 1] to latents (N, 12, 8, 8)."""
    return F.pixel_unshuffle((pictures - MEAN) / STD, 2)


def to_pictures(latents: Tensor) -> Tensor:
    """(N, 12, h, w) latents to (N, 3, 2h, 2w) in [0, 1], in steps of 1 / 255 as any picture file has them."""
    pictures = (F.pixel_shuffle(latents.float(), 2) * STD + MEAN).clamp(0.0, 1.0)
    return (pictures * 255.0).round() / 255.0


# --- from numbers to scenes ------------------------------------------------------------------------------------------


def _mixed(values: Numbers) -> Numbers:
    """splitmix64's output function (Steele, Lea and Flood 2014) of (...,) 64-bit words."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _uniform(numbers: Numbers, columns: range) -> Tensor:
    """(N, columns) in [0, 1): column k of a scene is a function of its number and k alone."""
    steps = np.array(columns, dtype=np.uint64) + np.uint64(1)
    state = _mixed(_mixed(numbers)[:, None] + steps[None] * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _places(numbers: Numbers, radius: Tensor, *, things: Tensor) -> Tensor:
    """Centres (N, 2, 2): even over the picture that the shapes fit into, drawn again until the two are apart."""
    centres = torch.zeros(len(radius), 2, 2, dtype=torch.float64)
    open_ = np.arange(len(numbers))
    for turn in itertools.count():
        if not len(open_):
            return centres
        first = _DRAWS + 4 * turn
        u = _uniform(numbers[open_], range(first, first + 4)).reshape(-1, 2, 2)
        r = radius[open_][..., None]
        room = r + _GAP / 2
        centre = room + u * (SIDE - 2.0 * room)
        apart = (centre[:, 0] - centre[:, 1]).norm(dim=1) >= r.sum(dim=(1, 2)) + _GAP
        fits = (apart | (things[open_] == 1)).numpy()
        centres[open_[fits]] = centre[fits]
        open_ = open_[~fits]
    raise AssertionError("unreachable: the loop has no end but its return")


# --- from scenes to pictures -----------------------------------------------------------------------------------------


def _drawn(scenes: Scenes, *, side: int, samples: int) -> Tensor:
    points = ((torch.arange(side * samples) + 0.5) * SIDE / (side * samples)).float()
    x, y = points[None, None, :], points[None, :, None]
    middle = SIDE / 2
    shade = (scenes.slope[:, 0, None, None] * (x - middle) + scenes.slope[:, 1, None, None] * (y - middle)) / middle
    canvas = (scenes.ground[:, :, None, None] + shade[:, None]).float()
    for k in range(2):
        inside, bright = _thing(scenes, k, x, y)
        inside &= (scenes.things > k)[:, None, None]
        colour = _PALETTE[scenes.colour[:, k]] * scenes.light[:, k, None].float()
        canvas = torch.where(inside[:, None], colour[:, :, None, None] * bright[:, None], canvas)
    return (F.avg_pool2d(canvas.clamp(0.0, 1.0), samples) * 255.0).round() / 255.0


def _thing(scenes: Scenes, k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(whether points lie in the k-th thing, how bright its stripes are there), (N, H, W) each."""
    centre, radius = scenes.centre[:, k].float(), scenes.radius[:, k, None, None].float()
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    turn = scenes.angle[:, k, None, None].float()
    u, v = ((dx * turn.cos() + dy * turn.sin()) / radius, (dy * turn.cos() - dx * turn.sin()) / radius)
    inside = torch.zeros(u.shape, dtype=torch.bool)
    for number, region in enumerate(_REGIONS):
        of = scenes.shape[:, k] == number
        inside[of] = region(u[of], v[of])
    along = scenes.stripes[:, k, None, None].float()
    place = (dx * along.cos() + dy * along.sin()) / scenes.period[:, k, None, None].float()
    dark = (place + scenes.phase[:, k, None, None].float()).remainder(1.0) < 0.5
    return inside, torch.where(dark, 0.55, 1.0)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return u**2 + v**2 <= 0.9**2


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) <= 0.7


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    half = 3.0**0.5 / 2.0
    return torch.maximum(v, torch.maximum(half * u - 0.5 * v, -half * u - 0.5 * v)) <= 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    short, long = torch.minimum(u.abs(), v.abs()), torch.maximum(u.abs(), v.abs())
    return (short <= 0.27) & (long <= 0.96)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    square = u**2 + v**2
    return (square <= 1.0) & (square >= 0.55**2)


_REGIONS = (_disc, _square, _triangle, _cross, _ring)
"""In the order of SHAPES: whether points (u, v), in units of the radius and turned with the shape, lie in it. All lie in the
unit circle."""
