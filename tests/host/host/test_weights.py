"""Full weights, and what identifies them, do not depend on where the host keeps a model's weights."""

import current_architectures
import gradients
import paging
import pytest
import quantised
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
from architectures import kinds
from comfyui_fewstep.nodes import host
from test_lending import PAGING, size_of, training
from test_lora import lora_like

FAR = torch.device("cpu", 0)


def styled(model, *, seed=0):
    """The MODEL with a LoRA of everything that the host's loader knows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        style = {
            name: value if value.ndim == 0 else 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in lora_like(model).items()
        }
        return comfy.sd.load_lora_for_models(model, None, style, 1.0, 0.0)[0]


def offload(model, monkeypatch):
    """Has the host keep the MODEL's layers where they are and lend them with their patches, as when there is no room."""
    management = comfy.model_management

    def load(models, **_):
        management.unload_all_models()
        with torch.inference_mode():
            for one in models:
                if hasattr(one, "patch_model_lowvram"):
                    one.patch_model_lowvram(one.load_device, lowvram_model_memory=1)
                else:
                    one.partially_load(one.load_device, extra_memory=1 - one.loaded_size())

    monkeypatch.setattr(management, "load_models_gpu", load)


def tensors_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


ALL = [*kinds("sd15", "sd3"), *current_architectures.kinds("flux", "wan")]


@pytest.mark.parametrize("kind", ALL)
def test_offloaded_weights_are_taken_over_with_their_patches(kind, monkeypatch):
    model, x, inputs = training(kind)
    model = styled(model)
    wanted = tensors_of(host.training.trainable_copy(model))
    with torch.inference_mode():
        drawn = gradients.loss_of(host.training.as_denoiser(host.training.loaded(model)), x, inputs)
    offload(model, monkeypatch)
    network = host.training.trainable_copy(model)
    lent = [layer for layer in model.model.modules() if getattr(layer, "weight_function", None)]
    assert len(lent) > 10, "the host lends them"
    assert_equal(tensors_of(network), wanted)
    with torch.no_grad():
        again = gradients.loss_of(host.training.as_denoiser(network), x, inputs)
    assert again.item() == pytest.approx(drawn.item(), rel=1e-4)
    made = host.training.model_from(network, like=model)
    with torch.inference_mode():
        again = gradients.loss_of(host.training.as_denoiser(host.training.loaded(made)), x, inputs)
    assert again.item() == pytest.approx(drawn.item(), rel=1e-4)


@PAGING
@pytest.mark.parametrize("share", [2.0, 0.0])
@pytest.mark.parametrize("kind", current_architectures.kinds("flux", "wan"))
def test_weights_in_pages_are_taken_over_with_their_patches(kind, share, monkeypatch):
    model, x, inputs = training(kind)
    wanted = tensors_of(host.training.trainable_copy(styled(model)))
    comfy.model_management.unload_all_models()
    with monkeypatch.context() as patched:
        paging.install(patched, room=int(share * size_of(model)))
        pages = styled(paging.paged(model))
        with torch.inference_mode():
            gradients.loss_of(host.training.as_denoiser(host.training.loaded(pages)), x, inputs)
        network = host.training.trainable_copy(pages)
        assert sum(hasattr(layer, "_v") for layer in model.model.modules()) > 10
    assert not any(hasattr(layer, "_v") for layer in network.modules())
    assert_equal(tensors_of(network), wanted)
    with torch.no_grad():
        assert gradients.loss_of(host.training.as_denoiser(network), x, inputs).isfinite()


@PAGING
def test_weights_in_pages_are_those_of_the_type_that_the_model_has(monkeypatch):
    """Such a host holds what the file says, and lends what the model computes with."""
    model, *_ = current_architectures.tiny("flux")
    paging.install(monkeypatch, room=0)
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight_comfy_model_dtype = torch.bfloat16
    network = host.training.trainable_copy(paging.paged(model))
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    assert torch.equal(network.state_dict()[key], model.model.state_dict()[key].bfloat16().float())


@pytest.mark.parametrize("form", quantised.formats())
def test_quantised_weights_are_taken_over_as_what_they_stand_for(form):
    model, x, inputs, same = quantised.tiny("flux", form)
    before = {name: inner.clone() for name, inner in quantised.contents(model).items()}
    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
    with torch.inference_mode():  # as some files scale what goes into a layer
        scale = 1.0 + torch.rand(layer.in_features)
        layer.register_parameter("pre_quant_scale", torch.nn.Parameter(scale, requires_grad=False))
        same.model.diffusion_model.double_blocks[0].img_attn.qkv.weight *= scale
    network = host.training.trainable_copy(model)
    wanted = host.training.trainable_copy(same)
    assert_equal(tensors_of(network), tensors_of(wanted))
    with torch.no_grad():
        found, expected = (gradients.loss_of(host.training.as_denoiser(one), x, inputs) for one in (network, wanted))
    assert found.item() == expected.item()
    network.load_state_dict({name: value * 1.001 for name, value in tensors_of(wanted).items()})
    assert {value.dtype for value in network.diffusion_model.parameters()} == {torch.float32}
    model.model.diffusion_model.double_blocks[0].img_attn.qkv._parameters.pop("pre_quant_scale")
    after = quantised.contents(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
