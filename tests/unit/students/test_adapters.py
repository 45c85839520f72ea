"""LoRA beside a frozen network: exact when off, the merged weights when on, gradients to the adapters only."""

import copy

import pytest
import torch
from comfyui_fewstep.trainers.students.adapters import (
    Adapters,
    LoRALayers,
    LoRAOptions,
    LowRank,
    adaptable_layers,
    begin_as,
    flattened,
    load_into,
    lora_file,
    nearest,
    product,
)
from comfyui_fewstep.trainers.students.student import LoRAStudent
from gpu import GPU, gpu
from torch import nn
from torch.nn import Conv2d, Linear

OPTIONS = LoRAOptions(rank=3, alpha=6.0, layers=LoRALayers.LINEAR_AND_CONV)


class Network(nn.Module):
    """Convolutions with stride, dilation and padding, also around the edge, and linear layers, as UNets have them."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = Conv2d(4, 6, 3, padding=1, padding_mode="circular")
        self.down = Conv2d(6, 8, 3, stride=2, padding=1)
        self.wide = Conv2d(8, 8, 3, padding=3, dilation=2)
        self.to_q = Linear(8, 5, bias=False)
        self.out = Linear(5, 4)

    def forward(self, x):
        hidden = torch.tanh(self.wide(torch.tanh(self.down(torch.tanh(self.first(x))))))
        return self.out(torch.tanh(self.to_q(hidden.mean(dim=(2, 3)))))


def pictures(seed=1):
    return torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def random_set(adapters, seed=2):
    made = adapters.new_set(generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for adapter in made.values():
            adapter.up.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return made


def merged(network, adapters):
    """W + alpha / rank * up down, written out."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for path, adapter in adapters.items():
            weight = copied.get_submodule(path).weight
            product = adapter.up.flatten(1) @ adapter.down.flatten(1)
            weight += (OPTIONS.alpha / OPTIONS.rank) * product.reshape(weight.shape)
    return copied


def test_an_active_set_is_the_merged_network():
    network = Network()
    with Adapters(network, OPTIONS) as adapters:
        chosen = random_set(adapters)
        assert list(chosen) == ["first", "down", "wide", "to_q", "out"]
        with adapters.active(chosen):
            drawn = network(pictures())
    torch.testing.assert_close(drawn, merged(network, chosen)(pictures()), atol=1e-5, rtol=1e-5)
    assert (drawn - network(pictures())).abs().max() > 0.01


def test_without_a_set_and_afterwards_the_network_is_itself_bit_for_bit():
    network = Network()
    before, weights = network(pictures()), copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="somewhere"), Adapters(network, OPTIONS) as adapters:
        assert torch.equal(network(pictures()), before)
        new = adapters.new_set(generator=torch.Generator().manual_seed(0))
        with adapters.active(new):
            assert torch.equal(network(pictures()), before), "a new set changes nothing yet"
        with adapters.active(random_set(adapters)):
            raise RuntimeError("somewhere in training")
    assert torch.equal(network(pictures()), before)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def student_of(adapters, network, seed=0):
    def denoise(x, sigma, **_):
        return network(x) * sigma[:, None]

    names = {path: f"lora_unet_{path}" for path in adapters.paths}
    return LoRAStudent(adapters, OPTIONS, denoise=denoise, names=names, seed=seed)


def loss_of(student):
    return student.denoiser(pictures(), torch.ones(5)).square().mean()


def learn(student, iterations=3):
    optimiser = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(iterations):
        optimiser.zero_grad()
        loss_of(student).backward()
        optimiser.step()


def test_gradients_reach_the_adapters_only():
    network = Network().requires_grad_(False)
    with Adapters(network, OPTIONS) as adapters:
        student = student_of(adapters, network)
        learn(student, 1)  # up starts at zero, so that the first gradient of down is zero
        loss_of(student).backward()
        assert all(value.grad.abs().max() > 0 for value in student.parameters())
        assert all(value.grad is None for value in network.parameters())
        assert not student.teacher(pictures(), torch.ones(5)).requires_grad
        assert not student.teacher(pictures().requires_grad_(), torch.ones(5)).requires_grad, "whatever it is given"


def test_the_teacher_is_the_bare_network_and_then_the_promoted_student():
    network = Network().requires_grad_(False)
    bare = network(pictures())
    with Adapters(network, OPTIONS) as adapters:
        student = student_of(adapters, network)
        learn(student)
        assert torch.equal(student.teacher(pictures(), torch.ones(5)), bare)
        assert not any(name.startswith("teacher.") for name in student.state_dict()), "it costs nothing"
        student.promote()
        promoted = student.denoiser(pictures(), torch.ones(5)).detach()
        assert torch.equal(student.teacher(pictures(), torch.ones(5)), promoted)
        learn(student)
        assert torch.equal(student.teacher(pictures(), torch.ones(5)), promoted), "a copy, which learns no more"
        assert not torch.equal(student.denoiser(pictures(), torch.ones(5)), promoted)


