"""The critic: losses and gradients against their closed forms, on an exact pair of Gaussians; and what it sees through."""

import contextlib
import math

import pytest
import torch
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.data.conditions import one_batch
from comfyui_fewstep.trainers.objective.method import Target
from comfyui_fewstep.trainers.students import critic as critics
from comfyui_fewstep.trainers.students import features as seeing
from comfyui_fewstep.trainers.students.critic import Critic
from comfyui_fewstep.trainers.students.features import Features
from comfyui_fewstep.trainers.students.gradient_checkpointing import checkpointed
from torch import nn

CHANNELS, PLACES = 6, 5


class Block(nn.Module):
    """Counts its passes, and overwrites its input as hosts' blocks do."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        self.linear, self.calls = nn.Linear(channels, channels), 0

    def forward(self, x):
        self.calls += 1
        hidden = torch.tanh(self.linear(x))
        x += hidden
        return x


class Network(nn.Module):
    """Eight blocks in a chain, on (B, places, channels)."""

    def __init__(self, count=8):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block() for _ in range(count)])
        self.requires_grad_(False)

    def forward(self, x):
        x = x.clone()
        for block in self.blocks:
            x = block(x)
            x *= 1.5  # after the block has said it
        return x


def features_of(network, *, x=None, denoise=None):
    """x: the sample of the trial passes."""
    denoise = denoise or (lambda x, sigma: network(x))
    sample = Batch(torch.randn(1, PLACES, CHANNELS) if x is None else x, {})
    return Features(network, denoise, bare=contextlib.nullcontext, sample=sample)


def critic_of(network, **changed):
    return Critic(features_of(network, **changed), device=torch.device("cpu"), seed=3, around=contextlib.nullcontext)


class Shown(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x)


class Straight(nn.Module):
    """A network that shows what it is given."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Shown()])
        with torch.no_grad():
            self.blocks[0].linear.weight.fill_(1.0)
            self.blocks[0].linear.bias.zero_()
        self.requires_grad_(False)

    def forward(self, x):
        return self.blocks[0](x)


class Logit(nn.Module):
    """A head whose logit is linear in what it sees."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        nn.init.constant_(self.linear.weight, weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, seen):
        return self.linear(seen).squeeze(-1)


def linear_critic(weight=0.0):
    made = critic_of(Straight(), x=torch.zeros(1, 1, 1))
    made._heads = nn.ModuleList([Logit(weight)])
    return made


def pairs(drawn, real, *, shaken=0.0, weight=1.0):
    ones = torch.ones(len(drawn))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(8))
    return Target(drawn, ones, {}, real, weight * ones, near=real + shaken * noise)


def gaussian(mean, count, seed):
    return mean + torch.randn(count, 1, 1, generator=torch.Generator().manual_seed(seed))


def test_a_critic_that_knows_nothing_has_the_loss_of_two_coins_and_pulls_nowhere():
    made = linear_critic()
    loss, each = made.loss(pairs(gaussian(0.0, 9, 0), gaussian(1.0, 9, 1), weight=0.5))
    assert float(loss.detach()) == pytest.approx(0.5 * 2.0 * math.log(2.0))
    torch.testing.assert_close(each, torch.full((9, 1), 2.0 * math.log(2.0)))
    assert not made.gradient(gaussian(0.0, 9, 0), torch.ones(9)).any()


def test_its_optimum_is_the_logarithm_of_the_two_densities_ratio(monkeypatch):
    """Of N(m, 1) against N(-m, 1) it is 2 m x: above 0 where pictures are. The smoothness is a bias of its own."""
    monkeypatch.setattr(critics, "SMOOTHNESS", 0.0)
    made, mean = linear_critic(), 0.6
    drawn, real = gaussian(-mean, 40000, 0), gaussian(mean, 40000, 1)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        made.loss(pairs(drawn, real))[0].backward()
        optimiser.step()
    (head,) = made._heads
    assert float(head.linear.weight.detach()) == pytest.approx(2.0 * mean, rel=0.03)
    assert float(head.linear.bias.detach()) == pytest.approx(0.0, abs=0.03)
    x = torch.tensor([[[-1.0]], [[0.0]], [[1.0]]])
    pull = made.gradient(x, torch.ones(3)).flatten()
    expected = -torch.sigmoid(-2.0 * mean * x.flatten()) * 2.0 * mean
    torch.testing.assert_close(pull, expected, rtol=0.05, atol=0.0)
    assert (pull < 0).all(), "less of it is more real: a step against the gradient goes to where pictures are"


def test_smoothness_is_the_approximate_r1():
    """Of a linear logit w x, and 0.1 of unit noise: 0.01 w^2 in the mean."""
    weight, count = 1.7, 40000
    real = gaussian(0.0, count, 1)
    with_noise, without = (
        linear_critic(weight).loss(pairs(real, real, shaken=shaken))[0].detach() for shaken in (0.1, 0.0)
    )
    found = float(with_noise - without)
    assert found == pytest.approx(critics.SMOOTHNESS * 0.01 * weight**2, rel=0.03)
    _, told = linear_critic(weight).loss(pairs(real, real))
    torch.testing.assert_close(without, told.mean(), msg="of the picture itself there is none")


def test_every_depth_counts_alike_however_many_places_it_has():
    """In a UNet the deep ones, which see what the picture is of, have a sixteenth of the others' places."""
    made = linear_critic()
    made._heads = nn.ModuleList([Logit(1.0), Logit(1.0)])
    made._features = lambda x, sigma: [torch.full((len(x), 2, 1), 3.0), torch.zeros(len(x), 8, 1)]
    _, each = made.loss(pairs(gaussian(0.0, 4, 0), gaussian(1.0, 4, 1)))
    told = math.log1p(math.exp(-3.0)) + math.log1p(math.exp(3.0)), 2.0 * math.log(2.0)
    torch.testing.assert_close(each, torch.full((4, 1), sum(told) / 2))


