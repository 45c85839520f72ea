"""Folders of clips for models that draw clips with their sound: what is heard with a piece is trained on with it."""

import dataclasses
import math

import current_architectures
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.trainers.data.cache import read_data
from encoders import Counting, RandomCLIP, ltx_audio_vae
from making_clips import HEARD_RATE, needs_av, write_clip
from making_data import distil, images, picture, run_folder, student_of
from test_clip_folder import FrameVAE, clips
from test_clips_from_prompts import Film, Video, make, quick  # noqa: F401 (a fixture)
from test_inputs import Nested
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)
from todays_inputs import CHANNELS, WIDTH, stand_in

CLIP = RandomCLIP(WIDTH, 24)
RATE, FRAMES = 24, 5
LONG = round(FRAMES / RATE * 40)
"""Of the sound's latents, 40 a second."""


class SeenAndHeardAV(Video):
    """A stand-in of MiniMax H3's contract: 24 frames a second, beside them a sound of 40 latents a second for each ear."""

    def fix_empty_latent(self, latent):
        frames = 4 * (latent.shape[2] - 1) + 1
        return Nested([latent, torch.zeros(len(latent), 3, 2, round(frames / RATE * 40))])


class Colours(FrameVAE, Film):
    def encode(self, frames):
        return super().encode(frames)[:, :CHANNELS]


class Ears:
    """A stand-in of the host's contract for a VAE of sound: the mean of 200 samples of each ear, in 3 channels."""

    output_channels, audio_sample_rate, downscale_ratio = 2, HEARD_RATE, 200

    def encode(self, sound):
        assert sound.shape[1] % 200 == 0, "the host cuts the rest off, half of it at the beginning"
        return sound.unflatten(1, (-1, 200)).mean(dim=2).movedim(1, -1)[:, None].repeat(1, 3, 1, 1)


class Pictures(Ears):
    output_channels = 3


class OfAnother(Ears):
    def encode(self, sound):
        return super().encode(sound)[:, :2]


@pytest.fixture
def clip_folder(tmp_path):
    """A wide clip of two pieces and an upright one, as many pixels each; both begin to sound with their first frame."""
    made = tmp_path / "input" / "clips"
    made.mkdir(parents=True)
    write_clip(made / "a.mkv", count=11, rate=RATE, size=(128, 64), heard={"seconds": 1.0})
    write_clip(made / "b.mkv", count=6, rate=RATE, size=(64, 128), heard={"seconds": 1.0})
    (made / "a.txt").write_text("it grows light")
    return made


def model_of():
    return stand_in(SeenAndHeardAV, channels=1)


def heard(audio_vae, **changed):
    return clips(**{"vae": Colours(), "clip": CLIP, "audio_vae": audio_vae, "frame_rate": float(RATE), **changed})


