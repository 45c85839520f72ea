"""Newer networks of pictures: the training's denoiser is what the host's sampler sees, and what is refused says why."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from comfyui_fewstep.benchmarks.architectures.newer_pictures import NEWER_PICTURES
from comfyui_fewstep.nodes import host
from comfyui_fewstep.samplers.few_step import sample_few_step
from todays_inputs import assert_seen_as_by_the_host, hosts_x0


@pytest.mark.parametrize("kind", current_architectures.kinds(*NEWER_PICTURES))
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


@pytest.mark.parametrize("kind", current_architectures.kinds("hidream_o1", "hidream_o1_edit"))
def test_each_latent_has_its_own_words_and_references(kind):
    """HiDream O1 cannot be asked for several prompts in one entry, and sees of a batch's references the first alone."""
    one = NEWER_PICTURES[kind]
    model, x = one.model(), one.noise(batch=2)
    conditioning = one.conditioning(seed=1, batch=2)
    condition = host.inputs.condition_for_training(model, conditioning, latents=x, name="positive")
    scale = host.models.noise_scale(model.get_model_object("model_sampling"))
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        found = scale * denoise(x, torch.tensor([0.6, 0.6]), **condition)
    for i, prompt in enumerate(host.inputs.prompts_of(conditioning)):
        wanted = hosts_x0(model, scale * x[i : i + 1], 0.6, [prompt])
        torch.testing.assert_close(found[i : i + 1], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", current_architectures.kinds("hidream_o1"))
def test_a_lora_is_drawn_with_its_own_keys_of_a_prompt(kind):
    """HiDream O1 keeps those that the weights before made, and takes them for a LoRA's too."""
    one = NEWER_PICTURES[kind]
    model, prompt, noise = one.model(), one.conditioning(seed=1), one.noise(batch=1)
    layer = "diffusion_model.language_model.layers.0.self_attn.k_proj"
    tensors = {f"{layer}.lora_up.weight": torch.randn(32, 4), f"{layer}.lora_down.weight": torch.randn(4, 64)}
    drawn = {
        "sampler": host.models.sampler(sample_few_step, gamma=0.0),
        "sigmas": torch.tensor([0.9, 0.5, 0.0]),
        "noise": noise,
        "positive": prompt,
        "negative": prompt,
        "cfg": 1.0,
        "seed": 3,
    }
    with torch.inference_mode():
        with_lora = host.training.with_lora(model, tensors, merged=True)
        host.models.sample(model, **drawn)
        found = host.models.sample(with_lora, **drawn)
        model.model.diffusion_model.clear_kv_cache()
        assert torch.equal(found, host.models.sample(with_lora, **drawn))
