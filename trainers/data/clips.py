"""Files of video and of sound, decoded by PyAV, which current ComfyUI brings: their frames at an even rate, their samples.

What cannot be decoded is a BrokenFile; a file that ends early is as long as what can be.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .files import BrokenFile, Hashed, HashedFile, require_file
from .pictures import Size

CLIP_ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
SOUND_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif")

Item = TypeVar("Item")


def _nothing() -> None:
    """Of nothing that could stop it, or be another."""


def require_reader() -> None:
    """ValueError, naming it, where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "clips and sounds are read with PyAV, which this ComfyUI does not bring; current ones do. Install it into "
            "ComfyUI's Python: python -m pip install av"
        ) from error


# --- clips -----------------------------------------------------------------------------------------------------------


def clip_size(path: Path) -> Size:
    """Width and height as it is seen."""
    first = next(_frames(path, rate=0.0), None)
    if first is None:
        raise BrokenFile("it holds no frames")
    turned = _quarter_turns(first) % 2
    return (first.height, first.width) if turned else (first.width, first.height)


def frame_count(path: Path, *, rate: float, most: int | None = None, heed: Callable[[], None] = _nothing) -> int:
    """Frames at so many a second, or with 0 as they are in the file; at most so many are looked for, and each is decoded.

    heed: called before each, which it stops by raising.
    """
    count = 0
    for _ in itertools.islice(_frames(path, rate=rate), most):
        heed()
        count += 1
    return count


def clip_pieces(
    path: Path, *, frames: int, rate: float, seen: Callable[[Tensor], Tensor], hashed: Hashed | None = None
) -> Iterator[Tensor]:
    """The pieces of a clip one after another, (frames, H, W, 3) each; what is left at the end is left out.

    seen: what becomes of a frame (H, W, 3) in [0, 1]. hashed: what the file must still be.
    """
    for piece in in_pieces(_frames(path, rate=rate, hashed=hashed), frames):
        yield torch.stack([seen(seen_picture(frame)) for frame in piece])