def streams(bucket):
    """Of every sample of a bucket, what its x0 is packed from, in the host's scale."""
    shapes = host.conditions.host_inputs(bucket.condition)["latent_shapes"]
    parts = (2.0 * bucket.x0).flatten(1).split([math.prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def data_of(output, name="run"):
    return read_data(run_folder(output, name) / "data")


# --- as the clips say ------------------------------------------------------------------------------------------------


@needs_av
def test_each_piece_is_trained_on_with_what_is_heard_with_it(output, clip_folder):
    """By hand: what is heard grows with time, on the left from 0 and on the right as far below; mirrored, the ears change."""
    distil(model_of(), name="run", data=heard(Ears(), pieces="all", flip=True))
    wide, upright = sorted(data_of(output).buckets, key=lambda bucket: -len(bucket.x0))
    assert [len(bucket.x0) for bucket in (wide, upright)] == [4, 2]
    assert wide.x0.shape[1:] == upright.x0.shape[1:], "one as long as the other, and yet apart"
    for bucket, sides in ((wide, (6, 10)), (upright, (10, 6))):
        video, sound = streams(bucket)
        assert video.shape[1:] == (CHANNELS, 2, *sides)
        middle = (torch.arange(LONG) * 200 + 99.5) / HEARD_RATE / 8.0
        for number, (one, mirrored) in enumerate(sound.unflatten(0, (-1, 2))):
            left = middle + number * FRAMES / RATE / 8.0
            expected = torch.stack([left, -left]).expand(3, 2, LONG)
            torch.testing.assert_close(one, expected, atol=1e-4, rtol=0.0)
            torch.testing.assert_close(mirrored, expected.flip(1), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(video[0].mean(dim=(0, -2, -1)), torch.tensor([0.0, 25.0]) / 255, atol=2e-3, rtol=0.0)


@needs_av
def test_a_later_start_needs_no_vae(output, clip_folder):
    ears = Counting(Ears())
    distil(model_of(), name="run", data=heard(ears))
    finished, drawn = student_of(output, "run"), len(ears.seen)
    *_, lora = distil(model_of(), name="run", data=heard(None, vae=None, clip=None))
    assert all(torch.equal(lora[key], finished[key]) for key in finished)
    assert len(ears.seen) == drawn == 2


# --- what cannot be --------------------------------------------------------------------------------------------------


@needs_av
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"audio_vae": None}, r"connect audio_vae to Training Clips \(Folder\)"),
        ({"audio_vae": Pictures()}, "audio_vae is a VAE of pictures; connect that of the model's sound"),
        (
            {"frame_rate": 25.0},
            "frame_rate is 25, but this model .* draws 24 frames a second with their sound; set it to 24",
        ),
        ({"frame_rate": 0.0}, "frame_rate is 0, but this model"),
    ],
    ids=["no VAE", "of pictures", "another rate", "the file's rate"],
)
def test_what_would_have_no_sound_is_refused_before_any_is_encoded(given, said, output, clip_folder):
    vae = Counting(Colours())
    with pytest.raises(ValueError, match=said):
        distil(
            model_of(), name="run", data=clips(vae, CLIP, **{"audio_vae": Ears(), "frame_rate": float(RATE)} | given)
        )
    assert vae.seen == []


@needs_av
def test_a_vae_of_another_models_sound_is_named(output, clip_folder):
    said = r"audio_vae makes latents of \[2, 2, 9\], but the sound of this model \(SeenAndHeardAV\) is \[3, 2, 8\]"
    with pytest.raises(ValueError, match=said):
        distil(model_of(), name="run", data=heard(OfAnother()))


@needs_av
def test_clips_without_sound_are_broken_where_it_is_wanted(output, clip_folder):
    write_clip(clip_folder / "c.mkv", count=6, rate=RATE, size=(64, 64))
    with pytest.raises(ValueError, match=r"1 of 3 clips in .* cannot be used: c.mkv \(it holds no sound\)"):
        distil(model_of(), name="run", data=heard(Ears()))
    distil(model_of(), name="run", data=heard(Ears(), broken="skip"))
    assert sum(len(bucket.x0) for bucket in data_of(output).buckets) == 2


@needs_av
def test_a_vae_of_sound_beside_a_model_without_is_refused(output, clip_folder):
    with pytest.raises(ValueError, match=r"audio_vae is connected, but this model .* draws no sound with its clips"):
        distil(stand_in(Video), name="run", data=heard(Ears()))


def test_pictures_are_refused_where_sound_is_wanted(output, tmp_path):
    picture(tmp_path / "a.png", 64, 64)
    vae = Counting(Colours())
    with pytest.raises(ValueError, match="draws clips with their sound, which pictures do not have"):
        distil(model_of(), name="run", data=images(vae, CLIP, folder=str(tmp_path)))
    assert vae.seen == []


# --- Make It Fast ----------------------------------------------------------------------------------------------------

GIVEN = {"clip": CLIP, "folder": "clips", "side": 64, "frames": FRAMES, "vae": Colours()}


@pytest.fixture
def rate_of_h3(monkeypatch):
    """The family of the stand-in, which Make It Fast asks for the rate."""
    of_any = choosing.family_of
    monkeypatch.setattr(
        choosing, "family_of", lambda model: dataclasses.replace(of_any(model), video=True, frame_rate=float(RATE))
    )


