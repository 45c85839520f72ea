"""Gradient checkpointing: the same gradients bit for bit, whatever blocks do in place, and less held for backward."""

import copy

import pytest
import torch
from comfyui_fewstep.benchmarks.architectures.memory import left_in_memory
from comfyui_fewstep.trainers.students.gradient_checkpointing import blocks_of, checkpointed, recomputed
from comfyui_fewstep.trainers.students.saved_tensors import copied_when_overwritten
from torch import Tensor, nn
from torch.nn import Conv2d, Linear
from torch.nn import functional as F


class Careful(nn.Module):
    """Leaves everything alone; uses what all blocks share twice, so that the order of sums shows."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.second, self.shift = (
            Linear(width, 3 * width),
            Linear(3 * width, width),
            Linear(3, width),
        )

    def forward(self, x, shared, options=None):
        return x + self.second(F.silu(self.first(x))) * self.shift(shared) + self.shift(shared.sin())


class InPlace(Careful):
    """Overwrites its input, a tensor that a product saved, and the output that exp saved."""

    def forward(self, x, shared, options=None):
        hidden = self.first(x)
        x += self.second(hidden.tanh()) * self.shift(shared)
        gate = x.sigmoid()
        product = gate * x
        gate *= 2.0
        growth = (0.1 * product).exp()
        growth += gate
        x += growth
        return x


class Listening(Careful):
    """Reads what the network writes into the dictionary between blocks, as the host's attention patches do."""

    def forward(self, x, shared, options=None):
        return super().forward(x * (1.0 + options["block"]), shared)


class TwoStreams(InPlace):
    """Overwrites its inputs in a tuple, in a dictionary and in a list, as blocks of video and sound do."""

    def forward(self, x, shared, options=None):
        first, second = (x, options["second"][0]) if isinstance(x, Tensor) else x
        first = super().forward(first, shared)
        second += self.shift(first[:, :3])
        second *= first.sin()
        return first, second


class Network(nn.Module):
    def __init__(self, kind, depth=3):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.shared = Linear(4, 8), Linear(2, 3)
        self.blocks = nn.ModuleList(kind() for _ in range(depth))
        self.out = Linear(8, 4)

    def forward(self, x, y):
        x, shared = self.embed(x), self.shared(y)
        options = {"second": [0.5 * x]}
        for i, block in enumerate(self.blocks):
            options["block"] = i
            x = block(x, shared=shared, options=options)
        return self.out(x if isinstance(x, Tensor) else sum(x))


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)


def gradients(network, *, allow=False):
    with copied_when_overwritten() if allow else torch.enable_grad():
        loss = network(*data()).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]


def assert_equal(found, expected):
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [Careful, InPlace, Listening, TwoStreams])
def test_the_gradients_are_the_same_bit_for_bit(kind):
    """Twice: the first call of a block learns which inputs it overwrites."""
    network = Network(kind)
    expected = gradients(network, allow=issubclass(kind, InPlace))
    with checkpointed(network):
        assert_equal(gradients(network), expected)
        assert_equal(gradients(network), expected)
        assert_equal(gradients(network, allow=True), expected)
    assert all(value.abs().max() > 0 for value in expected)


class Counting(Careful):
    """Acts by how often it was called, as patches that find their block by counting do: another time in backward."""

    calls = 0

    def forward(self, x, shared, options=None):
        self.calls += 1
        return super().forward(x * self.calls, shared)


@pytest.mark.parametrize("kind", [Careful, InPlace, Listening, TwoStreams, Counting])
def test_a_block_that_answers_otherwise_in_backward_is_found_where_it_is_looked_for(kind):
    """Without looking its gradients are wrong, and nothing says so."""
    network = Network(kind)
    expected = None if kind is Counting else gradients(network, allow=True)
    with checkpointed(network, compared=True):
        if expected is not None:
            assert_equal(gradients(network), expected)
            return
        with pytest.raises(
            RuntimeError, match="another answer when it was computed again, so that its gradients would be"
        ):
            gradients(network)


def test_in_place_is_why_torchs_own_does_not_do():
    """It raises where an input is overwritten; given copies of the inputs it is silently wrong."""
    network = Network(InPlace)
    expected = gradients(network, allow=True)
    for block in network.blocks:
        block.forward = lambda x, shared, options, plain=block.forward: torch.utils.checkpoint.checkpoint(
            lambda x: plain(x.clone(), shared), x, use_reentrant=False
        )
    found = gradients(network)
    assert any(not torch.allclose(one, two) for one, two in zip(found, expected, strict=True)), "now theirs will do"


def test_only_inner_weights_may_learn():
    """As beside a LoRA: no input of the first block wants a gradient, a weight inside one block does."""
    network = Network(InPlace).requires_grad_(False)
    network.blocks[1].first.weight.requires_grad_(True)
    wanted = [network.blocks[1].first.weight]

    def gradient(allow):
        with copied_when_overwritten() if allow else torch.enable_grad():
            return torch.autograd.grad(network(*data()).square().mean(), wanted)

    expected = gradient(True)
    with checkpointed(network):
        assert_equal(gradient(False), expected)


def held(network):
    """Bytes that wait for backward."""
    return left_in_memory(lambda: network(*data()).square().mean())