def in_pieces(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """One after another, whole ones alone."""
    piece: list[Item] = []
    for item in items:
        piece.append(item)
        if len(piece) == size:
            yield piece
            piece = []


def at_rate(frames: Iterable[tuple[Fraction, Item]], rate: float) -> Iterator[Item]:
    """The frame that is nearest to 0, 1, 2, ... divided by rate seconds, the earlier of two; with rate 0 each once.

    frames: until when each is the nearest one, in seconds.
    """
    exact, shown = Fraction(rate).limit_denominator(1001), 0
    for until, frame in frames:
        if not rate:
            yield frame
        while rate and shown <= until * exact:
            yield frame
            shown += 1


def _frames(path: Path, *, rate: float, hashed: Hashed | None = None) -> Iterator[Any]:
    """PyAV's frames of the first stream of video."""
    with _opened(path, hashed) as (container, require_read):
        if not container.streams.video:
            raise BrokenFile("it holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        aspect = stream.sample_aspect_ratio or Fraction(1)
        for frame in at_rate(_timed(container.decode(stream), 1 / (stream.average_rate or Fraction(25))), rate):
            require_read()
            yield frame if abs(aspect - 1) < _SQUARE else _as_seen(frame, aspect)


_SQUARE = 0.01
"""So far from 1, a pixel's width over its height is that of a size that was rounded."""


def _as_seen(frame: Any, aspect: Fraction) -> Any:
    """A frame whose pixels are no squares, as those of DVDs and HDV cameras, with as many in a row as it is wide."""
    return frame.reformat(width=round(frame.width * aspect), **_as_rgb(frame))


def _timed(frames: Iterable[Any], usual: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Each frame with the middle between it and the next, from the first on. usual: seconds that the last one lasts."""
    first = last = None
    for frame in frames:
        if frame.pts is None:
            raise BrokenFile("its frames have no times")
        time = frame.pts * frame.time_base
        first = time if first is None else first
        if last is not None:
            yield (last[0] + time) / 2 - first, last[1]
        last = (time, frame)
    if last is not None and first is not None:
        yield last[0] + usual / 2 - first, last[1]


def _quarter_turns(frame: Any) -> int:
    return round(getattr(frame, "rotation", 0) / 90)


def seen_picture(frame: Any) -> Tensor:
    """(H, W, 3) in [0, 1] of one of PyAV's frames, turned as its metadata say."""
    turned = np.rot90(frame.to_ndarray(**_as_rgb(frame)), k=_quarter_turns(frame))
    return torch.from_numpy(turned.copy()).float() / 255.0


def _as_rgb(frame: Any) -> dict[str, Any]:
    """How PyAV is to make RGB of a frame: left alone, 16 takes HD's matrix for BT.601's, and of some frames the range wrong."""
    matrix = {"dst_colorspace": "ITU601"} if frame.colorspace == _BT709 else {}
    full = {"src_color_range": "JPEG"} if frame.color_range == _FULL else {}
    return {"format": "rgb24", **matrix, **full}


_BT709, _FULL = 1, 2
"""FFmpeg's numbers of the matrix of HD video, and of a range from 0 to 255."""


# --- sounds ----------------------------------------------------------------------------------------------------------


def require_sound(path: Path) -> None:
    """BrokenFile where a clip is silent."""
    next(_blocks(path, rate=8000), None)


def sounds_beside(
    path: Path, *, every: float, samples: int, rate: int, hashed: Hashed | None = None
) -> Iterator[Tensor]:
    """What is heard from the first frame of a clip on, and every so many seconds again, (1, samples, 2) each, without an end.

    Behind the end of the file's sound it is silent, and so it is before its beginning. See sound_pieces.
    """
    late = round((_begins(path, "audio") - _begins(path, "video")) * rate)
    held = torch.zeros(1, max(0, late))
    first = min(0, late)  # the number of the first sample that is held, 0 at the first frame
    blocks = _blocks(path, rate=rate, hashed=hashed)
    for number in itertools.count():
        start = round(number * every * rate)
        gone = min(max(0, start - first), held.shape[1])
        held, first = held[:, gone:], first + gone
        held = _filled(held, blocks, start - first + samples)
        skipped = start - first
        yield _in_two(held[:, skipped : skipped + samples])


def _filled(held: Tensor, blocks: Iterator[Tensor], count: int) -> Tensor:
    """So many samples at least, silent behind the last block."""
    parts, there = [held], held.shape[1]
    while there < count:
        block = next(blocks, None)
        if block is None:
            block = torch.zeros(1, count - there)
        parts.append(block)
        there += block.shape[1]
    channels = max(len(part) for part in parts)
    return torch.cat([part.expand(channels, -1) for part in parts], dim=1)


def sample_count(path: Path, *, rate: int) -> int:
    """Of a sound at that rate. All of it is decoded."""
    return sum(block.shape[1] for block in _blocks(path, rate=rate))


def sound_pieces(path: Path, *, samples: int, rate: int, hashed: Hashed | None = None) -> Iterator[Tensor]:
    """The pieces of a sound one after another, (1, samples, 2) each in about [-1, 1]; what is left at the end is left out.

    A single channel stands in both. More than two are mixed: of six, VAEs take the first two, without the voices in the middle.
    hashed: what the file must still be.
    """
    blocks: list[Tensor] = []
    count = 0  # put together once they are enough: a reader gives a thousand samples at a time
    for block in _blocks(path, rate=rate, hashed=hashed):
        blocks.append(block)
        count += block.shape[1]
        if count < samples:
            continue
        held = torch.cat(blocks, dim=1)
        while held.shape[1] >= samples:
            yield _in_two(held[:, :samples])
            held = held[:, samples:]
        blocks, count = [held], held.shape[1]


def _in_two(sound: Tensor) -> Tensor:
    """(1, n, 2) of (1 or 2, n)."""
    return sound.expand(2, -1).t()[None].contiguous()


def _begins(path: Path, kind: str) -> Fraction:
    """When the first frame of the first stream of that kind is, in seconds, by the file's own clock."""
    with _opened(path, None) as (container, _):
        frame = next(container.decode(getattr(container.streams, kind)[0]), None)
        if frame is None or frame.pts is None:
            raise BrokenFile(f"its {'sound has' if kind == 'audio' else 'frames have'} no times")
        time: Fraction = frame.pts * frame.time_base
        return time


def _blocks(path: Path, *, rate: int, hashed: Hashed | None = None) -> Iterator[Tensor]:
    """(1 or 2, n) each, of the first stream of sound."""
    import av

    with _opened(path, hashed) as (container, require_read):
        if not container.streams.audio:
            raise BrokenFile("it holds no sound")
        stream = container.streams.audio[0]
        layout = "mono" if stream.channels == 1 else "stereo"  # FFmpeg's way from one to two is 3 dB quieter
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        for frame in itertools.chain(container.decode(stream), [None]):
            for block in resampler.resample(frame):
                require_read()
                yield torch.from_numpy(block.to_ndarray())


@contextlib.contextmanager
def _opened(path: Path, hashed: Hashed | None) -> Iterator[tuple[Any, Callable[[], None]]]:
    """PyAV's container, and what raises BrokenFile once anything but what was hashed was read; its other errors are one too."""
    import av

    require_file(path)
    with contextlib.ExitStack() as stack:
        file = None if hashed is None else stack.enter_context(HashedFile(path, hashed))
        require_read = _nothing if file is None else file.require_read
        try:
            given = str(path) if file is None else file
            container = stack.enter_context(av.open(given, metadata_errors="replace"))  # old tags are in any encoding
            yield container, require_read
            require_read()
        except BrokenFile:
            raise
        except (av.error.FFmpegError, ValueError) as error:  # the latter where a sound's channels become others
            require_read()
            raise BrokenFile(f"it cannot be decoded ({getattr(error, 'strerror', None) or error})") from error