@needs_av
def test_make_it_fast_trains_on_the_same_as_the_node(output, clip_folder, quick, rate_of_h3):  # noqa: F811
    told = make(model_of(), make_it_fast.PLAN, **GIVEN, audio_vae=Ears())["ui"]["text"][0]
    assert "the first 5 frames of each at 24 a second with their sound" in told
    make(model_of(), make_it_fast.TRAIN, **GIVEN, audio_vae=Ears())
    distil(model_of(), name="by node", data=heard(Ears(), caption="", bucket_step=64))
    ours, theirs = data_of(output), data_of(output, "by node")
    assert torch.equal(ours.x0, theirs.x0)
    assert ours.condition.keys() == theirs.condition.keys()


@needs_av
@pytest.mark.parametrize(
    ("latent_format", "audio_vae", "said"),
    [
        (SeenAndHeardAV, None, "audio_vae is not connected, which encodes the sound of the clips in folder"),
        (Video, Ears(), "audio_vae is connected, but this model .* draws no sound with its clips"),
    ],
    ids=["missing", "of no use"],
)
def test_make_it_fast_names_it_before_anything_is_tried(latent_format, audio_vae, said, clip_folder, rate_of_h3):
    wishes = {**GIVEN, "folder": str(clip_folder), "steps": 2, "goal": choosing.CLOSEST, "audio_vae": audio_vae}
    with pytest.raises(ValueError, match=said):
        choosing.Wishes(model=stand_in(latent_format), **wishes)


@needs_av
def test_make_it_fast_names_clips_without_sound_before_it_tries(output, clip_folder, rate_of_h3, monkeypatch):
    monkeypatch.setattr(choosing.planning, "fitted", None)
    write_clip(clip_folder / "c.mkv", count=6, rate=RATE, size=(64, 64))
    with pytest.raises(ValueError, match=r"1 of 3 clips in .* cannot be used: c.mkv \(it holds no sound\)"):
        make(model_of(), make_it_fast.PLAN, **GIVEN, audio_vae=Ears())


# --- in a host that has such models ----------------------------------------------------------------------------------


class EarsOfH3(Ears):
    """32 channels, as wide as its latents."""

    def encode(self, sound):
        return super().encode(sound)[:, :1].repeat(1, 32, 1, 1)


class TwoLatents(FrameVAE, Film):
    """Colours of a clip of so many frames in two latents of so many channels."""

    def __init__(self, *, frames, channels, side):
        self.channels, self.side = channels, side
        self.downscale_ratio, self.upscale_ratio = (lambda _: 2, side, side), (lambda _: frames, side, side)

    def encode(self, frames):
        colours = torch.nn.functional.avg_pool2d(frames.movedim(-1, 1), self.side)[:2]
        return colours.movedim(1, 0)[None].repeat(1, self.channels, 1, 1, 1)[:, : self.channels]


THEIRS = {
    "minimax_h3": (TwoLatents(frames=5, channels=24, side=16), 24.0),
    "ltxav": (TwoLatents(frames=9, channels=128, side=32), 25.0),
}
"""And their frames a second."""


@needs_av
@pytest.mark.parametrize("kind", current_architectures.kinds(*THEIRS))
def test_the_hosts_own_models_learn_from_clips_with_their_sound(kind, output, clip_folder):
    """LTX-2 by its own VAE of sound with random weights: as much of it as its own empty latents have; MiniMax H3's is large."""
    model, (vae, rate) = ALL[kind].model(), THEIRS[kind]
    audio_vae, frames = EarsOfH3() if kind == "minimax_h3" else ltx_audio_vae(), vae.upscale_ratio[0](2)
    source = clips(
        vae,
        RandomCLIP(ALL[kind].width, 8),
        audio_vae=audio_vae,
        frame_rate=rate,
        frames=frames,
        bucket_step=32,
        broken="skip",
    )
    distil(model, name="run", data=source)
    assert (run_folder(output, "run") / "student.safetensors").exists()
    data = data_of(output).first(1)
    empty = host.data.empty(model, width=96, height=32, frames=frames)
    shapes = host.conditions.host_inputs(data.condition)["latent_shapes"]
    assert shapes[1] == empty.streams[1]
    assert data.x0.flatten(1)[:, -math.prod(shapes[1]) :].std() > 0.0
