"""The host's fast paths for sampling stand aside for a run, and are back after it, however it ends."""

import sys
import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
from architectures import conditioning, model_inputs, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.nodes.host.memory import aliases, lending
from comfyui_fewstep.trainers.students.adapters import LoRAOptions
from comfyui_fewstep.trainers.students.saved_tensors import copied_when_overwritten
from torch import nn


@torch.library.custom_op("fewstep_test::turned", mutates_args=())
def turned(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Fused, and without an autograd formula, as those of the host's kernel library are."""
    return plainly_turned(x, angle)


def plainly_turned(x, angle):
    return x * torch.cos(angle) + x.flip(-1) * torch.sin(angle)


def quantised(x):
    return x.round()


def refusing(x, angle):
    """In place: for inference alone."""
    raise RuntimeError("inference-only")


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the kernel library, with an operator that networks ask it for by name, and one that is not for them."""
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy_kitchen"]:
        monkeypatch.delitem(sys.modules, name)
    kernels = types.ModuleType("comfy_kitchen")
    kernels.turned, kernels.quantised, kernels.turned_, kernels.__all__ = (
        (lambda x, angle: turned(x, angle)),
        quantised,
        refusing,
        ["turned", "quantised", "turned_", "otherwise"],
    )
    kernels.otherwise = refusing
    plain = {name: types.ModuleType(f"comfy_kitchen.backends.eager.{name}") for name in ("lately", "quantization")}
    plain["lately"].turned, plain["lately"].turned_ = plainly_turned, refusing
    plain["lately"].otherwise = lambda x: x
    plain["quantization"].quantised = refusing
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kernels)
    for module in plain.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return kernels


class Rotary(nn.Module):
    def __init__(self, kernels):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.kernels = nn.Linear(4, 4), nn.Linear(4, 4), kernels

    def forward(self, x):
        return self.second(self.kernels.turned(self.first(x), torch.tensor(0.3)))


def test_a_fused_operator_without_a_formula_gets_its_plain_form(library):
    network, x = Rotary(library), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        network(x).square().sum().backward()
    fused = library.turned
    with host.backward.possible():
        assert library.quantised is quantised
        output = network(x)
        output.square().sum().backward()
    assert library.turned is fused
    torch.testing.assert_close(output, network(x))
    wanted = torch.autograd.grad(
        network.second(plainly_turned(network.first(x), torch.tensor(0.3))).square().sum(), network.first.weight
    )
    torch.testing.assert_close(network.first.weight.grad, wanted[0])


def test_an_operator_in_place_writes_and_has_a_backward(library):
    """Also where what is written over is kept for the way back, here by the square before and in the operator."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    angle = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    with host.backward.possible():
        assert library.otherwise is refusing, "what is called otherwise than its plain form stays"
        hidden = x.square() + 1.0
        assert library.turned_(hidden, angle=angle) is hidden
    assert library.turned_ is refusing
    wanted = plainly_turned(x.square() + 1.0, angle)
    torch.testing.assert_close(hidden, wanted)
    found, expected = (torch.autograd.grad(y.square().sum(), (x, angle)) for y in (hidden, wanted))
    torch.testing.assert_close(found, expected)


def test_all_is_put_back_when_a_run_fails(library, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    model, lend, fused = tiny("sd15"), comfy.ops.cast_bias_weight, library.turned
    own = {name: id(value) for name, value in model.model.named_parameters()}
    with (
        pytest.raises(KeyboardInterrupt),
        students.student_of(model, LoRAOptions(rank=2), seed=0),
    ):
        assert comfy.model_management.in_training
        assert comfy.ops.cast_bias_weight is not lend
        assert library.turned is plainly_turned
        raise KeyboardInterrupt
    assert not comfy.model_management.in_training
    assert comfy.ops.cast_bias_weight is lend
    assert library.turned is fused
    assert {name: id(value) for name, value in model.model.named_parameters()} == own
    assert not any("forward" in layer.__dict__ for layer in model.model.modules())


def test_attention_without_a_backward_is_replaced_and_the_hosts_own_stays(monkeypatch):
    attention = comfy.ldm.modules.attention
    q = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))

    def attention_sage(q, k, v, heads):
        raise AssertionError("an inference kernel")

    torch.testing.assert_close(
        host.backward.attention(attention_sage, q, q, q, 2), attention.attention_pytorch(q, q, q, 2)
    )
    called = []

    def attention_split(*args):
        called.append(args)

    host.backward.attention(attention_split, q, q, q, 2)
    assert called