@pytest.mark.parametrize("stages", [0, 1])
def test_a_saved_student_goes_on_where_it_was(stages):
    network = Network().requires_grad_(False)
    with Adapters(network, OPTIONS) as adapters:
        student, other = student_of(adapters, network), student_of(adapters, network, seed=9)
        for _ in range(stages):
            learn(student)
            student.promote()
        learn(student)
        other.promote()  # what is loaded must replace a teacher that is there already
        other.load_state_dict({name: value.clone() for name, value in student.state_dict().items()})
        for role in ("teacher", "denoiser"):
            one, two = (getattr(s, role)(pictures(), torch.ones(5)) for s in (student, other))
            assert torch.equal(one, two)


def test_the_seed_decides_the_initial_values():
    network = Network()
    with Adapters(network, OPTIONS) as adapters:
        one, two, other = (flattened(student_of(adapters, network, seed)._student) for seed in (4, 4, 5))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["first.down"], other["first.down"])


def test_the_file_holds_up_down_and_alpha_of_every_layer():
    with Adapters(Network(), OPTIONS) as adapters:
        chosen = random_set(adapters)
        tensors = lora_file(chosen, alpha=6.0, names={path: f"lora_unet_{path}" for path in adapters.paths})
    assert len(tensors) == 3 * 5
    assert tensors["lora_unet_down.lora_down.weight"].shape == (3, 6, 3, 3)
    assert tensors["lora_unet_down.lora_up.weight"].shape == (8, 3, 1, 1)
    assert float(tensors["lora_unet_to_q.alpha"]) == 6.0
    assert torch.equal(tensors["lora_unet_to_q.lora_up.weight"], chosen["to_q"].up)


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (LoRALayers.ATTENTION, ["to_q"]),
        (LoRALayers.LINEAR, ["to_q", "out"]),
        (LoRALayers.LINEAR_AND_CONV, ["first", "down", "wide", "to_q", "out"]),
    ],
)
def test_layers_are_chosen_by_kind(layers, found):
    assert list(adaptable_layers(Network(), layers)) == found


@pytest.mark.parametrize(
    ("path", "is_attention"),
    [
        ("input_blocks.1.1.transformer_blocks.0.attn1.to_out.0", True),
        ("joint_blocks.0.x_block.attn.qkv", True),
        ("double_blocks.0.img_attn.proj", True),
        ("input_blocks.1.1.transformer_blocks.0.ff.net.2", False),
        ("time_embed.0", False),
        ("final_layer.linear", False),
    ],
)
def test_attention_is_known_by_the_names_of_unets_and_dits(path, is_attention):
    network = root = nn.Module()
    *above, last = path.split(".")
    for part in above:
        root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, Linear(2, 2))
    network.add_module("attn", Linear(2, 2))
    assert (path in adaptable_layers(network, LoRALayers.ATTENTION)) == is_attention


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0"), ({"alpha": float("inf")}, "alpha")],
)
def test_bad_options_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        LoRAOptions(**changed)


def test_new_adapters_begin_as_torch_begins_layers():
    """Evenly within one over the root of what a value is made of; up is 0."""
    layers = nn.ModuleDict({"a": Linear(400, 2), "b": Conv2d(16, 2, 5)})
    options = LoRAOptions(rank=50, alpha=1.0, layers=LoRALayers.LINEAR_AND_CONV)
    for adapter in Adapters(layers, options).new_set(generator=torch.Generator().manual_seed(0)).values():
        assert 0.99 / 20 < adapter.down.abs().max() < 1 / 20
        assert float(adapter.down.detach().std()) == pytest.approx(3**-0.5 / 20, rel=0.02)
        assert not adapter.up.any()


