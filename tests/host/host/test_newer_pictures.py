"""Newer networks of pictures: the training's denoiser is what the host's sampler sees, and what is refused says why."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_pictures import NEWER_PICTURES
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData
from todays_inputs import hosts_x0

SIGMA = 0.6


@pytest.mark.parametrize("kind", current_architectures.kinds(*(k for k in NEWER_PICTURES if k != "hidream_o1")))
def test_the_denoiser_sees_what_the_hosts_sampler_sees(kind):
    one = NEWER_PICTURES[kind]
    model, x, prompt = one.model(), one.noise(), one.conditioning(seed=1)
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    batch = TensorData(x0=x, condition=condition).first(len(x))
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        found = denoise(x, torch.full((len(x),), SIGMA), **batch.condition)
    torch.testing.assert_close(found, hosts_x0(model, x, SIGMA, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", current_architectures.kinds("hidream_o1"))
def test_what_keeps_the_keys_of_a_prompt_from_step_to_step_is_refused(kind):
    one = NEWER_PICTURES[kind]
    with pytest.raises(ValueError, match=r"\(HiDream O1\) keeps the keys and values"):
        host.inputs.condition_for_training(one.model(), one.conditioning(), latents=one.noise(), name="positive")
