"""Small files of video and sound, written by PyAV and the standard library."""

import importlib.util
import wave
from fractions import Fraction

import numpy as np
import pytest

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def write_clip(path, *, count, rate, size, colour=lambda i: 10 * i % 256, right=None, aspect=1, late=0.0, heard=None):
    """Lossless; frame i is of one grey, colour(i). right: of another grey in its right half, that of the frame of this number.
    aspect: of each pixel, its width over its height. heard: its sound, see ramp. late: seconds before its first frame is seen."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "bgr0"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        sound = None if heard is None else container.add_stream("pcm_s16le", rate=HEARD_RATE, layout="stereo")
        for i in range(count):
            grey = np.full((size[1], size[0], 3), colour(i), np.uint8)
            grey[:, size[0] // 2 :] = colour(i if right is None else right)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = i + round(late * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for frame in [] if heard is None else [*_ramp(**heard), None]:
            container.mux(sound.encode(frame))
    return path


HEARD_RATE = 8000


def ramp(start, stop):
    """What a clip's sound is at these samples, (n, 2): by its time alone, the right channel the left one turned over."""
    times = np.arange(start, stop) / HEARD_RATE
    return np.stack([times / 8.0, -times / 8.0], axis=1)


def _ramp(*, seconds, late=0.0):
    """PyAV's frames of it, from its first sample on. late: seconds before that is heard."""
    import av

    for start in range(0, round(seconds * HEARD_RATE), 1000):
        stop = min(start + 1000, round(seconds * HEARD_RATE))
        samples = np.round(ramp(start, stop) * 32768).astype("<i2").reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = HEARD_RATE, Fraction(1, HEARD_RATE)
        frame.pts = start + round(late * HEARD_RATE)
        yield frame


def write_sound(path, *, seconds, rate, channels=1, hertz=100.0, heard=slice(None)):
    """A sine of half the largest amplitude, the same in every channel. heard: those that are not silent."""
    sine = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    samples = np.repeat(np.round(sine * 32767).astype("<i2")[:, None], channels, axis=1)
    samples[:, np.setdiff1d(np.arange(channels), np.arange(channels)[heard])] = 0
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path
