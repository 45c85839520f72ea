"""Training Clips and Training Sounds (Folder): decoded as asked, encoded as the host's own nodes do, trained on."""

import logging
import os
import sys

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.benchmarks.architectures.command import ARCHITECTURES
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import folder_data
from comfyui_fewstep.trainers.data import clips as reading
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.data.listing import captioned
from encoders import Counting, RandomCLIP, wan_vae
from making_clips import needs_av, write_clip, write_sound
from making_data import Cancelled, cancel_at, distil, run_folder, student_of

CAPTIONS = {"caption": "a clip", "without_caption": "use caption", "negative": "", "broken": "stop"}
CLIPS = {
    "folder": "clips",
    "frames": 5,
    "frame_rate": 8.0,
    "resolution": 64,
    "bucket_step": 16,
    "flip": False,
    **CAPTIONS,
}
SOUNDS = {"folder": "sounds", "seconds": 0.25, **CAPTIONS}
CLIP = RandomCLIP(32, 24)


def needs(kind):
    return pytest.mark.skipif(not ARCHITECTURES[kind].known(), reason=f"this host has no {kind}")


def clips(vae, clip=CLIP, **changed):
    return folder_data.ClipFolderNode().describe(**{**CLIPS, "vae": vae, "clip": clip, **changed})["result"][0]


def sounds(vae, clip=CLIP, **changed):
    return folder_data.SoundFolderNode().describe(**{**SOUNDS, "vae": vae, "clip": clip, **changed})["result"][0]


class FrameVAE:
    """A stand-in of the host's contract for video: 4n + 1 frames, 8 pixels a side; the mean colour of each latent's pixels."""

    latent_dim, not_video = 3, False
    downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
    upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)

    def encode(self, frames):
        colours = torch.nn.functional.avg_pool2d(frames.movedim(-1, 1), 8)
        first, others = colours[:1], colours[1:].unflatten(0, (-1, 4)).mean(dim=1)
        latents = torch.cat([first, others]).movedim(1, 0)[None]
        return latents.repeat(1, 6, 1, 1, 1)[:, :16]


class Wide(FrameVAE):
    """32 pixels a side to a latent."""

    downscale_ratio = (*FrameVAE.downscale_ratio[:1], 32, 32)


class SoundVAE:
    """A stand-in of the host's contract for sound: 100 samples to one value of 64 channels, at 8 kHz."""

    latent_dim, audio_sample_rate, downscale_ratio = 1, 8000, 100

    def encode(self, sound):
        return sound.mean(dim=-1).unflatten(1, (-1, 100)).std(dim=-1)[:, None].repeat(1, 64, 1)


@pytest.fixture
def clip_folder(tmp_path):
    """Two clips of 8 frames a second, one wide and one upright, the first with a caption."""
    made = tmp_path / "input" / "clips"
    made.mkdir(parents=True)
    write_clip(made / "a.mkv", count=11, rate=8, size=(128, 64))
    write_clip(made / "b.mkv", count=6, rate=8, size=(64, 128), colour=lambda i: 200 - 10 * i)
    (made / "a.txt").write_text("it grows light")
    return made


@pytest.fixture
def sound_folder(tmp_path):
    made = tmp_path / "input" / "sounds"
    made.mkdir(parents=True)
    write_sound(made / "a.wav", seconds=0.6, rate=8000, channels=2)
    write_sound(made / "b.wav", seconds=0.3, rate=16000, hertz=400.0)
    (made / "a.txt").write_text("a low tone")
    return made


def data_of(output, name):
    return read_data(run_folder(output, name) / "data")


# --- clips -----------------------------------------------------------------------------------------------------------


