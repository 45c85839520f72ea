"""Gradients do not depend on how the host holds its weights: resident, in a buffer for one layer at a time, quantised."""

import ctypes

import current_architectures
import gradients
import pytest
import quantised
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.model_patcher
import comfy.ops
from architectures import conditioning, grid, kinds, model_inputs, noise_for, tiny
from comfyui_fewstep.benchmarks.architectures import paging
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from torch import nn

LORA = LoRAOptions(rank=4, alpha=8.0, layers=LoRALayers.LINEAR_AND_CONV)


@pytest.fixture
def one_buffer(monkeypatch):
    """Has the host lend every weight from one and the same memory, written to behind torch's back, as by a raw pointer."""
    own, memory = comfy.ops.cast_bias_weight, torch.empty(2**25, dtype=torch.uint8)
    lent = []

    def lend(layer, *args, **kwargs):
        weight, *rest = own(layer, *args, **kwargs)
        size = weight.numel() * weight.element_size()
        ctypes.memmove(memory.data_ptr(), weight.contiguous().data_ptr(), size)
        lent.append(layer)
        return (memory[:size].view(weight.dtype).view(weight.shape), *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    return lent


def training(kind):
    """(MODEL whose layers take what they are lent, noise, inputs)"""
    if kind in current_architectures.ARCHITECTURES and not has_of_old(kind):
        return current_architectures.tiny(kind)
    model = tiny(kind, computes_in=torch.float32)
    prompt = model_inputs(model, conditioning(kind, batch=2))
    prompt["c_crossattn"] = prompt.pop("context")
    return model, noise_for(model), prompt


def has_of_old(kind):
    return kind in ("sd15", "sdxl", "sd3")


def casting(model):
    for layer in model.model.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True
    return model


ALL = [*kinds("sd15", "sdxl", "sd3"), *current_architectures.kinds("flux", "wan", "qwen_image", "z_image", "ltxv")]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ALL)
def test_a_lent_weight_may_be_overwritten_after_the_forward(kind, checkpointing, request):
    model, x, inputs = training(kind)
    _, wanted, loss = gradients.of_lora(model, LORA, x, inputs)
    casting(model)
    lent = request.getfixturevalue("one_buffer")
    _, found, again = gradients.of_lora(model, LORA, x, inputs, gradient_checkpointing=checkpointing)
    assert len(lent) > 2 * len(found) / 2
    assert again == pytest.approx(loss, rel=1e-5)
    assert gradients.cosine(found, wanted) > 0.9999
    assert comfy.ops.cast_bias_weight.__name__ == "lend"
    assert comfy.ops.cast_bias_weight.__module__ == __name__, "the host's own is back"


@pytest.mark.parametrize("layers", list(LoRALayers), ids=lambda layers: layers.value)
@pytest.mark.parametrize("kind", ALL)
def test_layers_without_an_adapter_pass_the_gradient_on(kind, layers):
    """What blocks then do with their output, such as adding to it in place, is as torch's own layers allow."""
    model, x, inputs = training(kind)
    options = LoRAOptions(rank=4, alpha=8.0, layers=layers)
    adapters, found, _ = gradients.of_lora(model, options, x, inputs)
    wanted, _ = gradients.of_merged(host.training.trainable_copy(model), adapters, options, x, inputs)
    assert gradients.cosine(found, wanted) > 0.9999


PAGING = pytest.mark.skipif(
    not hasattr(comfy.model_patcher, "ModelPatcherDynamic"), reason="this host has no dynamic VRAM"
)


def size_of(model):
    return sum(value.numel() * value.element_size() for value in model.model.parameters())


CHEAP = [(kind, share, True, False) for kind in ("sdxl", "flux", "wan") for share in (2.0, 0.5, 0.0)]
CHEAP += [("flux", 0.5, False, False), ("wan", 0.0, False, True), ("flux", 0.5, True, True)]
PAGED = grid(
    ("sdxl", "flux", "wan"), (2.0, 0.5, 0.0), (True, False), (False, True), gate=lambda *values: values in CHEAP
)
"""Kinds, room for all, half and almost none of the weights, sampled before or not, with checkpointing or without."""


def in_pages(model, x, inputs, monkeypatch, *, share, sampled):
    """The MODEL with weights in pages, of which a share has room; sampled: once before, by the host's own loading."""
    paging.install(monkeypatch, room=int(share * size_of(model)))
    model = paging.paged(model)
    if sampled:
        with torch.inference_mode():
            gradients.loss_of(host.training.as_denoiser(host.training.loaded(model)), x, inputs)
    return model


@PAGING
@pytest.mark.parametrize(("kind", "share", "sampled", "checkpointing"), PAGED)
def test_weights_in_pages_give_the_gradients_of_resident_ones(kind, share, sampled, checkpointing, monkeypatch):
    model, x, inputs = training(kind)
    _, wanted, loss = gradients.of_lora(model, LORA, x, inputs)
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    model = in_pages(model, x, inputs, monkeypatch, share=share, sampled=sampled)
    _, found, again = gradients.of_lora(model, LORA, x, inputs, gradient_checkpointing=checkpointing, passes=2)
    assert again == pytest.approx(loss, rel=1e-5)
    assert gradients.cosine(found, wanted) > 0.9999
    assert sum(hasattr(layer, "_v") for layer in model.model.modules()) > 10
    assert all(torch.equal(value, before[name]) for name, value in model.model.named_parameters())