def test_networks_are_told_what_computes_their_attention(monkeypatch):
    model, seen = tiny("sd15"), []
    own = model.model.diffusion_model.forward
    model.model.diffusion_model.forward = lambda *args, transformer_options, **kwargs: (
        seen.append(transformer_options) or own(*args, transformer_options=transformer_options, **kwargs)
    )
    inputs = model_inputs(model, conditioning("sd15", batch=2))
    with torch.no_grad():
        host.training.as_denoiser(model.model, model=model)(
            noise_for(model), torch.ones(2), c_crossattn=inputs["context"]
        )
    assert seen[0]["optimized_attention_override"] is host.backward.attention


def test_an_alias_carries_what_the_host_wrote_on_a_weight():
    """A model of bfloat16 from a file of float32: the host reads there how much room a weight takes."""
    with torch.inference_mode():
        weight = nn.Parameter(torch.randn(3, 2), requires_grad=False)
        weight._model_dtype = torch.bfloat16
    alias = aliases.same_memory(weight)
    assert alias._model_dtype is torch.bfloat16
    assert alias.data_ptr() == weight.data_ptr()
    assert not alias.is_inference()


def test_what_the_host_loads_again_in_a_run_is_aliased_too():
    """As after a preview, for which it put the model away."""
    model = tiny("sd15")
    (name, *_) = (name for name, _ in model.model.named_parameters())
    parent, _, last = name.rpartition(".")
    layer = model.model.get_submodule(parent)
    with host.training.shared_network(model):
        with torch.inference_mode():
            fresh = layer._parameters[last] = nn.Parameter(getattr(layer, last).clone(), requires_grad=False)
            host.training.loaded(model)
        assert not getattr(layer, last).is_inference()
        assert getattr(layer, last).data_ptr() == fresh.data_ptr()
    assert getattr(layer, last) is fresh, "the host's newest object is back"


class Packed(nn.Linear):
    """As layers of GGUF: the weight is unpacked by the layer itself."""

    comfy_cast_weights = True

    def __init__(self):
        super().__init__(4, 3)
        self.requires_grad_(False)
        self.unpacked = []

    def cast_bias_weight(self, input):
        self.unpacked.append(input.shape)
        return self.weight * 2.0, self.bias

    def forward(self, input):
        weight, bias = self.cast_bias_weight(input)
        return nn.functional.linear(input, weight, bias)


def test_layers_that_unpack_their_own_weight_are_asked_for_it():
    layer = Packed()
    x = torch.randn(5, 2, 4, requires_grad=True)
    with lending.lent_again(nn.Sequential(layer)):
        layer(x).sum().backward()
    assert len(layer.unpacked) == 2
    torch.testing.assert_close(x.grad, (2.0 * layer.weight.sum(0)).expand(5, 2, 4))


class Bytes(torch.Tensor):
    """As GGUF's class: made with a keyword, and made an ordinary tensor by torch.Tensor."""

    @staticmethod
    def __new__(cls, value, *, form):
        return torch.Tensor._make_subclass(cls, value)

    def __init__(self, value, *, form):
        self.form = form


class PackedInAClass(Packed):
    def cast_bias_weight(self, input):
        return torch.Tensor(self.weight) * 2.0, self.bias


