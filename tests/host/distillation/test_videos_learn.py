"""Stable Video Diffusion, whose batch is the frames of a video, as a user has it: two videos in lists, by every method."""

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
import comfy.sd
from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.reports import report
from comfyui_fewstep.trainers.measures.report import Missing
from making_data import distil, run_folder, student_of
from PIL import Image
from test_lora import assert_whole, output, snapshot  # noqa: F401 (a fixture)
from test_make_it_fast import make, timed_once  # noqa: F401 (a fixture)
from test_whole_samples_learn import METHODS

SVD = ALL["svd"]
FRAMES = SVD.frames


class Reel:
    """A VAE that decodes the frames of one video, each a grey of its own, as SVD's does."""

    def decode(self, latents):
        assert len(latents) == FRAMES, "one video at a time"
        grey = torch.arange(FRAMES).reshape(-1, 1, 1, 1) / 10.0
        return grey.expand(-1, 8 * latents.shape[-2], 8 * latents.shape[-1], 3)


def prompts(first):
    """Of two pictures, as SVD_img2vid_Conditioning gives them."""
    return [
        [[embedding[:, :1], {**options, "fps": 6 + seed}]]
        for seed in (first, first + 1)
        for embedding, options in SVD.conditioning(seed=seed)
    ]


def two_videos():
    latents = [{"samples": SVD.noise(seed=seed, batch=1)} for seed in (1, 2)]
    return {"latents": latents, "positive": prompts(3), "negative": prompts(5)}


@torch.inference_mode()
def euler(model):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    noise = SVD.noise(seed=9, batch=1)
    return comfy.sample.sample_custom(
        *(model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, prompts(3)[0], prompts(5)[0], noise * 0.0),
        disable_pbar=True,
        seed=1,
    )


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_the_file_draws_what_the_node_draws(name, output):  # noqa: F811
    model = SVD.model()
    before, drawn = snapshot(model), euler(model)
    (method,) = METHODS[name]()
    student, *_ = distil(
        model, name="run", method=method, layers="linear", vae=Reel(), gradient_checkpointing=True, **two_videos()
    )
    assert_whole(model, before)
    learnt = student_of(output, "run")
    assert any(value.any() for key, value in learnt.items() if key.endswith("lora_up.weight"))
    with torch.inference_mode():
        loaded, _ = comfy.sd.load_lora_for_models(model, None, learnt, 1.0, 0.0)
    torch.testing.assert_close(euler(loaded), euler(student), atol=1e-5, rtol=1e-5)
    assert (euler(loaded) - drawn).abs().max() > 1e-3


def test_previews_show_the_frame_in_the_middle_of_each(output):  # noqa: F811
    distil(SVD.model(), name="run", vae=Reel(), **two_videos())
    pictures = [np.asarray(Image.open(file)) for file in sorted((run_folder(output, "run") / "previews").glob("*.png"))]
    assert pictures
    assert all((picture == int(255 * 0.1)).mean() > 0.9 for picture in pictures), (
        "the second of three, but for the gaps"
    )


def test_a_report_shows_first_middle_and_last_frame(output, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report, "_lpips", lambda device: Missing("no weights"))
    monkeypatch.setattr(report, "clip_score", lambda folder, **_: Missing("no weights"))
    model, sigmas = SVD.model(), torch.tensor([10.0, 2.0, 0.0])
    student = {"student": model, "sampler": host.models.hosts_sampler("euler"), "sigmas": sigmas}
    given = {"runs": "", "name": "reel", "prompts": "", "seeds": 1, "seed": 5, "teacher_steps": 2, "teacher_cfg": 2.5}
    asked = {"positive": prompts(3)[0], "negative": prompts(5)[0], "latent": {"samples": SVD.noise(batch=1)}}

    def reported(**changed):
        return report.StudentReport().report(**given, **student, **asked | changed, teacher=model, vae=Reel())

    picture = reported()["result"][0][0]
    shown = picture[-32:, :144].reshape(32, 3, 48, 3)
    torch.testing.assert_close(shown[0, :, 0, 0], torch.tensor([0.0, 0.1, 0.2]), atol=3e-3, rtol=0.0)
    monkeypatch.setattr(host.data, "counting", lambda model: pytest.fail("nothing is drawn before"))
    with pytest.raises(ValueError, match="draws videos that go on from a picture"):
        reported(latent=None)


def test_make_it_fast_plans_for_videos_and_for_nothing_else(output, monkeypatch):  # noqa: F811
    monkeypatch.setattr(choosing, "BATCH", 2)
    made = make(SVD.model(), do=make_it_fast.PLAN, **two_videos())
    assert "Stable Video Diffusion" in str(made)
    with pytest.raises(ValueError, match="draws videos that go on from a picture"):
        make(SVD.model(), do=make_it_fast.PLAN, clip=object(), frames=14)
