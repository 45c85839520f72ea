"""Small files of video and sound, written by PyAV and the standard library."""

import importlib.util
import wave
from fractions import Fraction

import numpy as np
import pytest

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def write_clip(path, *, count, rate, size, colour=lambda i: 10 * i % 256, right=None, aspect=1):
    """Lossless; frame i is of one grey, colour(i). right: of another grey in its right half, that of the frame of this number.
    aspect: of each pixel, its width over its height."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "bgr0"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for i in range(count):
            grey = np.full((size[1], size[0], 3), colour(i), np.uint8)
            grey[:, size[0] // 2 :] = colour(i if right is None else right)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path, *, seconds, rate, channels=1, hertz=100.0, heard=slice(None)):
    """A sine of half the largest amplitude, the same in every channel. heard: those that are not silent."""
    sine = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    samples = np.repeat(np.round(sine * 32767).astype("<i2")[:, None], channels, axis=1)
    samples[:, np.setdiff1d(np.arange(channels), np.arange(channels)[heard])] = 0
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path
