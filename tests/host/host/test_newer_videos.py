"""Newer networks of video and sound: the training's denoiser is what the host's sampler sees, and what is refused says why."""

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_videos import NEWER_VIDEOS
from comfyui_fewstep.nodes import host
from todays_inputs import assert_seen_as_by_the_host


@pytest.mark.parametrize(
    "kind", current_architectures.kinds(*(k for k in NEWER_VIDEOS if k not in ("wan_causal_ar", "minimax_h3")))
)
def test_the_denoiser_sees_what_the_hosts_sampler_sees(kind):
    one = NEWER_VIDEOS[kind]
    assert_seen_as_by_the_host(one, one.model(), one.noise(), one.conditioning(seed=1))


@pytest.mark.parametrize("kind", current_architectures.kinds("wan_causal_ar"))
def test_what_draws_a_video_in_blocks_of_frames_is_refused(kind):
    one = NEWER_VIDEOS[kind]
    with pytest.raises(ValueError, match="this model is autoregressive: it draws a video in blocks of frames"):
        host.inputs.condition_for_training(one.model(), one.conditioning(), latents=one.noise(), name="positive")