@needs_av
@needs("wan")
def test_a_clip_is_trained_on_as_its_frames_say(output, clip_folder):
    """By hand: the first frame is black, the next four are 10, 20, 30, 40; all pieces; mirrored; a second start needs nothing."""
    model = ARCHITECTURES["wan"].model(seed=0)
    data = clips(FrameVAE(), pieces="all", flip=True)
    distil(model, name="run", data=data)
    wide, upright = sorted(data_of(output, "run").buckets, key=lambda bucket: -len(bucket.x0))
    assert [tuple(bucket.x0.shape) for bucket in (wide, upright)] == [(4, 16, 2, 6, 10), (2, 16, 2, 10, 6)]
    grey = torch.tensor([[0.0, 25.0], [0.0, 25.0], [50.0, 75.0], [50.0, 75.0]]) / 255
    latents = grey[:, None, :, None, None].expand(4, 16, 2, 6, 10)
    torch.testing.assert_close(wide.x0, model.model.process_latent_in(latents), atol=1e-4, rtol=0)
    assert wide.prompts.tolist() == [0, 0, 0, 0]
    assert not torch.equal(wide.condition["c_crossattn"][0], upright.condition["c_crossattn"][0])
    finished = student_of(output, "run")
    *_, lora = distil(model, name="run", data=clips(None, None, pieces="all", flip=True))
    assert all(torch.equal(lora[key], finished[key]) for key in finished)
    with pytest.raises(ValueError, match=r"begun on other training data.*frames: there 5, here 1"):
        distil(model, name="run", data=clips(FrameVAE(), pieces="all", flip=True, frames=1))


@needs_av
def test_a_clip_is_mirrored_left_to_right(output, clip_folder):
    write_clip(clip_folder / "a.mkv", count=5, rate=8, size=(128, 64), right=20)
    (file,) = captioned(clips(None, flip=True).listing().files[:1], caption="")
    as_it_is, mirrored = (piece.samples() for piece in clips(None, flip=True)._pieces(file, (80, 48)))
    assert torch.equal(as_it_is.flip(2), mirrored)
    assert as_it_is[0, 0, 0, 0] == 0.0 != as_it_is[0, 0, -1, 0]


@needs_av
@pytest.mark.parametrize(("pieces", "most"), [("the first", 10), ("all", 102)])
def test_of_a_film_no_more_is_decoded_than_is_trained_on(pieces, most, output, clip_folder, monkeypatch):
    """Five frames beside the first, for its size, and the one after each."""
    film = write_clip(clip_folder / "film.mkv", count=100, rate=8, size=(64, 64))
    decoded, timed = [], reading._timed
    monkeypatch.setattr(reading, "_timed", lambda frames, usual: timed((decoded.append(1) or f for f in frames), usual))
    assert clips(None, pieces=pieces).look(film).shape == (64, 64)
    assert len(decoded) <= most


@needs_av
def test_a_cancel_is_heard_while_a_film_is_counted(output, clip_folder, monkeypatch):
    """All of its frames are decoded for that, which may take half an hour."""
    film = write_clip(clip_folder / "film.mkv", count=100, rate=8, size=(64, 64))
    decoded, timed = [], reading._timed
    monkeypatch.setattr(reading, "_timed", lambda frames, usual: timed((decoded.append(1) or f for f in frames), usual))
    with pytest.raises(Cancelled):
        cancel_at(monkeypatch, 20)
        clips(None, pieces="all").look(film)
    assert len(decoded) < 30


@needs_av
@needs("wan")
def test_clips_that_cannot_be_used_are_named_before_any_is_encoded(output, clip_folder, caplog):
    (clip_folder / "c.mp4").write_text("no clip")
    counted, model = Counting(FrameVAE()), ARCHITECTURES["wan"].model(seed=0)
    said = r"2 of 3 clips in .* cannot be used: b\.mkv \(it has 6 frames at 8 a second, fewer than 9\); c\.mp4 \(it cannot be"
    with pytest.raises(ValueError, match=said):
        distil(model, name="run", data=clips(counted, frames=9))
    assert counted.seen == []
    with caplog.at_level(logging.INFO):
        distil(model, name="run", data=clips(counted, frames=9, broken="skip"))
    assert [len(frames) for frames in counted.seen] == [9]
    assert "3 clips in" in caplog.text
    assert "2 of 3 clips" in caplog.text


