"""What hosts newer than those that tests run in have been read to do, as stand-ins of the same contracts."""

import sys
import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.conds
import comfy.model_management
import comfy.ops
from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.host import bypass
from comfyui_fewstep.trainers.data.batches import Batch
from torch import nn


class Failed(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_is_not_recorded_by_the_hosts_compiler(fails, monkeypatch):
    """It reckons with each block allocating the same again; what autograd keeps leaked memory there, or ended the host."""
    cleaned = []
    prefetch = types.SimpleNamespace(cleanup_malloc_graph=lambda: cleaned.append(True))
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", prefetch)
    options = types.SimpleNamespace(disable_comfy_compiler=False)
    monkeypatch.setitem(sys.modules, "comfy.cli_args", types.SimpleNamespace(args=options))
    try:
        with host.backward.possible():
            assert options.disable_comfy_compiler
            assert cleaned == [True], "what the sampling before has recorded goes first"
            if fails:
                raise Failed
    except Failed:
        assert fails
    assert options.disable_comfy_compiler is False


@pytest.fixture
def newer(monkeypatch):
    """The host's function that multiplies past a layer's forward, as hosts from 0.37 on have it; says how it was asked."""

    def linear_input_act(linear, x, input_act, act_weight=None, act_eps=0.0, residual=None, residual_scale=None):
        asks_the_layer = comfy.model_management.in_training
        y = linear(x) if asks_the_layer else nn.functional.linear(x, linear.weight)
        return y if residual is None else residual + y * residual_scale

    monkeypatch.setattr(comfy.ops, "linear_input_act", linear_input_act, raising=False)
    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    return linear_input_act


def beside(layer):
    """As the host's bypass hooks do: twice what the layer gives."""
    own = layer.forward
    layer.forward = lambda x: 2.0 * own(x)
    return layer


def test_what_is_beside_a_layer_counts_whatever_else_the_host_fuses(newer):
    """And other layers, of other models, are multiplied as before."""
    with torch.inference_mode():
        plain, styled = nn.Linear(3, 3, bias=False), beside(nn.Linear(3, 3, bias=False))
        x, residual, scale = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.5)
        bypass._begin_asking()
        bypass._begin_asking()
        bypass._end_asking()
        try:
            for layer, times in ((plain, 1.0), (styled, 2.0)):
                wanted = residual + times * nn.functional.linear(x, layer.weight) * scale
                given = {"residual": residual, "residual_scale": scale}
                torch.testing.assert_close(comfy.ops.linear_input_act(layer, x, None, **given), wanted)
                found = comfy.ops.linear_input_act(layer, x, "rms_norm", torch.ones(3), 1e-5, residual, scale)
                torch.testing.assert_close(found, wanted)
            assert comfy.model_management.in_training is False
        finally:
            bypass._end_asking()
    assert comfy.ops.linear_input_act is newer


def test_layers_with_something_beside_them_are_none_that_lumina_takes_apart(monkeypatch):
    lumina = types.SimpleNamespace(_int8_convrot_linear=lambda linear: linear.is_int8)
    own = lumina._int8_convrot_linear
    monkeypatch.setitem(sys.modules, "comfy.ldm.lumina.model", lumina)
    int8, styled, other = nn.Linear(2, 2), beside(nn.Linear(2, 2)), nn.Linear(2, 2)
    int8.is_int8 = styled.is_int8 = True
    other.is_int8 = False
    bypass._begin_asking()
    try:
        assert [lumina._int8_convrot_linear(layer) for layer in (int8, styled, other)] == [True, False, False]
    finally:
        bypass._end_asking()
    assert lumina._int8_convrot_linear is own


class ComfyAttention(nn.Module):
    """A layer for which a checkpoint names a kernel."""

    def __init__(self, function):
        super().__init__()
        self.function = function


def test_a_kernel_that_a_checkpoint_names_for_a_layer_computes_nothing_that_learns():
    """Of a network that tells its attention no options nothing else would keep it away: gradients were wrong without a word."""
    model = tiny("sd15")
    kernel = object()
    model.model.diffusion_model.preferred = ComfyAttention(kernel)
    with pytest.raises(Failed), host.training.shared_network(model) as network:
        assert network.diffusion_model.preferred.function is None
        raise Failed
    assert model.model.diffusion_model.preferred.function is kernel
    copy = host.training.trainable_copy(model)
    assert copy.diffusion_model.preferred.function is None
    assert model.model.diffusion_model.preferred.function is kernel


