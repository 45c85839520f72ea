"""Training data of a folder, of whose files no more is said than where they are: pictures, or a model of video's clips."""

from __future__ import annotations

import functools
from typing import Any

from ...host import folders
from ..data.clip_sources import ClipFolder
from ..data.folder_sources import PictureFolder, SeenSource
from ..learning.families import Family


def source_of(
    name: str, *, family: Family, side: int, frames: int, negative: str, vae: Any, clip: Any, **of_clips: Any
) -> PictureFolder | ClipFolder:
    """frames: of a clip, 0 for pictures. of_clips: what encodes more of them than their frames, see ClipFolder.

    ValueError where no file has a caption: the student would learn no prompts, and guidance from them is none.
    """
    folder = folders.training_folder(name)
    given: dict[str, Any] = {"folder": folder, "resolution": side, "negative": negative, "vae": vae, "clip": clip}
    clips = functools.partial(ClipFolder, frames=frames, frame_rate=family.frame_rate, **of_clips)
    made = clips(**given) if frames else PictureFolder(**given)
    if not made.found.described:
        raise ValueError(
            f"folder is {name!r}, of whose {len(made.found.files)} {made.what} none has a caption beside it: a text file of the "
            f"{made.what[:-1]}'s name, such as fox.txt for fox{made.endings[0]}, with the prompt that would draw it. Give "
            f"captions, or take {made.node}, which has one for all, with Distill Model."
        )
    return made


def told(drawn: SeenSource, *, only_captions: bool) -> str:
    """What is taken of it. only_captions: for a method that draws its own samples."""
    count = len(drawn.found.files)
    left = count - drawn.found.described
    without = f"; {left} have no caption and count as {drawn.what} of the empty prompt" if left else ""
    only = "; of them only captions and sizes count for this goal" if only_captions else ""
    small = drawn.small() if isinstance(drawn, PictureFolder) and not only else []
    enlarged = f"; {len(small)} smaller than that and enlarged, {max(small):.2g} times at most" if small else ""
    length = f", {_length(drawn)}" if isinstance(drawn, ClipFolder) else ""
    return (
        f"data: {count} {drawn.what} of {drawn.folder}, at about {drawn.resolution} x {drawn.resolution}"
        f"{length}{enlarged}{without}{only}"
    )


def _length(drawn: ClipFolder) -> str:
    at = f"at {drawn.frame_rate:g} a second" if drawn.frame_rate else "as fast as they are"
    heard = "" if drawn.audio_vae is None else " with their sound"
    return f"the first {drawn.frames} frames of each {at}{heard}"
