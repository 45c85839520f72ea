"""Networks whose batch is the frames of a video (Stable Video Diffusion, SV3D): training's samples are videos."""

import dataclasses
import itertools

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.data.batches import TensorData
from test_guiding import of_host
from todays_inputs import hosts_x0, noise

FRAMES = 3
SVD = ALL["svd"]
AROUND = {"elevation": [10.0, 0.0, -20.0], "azimuth": [0.0, 120.0, 240.0]}
KINDS = {
    "SVD_img2vid": SVD,
    "SV3D_u": dataclasses.replace(SVD, config="SV3D_u", network=SVD.network | {"adm_in_channels": 256}),
    "SV3D_p": dataclasses.replace(
        SVD, config="SV3D_p", network=SVD.network | {"adm_in_channels": 1280}, options=SVD.options | AROUND
    ),
}
LEVELS = torch.tensor([2.0, 0.5])


def prompt(one=SVD, *, seed):
    """Of a picture and a pace of its own; the embedding of a picture is a single one."""
    ((embedding, options),) = one.conditioning(seed=seed)
    return [[embedding[:, :1], {**options, "motion_bucket_id": 20 * seed, "fps": 4 + seed}]]


def condition(model, given, name="positive"):
    return host.inputs.condition_for_training(model, given, latents=torch.zeros(1, FRAMES, 4, 4, 6), name=name)


def denoiser(model):
    return host.training.as_denoiser(host.training.loaded(model), model=model)


@pytest.mark.parametrize("kind", KINDS)
def test_two_videos_at_once_are_seen_each_as_by_the_hosts_samplers(kind):
    """At a noise level, a picture and a pace for each; in SV3D each frame has an angle of its own."""
    one = KINDS[kind]
    model, x = one.model(), 2.0 * noise(2, FRAMES, 4, 4, 6)
    prompts = [prompt(one, seed=seed) for seed in (1, 2)]
    both = host.conditions.joined_inputs([condition(model, each) for each in prompts])
    with torch.no_grad():
        found = denoiser(model)(x, LEVELS, **both)
    theirs = [hosts_x0(model, x[i], float(LEVELS[i]), prompts[i]) for i in range(2)]
    torch.testing.assert_close(found, torch.stack(theirs), atol=1e-4, rtol=1e-4)
    other = hosts_x0(model, x[1], float(LEVELS[1]), prompts[0])
    assert (other - theirs[1]).abs().max() > 0.01, "the prompts differ"


