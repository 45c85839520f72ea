"""Gradients do not depend on how the host holds its weights: resident, in a buffer for one layer at a time, quantised."""

import ctypes

import current_architectures
import gradients
import paging
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_patcher
import comfy.ops
from architectures import conditioning, kinds, model_inputs, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions

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


PAGING = pytest.mark.skipif(
    not hasattr(comfy.model_patcher, "ModelPatcherDynamic"), reason="this host has no dynamic VRAM"
)


def size_of(model):
    return sum(value.numel() * value.element_size() for value in model.model.parameters())


@PAGING
@pytest.mark.parametrize(
    "kind, share, sampled, checkpointing",
    [(kind, share, True, False) for kind in ("sdxl", "flux", "wan") for share in (2.0, 0.5, 0.0)]
    + [("flux", 0.5, False, False), ("wan", 0.0, False, True), ("flux", 0.5, True, True)],
)
def test_weights_in_pages_give_the_gradients_of_resident_ones(kind, share, sampled, checkpointing, monkeypatch):
    model, x, inputs = training(kind)
    _, wanted, loss = gradients.of_lora(model, LORA, x, inputs)
    paging.install(monkeypatch, room=int(share * size_of(model)))
    model = paging.paged(model)
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    if sampled:
        with torch.inference_mode():
            gradients.loss_of(host.training.as_denoiser(host.training.loaded(model)), x, inputs)
    _, found, again = gradients.of_lora(model, LORA, x, inputs, gradient_checkpointing=checkpointing, passes=2)
    assert again == pytest.approx(loss, rel=1e-5)
    assert gradients.cosine(found, wanted) > 0.9999
    assert sum(hasattr(layer, "_v") for layer in model.model.modules()) > 10
    assert all(torch.equal(value, before[name]) for name, value in model.model.named_parameters())
