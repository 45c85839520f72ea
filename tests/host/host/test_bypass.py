"""LoRAs beside quantised layers: what comes back is what was trained, and a teacher may carry others."""

import re

import current_architectures
import gradients
import pytest
import quantised
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.ops
import comfy.sd
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import teacher
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.trainers.students.adapters import LoRAOptions, lora_file, product

LORA = LoRAOptions(rank=4, alpha=8.0)

pytestmark = pytest.mark.skipif(
    not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="this host has no bypass adapters"
)


def drawn(model, x, inputs, network=None):
    with torch.inference_mode():
        loaded = network or host.training.loaded(model)
        return host.training.as_denoiser(loaded, model=model)(x, torch.full((len(x),), gradients.SIGMA), **inputs)


def trained(model, x, inputs, *, seed=0):
    """(adapters, their gradients, loss, LoRA file)"""
    adapters, found, loss = gradients.of_lora(model, LORA, x, inputs, seed=seed)
    names = host.naming.lora_names(model, adapters)
    return adapters, found, loss, lora_file(adapters, alpha=LORA.alpha, names=names)


def added(plain, *several):
    """The ordinary MODEL of the same values, LoRAs added to its weights in float32."""
    with torch.inference_mode():
        for adapters in several:
            for path, adapter in adapters.items():
                layer = plain.model.diffusion_model.get_submodule(path)
                layer.weight.add_(LORA.alpha / LORA.rank * product(adapter))
    return plain


@pytest.mark.parametrize("form", quantised.formats())
def test_what_comes_back_is_what_was_trained(form):
    model, x, inputs, plain = quantised.tiny("flux", form)
    bare = drawn(model, x, inputs)
    adapters, _, _, file = trained(model, x, inputs)
    back, merged = (host.training.with_lora(model, file, merged=merged) for merged in (False, True))
    found = drawn(back, x, inputs)
    with torch.inference_mode(False), students.student_of(model, LORA, seed=0) as student:
        student.load_exported(file)
        with torch.no_grad():
            learnt = student.denoiser(x, torch.full((len(x),), gradients.SIGMA), **inputs)
    torch.testing.assert_close(found, learnt, atol=1e-5 * float(learnt.abs().max()), rtol=0.0)
    if form != "int8_tensorwise":  # whose layers round their input too, which float32 weights do not
        wanted = drawn(added(plain, adapters), x, inputs)
        moved = (wanted - bare).norm()
        assert (found - wanted).norm() < 1e-4 * moved
        assert (drawn(merged, x, inputs) - wanted).norm() > 1e-2 * moved
    assert torch.equal(drawn(model, x, inputs), bare)
    assert not torch.equal(found, bare)


@pytest.mark.parametrize("kind", current_architectures.kinds("wan", "ltxv"))
def test_what_is_beside_an_int8_layer_counts_where_the_host_fuses_it(kind):
    """A LoRA of those layers alone: the host multiplies them with an activation in one, past their forward."""
    model, x, inputs, _ = quantised.tiny(kind, "int8_tensorwise")
    own = comfy.ops.linear_input_act
    bare = drawn(model, x, inputs)
    _, _, _, file = trained(model, x, inputs)
    last = {name: value for name, value in file.items() if re.search(r"ffn_2|ff_net_2", name)}
    assert len(last) == 3 * 2
    back = host.training.with_lora(model, last)
    moved = drawn(back, x, inputs)
    assert (moved - bare).norm() > 1e-3 * bare.norm()
    with host.backward.possible():  # where the host asks each layer
        torch.testing.assert_close(drawn(back, x, inputs), moved)
    twice = host.training.with_lora(model, last)
    drawn(twice, x, inputs)
    assert torch.equal(drawn(back, x, inputs), moved)
    assert torch.equal(drawn(model, x, inputs), bare)
    assert comfy.ops.linear_input_act is own, "the host's own is back"


def test_a_teacher_may_carry_loras_beside_its_layers():
    model, x, inputs, plain = quantised.tiny("wan", "float8_e4m3fn")
    style, _, _, file = trained(model, x, inputs, seed=5)
    styled = host.training.with_lora(model, file)
    assert teacher.hashed(styled).sha256 != teacher.hashed(model).sha256
    assert teacher.hashed(styled).sha256 == teacher.hashed(host.training.with_lora(model, file)).sha256
    picture = drawn(styled, x, inputs)
    adapters, found, _, own = trained(styled, x, inputs)
    network = host.training.trainable_copy(added(plain, style))
    wanted, _ = gradients.of_merged(network, adapters, LORA, x, inputs)
    assert gradients.cosine(found, wanted) > 0.9999
    assert torch.equal(drawn(styled, x, inputs), picture), "the style is still on it"
    both = drawn(host.training.with_lora(styled, own), x, inputs)
    torch.testing.assert_close(both, drawn(added(plain, adapters), x, inputs), atol=1e-4, rtol=1e-4)
    assert torch.equal(drawn(styled, x, inputs), picture), "taking both off leaves the style alone"
    with pytest.raises(ValueError, match=r"carries bypass_lora beside its weights.*Load LoRA"):
        host.training.lora_in_one(styled, rank=4)
    with pytest.raises(ValueError, match=r"carries bypass_lora beside its weights.*Load LoRA"):
        host.training.trainable_copy(styled)


def test_a_run_that_ends_while_its_model_is_away_leaves_nothing_on_others():
    """A preview's VAE has driven it out, and ran out of memory itself."""
    model, x, inputs, _ = quantised.tiny("flux", "float8_e4m3fn")
    bare = drawn(model, x, inputs)
    styled = host.training.with_lora(model, trained(model, x, inputs)[-1])
    picture = drawn(styled, x, inputs)
    assert not torch.equal(picture, bare)
    with torch.inference_mode(False), pytest.raises(RuntimeError), students.student_of(styled, LORA, seed=0):
        with torch.inference_mode():
            comfy.model_management.unload_all_models()
        raise RuntimeError
    assert torch.equal(drawn(model, x, inputs), bare)
    assert torch.equal(drawn(styled, x, inputs), picture)
    assert torch.equal(drawn(model, x, inputs), bare)