def test_guided_steps_are_those_of_the_hosts_sampler():
    model, sigmas = SVD.model(), torch.tensor([3.0, 1.0, 0.4, 0.0])
    start, prompts = noise(FRAMES, 4, 4, 6), (prompt(seed=1), prompt(seed=2))
    drawn = comfy.sample.sample_custom(
        *(model, start, 3.0, comfy.samplers.sampler_object("euler"), sigmas, *prompts, torch.zeros_like(start)),
        disable_pbar=True,
        seed=0,
    )
    with_prompt, without = (condition(model, each) for each in prompts)
    taught = guided(denoiser(model), guidance_scale=3.0, unconditional=without)
    x = sigmas[0] * start.unsqueeze(0)
    with torch.no_grad():
        for sigma, after in itertools.pairwise(sigmas):
            x = x + (x - taught(x, sigma.expand(1), **with_prompt)) / sigma * (after - sigma)
    torch.testing.assert_close(host.inputs.latents_for_host(model, x), drawn, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("node", ["VideoLinearCFGGuidance", "VideoTriangleCFGGuidance"])
def test_guidance_that_grows_along_the_frames_is_taught(node):
    bare = SVD.model()
    model = of_host("nodes_video_model", node, 1.0)(bare)
    x, prompts, scales = 2.0 * noise(2, FRAMES, 4, 4, 6), (prompt(seed=1), prompt(seed=2)), (2.0, 5.0)
    with_prompt, without = (condition(model, each) for each in prompts)
    twice = {key: value.expand(2, *value.shape[1:]) for key, value in with_prompt.items()}

    def by_training(wired):
        rule = host.guiding.rule_of(wired)
        taught = guided(denoiser(wired), guidance_scale=torch.tensor(scales), unconditional=without, rule=rule)
        with torch.no_grad():
            return taught(x, LEVELS, **twice)

    theirs = [hosts_x0(model, x[i], float(LEVELS[i]), *prompts, cfg=scales[i]) for i in range(2)]
    torch.testing.assert_close(by_training(model), torch.stack(theirs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(by_training(model), by_training(bare), atol=1e-2)


def asks_again(args):
    """As PAG: of what the network answers to the prompt in less noise."""
    (other,) = comfy.samplers.calc_cond_batch(
        args["model"], [args["cond"]], 0.5 * args["input"], args["sigma"], args["model_options"]
    )
    return args["denoised"] + args["cond_denoised"] - other


def test_what_a_function_asks_about_a_video_the_teacher_answers():
    model, x, prompts = SVD.model(), 2.0 * noise(1, FRAMES, 4, 4, 6), (prompt(seed=1), prompt(seed=2))
    model.model_options["sampler_post_cfg_function"] = [asks_again]
    with_prompt, without = (condition(model, each) for each in prompts)
    rule = host.guiding.rule_of(model)
    taught = guided(denoiser(model), guidance_scale=3.0, unconditional=without, rule=rule)
    with torch.no_grad():
        found = taught(x, LEVELS[:1], **with_prompt)
    theirs = hosts_x0(model, x[0], float(LEVELS[0]), *prompts, cfg=3.0)
    torch.testing.assert_close(found[0], theirs, atol=1e-4, rtol=1e-4)


# --- latents ---------------------------------------------------------------------------------------------------------


def test_a_latent_is_one_video_and_comes_back():
    model, latents = SVD.model(), noise(FRAMES, 4, 4, 6)
    x0 = host.inputs.latents_for_training(model, {"samples": latents})
    torch.testing.assert_close(x0, model.model.process_latent_in(latents)[None])
    torch.testing.assert_close(host.inputs.latents_for_host(model, x0), latents)


def test_noise_is_ksamplers_of_all_frames():
    latents = torch.zeros(FRAMES, 4, 4, 6)
    assert torch.equal(host.data.noise_like(SVD.model(), latents, seed=7), comfy.sample.prepare_noise(latents, 7))


def test_a_mask_of_each_frame_is_read_as_by_the_hosts_samplers():
    model, mask = SVD.model(), torch.arange(FRAMES * 24.0).reshape(FRAMES, 4, 6)
    found = host.inputs.mask_for_training(model, mask, like=torch.zeros(1, FRAMES, 4, 4, 6))
    torch.testing.assert_close(found, mask.reshape(1, FRAMES, 1, 4, 6).expand(-1, -1, 4, -1, -1))


NO_VIDEO = "draws videos that go on from a picture, which prompts alone and single pictures do not give it"


def test_what_has_no_video_is_refused():
    model = SVD.model()
    with pytest.raises(ValueError, match=NO_VIDEO):
        host.inputs.latents_for_training(model, {"samples": noise(1, 4, 4, 6)})
    with pytest.raises(ValueError, match=NO_VIDEO):
        host.data.empty(model, width=64, height=64, frames=3)
    with pytest.raises(ValueError, match=NO_VIDEO):
        host.data.latent_shape(model, width=64, height=64)


def test_videos_are_drawn_one_by_one():
    """The host would take a batch of two for one video of twice the frames."""
    model, prompts = SVD.model(), [prompt(seed=1), prompt(seed=1)]
    x0 = torch.zeros(1, FRAMES, 4, 4, 6)
    assert not host.inputs.encoded_together(model, prompts, host.data.batched(prompts), latents=x0)


def test_several_pictures_of_a_video_are_of_its_frames_in_turn():
    model, x = SVD.model(), 2.0 * noise(1, FRAMES, 4, 4, 6)
    ((embedding, options),) = prompt(seed=1)
    given = [[embedding, {**options, "concat_latent_image": noise(2, 4, 4, 6, seed=5)}]]
    with torch.no_grad():
        found = denoiser(model)(x, LEVELS[:1], **condition(model, given))
    torch.testing.assert_close(found[0], hosts_x0(model, x[0], float(LEVELS[0]), given), atol=1e-4, rtol=1e-4)


def test_texts_of_two_lengths_are_of_one_afterwards():
    model = SVD.model()
    ((embedding, options),) = SVD.conditioning(seed=1)
    several, single = [[embedding[:, :2], options]], prompt(seed=1)
    x0 = torch.zeros(1, FRAMES, 4, 4, 6)
    two, one = host.inputs.in_one_length(
        model, several, condition(model, several), condition(model, single), latents=x0
    )
    assert two["c_crossattn"].shape == one["c_crossattn"].shape == (1, 1, 2, 1024)
    data = TensorData(x0=x0, condition=two, unconditional=one)
    with torch.no_grad():
        again = denoiser(model)(x0, LEVELS[:1], **data.first(1).unconditional)
        alone = denoiser(model)(x0, LEVELS[:1], **condition(model, single))
    torch.testing.assert_close(again, alone, atol=1e-5, rtol=1e-4)
