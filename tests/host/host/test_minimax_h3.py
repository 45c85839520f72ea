"""MiniMax H3 draws pictures and sound on noise levels of their own, one sample at a time, and is trained as it is sampled."""

import itertools

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.data.conditions import one_batch
from comfyui_fewstep.trainers.students.saved_tensors import copied_when_overwritten

H3 = ALL["minimax_h3"]
pytestmark = pytest.mark.skipif(not H3.known(), reason="this host has no MiniMax H3")
TAGS = torch.tensor([1, 1, 0, 0, 1, 1, 1, 2])


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed):
    return {"resolved_frame_index": 0, "latent": drawn(1, 24, 1, 4, 4, seed=seed)}


def heard(seed):
    return {"resolved_frame_index": 4, "audio_latent": drawn(1, 32, 2, 3, seed=seed)}


def reference(seed):
    of = {"kind": "video_audio", "latent_t": 2, "latent_h": 4, "latent_w": 4, "ref_audio_t": 3}
    return {**of, "latent": drawn(1, 24, 2, 4, 4, seed=seed), "audio_latent": drawn(1, 32, 2, 3, seed=seed + 1)}


OPTIONS = {
    "words alone": {},
    "words of several kinds": {"minimax_token_tags": TAGS},
    "a first picture and a sound": {"minimax_keyframes": [picture(5), heard(6)]},
    "references": {"minimax_refs": [reference(7)], "minimax_visual_cond_noise_aug": 0.9},
}


def prompt(seed, tokens=8, **options):
    return [[drawn(1, tokens, H3.width, seed=seed), options]]


def data(model, latent, prompts):
    x0, shapes = host.inputs.latents_for_training(model, latent), host.inputs.stream_shapes(latent)
    found = host.inputs.conditions_for_training(model, prompts, latents=x0, name="positive", shapes=shapes)
    return x0, shapes, found


def by_training(model, noise, prompts, sigmas):
    """Euler's steps (Karras et al. 2022, algorithm 1) with the denoiser that a training asks; nested, in the host's scale."""
    latent = {"samples": noise * 0.0}
    x0, shapes, found = data(model, latent, prompts)
    condition = TensorData(x0=x0, condition=host.conditions.joined_inputs(found)).first(len(x0)).condition
    x = torch.cat([stream.reshape(len(stream), 1, -1) for stream in noise.unbind()], dim=-1)
    denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
    with torch.no_grad():
        for high, low in itertools.pairwise(sigmas):
            x = x + (low - high) * (x - denoise(x, torch.full((len(x),), float(high)), **condition)) / high
    return host.inputs.as_given(host.inputs.latents_for_host(model, x, shapes=shapes), latent)


@pytest.mark.parametrize("shifts", [None, (6.0, 2.0)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_a_training_draws_is_what_the_hosts_sampler_draws(options, shifts):
    """Of two samples the training's denoiser says what the host says of each alone; the sound's scale is the shifts' ratio."""
    model = H3.model()
    if shifts:
        model = host.models.with_audio_shift(model, shift=shifts[0], audio_shift=shifts[1])
    noise, sigmas = H3.noise(seed=3), torch.tensor([1.0, 0.9, 0.6, 0.0])
    prompts = [*prompt(1, **options), *prompt(2, **options)]
    ours = by_training(model, noise, prompts, sigmas)
    euler = host.data.comfy.samplers.sampler_object("euler")
    for i in range(2):
        alone = type(noise)([stream[i : i + 1] for stream in noise.unbind()])
        one = [prompts[i]]
        theirs = host.models.sample(model, euler, sigmas, noise=alone, positive=one, negative=one, cfg=1.0, seed=0)
        for mine, wanted in zip(ours.unbind(), theirs.unbind(), strict=True):
            torch.testing.assert_close(mine[i : i + 1], wanted, atol=1e-4, rtol=1e-4)


def test_all_that_a_prompt_carries_counts():
    model, noise, sigmas = H3.model(), H3.noise(seed=3, batch=1), torch.tensor([0.9, 0.0])
    found = [by_training(model, noise, prompt(1, **options), sigmas).unbind() for options in OPTIONS.values()]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


def test_the_sound_is_in_units_of_the_pictures_noise_levels():
    """Four times itself at the shifts of 12 and 3: x (12 (1 - t), then t) over x (3 (1 - t), then t) is so at each t."""
    model, noise = H3.model(), H3.noise()
    video, sound = noise.unbind()
    x0, shapes, _ = data(model, {"samples": noise}, prompt(1))
    assert torch.equal(x0[..., : video[0].numel()].flatten(), video.flatten())
    torch.testing.assert_close(x0[..., video[0].numel() :].flatten(), 4.0 * sound.flatten())
    assert model.model.latent_shapes is None, "the host's object is as it was"
    back = host.inputs.as_given(host.inputs.latents_for_host(model, x0, shapes=shapes), {"samples": noise})
    for mine, wanted in zip(back.unbind(), (video, sound), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_samples_with_words_of_other_lengths_and_pictures_stand_in_one_batch():
    """Each as alone, and gradients reach every one of them."""
    model, noise = H3.model(), H3.noise(seed=3)
    prompts = [*prompt(1, minimax_token_tags=TAGS), *prompt(2, tokens=5, minimax_keyframes=[picture(5)])]
    x0, _, found = data(model, {"samples": noise}, prompts)
    with host.backward.possible(), host.training.shared_network(model) as network, copied_when_overwritten():
        denoise = host.training.as_denoiser(network, model=model)
        x, sigma = x0.clone().requires_grad_(), torch.tensor([0.8, 0.4])
        together = denoise(x, sigma, **one_batch(found))
        for i in range(2):
            with torch.no_grad():
                alone = denoise(x0[i : i + 1], sigma[i : i + 1], **found[i])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(together.square().sum(), x)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
