"""A model larger than its device trains: the host brings each layer's weight for its forward and again for its backward.

Its own way of lending, with every loan a copy that is counted for as long as somebody holds it, as on a device of its own.
"""

import collections
import weakref

import current_architectures
import gradients
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.ops
from architectures import kinds, tiny
from comfyui_fewstep.benchmarks.architectures.memory import left_in_memory
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from test_lending import has_of_old, size_of, training
from test_weights import offload, styled

LORA = LoRAOptions(rank=4, alpha=8.0, layers=LoRALayers.LINEAR_AND_CONV)
ALL = [*kinds("sd15", "sdxl", "sd3", thorough=["sdxl"]), *current_architectures.kinds("flux", "wan", "qwen_image")]


class Device:
    """What the host has lent and nobody let go of: bytes now, and at most; loans by layer."""

    def __init__(self, monkeypatch):
        self.now, self.most, self.loans = 0, 0, collections.Counter()
        own = comfy.ops.cast_bias_weight

        def lend(layer, *args, **kwargs):
            self.loans[id(layer)] += 1
            kept = dict(layer._parameters)
            for name, value in kept.items():  # the host of 2024 adds patches into what it takes for the device's own
                layer._parameters[name] = value if value is None else torch.nn.Parameter(value.clone(), False)
            try:
                weight, bias, *stream = own(layer, *args, **kwargs)
            finally:
                layer._parameters.update(kept)
            for value in (weight, bias):
                self._brought(value)
            return (weight, bias, *stream)

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)

    def _brought(self, value):
        size = 0 if value is None else value.numel() * value.element_size()
        if size:
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(value, self._left, size)

    def _left(self, size):
        self.now -= size


def waiting(model, x, inputs, **how):
    """Bytes that wait for backward after a forward pass."""
    with torch.inference_mode(False), torch.enable_grad(), students.student_of(model, LORA, seed=0, **how) as student:
        for _ in range(2):
            with student.autograd():
                left = left_in_memory(lambda: gradients.loss_of(student.denoiser, x, inputs))
    return left


def largest_layer(model):
    layers = (sum(p.numel() * p.element_size() for p in m.parameters(recurse=False)) for m in model.model.modules())
    return max(layers)


@pytest.mark.parametrize(
    ("with_style", "checkpointing"), [(False, False), (False, True), (True, False)], ids=["", "checkpointing", "style"]
)
@pytest.mark.parametrize("kind", ALL)
def test_a_lora_learns_on_weights_that_are_brought_layer_by_layer(kind, with_style, checkpointing, monkeypatch):
    model, x, inputs = training(kind)
    model = styled(model) if with_style else model
    _, wanted, loss = gradients.of_lora(model, LORA, x, inputs)
    resident = tiny(kind) if has_of_old(kind) else training(kind)[0]
    usual = waiting(resident, x, inputs, gradient_checkpointing=checkpointing)
    offload(model, monkeypatch)
    device = Device(monkeypatch)
    _, found, again = gradients.of_lora(model, LORA, x, inputs, gradient_checkpointing=checkpointing)
    kept = waiting(model, x, inputs, gradient_checkpointing=checkpointing)
    assert kept < usual + 0.1 * size_of(model), "no weights"
    assert again == pytest.approx(loss, rel=1e-4)
    assert gradients.cosine(found, wanted) > 0.9999
    assert size_of(model) > 3 * largest_layer(model)
    assert device.most < 2 * largest_layer(model), "no more than one layer at a time, and the scales of norms"
    lent = [layer for layer in model.model.modules() if device.loans[id(layer)] > 1]
    assert len(lent) > 10, "for the forward and for the backward"
    assert device.now == 0, "all of it is let go of"


@pytest.mark.skipif(
    not hasattr(comfy.model_management, "current_stream"), reason="this host keeps 64 MB on the device even so"
)
@pytest.mark.parametrize("kind", current_architectures.kinds("flux", "wan"))
def test_without_any_room_by_the_hosts_own_switch(kind, monkeypatch):
    """--novram: the host decides, asked for the whole model, and keeps none of it on the device."""
    model, x, inputs = training(kind)
    _, wanted, loss = gradients.of_lora(model, LORA, x, inputs)
    management = comfy.model_management
    management.unload_all_models()
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    device = Device(monkeypatch)
    _, found, again = gradients.of_lora(model, LORA, x, inputs)
    assert again == pytest.approx(loss, rel=1e-4)
    assert gradients.cosine(found, wanted) > 0.9999
    assert device.most < 2 * largest_layer(model)
    assert device.now == 0
    assert sum(bool(count > 1) for count in device.loans.values()) > 10
