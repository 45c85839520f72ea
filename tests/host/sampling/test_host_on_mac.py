"""In a host that computes on a device without float64, as on a Mac, its samplers draw with ours what they draw on the CPU."""

import contextlib

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.samplers
from gpu import GPU, gpu
from test_sampling import MENU, draw, model_of, schedule


@contextlib.contextmanager
def host_on_mac():
    with gpu(), pytest.MonkeyPatch.context() as patches:
        patches.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.MPS)
        patches.setattr(torch.mps, "empty_cache", lambda: None)
        yield


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("name", MENU)
def test_ours_draw_on_a_mac(name, kind):
    model, sampler = model_of(kind), comfy.samplers.sampler_object(name)
    sigmas = schedule(model)
    drawn = draw(model, sampler, sigmas)
    with host_on_mac():
        model = model_of(kind)
        model.load_device = GPU
        assert torch.equal(draw(model, sampler, sigmas), drawn)
