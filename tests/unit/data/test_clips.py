"""Clips and sounds: frames at an even rate by their times, pieces of one length, and what cannot be decoded."""

import functools
import itertools
import struct
import sys
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from comfyui_fewstep.trainers.data.clips import (
    at_rate,
    clip_pieces,
    clip_size,
    frame_count,
    in_pieces,
    require_reader,
    require_sound,
    sample_count,
    seen_picture,
    sound_pieces,
    sounds_beside,
)
from comfyui_fewstep.trainers.data.files import BrokenFile, Hashed
from making_clips import HEARD_RATE, needs_av, ramp, write_clip, write_sound


def frames(count, rate, *, digits=None):
    """Numbers as frames at 0, 1, 2, ... divided by rate seconds, as (until when, frame). digits: of their times, rounded."""
    exact = [Fraction(i) / Fraction(rate) for i in range(count)]
    times = exact if digits is None else [round(time, digits) for time in exact]
    untils = [(a + b) / 2 for a, b in itertools.pairwise(times)]
    return list(zip([*untils, times[-1] + 1 / Fraction(rate) / 2], range(count), strict=True))


@pytest.mark.parametrize(
    ("source", "rate", "expected"),
    [
        (30, 15, [0, 2, 4, 6, 8, 10]),
        (12, 12, list(range(12))),
        (24, 16, [0, 1, 3, 4, 6, 7, 9, 10]),
        (6, 12, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11]),
        (30, 0, list(range(12))),
    ],
)
def test_the_nearest_frame_to_every_time_is_taken(source, rate, expected):
    """By hand, of twelve frames; between two the earlier one: 1/16 s lies between frames 1 and 2 of 24 a second."""
    assert list(at_rate(frames(12, source), rate)) == expected


@pytest.mark.parametrize("rate", [10, 15, 30, 29.97])
def test_rounded_times_change_nothing(rate):
    """Matroska rounds to milliseconds."""
    assert list(at_rate(frames(300, 30, digits=3), rate)) == list(at_rate(frames(300, 30), rate))