def test_a_student_that_begins_as_a_change_counts_as_its_file_says():
    """alpha / rank times, here twice: in training as for whoever loads it."""
    network, change = Network(), torch.outer(torch.arange(1.0, 6.0), torch.linspace(-0.2, 0.3, 8))
    with Adapters(network, OPTIONS) as adapters:
        student = student_of(adapters, network)
        assert student.begin_as([("to_q", change)]) < 1e-10
        drawn, file = student.denoiser(pictures(), torch.ones(5)), student.exported()
    up, down, alpha = (file[f"lora_unet_to_q.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
    torch.testing.assert_close(alpha / len(down) * up @ down, change)
    with torch.no_grad():
        network.to_q.weight += change
    torch.testing.assert_close(drawn, network(pictures()), atol=1e-5, rtol=1e-5)


def test_the_nearest_adapter_to_a_change_on_a_mac_is_that_on_the_cpu():
    """Whose GPU cannot take it apart."""
    change = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    with gpu():
        found = nearest(change.to(GPU), rank=2)
        assert found.down.device == found.up.device == GPU
        down, up = found.down.cpu(), found.up.cpu()
    wanted = nearest(change, rank=2)
    assert torch.equal(down, wanted.down)
    assert torch.equal(up, wanted.up)


def test_convolutions_of_groups_have_no_adapter():
    """Of its two layers both see all channels, of which a group's weight sees a part."""
    network = nn.Sequential(Conv2d(4, 4, 3, groups=2), Conv2d(4, 4, 1))
    assert list(adaptable_layers(network, LoRALayers.LINEAR_AND_CONV)) == ["1"]


def test_a_network_without_such_layers_is_named():
    with pytest.raises(ValueError, match="layers is attention, but this model has no such layer; try linear"):
        adaptable_layers(nn.Sequential(Conv2d(2, 2, 1)), LoRALayers.ATTENTION)


def test_adapters_of_another_shape_are_named():
    adapters = {"a": LowRank(torch.zeros(2, 3), torch.zeros(3, 2))}
    with pytest.raises(ValueError, match=r"1 differ, a\.down first"):
        load_into(adapters, {"a.down": torch.zeros(2, 4), "a.up": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"1 differ, b\.down first"):
        load_into(adapters, {"a.down": torch.zeros(2, 3), "a.up": torch.zeros(3, 2), "b.down": torch.zeros(1)})


@pytest.mark.parametrize("network", [torch.nn.Linear(6, 5), torch.nn.Conv2d(6, 5, 3)])
def test_adapters_begin_as_a_change_and_keep_what_it_leaves_free(network):
    """A change of rank 2 in adapters of rank 4 that count twice: exact, however small the second, and two are as new ones are."""
    network = torch.nn.ModuleDict({"layer": network})
    adapters = Adapters(network, LoRAOptions(rank=4, alpha=8.0, layers=LoRALayers.LINEAR_AND_CONV))
    own, new = (adapters.new_set(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    shape = network["layer"].weight.shape
    generator = torch.Generator().manual_seed(2)
    up, down = (torch.randn(*size, generator=generator) for size in ((5, 2), (2, shape.numel() // 5)))
    change = ((up * torch.tensor([1.0, 0.02])) @ down).view(shape)
    lost = begin_as(own, [("layer", change)], scale=2.0)
    torch.testing.assert_close(2.0 * product(own["layer"]).detach(), change, atol=1e-5, rtol=1e-5)
    assert lost < 1e-10
    assert torch.equal(own["layer"].down[2:], new["layer"].down[2:])
    assert (own["layer"].up[:, 2:] == 0.0).all()
    with pytest.raises(ValueError, match="it changes other, on which the student has no adapter"):
        begin_as(own, [("other", change)], scale=1.0)
    assert begin_as(adapters.new_set(generator=generator, rank=1), [("layer", change)], scale=1.0) > 1e-5


def test_what_an_adapter_cannot_hold_is_told_as_a_share():
    """Of squares: 9 of 9 + 16 where one direction of two is kept; nothing of no change at all, nor of a small one."""
    network = nn.ModuleDict({"layer": Linear(2, 2)})

    def lost(change):
        own = Adapters(network, LoRAOptions(rank=1)).new_set(generator=torch.Generator().manual_seed(1))
        return begin_as(own, [("layer", change)], scale=0.5)

    assert lost(torch.diag(torch.tensor([3.0, 4.0]))) == pytest.approx(9 / 25)
    assert lost(torch.zeros(2, 2)) == 0.0
    assert lost(1e-8 * torch.outer(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0]))) < 1e-10


def test_the_nearest_adapter_is_the_best_of_its_rank_where_no_direction_stands_out():
    """To 1 % of what is lost at least, the squares of the other singular values."""
    change = torch.randn(96, 80, generator=torch.Generator().manual_seed(3))
    for rank in (1, 8, 79, 80):
        found = nearest(change, rank=rank)
        assert len(found.down) == rank
        least = torch.linalg.svdvals(change.double())[rank:].square().sum()
        assert float((change - product(found)).square().sum()) <= 1.01 * float(least) + 1e-4


def test_a_layer_may_be_given_its_input_by_name():
    network = nn.ModuleDict({"layer": Linear(4, 2)})
    with Adapters(network, OPTIONS) as adapters, adapters.active(random_set(adapters)):
        x = torch.randn(3, 4)
        assert torch.equal(network["layer"](input=x), network["layer"](x))
