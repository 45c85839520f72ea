"""The critic on networks that take one sample at a time: it judges each as it would in a batch."""

import contextlib

import pytest
import torch
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.data.conditions import one_batch
from comfyui_fewstep.trainers.objective.method import Target
from comfyui_fewstep.trainers.students import features as seeing
from comfyui_fewstep.trainers.students.critic import Critic
from comfyui_fewstep.trainers.students.features import Features
from test_critic import CHANNELS, PLACES, Kinds, Network


def one_by_one(network, *, bare):
    """A denoiser that asks the network for each sample by itself. bare: without an axis of samples."""

    def denoise(x, sigma, **condition):
        said = []
        for row in range(len(x)):
            given = [x[row : row + 1], *(value[row : row + 1] for value in condition.values())]
            whole = torch.cat(given, dim=1)
            said.append(network(whole[0] if bare else whole).reshape(1, -1, CHANNELS))
        return torch.cat(said)

    return denoise


def critic_of(network, denoise, condition=None):
    sample = Batch(torch.randn(1, PLACES, CHANNELS), condition or {})
    features = Features(network, denoise, bare=contextlib.nullcontext, sample=sample)
    made = Critic(features, device=torch.device("cpu"), seed=3, around=contextlib.nullcontext)
    torch.nn.init.normal_(made.parameters()[2], generator=torch.Generator().manual_seed(4))
    return made


@pytest.mark.parametrize("bare", [True, False], ids=["without an axis of samples", "of one row"])
def test_it_says_what_it_says_of_a_batch(bare):
    network = Network()
    batch = critic_of(network, lambda x, sigma: network(x))
    alone = critic_of(network, one_by_one(network, bare=bare))
    assert [tap.path for tap in alone._features.taps] == [tap.path for tap in batch._features.taps]
    assert all(tap.samples is None for tap in alone._features.taps)
    x, real, near = torch.randn(3, 4, PLACES, CHANNELS).unbind()
    sigma, weight = torch.rand(4), torch.rand(4)
    pull = batch.gradient(x, sigma)
    assert pull.flatten(1).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(alone.gradient(x, sigma), pull)
    target = Target(x, sigma, {}, real, weight, near=near)
    for mine, theirs in zip(alone.loss(target), batch.loss(target), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocks_may_run_several_times_in_a_pass():
    """What they say the first time is seen."""
    network = Network()

    def twice(x):
        network(x)
        return network(x + 1.0)

    alone = critic_of(network, one_by_one(twice, bare=True))
    x, sigma = torch.randn(3, PLACES, CHANNELS), torch.rand(3)
    torch.testing.assert_close(
        alone.gradient(x, sigma), critic_of(network, one_by_one(network, bare=True)).gradient(x, sigma)
    )


def test_prompts_of_several_lengths_are_judged_too():
    network = Network()
    condition = {"text": torch.randn(1, 2, CHANNELS)}
    made = critic_of(network, one_by_one(network, bare=True), condition)
    rows = [{"text": torch.randn(1, length, CHANNELS)} for length in (4, 1, 4)]
    x, sigma = torch.randn(3, PLACES, CHANNELS), torch.rand(3)
    pulls = [made.gradient(x[i : i + 1], sigma[i : i + 1], **row) for i, row in enumerate(rows)]
    torch.testing.assert_close(made.gradient(x, sigma, **one_batch(rows)), torch.cat(pulls))


def test_maps_and_what_is_said_of_no_sample():
    """A map has its channels first; of the time alone nothing is seen."""
    network = Kinds(["Maps", "Timed"]).requires_grad_(False)

    def denoise(x, sigma):
        return torch.cat([network(row) for row in x.split(1)])

    x = torch.randn(2, 4, 4, 6)
    found = Features(network, denoise, bare=contextlib.nullcontext, sample=Batch(x[:1], {}))
    assert [(tap.path, tap.samples, tap.axis, tap.channels) for tap in found.taps] == [("blocks.0", None, 1, 8)]
    (seen,) = found(x, torch.ones(2))
    torch.testing.assert_close(seen[1, 7], network.blocks[0](x)[1, :, 1, 1])


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ((1, 8, 8), (2, 8, 8), (0, 2)),
        ((8, 1, 8), (8, 2, 8), (1, 2)),
        ((3, 8, 8), (6, 8, 8), (0, 2)),
        ((8, 8), None, (None, 1)),
        ((1, 8, 8), None, (None, 2)),
        ((1, 8, 8, 8), (2, 8, 8, 8), (0, 1)),
        ((1, 8, 2, 8, 8), (2, 8, 2, 8, 8), (0, 1)),
        ((1, 8, 8, 8), None, (None, 1)),
        ((8, 8, 1, 8), (8, 8, 2, 8), (2, 3)),
        ((5, 1, 4), (5, 2, 4), None),
        ((1, 8, 8), (3, 8, 8), None),
        ((1, 4, 8), (2, 8, 8), None),
        ((1, 8), (1, 8), None),
        ((1, 8), (2, 4, 8), None),
        ((8,), (16,), None),
    ],
)
def test_where_samples_and_channels_are_whatever_else_has_their_size(one, two, expected):
    """Layers of 1 and 8 channels: tokens have them last, and maps behind the samples, where these come first."""
    found = seeing._axes(torch.Size(one), two and torch.Size(two), {1, 8})
    assert found == (expected and (*expected, 8))