def test_pieces_are_whole():
    assert list(in_pieces(range(8), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(in_pieces(range(2), 3)) == []


def test_a_reader_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"read with PyAV, .*: python -m pip install av"):
        require_reader()


@pytest.mark.parametrize(("rotation", "corner"), [(0, 1), (90, 2), (-90, 3), (180, 4)])
def test_a_frame_is_turned_as_its_metadata_say(rotation, corner):
    """Counterclockwise, as the host's own reader does: the corners 1 2 / 3 4."""
    corners = np.array([[[1], [2]], [[3], [4]]], np.uint8).repeat(3, axis=2)
    frame = types.SimpleNamespace(rotation=rotation, colorspace=2, color_range=0, to_ndarray=lambda format: corners)
    assert seen_picture(frame)[0, 0, 0] * 255 == pytest.approx(corner)


@needs_av
def test_the_frames_of_a_clip_are_its_frames(tmp_path):
    """Lossless, each frame of one colour: 0, 10, 20, ..."""
    clip = write_clip(tmp_path / "a.mkv", count=11, rate=8, size=(48, 32))
    assert clip_size(clip) == (48, 32)
    assert (frame_count(clip, rate=0.0), frame_count(clip, rate=4.0), frame_count(clip, rate=16.0)) == (11, 6, 22)
    assert frame_count(clip, rate=0.0, most=5) == 5
    pieces = list(clip_pieces(clip, frames=5, rate=0.0, seen=lambda frame: frame))
    assert [tuple(piece.shape) for piece in pieces] == [(5, 32, 48, 3)] * 2
    seen = torch.cat(pieces)[:, 0, 0, 0] * 255
    torch.testing.assert_close(seen, 10.0 * torch.arange(10))
    (fast,) = clip_pieces(clip, frames=22, rate=16.0, seen=lambda frame: frame[0, 0, 0] * 255)
    torch.testing.assert_close(fast, 10.0 * (torch.arange(22) // 2))
    (slow,) = clip_pieces(clip, frames=5, rate=4.0, seen=lambda frame: frame[:8, :8])
    torch.testing.assert_close(slow[:, 0, 0, 0] * 255, 20.0 * torch.arange(5))
    assert slow.shape == (5, 8, 8, 3)


@needs_av
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (2, 0.299, 0.114), (5, 0.299, 0.114), (6, 0.299, 0.114)]
)
def test_colours_are_those_of_the_clips_matrix_and_range(matrix, red, blue, full, tmp_path):
    """BT.709 of HD video, and BT.601, also where none is named, by their definitions."""
    import av

    r, g, b = 200 / 255, 60 / 255, 40 / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    parts = (luma, (b - luma) / (2 - 2 * blue) + 0.5, (r - luma) / (2 - 2 * red) + 0.5)
    scales = [255 * part if full else 16 + extent * part for part, extent in zip(parts, (219, 224, 224), strict=True)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        (stream.width, stream.height), stream.pix_fmt = (64, 64), "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(64, 64, "yuv444p")
        for plane, value in zip(frame.planes, scales, strict=True):
            plane.update(bytes([round(value)]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (piece,) = clip_pieces(tmp_path / "a.mkv", frames=1, rate=0.0, seen=lambda seen: seen)
    torch.testing.assert_close(piece[0, 32, 32] * 255, torch.tensor([200.0, 60.0, 40.0]), atol=2.0, rtol=0)


@needs_av
@pytest.mark.parametrize(
    ("aspect", "seen"), [(Fraction(4, 3), (64, 32)), (Fraction(8, 9), (43, 32)), (Fraction(1280, 1281), (48, 32))]
)
def test_pixels_that_are_no_squares_are_seen_as_wide_as_they_are(aspect, seen, tmp_path):
    """Of HDV, of DVDs, and of 853 pixels that were made 854; the left half is black and the right one grey."""
    clip = write_clip(tmp_path / "a.mp4", count=2, rate=8, size=(48, 32), right=20, aspect=aspect)
    assert clip_size(clip) == seen
    (piece,) = clip_pieces(clip, frames=2, rate=0.0, seen=lambda frame: frame)
    assert piece.shape == (2, seen[1], seen[0], 3)
    halves = torch.stack([piece[0, :, : seen[0] // 2 - 3], piece[0, :, -(seen[0] // 2 - 3) :]])
    torch.testing.assert_close(halves.mean(dim=(1, 2, 3)) * 255, torch.tensor([0.0, 200.0]), atol=0.5, rtol=0)


@needs_av
@pytest.mark.parametrize(("channels", "made", "asked"), [(1, 8000, 8000), (2, 8000, 8000), (1, 8000, 16000)])
def test_a_sound_is_its_samples_at_the_rate_that_is_asked_for(channels, made, asked, tmp_path):
    """A sine of 100 Hz: its values at the new rate, away from the ends."""
    sound = write_sound(tmp_path / "a.wav", seconds=1.0, rate=made, channels=channels)
    assert sample_count(sound, rate=asked) == pytest.approx(asked, abs=64)
    pieces = list(sound_pieces(sound, samples=asked // 8, rate=asked))
    assert len(pieces) in (7, 8), "the resampler may keep the last few"
    assert all(piece.shape == (1, asked // 8, 2) for piece in pieces)
    heard = torch.cat(pieces, dim=1)[0]
    expected = 0.5 * torch.sin(2 * torch.pi * 100 * torch.arange(len(heard)) / asked)
    for channel in range(2):
        torch.testing.assert_close(heard[100:-100, channel], expected[100:-100], atol=5e-3, rtol=0.0)


@needs_av
def test_the_voice_in_the_middle_of_six_channels_is_heard_on_both_sides(tmp_path):
    """Front left, front right, centre, ...: a film's words are in the third, at half the power on either side (ITU-R BS.775)."""
    sound = write_sound(tmp_path / "a.wav", seconds=0.5, rate=8000, channels=6, heard=slice(2, 3))
    (mixed,) = sound_pieces(sound, samples=4000, rate=8000)
    expected = 0.5**0.5 * 0.5 * torch.sin(2 * torch.pi * 100 * torch.arange(4000) / 8000)
    torch.testing.assert_close(mixed[0], expected[:, None].expand(-1, 2), atol=1e-3, rtol=0.0)


@needs_av
def test_a_tag_in_an_old_encoding_is_no_fault(tmp_path):
    """Of many sound files: only the sound is asked for."""
    sound = write_sound(tmp_path / "a.wav", seconds=0.1, rate=8000)
    title = b"INFOINAM" + struct.pack("<I", 8) + b"M\xfcller\0\0"
    content = sound.read_bytes() + b"LIST" + struct.pack("<I", len(title)) + title
    sound.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert sample_count(sound, rate=8000) == 800


@needs_av
def test_what_cannot_be_decoded_says_why(tmp_path):
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "text.wav").write_text("no sound")
    sound = write_sound(tmp_path / "sound.wav", seconds=0.1, rate=8000)
    with pytest.raises(BrokenFile, match="it cannot be decoded"):
        clip_size(tmp_path / "text.mp4")
    with pytest.raises(BrokenFile, match="it cannot be decoded"):
        sample_count(tmp_path / "text.wav", rate=8000)
    with pytest.raises(BrokenFile, match="it holds no video"):
        clip_size(sound)
    with pytest.raises(BrokenFile, match="it holds no sound"):
        sample_count(write_clip(tmp_path / "a.mkv", count=2, rate=8, size=(16, 16)), rate=8000)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(BrokenFile, match="not a file"):
        clip_size(tmp_path / "folder.mp4")
    whole = write_clip(tmp_path / "b.mkv", count=100, rate=8, size=(64, 64)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert 0 < frame_count(tmp_path / "cut.mkv", rate=0.0) < 100


@needs_av
@pytest.mark.parametrize("kind", ["clip", "sound"])
def test_what_was_hashed_is_decoded_as_any_file_and_nothing_else(kind, tmp_path):
    """A byte in the middle, or in what is read first."""
    if kind == "clip":
        path = write_clip(tmp_path / "a.mkv", count=40, rate=8, size=(64, 32))
        read = functools.partial(clip_pieces, path, frames=5, rate=8.0, seen=lambda frame: frame)
    else:
        path = write_sound(tmp_path / "a.wav", seconds=20.0, rate=44100, channels=2)
        read = functools.partial(sound_pieces, path, samples=44100, rate=44100)
    hashed, whole = Hashed.of(path), path.read_bytes()
    expected = list(read())
    assert len(expected) in (8, 20)
    assert all(map(torch.equal, read(hashed=hashed), expected))
    for place in (len(whole) // 2, 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BrokenFile, match="is not what it was"):
            list(read(hashed=hashed))


# --- what is heard in a clip -----------------------------------------------------------------------------------------


def heard_at(start, stop, *, seconds, late=0.0):
    """By hand: the samples from start to stop of a clip whose sound of so many seconds begins so late."""
    first, last = round(late * HEARD_RATE), round((late + seconds) * HEARD_RATE)
    found = torch.zeros(stop - start, 2)
    begin, end = max(start, first), min(stop, last)
    if begin < end:
        found[begin - start : end - start] = torch.from_numpy(ramp(begin - first, end - first)).float()
    return found[None]


@needs_av
@pytest.mark.parametrize(
    ("seen_late", "heard_late", "seconds", "samples"),
    [
        (0.0, 0.0, 1.0, 1600),
        (0.0, 0.0, 1.0, 2000),
        (0.0, 0.25, 1.0, 1600),
        (0.2, 0.0, 1.0, 1600),
        (0.0, 0.0, 0.3, 1600),
        (0.0, 0.0, 1.0, 400),
    ],
    ids=["as long", "longer than a piece", "begins later", "begins earlier", "ends early", "shorter than a piece"],
)
def test_each_piece_of_a_clip_has_what_is_heard_with_it(seen_late, heard_late, seconds, samples, tmp_path):
    """Five pieces of five frames, 0.2 seconds each: each sample says when it was heard."""
    heard = {"seconds": seconds, "late": heard_late}
    clip = write_clip(tmp_path / "a.mkv", count=25, rate=25, size=(32, 32), late=seen_late, heard=heard)
    found = list(itertools.islice(sounds_beside(clip, every=0.2, samples=samples, rate=HEARD_RATE), 5))
    late = heard_late - seen_late
    for number, sound in enumerate(found):
        start = round(number * 0.2 * HEARD_RATE)
        expected = heard_at(start, start + samples, seconds=seconds, late=late)
        torch.testing.assert_close(sound, expected, atol=1e-4, rtol=0.0)


@needs_av
def test_a_clips_sound_is_brought_to_the_rate_that_is_asked_for(tmp_path):
    clip = write_clip(tmp_path / "a.mkv", count=25, rate=25, size=(32, 32), heard={"seconds": 1.0})
    first, second = itertools.islice(sounds_beside(clip, every=0.2, samples=3200, rate=2 * HEARD_RATE), 2)
    for number, sound in enumerate((first, second)):
        expected = torch.arange(3200) / 16000 / 8.0 + 0.025 * number
        torch.testing.assert_close(sound[0, 100:-100, 0], expected[100:-100], atol=1e-3, rtol=0.0)


@needs_av
def test_a_clip_without_sound_is_named(tmp_path):
    require_sound(write_clip(tmp_path / "a.mkv", count=5, rate=25, size=(32, 32), heard={"seconds": 0.1}))
    silent = write_clip(tmp_path / "b.mkv", count=5, rate=25, size=(32, 32))
    with pytest.raises(BrokenFile, match="it holds no sound"):
        require_sound(silent)