def test_layers_that_unpack_a_class_of_their_own_may_be_watched():
    """Beside networks that write in place, whose every operator we look at."""
    layer = PackedInAClass()
    plain = layer.weight.detach().clone()
    layer.weight = nn.Parameter(Bytes(plain, form="Q8_0"), requires_grad=False)
    x = torch.randn(5, 2, 4, requires_grad=True)
    with lending.lent_again(nn.Sequential(layer)), copied_when_overwritten():
        layer(x).sum().backward()
        layer(x.detach())
    torch.testing.assert_close(x.grad, (2.0 * plain.sum(0)).expand(5, 2, 4))


class Table(nn.Embedding):
    """As the host's: of words, of which HiDream O1 has 150,000."""

    comfy_cast_weights, bias = True, None
    weight_function = bias_function = [] if hasattr(comfy.ops, "uncast_bias_weight") else None

    def forward(self, numbers):
        self.lent, *_ = comfy.ops.cast_bias_weight(self, torch.ones(1))
        return nn.functional.embedding(numbers, self.lent)


def test_a_table_is_looked_up_in_what_the_host_lends(monkeypatch):
    """And not in a copy of it; what is found there autograd may save, whatever mode the table was lent in."""
    own, lent = comfy.ops.cast_bias_weight, []

    def lend(*args, **kwargs):
        weight, *rest = own(*args, **kwargs)
        lent.append(weight.clone())
        return (lent[-1], *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    layer, scale = Table(9, 4).requires_grad_(False), torch.ones(4, requires_grad=True)
    with lending.lent_again(nn.Sequential(layer)):
        found = layer(torch.tensor([2, 5]))
        (scale * found).sum().backward()
    assert lent[0].is_inference()
    assert layer.lent is lent[0]
    assert torch.equal(found, layer.weight[[2, 5]])
    assert torch.equal(scale.grad, found.sum(dim=0))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolutions_gradient_is_torchs(dims):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    layer = kind(4, 6, 3, stride=2, padding=1, groups=2).requires_grad_(False)
    layer.comfy_cast_weights = False
    layer.weight_function = layer.bias_function = None
    if hasattr(comfy.ops, "uncast_bias_weight"):
        layer.weight_function = layer.bias_function = []
    x = torch.randn(2, 4, *[7] * dims, requires_grad=True)
    weights = torch.randn_like(layer(x))
    (wanted,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    with lending.lent_again(nn.Sequential(layer)):
        (found,) = torch.autograd.grad((layer(x) * weights).sum(), x)
        assert layer(x).grad_fn.name() == "_FrozenBackward"
    assert torch.equal(found, wanted)
    assert layer(x).grad_fn.name() == "ConvolutionBackward0"


def test_tables_that_a_module_keeps_as_plain_attributes_are_aliased():
    """ACE-Step's positions: made under inference mode, and no buffer."""
    module = nn.Linear(2, 2)
    with torch.inference_mode():
        module.table = torch.ones(2)
    own = module.table
    with aliases.aliased(module):
        scale = torch.ones(2, requires_grad=True)
        (scale * module.table).sum().backward()
        assert module.table.data_ptr() == own.data_ptr()
    assert module.table is own


def test_a_sum_written_into_what_came_in_has_a_backward():
    """As the blocks of the host's language models add their residual, which HiDream O1 draws with."""
    own, weight = torch.add, torch.randn(4, requires_grad=True)
    x = torch.randn(3, 4) * weight
    wanted = torch.autograd.grad((x + x.sin()).square().sum(), weight, retain_graph=True)[0]
    with host.backward.possible(), copied_when_overwritten():
        given = x.clone()
        found = torch.add(given, given.sin(), out=given)
        assert found is given
        assert torch.equal(torch.autograd.grad(found.square().sum(), weight)[0], wanted)
        with torch.no_grad():
            assert torch.equal(torch.add(x, 1, out=torch.empty_like(x)), x + 1)
    assert torch.add is own
