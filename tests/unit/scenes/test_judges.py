"""The shipped judges: how well they read, and that what is wrong with pictures moves the figure that should see it."""

import pytest
import torch
import torch.nn.functional as F
from comfyui_fewstep.benchmarks.scenes.judged import Jury, spoiled
from comfyui_fewstep.benchmarks.scenes.judges import Encoder, RandomFeatures, _contrast, _views, load_judges, right
from comfyui_fewstep.benchmarks.scenes.world import Split, drawn


@pytest.fixture(scope="module")
def rows():
    """By what was done to real scenes: the row of figures."""
    jury = Jury(Split.TUNING, pictures=640, real=640, memory=640)
    return {name: jury.row(*pictures) for name, pictures in spoiled(jury).items()}


def test_the_reader_reads_real_scenes(rows):
    assert right(load_judges().reader, *drawn(Split.JUDGE_TEST, 500, first=50_000)).value > 0.95
    value, margin = rows["real scenes"]["accuracy"]
    assert value > 0.95 > 1.5 * margin


@pytest.mark.parametrize("figure", ["frechet", "frechet_learnt", "kernel"])
def test_real_scenes_are_at_no_distance_from_real_scenes(rows, figure):
    value, margin = rows["real scenes"][figure]
    assert abs(value) < 1.5 * margin
    value, margin = rows["all that the teacher learnt from"][figure]
    assert abs(value) < 1.5 * margin


def test_shuffled_prompts_are_seen_by_the_reader_alone(rows):
    assert rows["real scenes, prompts shuffled"]["accuracy"][0] < 0.1
    assert rows["real scenes, prompts shuffled"]["frechet"] == rows["real scenes"]["frechet"]


@pytest.mark.parametrize("figure", ["frechet", "kernel"])
def test_blur_is_seen_by_the_random_features_and_recall(rows, figure):
    """And not by precision: a blurred picture lies among real ones. The learnt features hardly see it."""
    value, margin = rows["real scenes, blurred"][figure]
    assert value > 3 * margin
    assert rows["real scenes, blurred"]["recall"] < 0.8 * rows["real scenes"]["recall"]


@pytest.mark.parametrize("figure", ["frechet", "frechet_learnt", "kernel"])
def test_dropped_kinds_are_seen_by_distances_recall_and_coverage(rows, figure):
    dropped, real = rows["real scenes of one thing alone"], rows["real scenes"]
    value, margin = dropped[figure]
    assert value > 1.5 * margin
    assert dropped["recall"] < 0.85 * real["recall"]
    assert dropped["coverage"] < 0.95 * real["coverage"]
    assert dropped["precision"] > 0.95 * real["precision"]


def test_copies_are_seen_by_the_share_of_copied_alone(rows):
    """Half of fair drawings lie nearer to what was learnt, and all of a memoriser's; no distance tells them apart."""
    real, copies = rows["real scenes"]["copied"], rows["all that the teacher learnt from"]["copied"]
    assert abs(real[0] - 0.5) < 0.12
    assert copies[0] == 1.0
    few = rows["256 pictures that it learnt from"]
    assert few["copied"][0] == 1.0
    assert few["recall"] < 0.95 * rows["real scenes"]["recall"]


def test_views_keep_what_the_features_are_of():
    """Size, colours and sharpness: eight ways to turn, and every view of a flat picture is flat."""
    pictures, _ = drawn(Split.JUDGE, 64)
    found = [_views(pictures, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert all(view.shape == pictures.shape for view in found)
    assert len({view.sum().item() for view in found}) == 12
    edges = [(view.diff(dim=3).abs().mean() + view.diff(dim=2).abs().mean()).item() for view in found]
    sharp = (pictures.diff(dim=3).abs().mean() + pictures.diff(dim=2).abs().mean()).item()
    assert min(edges) > 0.85 * sharp


def test_the_contrast_is_least_where_views_agree():
    """Views that are one picture each, against views of which each is another's."""

    class Fixed(Encoder):
        def __init__(self, order):
            super().__init__()
            self.order, self.turn, self.head = order, 0, torch.nn.Identity()

        def features(self, pictures):
            self.turn += 1
            return torch.eye(len(pictures))[self.order if self.turn % 2 else slice(None)]

    pictures, nobody = torch.rand(8, 3, 16, 16), torch.Generator()
    same, other = (
        _contrast(Fixed(order), pictures, None, nobody) for order in (torch.arange(8), torch.arange(8).roll(1))
    )
    assert float(same) == pytest.approx(float(torch.logsumexp(F.one_hot(torch.tensor(0), 8) / 0.2, 0) - 5), rel=1e-5)
    assert float(other) == pytest.approx(float(same) + 5)


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