def test_less_is_held_for_backward_and_all_is_let_go():
    network = Network(Careful, depth=20)
    plain = held(network)
    with checkpointed(network):
        assert held(network) < 0.15 * plain, "little but each block's input"
    live = []

    class Watched(Careful):
        def forward(self, x, shared, options=None):
            hidden = F.silu(self.first(x))
            live.append(torch.utils.weak.WeakTensorKeyDictionary({hidden: True}))
            return self.second(hidden)

    network = Network(Watched)
    with checkpointed(network):
        output = network(*data())
        assert not any(len(one) for one in live), "after the first pass nothing inside a block lives"
        output.sum().backward()
        assert len(live) == 6
        assert not any(len(one) for one in live), "nor after backward, without waiting for the garbage collector"


@pytest.mark.parametrize("kind", [Careful, InPlace, TwoStreams])
def test_backward_leaves_nothing_behind(kind):
    """An input that a block overwrites belongs to the graph of the second pass; both were kept for ever once."""
    network = Network(kind)

    def passes(count):
        for _ in range(count):
            gradients(network)
        return torch.zeros(0)

    with checkpointed(network):
        passes(1)
        assert left_in_memory(lambda: passes(3)) == 0


def test_without_gradient_a_block_runs_as_it_is():
    calls = []
    function = recomputed(lambda x: calls.append(torch.is_grad_enabled()) or x * 2)
    with torch.no_grad():
        assert not function(torch.ones(2, requires_grad=True)).requires_grad
    assert calls == [False]


def test_there_is_no_trace_of_it_afterwards():
    network = Network(Careful)
    own = lambda x, shared, options=None: x  # noqa: E731
    network.blocks[1].forward = own
    before = copy.copy(network.blocks[0].__dict__)
    with pytest.raises(KeyboardInterrupt), checkpointed(network):
        assert "forward" in network.blocks[0].__dict__
        raise KeyboardInterrupt
    assert network.blocks[0].__dict__.keys() == before.keys()
    assert network.blocks[1].__dict__["forward"] is own


def test_what_is_overwritten_too_late_is_an_error_not_a_wrong_gradient():
    weight = torch.ones(3, requires_grad=True)
    function = recomputed(lambda x: (x * weight).tanh())
    x = torch.ones(3)
    loss = function(x).sum()
    x += 1.0
    with pytest.raises(RuntimeError, match=r"inputs 0 of a checkpointed block were overwritten"):
        loss.backward()


def test_what_the_network_overwrites_after_a_block_is_learnt_from_a_pass_without_backward():
    """Wan S2V adds what it hears to the frames in place, which a small block of its injector has seen."""

    class Adding(Network):
        def forward(self, x, y):
            x, shared = self.embed(x), self.shared(y)
            for block in self.blocks:
                x.add_(block(x[:2], shared=shared[:2]).mean(dim=0))
            return self.out(x)

    network = Adding(Careful)
    expected = gradients(network, allow=True)
    with checkpointed(network):
        network(*data())
        assert_equal(gradients(network, allow=True), expected)
        assert_equal(gradients(network, allow=True), expected)


def test_a_second_pass_that_differs_is_an_error():
    weight, calls = torch.ones(3, requires_grad=True), []

    def forgetful(x):
        calls.append(x)
        return (x * weight).tanh() if len(calls) == 1 else x * weight

    loss = recomputed(forgetful)(torch.ones(3)).sum()
    with pytest.raises(RuntimeError, match="saved 2 tensors and then 1"):
        loss.backward()


class Transformer(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(Careful() for _ in range(depth))
        self.feed = nn.Sequential(Careful(), Linear(2, 2))


class Attention(nn.Module):
    """Its last layers are a list, as in the networks that come from diffusers."""

    def __init__(self):
        super().__init__()
        self.to_out = nn.ModuleList([Linear(2, 2), nn.Dropout(0.0)])


class WithLists(nn.Module):
    """A block that has lists inside and is no chain: two large layers in one, experts in another."""

    def __init__(self):
        super().__init__()
        self.attention, self.net = Attention(), nn.ModuleList([Linear(8, 8), nn.SiLU(), Linear(8, 8)])
        self.feed = nn.Module()
        self.feed.experts = nn.ModuleList(Careful() for _ in range(4))


def test_blocks_with_lists_in_them_stay_whole():
    network = nn.Module()
    network.blocks = nn.ModuleList(WithLists() for _ in range(3))
    assert list(blocks_of(network)) == ["blocks.0", "blocks.1", "blocks.2"]


def test_blocks_are_the_members_of_chains_and_none_lies_in_another():
    network = nn.Module()
    network.time_embed = nn.Sequential(Linear(2, 2), nn.SiLU())
    network.input_blocks = nn.ModuleList(
        [nn.Sequential(Conv2d(1, 1, 1)), nn.Sequential(Careful(), Transformer(1)), nn.Sequential(Transformer(2))]
    )
    network.middle = nn.Sequential(Careful())
    assert list(blocks_of(network)) == [
        "input_blocks.1.0",
        "input_blocks.1.1",
        "input_blocks.2.0.transformer_blocks.0",
        "input_blocks.2.0.transformer_blocks.1",
        "input_blocks.2.0.feed.0",
        "middle.0",
    ]
    none = pytest.raises(ValueError, match="gradient_checkpointing is on, but this model has no chain")
    with none, checkpointed(Linear(2, 2)):
        pass