def test_prompts_of_several_lengths_are_each_judged_as_alone():
    """Their tokens are places of the network's, so that each sample has as many as its prompt."""
    network = Network()

    def denoise(x, sigma, text):
        return network(torch.cat([x, text], dim=1))

    sample = Batch(torch.randn(1, PLACES, CHANNELS), {"text": torch.randn(1, 2, CHANNELS)})
    features = Features(network, denoise, bare=contextlib.nullcontext, sample=sample)
    made = Critic(features, device=torch.device("cpu"), seed=3, around=contextlib.nullcontext)
    torch.nn.init.normal_(made.parameters()[2], generator=torch.Generator().manual_seed(4))
    rows = [{"text": torch.randn(1, length, CHANNELS)} for length in (4, 1, 4, 2)]
    x, real, near = torch.randn(3, 4, PLACES, CHANNELS).unbind()
    sigma, weight = torch.rand(4), torch.rand(4)
    alone = [(slice(i, i + 1), rows[i]) for i in range(4)]
    pulls = torch.cat([made.gradient(x[i], sigma[i], **row) for i, row in alone])
    torch.testing.assert_close(made.gradient(x, sigma, **one_batch(rows)), pulls)
    losses = [made.loss(Target(x[i], sigma[i], row, real[i], weight[i], near=near[i])) for i, row in alone]
    loss, each = made.loss(Target(x, sigma, one_batch(rows), real, weight, near=near))
    assert pulls.flatten(1).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(loss, torch.stack([one for one, _ in losses]).mean())
    torch.testing.assert_close(each, torch.cat([one for _, one in losses]))


def test_a_target_without_the_noisier_picture_is_refused():
    real = gaussian(0.0, 3, 1)
    with pytest.raises(ValueError, match="no picture that is a little noisier"):
        linear_critic().loss(pairs(real, real)._replace(near=None))


def test_the_gradient_is_that_of_the_loss_through_the_network():
    """Against differences, in float64 but for the heads; of each sample alone; and no weight has one of it."""
    network = Network()
    made = critic_of(network)
    x = torch.randn(3, PLACES, CHANNELS)
    found = made.gradient(x, torch.ones(3))

    def loss(x):
        logits = made._logits(x, torch.ones(len(x)), {}, through=False)
        return torch.stack([nn.functional.softplus(-value).mean(dim=1) for value in logits]).mean(dim=0).detach()

    for place in ((0, 0, 0), (1, 3, 2), (2, 4, 5)):
        step = torch.zeros_like(x)
        step[place] = 1e-2
        slope = (loss(x + step) - loss(x - step)) / 2e-2
        assert float(slope[place[0]]) == pytest.approx(float(found[place]), rel=0.02, abs=1e-5)
    assert all(value.grad is None for value in made.parameters())
    assert not found.requires_grad
    assert not x.requires_grad, "the samples are the caller's"
    torch.testing.assert_close(made.gradient(x[1:2], torch.ones(1))[0], found[1])


def test_what_it_learns_by_leaves_the_network_without_a_graph():
    network = Network()
    made = critic_of(network)
    x = torch.randn(4, PLACES, CHANNELS)
    seen = []
    network.blocks[0].register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    made.loss(pairs(x, x + 1.0, shaken=0.1))[0].backward()
    assert seen == [False] * 3
    assert all(value.grad is not None and value.grad.isfinite().all() for value in made.parameters())


def test_blocks_computed_again_give_the_same_gradient():
    network = Network()
    made, x = critic_of(network), torch.randn(2, PLACES, CHANNELS)
    plain = made.gradient(x, torch.ones(2))
    with checkpointed(network):
        assert torch.equal(made.gradient(x, torch.ones(2)), plain)


def test_half_precision_has_room_for_the_gradient():
    """One value of 65,536 counts so little that float16 would round it to 0 without a scale."""

    def denoise(x, sigma):
        return network(x.half().float())

    network = Straight()
    x = torch.randn(1, 65536, 1)
    made = critic_of(network, x=x, denoise=denoise)
    made._heads = nn.ModuleList([Logit(1e-3)])
    exact = -torch.sigmoid(-1e-3 * x) * 1e-3 / 65536
    assert not exact.half().any()
    torch.testing.assert_close(made.gradient(x, torch.ones(1)), exact, rtol=2e-3, atol=0.0)


