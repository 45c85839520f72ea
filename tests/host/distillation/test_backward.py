"""LoRA training on the networks of a current host: every gradient is what ordinary weights in float32 give."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
import gradients
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.students.adapters import LoRAOptions

LORA = LoRAOptions(rank=4, alpha=8.0)


def snapshot(model):
    return {name: (id(value), value.detach().clone()) for name, value in model.model.named_parameters()}


def assert_whole(model, before):
    for name, value in model.model.named_parameters():
        assert id(value) == before[name][0], name
        assert torch.equal(value, before[name][1]), name
    for module in model.model.modules():
        assert not module._forward_hooks
        assert "forward" not in module.__dict__


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", current_architectures.kinds())
def test_gradients_are_those_of_ordinary_weights(kind, checkpointing):
    model, x, inputs = current_architectures.tiny(kind)
    before = snapshot(model)
    adapters, found, loss = gradients.of_lora(model, LORA, x, inputs, passes=2, gradient_checkpointing=checkpointing)
    assert_whole(model, before)
    wanted, expected = gradients.of_merged(host.training.trainable_copy(model), adapters, LORA, x, inputs)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert gradients.cosine(found, wanted) > 0.9999
    dead = [path for path, one in found.items() if one.up is None or not one.up.any()]
    assert all(wanted[path].up is None or not wanted[path].up.any() for path in dead), dead
