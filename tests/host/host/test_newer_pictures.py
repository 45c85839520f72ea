"""Newer networks of pictures: the training's denoiser is what the host's sampler sees, and what is refused says why."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_pictures import NEWER_PICTURES
from comfyui_fewstep.nodes import host
from todays_inputs import assert_seen_as_by_the_host


@pytest.mark.parametrize("kind", current_architectures.kinds(*(k for k in NEWER_PICTURES if k != "hidream_o1")))
def test_the_denoiser_sees_what_the_hosts_sampler_sees(kind):
    one = NEWER_PICTURES[kind]
    assert_seen_as_by_the_host(one, one.model(), one.noise(), one.conditioning(seed=1))


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("kind", current_architectures.kinds("flux_inpaint", "wan_i2v"))
def test_each_latent_has_its_own_picture_of_one_entrys(kind, texts):
    """Of a batch of pictures to fill in or to go on from, all latents were shown the first."""
    one = current_architectures.ALL[kind]
    ((text, options),) = one.conditioning(seed=1, batch=2)
    options |= {key: options[key][:texts] for key in ("pooled_output",) if key in options}
    prompt = [[text[:texts], options]]
    assert_seen_as_by_the_host(one, one.model(), one.noise(), prompt)
    rows = host.inputs.prompts_of(prompt)
    assert [len(row["concat_latent_image"]) for _, row in rows] == [1, 1]
    assert torch.equal(rows[1][1]["concat_latent_image"], options["concat_latent_image"][1:])


@pytest.mark.parametrize("kind", current_architectures.kinds("hidream_o1"))
def test_what_keeps_the_keys_of_a_prompt_from_step_to_step_is_refused(kind):
    one = NEWER_PICTURES[kind]
    model, prompt = one.model(), one.conditioning()
    with pytest.raises(ValueError, match=r"\(HiDream O1\) keeps the keys and values"):
        host.inputs.condition_for_training(model, prompt, latents=one.noise(), name="positive")
    with pytest.raises(ValueError, match=r"\(HiDream O1\) keeps the keys and values"):
        host.inputs.told(model, prompt, {"guidance": 3.5})
