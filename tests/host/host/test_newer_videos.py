"""Newer networks of video and sound: the training's denoiser is what the host's sampler sees."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_videos import NEWER_VIDEOS
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData
from todays_inputs import hosts_x0

SIGMA = 0.6


@pytest.mark.parametrize("kind", current_architectures.kinds(*NEWER_VIDEOS))
def test_the_denoiser_sees_what_the_hosts_sampler_sees(kind):
    one = NEWER_VIDEOS[kind]
    model, x, prompt = one.model(), one.noise(), one.conditioning(seed=1)
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    batch = TensorData(x0=x, condition=condition).first(len(x))
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        found = denoise(x, torch.full((len(x),), SIGMA), **batch.condition)
    wanted = hosts_x0(_for_the_hosts_samplers(one, model), x, SIGMA, prompt)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def _for_the_hosts_samplers(one, model):
    """CogVideoX in the host's own parametrisation takes another x, see Architecture."""
    if not one.samplers_own:
        return model
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, **one.samplers_own)[0]