@needs_av
@needs("wan")
@pytest.mark.parametrize(
    ("changed", "vae", "said"),
    [
        ({"frames": 7}, FrameVAE(), "frames is 7; this VAE takes 5 or 9, for example"),
        (
            {"bucket_step": 8},
            Wide(),
            "wants multiples of 32",
        ),
        ({}, SoundVAE(), "the VAE encodes sounds, no clips"),
        ({}, object(), "the VAE encodes single pictures, no clips"),
    ],
)
def test_a_vae_that_cannot_encode_the_clips_is_named(changed, vae, said, output, clip_folder):
    with pytest.raises(ValueError, match=said):
        distil(ARCHITECTURES["wan"].model(seed=0), name="run", data=clips(vae, **changed))


@needs_av
@needs("wan")
def test_the_hosts_own_vae_encodes_a_clip_and_keeps_it(output, clip_folder):
    """What VAE Encode gives of the frames; another run encodes nothing."""
    model, vae = ARCHITECTURES["wan"].model(seed=0), wan_vae()
    counted = Counting(vae)
    for name in ("first", "second"):
        distil(model, name=name, data=clips(counted))
    assert len(counted.seen) == 2
    wide = next(bucket for bucket in data_of(output, "first").buckets if bucket.x0.shape[-1] > bucket.x0.shape[-2])
    frames = (10.0 * torch.arange(5) / 255)[:, None, None, None].expand(5, 48, 80, 3)
    with torch.inference_mode():
        expected = vae.encode(frames.contiguous()).clone()
    torch.testing.assert_close(wide.x0, model.model.process_latent_in(expected), atol=1e-3, rtol=1e-3)
    assert expected.shape == (1, 16, 2, 6, 10)


@needs_av
@needs("ltxv")
def test_a_model_is_told_the_rate_of_the_frames(output, clip_folder):
    """LTX-Video takes it as a constant of a whole batch."""

    class Many(FrameVAE):
        def encode(self, frames):
            return super().encode(frames).repeat(1, 8, 1, 1, 1)

    model, run = ARCHITECTURES["ltxv"].model(seed=0), host.folders.run_named("run")
    buckets = clips(Many()).build(model, run, teacher_sha256="0").buckets
    assert all("frame_rate=8.0" in bucket.condition for bucket in buckets)
    assert all("frame_rate=8.0" in bucket.unconditional for bucket in buckets)


# --- sounds ----------------------------------------------------------------------------------------------------------


@needs_av
@needs("stable_audio")
def test_a_sound_is_trained_on_at_the_vaes_rate(output, sound_folder):
    """A quarter of a second at 8 kHz are 20 latents, each the deviation of a sine of 0.5; 0.6 and 0.3 s are 2 pieces and 1."""
    model = ARCHITECTURES["stable_audio"].model(seed=0)
    distil(model, name="run", data=sounds(SoundVAE(), RandomCLIP(768, 24), pieces="all"))
    data = data_of(output, "run")
    assert data.x0.shape == (3, 64, 20)
    assert data.prompts.tolist() == [0, 0, 1]
    torch.testing.assert_close(data.x0[:, :, 1:-1], torch.full((3, 64, 18), 0.5**0.5 / 2), atol=0.02, rtol=0)
    distil(model, name="run", data=sounds(None, None, pieces="all"))


