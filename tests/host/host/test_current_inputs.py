"""A current host's own networks of today's inputs: the training's denoiser is what the host's sampler sees."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.trainers.data.batches import TensorData
from todays_inputs import current, hosts_x0, known, noise, prompt_of

SIGMA = 0.6
SHAPES = {"qwen_image": (16, 1, 8, 8), "wan_i2v": (16, 3, 8, 8), "z_image": (16, 8, 8), "hunyuan_image": (64, 4, 4)}
SHAPES |= {"ltxv": (128, 2, 4, 4), "cosmos_predict2": (16, 1, 8, 8)}
pytestmark = pytest.mark.skipif(not all(known(kind) for kind in SHAPES), reason="this host lacks today's models")
MASK = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
CASES = {
    "z_image": ("z_image", {}),
    "z_image of 3 tokens": ("z_image", {"attention_mask": MASK}),
    "qwen_image": ("qwen_image", {}),
    "qwen_image edit": ("qwen_image", {"reference_latents": [noise(1, 16, 1, 8, 8, seed=s) for s in (1, 2)]}),
    "qwen_image edit by offset": (
        "qwen_image",
        {"reference_latents": [noise(1, 16, 1, 4, 8, seed=1)], "reference_latents_method": "offset"},
    ),
    "wan image to video": (
        "wan_i2v",
        {"concat_latent_image": noise(1, 16, 3, 8, 8, seed=3), "concat_mask": torch.ones(1, 1, 3, 8, 8).tril()},
    ),
    "ltxv of 12 frames a second": ("ltxv", {"attention_mask": torch.ones(1, 5), "frame_rate": 12}),
    "cosmos_predict2": ("cosmos_predict2", {}),
    "hunyuan_image": ("hunyuan_image", {}),
}


def seen(model, x, prompt, sigma=SIGMA):
    """x (B, ...) by the training's denoiser, through the data of a run."""
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    batch = TensorData(x0=x, condition=condition).first(len(x))
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        return denoise(x, torch.full((len(x),), sigma), **batch.condition)


@pytest.mark.parametrize("case", CASES)
def test_the_denoiser_sees_what_the_hosts_sampler_sees(case):
    kind, options = CASES[case]
    rows = 1 if kind == "ltxv" else 2  # the host's attention on CPUs takes no mask of several rows
    model, x, prompt = current(kind), noise(rows, *SHAPES[kind]), prompt_of(kind, **options)
    torch.testing.assert_close(seen(model, x, prompt), hosts_x0(model, x, SIGMA, prompt), atol=1e-4, rtol=1e-4)
    if options and kind not in ("z_image", "ltxv"):  # of which one does not use the count, one wants a mask always
        assert not torch.allclose(seen(model, x, prompt), seen(model, x, prompt_of(kind)), atol=1e-3), (
            "the options count"
        )


def test_sound_and_video_are_seen_as_the_hosts_sampler_sees_them():
    import comfy.nested_tensor
    import comfy.utils

    model, prompt = current("ltxav"), prompt_of("ltxav", frame_rate=12)
    streams = [noise(1, 128, 2, 4, 4), noise(1, 8, 6, 16, seed=1)]
    latent = {"samples": comfy.nested_tensor.NestedTensor(streams)}
    x0, shapes = host.inputs.latents_for_training(model, latent), host.inputs.stream_shapes(latent)
    condition = host.inputs.condition_for_training(model, prompt, latents=x0, name="positive", shapes=shapes)
    with torch.no_grad():
        found = host.training.as_denoiser(host.training.loaded(model))(x0, torch.tensor([SIGMA]), **condition)
    expected = hosts_x0(model, latent["samples"], SIGMA, prompt)
    packed, _ = comfy.utils.pack_latents(expected.unbind())
    torch.testing.assert_close(found, packed, atol=1e-4, rtol=1e-4)


def test_mean_flow_is_refused():
    with pytest.raises(ValueError, match="this model is of mean flow"):
        seen(current("hunyuan_image", meanflow=True), noise(1, *SHAPES["hunyuan_image"]), prompt_of("hunyuan_image"))


def test_lightning_is_the_hosts_euler_on_cosmos():
    model, prompt = current("cosmos_predict2"), prompt_of("cosmos_predict2")
    sigmas = torch.tensor([80.0, 5.0, 1.0, 0.2, 0.0])
    drawn = [
        host.models.sample(
            model, sampler, sigmas, noise=noise(1, 16, 1, 8, 8), positive=prompt, negative=prompt, cfg=1.0, seed=0
        )
        for sampler in (
            host.data.comfy.samplers.sampler_object("euler"),
            host.models.sampler(sample_few_step, gamma=0.0),
        )
    ]
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["StableAudio1", "ACEAudio", "ACEAudio15", "LTXAV", "MiniMaxH3AV"])
def test_the_teacher_draws_no_sound(name):
    import comfy.latent_formats

    model = current("qwen_image")
    model.model.latent_format = getattr(comfy.latent_formats, name)()
    with pytest.raises(ValueError, match=rf"latents \({name}\) are no pictures"):
        host.data.latent_shape(model, width=64, height=64)
    assert not host.data.makes_pictures(model)


def test_the_teacher_draws_one_frame_of_a_video_format():
    assert host.data.latent_shape(current("qwen_image"), width=64, height=32) == (16, 1, 4, 8)
    assert host.data.latent_shape(current("z_image"), width=64, height=32) == (16, 4, 8)