# --- features --------------------------------------------------------------------------------------------------------


def test_it_looks_at_three_depths_and_ends_the_pass_behind_the_last():
    network = Network()
    features = features_of(network)
    assert [tap.path for tap in features.taps] == ["blocks.2", "blocks.4", "blocks.6"]
    for block in network.blocks:
        block.calls = 0
    seen = features(torch.randn(3, PLACES, CHANNELS), torch.ones(3))
    assert [value.shape for value in seen] == [(3, PLACES, CHANNELS)] * 3
    assert [block.calls for block in network.blocks] == [1] * 7 + [0]


def test_it_sees_what_a_block_said_not_what_was_written_over_it_later():
    network = Network()
    features, x = features_of(network), torch.randn(3, PLACES, CHANNELS)
    said, hidden = [], x.clone()
    for block in network.blocks[:7]:
        hidden = block(hidden)
        said.append(hidden.clone())
        hidden = 1.5 * hidden
    for found, expected in zip(features(x, torch.ones(3)), (said[2], said[4], said[6]), strict=True):
        assert torch.equal(found, expected)


def test_no_hook_stays_behind_even_where_the_network_fails():
    network = Network()

    def fails(x, sigma):
        network(x)
        raise ArithmeticError("broken")

    features_of(network)(torch.randn(1, PLACES, CHANNELS), torch.ones(1))
    with pytest.raises(ArithmeticError):
        features_of(network, denoise=fails)
    assert not any(block._forward_hooks for block in network.blocks)


class Kinds(nn.Module):
    """Blocks that speak in many shapes, whatever the rest of the network makes of it."""

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    class Streams(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x), self.linear(x[:, :3])

    class Last(Streams):
        def forward(self, x):
            return self.linear(x.reshape(len(x), 4, 6, 8))

    class Frames(Streams):
        """(B x frames, places, channels)."""

        def forward(self, x):
            return self.linear(x.reshape(2 * len(x), 12, 8))

    class Behind(Streams):
        """(height, width, B, channels)."""

        def forward(self, x):
            return self.linear(x.reshape(len(x), 4, 6, 8).permute(1, 2, 0, 3))

    class Shared(Streams):
        def forward(self, x):
            return self.linear(x)[:1]

    class Timed(Streams):
        """Of the time alone."""

        def forward(self, x):
            return self.linear(torch.ones_like(x))

    def __init__(self, kinds):
        super().__init__()
        self.blocks = nn.ModuleList([getattr(self, kind)() for kind in kinds])
        self.kinds = kinds

    def forward(self, x):
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind == "Maps":
                x = block(x).flatten(2).transpose(1, 2)
            elif kind == "Streams":
                x = block(x)[0]
            else:
                block(x)
        return x


def test_maps_tokens_and_several_streams_are_seen_place_by_place(monkeypatch):
    """A map is (B, channels, height, width), tokens are (B, places, channels); frames may be rows, and rows not come first."""
    network = Kinds(["Maps", "Streams", "Last", "Frames", "Behind", "Shared", "Timed"]).requires_grad_(False)
    x = torch.randn(3, 4, 4, 6)
    monkeypatch.setattr(seeing, "DEPTHS", (0.0, 0.2, 0.4, 0.6, 0.8))
    found = Features(network, lambda x, sigma: network(x), bare=contextlib.nullcontext, sample=Batch(x[:1], {}))
    assert [(tap.path, tap.which, tap.samples, tap.axis, tap.channels) for tap in found.taps] == [
        ("blocks.0", 0, 0, 1, 8),
        ("blocks.1", 0, 0, 2, 8),
        ("blocks.1", 1, 0, 2, 8),
        ("blocks.2", 0, 0, 3, 8),
        ("blocks.3", 0, 0, 2, 8),
        ("blocks.4", 0, 2, 3, 8),
    ]
    maps, picture, text, last, frames, behind = found(x, torch.ones(3))
    assert [value.shape[1] for value in (maps, picture, text, last, frames, behind)] == [24, 24, 3, 24, 24, 24]
    expected = network.blocks[0](x)
    torch.testing.assert_close(maps[2, 7], expected[2, :, 1, 1])
    tokens = network.blocks[1](expected.flatten(2).transpose(1, 2))[0]
    torch.testing.assert_close(frames[2, 17], network.blocks[3].linear(tokens)[2, 17])
    torch.testing.assert_close(behind[2, 17], network.blocks[4].linear(tokens)[2, 17])


@pytest.mark.parametrize("kind", ["Shared", "Timed"])
def test_what_is_said_of_all_samples_or_of_none_is_not_seen(kind):
    network = Kinds([kind]).requires_grad_(False)
    with pytest.raises(ValueError, match="adversarial_weight is above 0, but this model has no blocks"):
        features_of(network, x=torch.randn(1, 5, 8))


def test_state_comes_back_and_others_state_is_refused():
    one, other = critic_of(Network()), critic_of(Network())
    with torch.no_grad():
        one.parameters()[0].add_(1.0)
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"these heads do not fit the model: 1 differ"):
        other.load_state_dict({name: value for name, value in one.state_dict().items() if name != "0.take.bias"})
