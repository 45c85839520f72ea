"""Student Report on models of video: what it draws, of clips and their sound, and which frames it shows."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.reports import report
from comfyui_fewstep.trainers.measures.report import Missing
from encoders import RandomCLIP
from PIL import Image
from test_frames import Counts, Film
from todays_inputs import CHANNELS, Frames, noise, stand_in

GIVEN = {"runs": "", "name": "film", "prompts": "3", "seeds": 2, "seed": 5, "teacher_steps": 2, "teacher_cfg": 1.0}


class FramesAV(Frames):
    """Of pictures with sound."""


@pytest.fixture(autouse=True)
def no_judges(monkeypatch):
    monkeypatch.setattr(report, "_lpips", lambda device: Missing("no weights"))
    monkeypatch.setattr(report, "clip_score", lambda folder, **_: Missing("no weights"))


def reported(model, *, clip, latent, vae=None):
    """The pictures of a student that is the teacher in three steps."""
    sampler, sigmas = host.models.hosts_sampler("euler"), torch.tensor([1.0, 0.6, 0.3, 0.0])
    student = {"student": model, "sampler": sampler, "sigmas": sigmas}
    given = {**GIVEN, **student, "teacher": model, "vae": vae or Film(), "clip": clip, "latent": latent}
    return report.StudentReport().report(**given)["result"][0]


def test_of_a_clip_first_middle_and_last_frame_are_judged(output):
    latent = {"samples": torch.zeros(1, CHANNELS, 5, 4, 6)}
    picture = reported(stand_in(Frames), clip=Counts(), latent=latent)[0]
    shown = picture[-32:, :144].reshape(32, 3, 48, 3)
    torch.testing.assert_close(shown[0, :, 0, 0], torch.tensor([0.0, 0.2, 0.4]), atol=3e-3, rtol=0.0)
    assert (shown == shown[:1, :, :1]).all()


def test_one_frame_is_one_picture(output):
    latent = {"samples": torch.zeros(1, CHANNELS, 1, 4, 6)}
    reported(stand_in(Frames), clip=Counts(), latent=latent)
    pictures = list((output / "fewstep" / "reports" / "film" / "pictures").glob("*.png"))
    assert pictures
    assert {Image.open(file).size for file in pictures} == {(48, 32)}


def test_video_with_sound_wants_a_latent():
    with pytest.raises(ValueError, match="teacher draws video with sound; connect latent, an empty one"):
        reported(stand_in(FramesAV), clip=Counts(), latent=None)


def test_noise_is_that_of_ksampler():
    import comfy.sample

    latent = noise(1, CHANNELS, 3, 4, 6)
    assert torch.equal(host.data.noise_like(stand_in(Frames), latent, seed=7), comfy.sample.prepare_noise(latent, 7))


class Seen(Film):
    """Keeps the shapes of what it decodes."""

    def __init__(self):
        self.shapes = []

    def decode(self, latents):
        self.shapes.append(tuple(latents.shape))
        return super().decode(latents)


@pytest.mark.parametrize("kind", current_architectures.kinds("minimax_h3"))
def test_of_video_with_sound_the_pictures_are_decoded(kind, output):
    import comfy.sample

    model = ALL[kind].model()
    latent = host.data.empty(model, width=64, height=32, frames=5).latent
    vae = Seen()
    reported(model, clip=RandomCLIP(ALL[kind].width, 8), latent=latent, vae=vae)
    assert set(vae.shapes) == {(1, 24, 2, 2, 4)}
    mine = host.data.noise_like(model, latent["samples"], seed=7).unbind()
    theirs = comfy.sample.prepare_noise(latent["samples"], 7).unbind()
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
