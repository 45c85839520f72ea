"""Training data of a folder, of whose files no more is said than where they are: pictures, or a model of video's clips."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ....trainers.data.clips import CLIP_ENDINGS
from ....trainers.data.listing import NOT_READ, require_any
from ....trainers.data.pictures import ENDINGS
from ... import host
from ...host import folders
from ..data.clip_sources import ClipFolder
from ..data.drawn_edits import DrawnEdits, pictures_of, require_references
from ..data.edit_sources import EditFolder
from ..data.folder_sources import PictureFolder, SeenSource
from ..learning.families import Family


def require_model(model: Any, *, family: Family, references: str, audio_vae: Any, clip_vision: Any) -> None:
    """ValueError, naming the input, for a model that a folder does not suffice for, and for what it makes no use of."""
    (ClipFolder if family.video else EditFolder if references.strip() else PictureFolder).require_model(model)
    if family.video and references.strip():
        raise ValueError(
            f"references is {references!r}, but this is a model of video, which edits no pictures; leave it empty."
        )
    host.data.require_no_clip_vision(model, clip_vision)
    host.with_sound.require_no_audio_vae(model, audio_vae)
    if host.with_sound.draws_sound(model) and audio_vae is None:
        raise ValueError(
            "audio_vae is not connected, which encodes the sound of the clips in folder: this model draws clips with sound."
        )


def require_places(folder: str, references: str) -> None:
    """ValueError, naming the input, for folders that are none, or hold nothing of use, as far as no model need be known."""
    if not (folder := folder.strip() or references):
        return
    if references.strip():
        pictures_of(folder=folders.training_folder(folder), references=references)
    else:
        endings = ENDINGS + CLIP_ENDINGS
        require_any(folders.training_folder(folder), endings, what="pictures or clips", subfolders=NOT_READ)


def require_method(references: str, reference_method: str) -> None:
    """ValueError, naming the input, for one that says how references are told where there are none."""
    if not references.strip():
        require_references(reference_method=reference_method)


def source_of(
    name: str,
    *,
    family: Family,
    side: int,
    frames: int,
    negative: str,
    vae: Any,
    clip: Any,
    of_edits: Mapping[str, Any],
    **of_clips: Any,
) -> PictureFolder | ClipFolder:
    """frames: of a clip, 0 for pictures. of_clips: what encodes more of them than their frames, see ClipFolder. of_edits: of
    pictures that are edited, see pictures_of.

    ValueError where no file has a caption: the student would learn no prompts, and guidance from them is none.
    """
    folder = folders.training_folder(name)
    given: dict[str, Any] = {"folder": folder, "resolution": side, "negative": negative, "vae": vae, "clip": clip}
    clips = functools.partial(ClipFolder, frames=frames, frame_rate=family.frame_rate, **of_clips)
    made = clips(**given) if frames else pictures_of(**of_edits, **given)
    if not made.found.described:
        alone = isinstance(made, EditFolder) and made.alone
        place, count = "references" if alone else "folder", len(made.found.files)
        raise ValueError(
            f"{place} is {name!r}, of whose {count} {made.what} none has a caption beside it: a text file of the "
            f"{made.what[:-1]}'s name, such as fox.txt for fox{made.endings[0]}, with the prompt that would draw it. Give "
            f"captions, or take {made.node}, which has one for all, with Distill Model."
        )
    return made


def told(model: Any, drawn: SeenSource, *, only_captions: bool) -> str:
    """What is taken of it. only_captions: for a method that draws its own samples."""
    count = len(drawn.found.files)
    left = count - drawn.found.described
    without = f"; {left} have no caption and count as {drawn.what} of the empty prompt" if left else ""
    counting = "captions, sizes and references" if isinstance(drawn, EditFolder) else "captions and sizes"
    only = f"; of them only {counting} count for this goal" if only_captions else ""
    small = drawn.small() if isinstance(drawn, PictureFolder) and not only else []
    enlarged = f"; {len(small)} smaller than that and enlarged, {max(small):.2g} times at most" if small else ""
    length = f", {_length(drawn)}" if isinstance(drawn, ClipFolder) else ""
    edited = f", {_edited(drawn)}" if isinstance(drawn, EditFolder) else ""
    unseen = drawn.unseen(model) if isinstance(drawn, ClipFolder) else ""
    return (
        f"data: {count} {drawn.what} of {drawn.folder}, at about {drawn.resolution} x {drawn.resolution}"
        f"{length}{edited}{enlarged}{without}{only}{unseen and f'; {unseen}'}"
    )


def _edited(drawn: EditFolder) -> str:
    told = "" if drawn.reference_method == host.editing.USUAL else f", told by {drawn.reference_method}"
    if isinstance(drawn, DrawnEdits):
        return f"each edited by your model in {drawn.draw_steps} steps at cfg {drawn.draw_cfg:g}{told}"
    if drawn.alone:
        return f"each the picture before an edit that nobody has drawn{told}"
    of = "the picture" if drawn.most == 1 else f"up to {drawn.most} pictures"
    return f"each made of {of} of its name in {drawn.references}{told}"


def unused(name: str, **of_clips: Any) -> list[str]:
    """What of the encoders of clips is connected for nothing, where no folder holds any; a line each."""
    connected = [] if name.strip() else [encoder for encoder, given in of_clips.items() if given is not None]
    return [f"{encoder} is not used: it encodes clips in a folder, and folder is empty" for encoder in connected]


def _length(drawn: ClipFolder) -> str:
    at = f"at {drawn.frame_rate:g} a second" if drawn.frame_rate else "as fast as they are"
    heard = "" if drawn.audio_vae is None else " with their sound"
    return f"the first {drawn.frames} frames of each {at}{heard}"
