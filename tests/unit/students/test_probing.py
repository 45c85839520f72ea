"""Layers that would never learn are found; parts that the network does not use are no error."""

import pytest
import torch
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRAOptions
from comfyui_fewstep.trainers.students.probing import require_gradients, require_gradients_of_weights
from torch import nn


class Network(nn.Module):
    """q and k meet in a product; `unused` is computed and thrown away, as the last text stream of many networks."""

    def __init__(self, kernel):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.unused = (nn.Linear(6, 6).requires_grad_(False) for _ in range(4))
        self.kernel = kernel

    def forward(self, x):
        self.unused(x)
        return self.kernel(self.q(x), self.k(x)) @ self.v(x)


def scores(q, k):
    return torch.softmax(q @ k.transpose(-1, -2), -1)


def probed(kernel):
    network, x = Network(kernel), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    with Adapters(network, LoRAOptions(rank=2)) as adapters:
        chosen = adapters.new_set(generator=torch.Generator().manual_seed(2))
        before = [value.clone() for one in chosen.values() for value in (one.down, one.up)]
        try:
            require_gradients(adapters, chosen, lambda: network(x))
        finally:
            after = [value for one in chosen.values() for value in (one.down, one.up)]
            assert all(torch.equal(a, b) and a.grad is None for a, b in zip(after, before, strict=True))


def test_a_part_that_is_not_used_is_no_error():
    probed(scores)


def test_a_kernel_without_backward_is_found_by_the_first_layer_before_it():
    with pytest.raises(
        ValueError, match=r"^q would never learn, nor perhaps 2 other layers of 4.*no gradient comes back"
    ):
        probed(lambda q, k: scores(q.detach(), k.detach()))


def test_a_kernel_that_gives_one_input_no_gradient_is_found():
    with pytest.raises(ValueError, match=r"^k would never learn"):
        probed(lambda q, k: scores(q, k.detach()))


def test_a_gradient_of_nothing_but_zeros_is_none():
    class Zeros(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k):
            return scores(q, k)

        @staticmethod
        def backward(ctx, grad):
            return torch.zeros(2, 5, 6), torch.zeros(2, 5, 6)

    with pytest.raises(ValueError, match=r"^q would never learn"):
        probed(Zeros.apply)


def test_two_layers_that_are_felt_together_only_are_no_error():
    """As behind a gate that is zero: neither has a gradient there, by mathematics."""

    class Gated(Network):
        def forward(self, x):
            q, k = ((layer(x) - nn.functional.linear(x, layer.weight, layer.bias)) for layer in (self.q, self.k))
            return self.v(x) + q * k

    network, x = Gated(scores), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    with Adapters(network, LoRAOptions(rank=2)) as adapters:
        require_gradients(adapters, adapters.new_set(generator=torch.Generator().manual_seed(2)), lambda: network(x))


def full(kernel):
    """A gate at zero besides: what is behind it has no gradient, and is not felt."""
    network, x = Network(kernel).requires_grad_(True), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    gate = nn.Parameter(torch.zeros(()))
    weights = dict(network.named_parameters()) | {"gate": gate}
    before = {name: value.detach().clone() for name, value in weights.items()}
    try:
        require_gradients_of_weights(weights, lambda: network(x) + gate * network.unused(x))
    finally:
        assert all(torch.equal(value, before[name]) and value.grad is None for name, value in weights.items())


def test_full_weights_that_learn_are_no_error_nor_those_that_are_not_felt():
    full(scores)


def test_full_weights_before_a_kernel_without_backward_are_found():
    with pytest.raises(ValueError, match=r"^q.weight would never learn, nor perhaps 5 other weights of 9"):
        full(lambda q, k: scores(q.detach(), k.detach()))