def test_a_copy_holds_nothing_of_a_sampling():
    """Whose patcher and cache would be copied with it, and stay."""
    model = tiny("sd15")
    network = model.model
    network._current_patcher = patcher = object()
    network.diffusion_model.prefix_cache, network.diffusion_model.prefix_cache_enabled = object(), True
    network.diffusion_model._kv_cache_entries = [torch.ones(1, requires_grad=True) * 2]
    copy = host.training.trainable_copy(model)
    assert copy._current_patcher is None
    assert copy.diffusion_model._kv_cache_entries == []
    assert (copy.diffusion_model.prefix_cache, copy.diffusion_model.prefix_cache_enabled) == (None, False)
    assert network._current_patcher is patcher
    assert network.diffusion_model.prefix_cache_enabled


def test_nothing_kept_of_a_prompt_is_taken_by_other_weights(monkeypatch):
    """HiDream O1 and Qwen-Image 2.1 keep keys and values from one pass to the next, and know them by the prompt alone."""
    model, done = tiny("sd15"), []
    network = model.model.diffusion_model
    monkeypatch.setattr(network, "clear_kv_cache", lambda: done.append("forgotten"), raising=False)
    monkeypatch.setattr(network, "reset_prefix_cache", lambda enabled: done.append(enabled), raising=False)

    def broken(x, sigma, **_):
        done.append("drawn")
        raise Failed

    monkeypatch.setattr(model.model, "apply_model", broken)
    with host.training.shared_network(model) as network, pytest.raises(Failed):
        host.training.as_denoiser(network, model=model)(noise_for(model, batch=1), torch.ones(1))
    assert done == [False, "forgotten", "drawn", "forgotten"]


def test_what_takes_one_samples_references_for_all_is_drawn_sample_by_sample(monkeypatch):
    """HiDream O1 sees the first one's alone: each of a batch has its own references, noise level and guidance."""
    model = tiny("sd15")
    seen = []

    def first_for_all(x, sigma, ref_pixel_values, transformer_options):
        seen.append(transformer_options["sigmas"].item())
        return x * ref_pixel_values[:1].mean() + sigma.reshape(-1, 1, 1, 1)

    monkeypatch.setattr(model.model, "apply_model", first_for_all)
    x, sigma, references = noise_for(model, batch=3), torch.tensor([0.2, 0.5, 0.7]), torch.randn(3, 4, 6)
    denoise = host.training.as_denoiser(model.model, model=model)
    wanted = x * references.mean(dim=(1, 2)).reshape(-1, 1, 1, 1) + sigma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(denoise(x, sigma, ref_pixel_values=references), wanted)
    assert seen == pytest.approx(sigma.tolist())


def test_a_prompt_that_is_encoded_with_the_networks_own_weights_is_refused(monkeypatch):
    """SenseNova U1.5: what its layers look back at would stay the teacher's, in the condition, its files and its hash."""
    model = tiny("sd15")
    own = model.model.extra_conds
    monkeypatch.setattr(
        model.model,
        "extra_conds",
        lambda **given: own(**given) | {"prefix_keys": comfy.conds.CONDRegular(torch.zeros(1, 2))},
    )
    with pytest.raises(ValueError, match=r"with its own weights before it is sampled \(prefix_keys\)"):
        host.inputs.condition_for_training(
            model, conditioning("sd15"), latents=noise_for(model, batch=1), name="positive"
        )


class Preferring(nn.Module):
    """What computes attention by the kernel that a file names for it, if one does."""

    def __init__(self, own, function):
        super().__init__()
        self.own, self.function = own, function

    def forward(self, *args, **kwargs):
        return self.own(*args, **kwargs) * (1.0 if self.function is None else self.function)


Preferring.__name__ = "ComfyAttention"


def preferring(function):
    model = tiny("sd15")
    network = model.model.diffusion_model
    network.out[-1] = Preferring(network.out[-1], function)
    x = noise_for(model, batch=1)
    inputs = host.inputs.condition_for_training(model, conditioning("sd15", batch=1), latents=x, name="positive")
    return model, Batch(x0=x, condition=inputs)


def test_a_kernel_that_a_file_names_is_said_to_stand_aside(caplog):
    with caplog.at_level("INFO", logger="comfyui_fewstep"):
        host.following.require_followed(*preferring(1.01))
    assert "names for its attention stands aside" in caplog.text


def test_a_kernel_that_a_file_names_and_that_means_something_else_is_refused():
    with pytest.raises(ValueError, match=r"names a kernel for its attention: its attention is another, by \d+ percent"):
        host.following.require_followed(*preferring(3.0))