@needs_av
@needs("stable_audio")
def test_sounds_that_cannot_be_used_are_named(output, sound_folder):
    model = ARCHITECTURES["stable_audio"].model(seed=0)
    with pytest.raises(ValueError, match=r"1 of 2 sounds .*b\.wav \(it lasts 0\.30 seconds, less than 0\.50\)"):
        distil(model, name="run", data=sounds(SoundVAE(), seconds=0.5))
    with pytest.raises(ValueError, match=r"seconds is 0\.01; this VAE encodes 0\.013 seconds at least"):
        distil(model, name="run", data=sounds(SoundVAE(), seconds=0.01))
    with pytest.raises(ValueError, match="the VAE encodes pictures, no sounds"):
        distil(model, name="run", data=sounds(FrameVAE()))


@needs_av
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("kind", "folder", "describe", "encoders", "ending"),
    [
        pytest.param("wan", "clip_folder", clips, (FrameVAE(), CLIP), ".mp4", marks=needs("wan")),
        pytest.param(
            "stable_audio",
            "sound_folder",
            sounds,
            (SoundVAE(), RandomCLIP(768, 24)),
            ".wav",
            marks=needs("stable_audio"),
        ),
    ],
)
def test_what_is_no_file_is_broken_by_name_and_holds_nobody_up(
    kind, folder, describe, encoders, ending, output, request
):
    place, model = request.getfixturevalue(folder), ARCHITECTURES[kind].model(seed=0)
    os.mkfifo(place / f"pipe{ending}")
    (place / f"folder{ending}").mkdir()
    (place / f"zeros{ending}").symlink_to("/dev/zero")
    (place / f"nowhere{ending}").symlink_to(place / "gone")
    (place / "b.txt").symlink_to(place / f"pipe{ending}")
    with pytest.raises(ValueError, match="5 of 6") as refused:
        distil(model, name="run", data=describe(*encoders))
    for name in ("pipe", "folder", "zeros"):
        assert f"{name}{ending} (it is a folder, pipe or device, not a file)" in str(refused.value)
    assert f"nowhere{ending} (it cannot be read" in str(refused.value)
    assert "its caption b.txt: it is a folder, pipe or device" in str(refused.value)
    distil(model, name="run", data=describe(*encoders, broken="skip"))
    assert len(data_of(output, "run").x0) == 1


# --- before anything runs --------------------------------------------------------------------------------------------


@needs_av
def test_what_is_found_is_said_on_the_node(output, clip_folder, sound_folder):
    said = folder_data.ClipFolderNode().describe(**CLIPS)["ui"]["text"]
    assert said == [f"2 clips in {clip_folder}, 1 with a caption file."]
    (sound_folder / "c.md").write_text("x")
    said = folder_data.SoundFolderNode().describe(**SOUNDS)["ui"]["text"]
    assert said == [f"2 sounds in {sound_folder}, 1 with a caption file. Passed over: 1 .md files."]
    assert folder_data.ClipFolderNode.VALIDATE_INPUTS("clips") is True
    assert "holds no clips" in folder_data.ClipFolderNode.VALIDATE_INPUTS("sounds")
    assert "which is no folder" in folder_data.SoundFolderNode.VALIDATE_INPUTS("nowhere")


@pytest.mark.parametrize("node", [folder_data.ClipFolderNode, folder_data.SoundFolderNode])
def test_a_host_without_the_reader_says_so_before_anything_runs(node, output, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert "python -m pip install av" in node.VALIDATE_INPUTS(folder="clips")


@needs_av
def test_pieces_are_those_of_the_menu(output, clip_folder):
    with pytest.raises(ValueError, match="pieces is 'some'; allowed are the first, all"):
        clips(FrameVAE(), pieces="some")


def test_a_prompt_is_told_what_is_given_alone():
    prompt = [[torch.zeros(1, 2, 3), {"pooled_output": None}]]
    told = host.inputs.told(None, prompt, {"frame_rate": 24.0, "guidance": 0.0, "seconds_start": 0.0})
    assert told[0][1] == {"pooled_output": None, "frame_rate": 24.0, "seconds_start": 0.0}
    assert host.inputs.told(None, prompt, {"guidance": 0.0}) is prompt