@PAGING
@pytest.mark.parametrize(
    ("kind", "share", "sampled", "checkpointing"),
    grid(
        ("sdxl", "flux", "wan"),
        (2.0, 0.5, 0.0),
        (True, False),
        (False, True),
        gate=lambda kind, share, sampled, checkpointing: share == 0.5 and sampled and checkpointing == (kind == "wan"),
    ),
)
def test_full_weights_from_pages_learn_as_resident_ones(kind, share, sampled, checkpointing, monkeypatch):
    model, x, inputs = training(kind)
    wanted, loss = gradients.of_full_weights(model, x, inputs)
    model = in_pages(model, x, inputs, monkeypatch, share=share, sampled=sampled)
    found, again = gradients.of_full_weights(model, x, inputs, gradient_checkpointing=checkpointing)
    assert again == pytest.approx(loss, rel=1e-5)
    assert gradients.cosine_of_all(found, wanted) > 0.9999


# --- quantised classes -----------------------------------------------------------------------------------------------


class Eighths(torch.Tensor):
    """A weight of eight bits and one scale, which stands for float32: of a class that autograd cannot see into."""

    @staticmethod
    def __new__(cls, bytes_, scale):
        return torch.Tensor._make_wrapper_subclass(cls, bytes_.shape, dtype=torch.float32)

    def __init__(self, bytes_, scale):
        self.bytes_, self.scale = bytes_, scale

    def dequantize(self):
        return self.bytes_.float() * self.scale

    def __tensor_flatten__(self):
        return ["bytes_"], {}

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func.overloadpacket in (aten.detach, aten._to_copy, aten.to):
            return Eighths(args[0].bytes_, args[0].scale)
        raise NotImplementedError(func)


class QuantisedLinear(nn.Module):
    """As the host's own: no nn.Linear, but with its sizes."""

    comfy_cast_weights = True
    weight_function = bias_function = None

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scale = layer.weight.abs().max() / 127
        kept = Eighths((layer.weight / scale).round().to(torch.int8), scale)
        self.weight, self.bias = nn.Parameter(kept, requires_grad=False), layer.bias
        layer.weight.copy_(kept.dequantize())

    def _apply(self, fn, recurse=True):
        return self

    def forward(self, input):
        weight, bias = comfy.ops.cast_bias_weight(self, input)
        return nn.functional.linear(input, weight.dequantize(), bias)


@pytest.mark.skipif(hasattr(comfy.ops, "uncast_bias_weight"), reason="a current host has quantised classes of its own")
def test_layers_of_a_quantised_class_learn_as_their_values_would():
    model, x, inputs = training("sd15")
    plain, *_ = training("sd15")
    with torch.inference_mode():
        for (path, layer), (_, same) in zip(
            list(model.model.named_modules()), list(plain.model.named_modules()), strict=True
        ):
            if isinstance(layer, nn.Linear):
                parent, _, name = path.rpartition(".")
                setattr(model.model.get_submodule(parent), name, QuantisedLinear(layer))
                same.weight.copy_(layer.weight)
    adapters, found, _ = gradients.of_lora(model, LORA, x, inputs)
    wanted, _ = gradients.of_merged(host.training.trainable_copy(plain), adapters, LORA, x, inputs)
    assert any("attn1.to_q" in path for path in found)
    assert gradients.cosine(found, wanted) > 0.9999


@pytest.mark.parametrize("form", quantised.formats())
@pytest.mark.parametrize("kind", current_architectures.kinds("flux", "wan"))
def test_quantised_models_train_and_are_whole_afterwards(kind, form):
    model, x, inputs, plain = quantised.tiny(kind, form)
    before = {name: inner.clone() for name, inner in quantised.contents(model).items()}
    adapters, found, _ = gradients.of_lora(model, LORA, x, inputs, gradient_checkpointing=True)
    wanted, _ = gradients.of_merged(host.training.trainable_copy(plain), adapters, LORA, x, inputs)
    assert len(found) == len(wanted) > 20
    assert gradients.cosine(found, wanted) > 0.999
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        model.model.to("cpu")
    after = quantised.contents(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("form", quantised.formats())
@pytest.mark.parametrize("kind", current_architectures.kinds("flux", "ltxv"))
def test_a_quantised_teacher_is_what_the_host_samples_bit_for_bit(kind, form):
    """Outside of inference mode torch takes a product apart where its input is a view, and int8 is rounded otherwise."""
    model, x, inputs, _ = quantised.tiny(kind, form)
    sigma = torch.full((len(x),), gradients.SIGMA)
    with torch.inference_mode():
        wanted = host.training.as_denoiser(host.training.loaded(model), model=model)(x, sigma, **inputs)
    with torch.inference_mode(False), students.student_of(model, LORA, seed=0) as student:
        found = student.teacher(x, sigma, **inputs)
        assert not found.is_inference()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
