"""The shipped judges: how well they read, and that what is wrong with pictures moves the figure that should see it."""

import pytest
import torch
from comfyui_fewstep.benchmarks.scenes.judging.judged import Jury, spoiled
from comfyui_fewstep.benchmarks.scenes.judging.judges import RandomFeatures, load_judges, right
from comfyui_fewstep.benchmarks.scenes.model.world import Split, drawn


@pytest.fixture(scope="module")
def rows():
    """By what was done to real scenes: the row of figures."""
    jury = Jury(Split.TUNING, pictures=640, real=640, memory=640)
    return {name: jury.row(*pictures) for name, pictures in spoiled(jury).items()}


def test_the_reader_reads_real_scenes(rows):
    assert right(load_judges().reader, *drawn(Split.JUDGE_TEST, 500, first=50_000)).value > 0.95
    value, margin = rows["real scenes"]["accuracy"]
    assert value > 0.95 > 1.5 * margin


@pytest.mark.parametrize("figure", ["frechet", "frechet_random", "kernel"])
def test_real_scenes_are_at_no_distance_from_real_scenes(rows, figure):
    value, margin = rows["real scenes"][figure]
    assert abs(value) < 1.5 * margin
    value, margin = rows["all that the teacher learnt from"][figure]
    assert abs(value) < 1.5 * margin


def test_shuffled_prompts_are_seen_by_the_reader_alone(rows):
    assert rows["real scenes, prompts shuffled"]["accuracy"][0] < 0.1
    assert rows["real scenes, prompts shuffled"]["frechet"] == rows["real scenes"]["frechet"]


@pytest.mark.parametrize("figure", ["frechet", "frechet_random", "kernel"])
def test_blur_is_seen_by_every_distance_and_by_recall_and_coverage(rows, figure):
    """And hardly by precision: a blurred picture lies among real ones."""
    value, margin = rows["real scenes, blurred"][figure]
    assert value > 2 * margin
    for name in ("recall", "coverage"):
        assert rows["real scenes, blurred"][name] < 0.9 * rows["real scenes"][name]


@pytest.mark.parametrize("figure", ["frechet", "frechet_random", "kernel"])
def test_dropped_kinds_are_seen_by_every_distance_and_by_recall(rows, figure):
    dropped, real = rows["real scenes of one thing alone"], rows["real scenes"]
    value, margin = dropped[figure]
    assert value > 1.5 * margin
    assert dropped["recall"] < 0.85 * real["recall"]
    assert dropped["precision"] > 0.95 * real["precision"]


def test_copies_are_seen_by_the_share_of_copied_alone(rows):
    """Half of fair drawings lie nearer to what was learnt, and all of a memoriser's; no distance tells them apart."""
    real, copies = rows["real scenes"]["copied"], rows["all that the teacher learnt from"]["copied"]
    assert abs(real[0] - 0.5) < 0.12
    assert copies[0] == 1.0
    few = rows["256 pictures that it learnt from"]
    assert few["copied"][0] == 1.0
    assert few["recall"] < 0.95 * rows["real scenes"]["recall"]


def test_random_features_are_the_same_everywhere():
    pictures = torch.linspace(0, 1, 2 * 768).reshape(2, 3, 16, 16)
    first, second = RandomFeatures()(pictures), RandomFeatures()(pictures)
    assert torch.equal(first, second)
    assert first.shape == (2, 288)
    assert not torch.equal(first[0], first[1])


def test_random_features_do_not_see_a_flat_ground_and_whitened_ones_have_unit_variance():
    flat = torch.rand(4, 3, 1, 1).expand(4, 3, 16, 16)
    grounds = torch.rand(4, 1, 1, 1).expand(4, 3, 16, 16)
    assert RandomFeatures()(grounds).abs().max() < 1e-5 < RandomFeatures()(flat * torch.rand(4, 3, 16, 16)).max()
    pictures, _ = drawn(Split.JUDGE_TEST, 2000)
    judges = load_judges()
    for of in (judges.random, judges.learnt):
        covariance = torch.cov(of(pictures).T)
        assert covariance.shape == (32, 32)
        assert (covariance - torch.eye(32)).abs().max() < 0.25
