"""Newer networks of video and sound: the training's denoiser is what the host's sampler sees, and what is refused says why."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_videos import NEWER_VIDEOS
from comfyui_fewstep.benchmarks.architectures.setup import Architecture
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData
from todays_inputs import hosts_x0

SIGMA = 0.6
H3 = Architecture(
    "MiniMaxH3",
    {
        "image_model": "minimax_h3",
        "hidden_size": 64,
        "num_layers": 2,
        "token_refiner_num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "ffn_hidden_size": 96,
        "text_dim": 32,
        "timestep_input_dim": 32,
        "time_embed_hidden_size": 64,
        "time_embed_dim": 32,
        "rope_inv_freq_len": 5,
    },
    (),
    32,
    streams=((24, 2, 4, 4), (32, 2, 6)),
)


@pytest.mark.parametrize("kind", current_architectures.kinds(*(k for k in NEWER_VIDEOS if k != "wan_causal_ar")))
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


@pytest.mark.parametrize("kind", current_architectures.kinds("wan_causal_ar"))
def test_what_draws_a_video_in_blocks_of_frames_is_refused(kind):
    one = NEWER_VIDEOS[kind]
    with pytest.raises(ValueError, match="this model is autoregressive: it draws a video in blocks of frames"):
        host.inputs.condition_for_training(one.model(), one.conditioning(), latents=one.noise(), name="positive")


@pytest.mark.skipif(not H3.known(), reason="this host has no MiniMax H3")
def test_what_takes_one_sample_at_a_time_is_refused():
    model, latent = H3.model(), {"samples": H3.noise()}
    x0, shapes = host.inputs.latents_for_training(model, latent), host.inputs.stream_shapes(latent)
    with pytest.raises(ValueError, match=r"\(MiniMax H3\) takes one sample at a time, and with it a layout"):
        host.inputs.condition_for_training(model, H3.conditioning(), latents=x0, name="positive", shapes=shapes)
