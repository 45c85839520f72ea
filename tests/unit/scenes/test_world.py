"""The drawn world: what captions say is in the pictures, read by an eye that knows nothing of how they are drawn."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from comfyui_fewstep.benchmarks.scenes.model.world import (
    COLOURS,
    KINDS,
    SHAPES,
    SIDE,
    Scenes,
    Split,
    drawn,
    to_latents,
    to_pictures,
    words,
)
from scipy import ndimage

HUES = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "magenta": 300}
FILLED = {"disc": 1.0, "square": 2 / np.pi, "triangle": 3 * 3**0.5 / (4 * np.pi)}
"""The share of its outer circle that a shape fills, by school geometry. A cross and a ring are told by their insides."""
LARGE = 128


def things_in(picture):
    """(colour, shape) of every connected saturated region of a picture (3, H, W), sorted."""
    picture = picture.numpy()
    marked = picture.max(axis=0) - picture.min(axis=0) > 0.2
    labels, count = ndimage.label(ndimage.binary_opening(marked))
    found = []
    for region in (labels == k for k in range(1, count + 1)):
        shape = shape_of(region)
        hue = 360 * colorsys.rgb_to_hsv(*picture[:, region].mean(axis=1))[0]
        colour = min(COLOURS, key=lambda c: abs((HUES[c] - hue + 180) % 360 - 180))
        found.append((colour, shape))
    return sorted(found)


def shape_of(region):
    y, x = np.nonzero(region)
    away = np.hypot(*(np.indices(region.shape) - np.array([y.mean(), x.mean()])[:, None, None]))
    reach = away[region].max()
    if not region[away < 0.2 * reach].any():
        return "ring"
    if not region[away < 0.45 * reach].all():
        return "cross"
    filled = region.sum() / (np.pi * reach**2)
    return min(FILLED, key=lambda shape: abs(FILLED[shape] - filled))


def captioned(caption):
    """(colour, shape) of everything that a caption counts, sorted."""
    kinds = [
        (COLOURS[k % len(COLOURS)], SHAPES[k // len(COLOURS)]) for k in range(KINDS) for _ in range(int(caption[k]))
    ]
    return sorted(kinds)


def test_captions_say_what_a_stranger_sees():
    """Large enough to be read without fail: whole shapes, no two of which touch, of the counted shapes and colours."""
    scenes = Scenes.of(Split.TEST.numbers(300))
    seen = [things_in(picture) for picture in scenes.pictures(side=LARGE, samples=1)]
    said = [captioned(caption) for caption in scenes.captions()]
    assert seen == said
    assert {len(things) for things in said} == {1, 2}
    assert {kind for things in said for kind in things} == set(itertools.product(COLOURS, SHAPES))


def test_shapes_lie_whole_in_the_picture():
    edge = torch.ones(LARGE, LARGE, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    large = Scenes.of(Split.TRAIN.numbers(200)).pictures(side=LARGE, samples=1)
    colourful = large.amax(dim=1) - large.amin(dim=1) > 0.2
    assert not colourful[:, edge].any()


def test_splits_never_meet_and_have_an_end_that_is_told():
    ranges = sorted((int(split.numbers(1)[0]), int(split.numbers(1, first=2**40 - 1)[0])) for split in Split)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))
    with pytest.raises(ValueError, match=r"first is 1099511627775 and count is 2; a split has the scenes 0 to"):
        Split.TRAIN.numbers(2, first=2**40 - 1)
    pictures = torch.cat([drawn(split, 200)[0] for split in Split])
    assert len(pictures.flatten(1).unique(dim=0)) == len(pictures)


def test_a_scene_is_its_number_alone_bit_for_bit():
    pictures, captions = drawn(Split.TRAIN, 300)
    again, counted = drawn(Split.TRAIN, 7, first=290)
    assert torch.equal(pictures[290:297], again)
    assert torch.equal(captions[290:297], counted)


def test_all_that_is_drawn_at_random_is_evenly_drawn():
    """Each count within four deviations of its expectation."""
    scenes = Scenes.of(Split.TRAIN.numbers(20000))
    for values, choices in ((scenes.things - 1, 2), (scenes.shape[:, 0], 5), (scenes.colour[:, 1], 6)):
        expected = len(values) / choices
        deviation = (expected * (1 - 1 / choices)) ** 0.5
        assert ((torch.bincount(values, minlength=choices) - expected).abs() < 4 * deviation).all()
    together = torch.stack([scenes.shape[:, 0], scenes.colour[:, 0], scenes.shape[:, 1], scenes.things]).double()
    assert torch.corrcoef(together).triu(1).abs().max() < 0.03


def test_latents_are_the_pictures_at_unit_variance():
    pictures, _ = drawn(Split.TRAIN, 2000)
    latents = to_latents(pictures)
    assert latents.shape == (2000, 12, SIDE // 2, SIDE // 2)
    assert abs(float(latents.mean())) < 0.05
    assert abs(float(latents.std()) - 1) < 0.05
    assert torch.equal(to_pictures(latents), pictures)


def test_a_caption_reads_as_words():
    caption = torch.zeros(KINDS)
    assert words(caption) == ""
    caption[SHAPES.index("disc") * len(COLOURS) + COLOURS.index("red")] = 2
    caption[SHAPES.index("ring") * len(COLOURS) + COLOURS.index("blue")] = 1
    assert words(caption) == "a red disc and a red disc and a blue ring"
