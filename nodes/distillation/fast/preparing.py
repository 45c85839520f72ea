"""What comes before a run's training, and how long it takes on this machine."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.cache import made_so_far
from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import captioned
from ....trainers.storage.places import is_regular
from ....trainers.storage.run_folder import RunFolder
from ....trainers.training.trial import seconds_of
from ... import host
from .. import teacher
from ..data.data_sources import Texts
from ..data.drawn_edits import DrawnEdits
from ..data.folder_sources import SeenSource
from ..data.teacher_pictures import PromptSource, drawn_together, sigmas_of

_TRIED_STEPS, _TRIED_FILES = 2, 3


def preparing(model: Any, source: object, run: RunFolder) -> list[tuple[str, float]]:
    """(what, seconds) of what a source has left to do."""
    if run.begun and is_regular(run.place("data", "index.json")):
        return []  # of one that has not begun, data of another source give way
    if isinstance(source, PromptSource):
        return _drawing(model, source, run)
    return _encoding(model, source, run) if isinstance(source, SeenSource) else []


def _made(model: Any, source: PromptSource | SeenSource, run: RunFolder) -> list[tuple[str, ...]]:
    """What each file of data says it is made of, of those that stay: of this source, for this teacher."""
    of = source.described()
    found = made_so_far(run.data_folder, of=of)
    if not found or run.begun:
        return found
    return made_so_far(run.data_folder, of={**of, "teacher_sha256": teacher.hashed(model).sha256})


def _told(what: str, left: int, count: int, *, things: str = "pictures") -> str:
    return (
        f"{what} {count} {things}"
        if left == count
        else f"{what} {left} of {count} {things}, for {count - left} are there"
    )


# --- pictures that the teacher draws ---------------------------------------------------------------------------------


def _drawing(model: Any, source: PromptSource, run: RunFolder) -> list[tuple[str, float]]:
    count = len(source.prompts) * source.pictures_per_prompt
    left = max(0, count - source.batch_size * len(_made(model, source, run)))
    if not left:
        return []
    each = _seconds_of_a_step(model, source) * source.steps
    things = "clips" if source.frames > 1 else "pictures"
    return [(_told("drawing", left, count, things=things), each * math.ceil(left / source.batch_size))]


def _seconds_of_a_step(model: Any, source: PromptSource) -> float:
    """Of the sampler, for a batch of pictures, drawn as they will be; after one that is not counted."""
    sigmas = sigmas_of(model, steps=source.steps)
    texts = Texts(model, source.clip, source.negative)
    empty = host.data.empty(model, width=source.width, height=source.height, frames=source.frames)
    prompts = [texts.conditioning(source.prompts[0])] * source.batch_size
    if not drawn_together(model, prompts, empty):
        prompts = prompts[:1]
    positive = host.data.batched(prompts)
    shape = len(prompts), *empty.x0.shape[1:]
    noise = empty.for_host(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def drawn(count: int) -> float:
        def draw() -> Tensor:
            return host.data.draw(
                model,
                source.sampler,
                sigmas[: count + 1],
                noise=noise,
                cfg=source.cfg,
                positive=positive,
                negative=texts.negative,
            )

        return seconds_of(draw, model.load_device)

    drawn(1)
    return drawn(1 + _TRIED_STEPS) / (1 + _TRIED_STEPS) * source.batch_size / len(prompts)


# --- files of a folder ----------------------------------------------------------------------------------------------


def _encoding(model: Any, source: SeenSource, run: RunFolder) -> list[tuple[str, float]]:
    source.glance()  # what cannot be used is known before anything is tried, as far as it shows
    made = {name for names in _made(model, source, run) for name in names}
    left = [file for file in source.found.files if file.name not in made]
    if isinstance(source, DrawnEdits):
        what, each = "drawing the edits of", _seconds_of_an_edit(model, source, left)
    else:
        what, each = "encoding", _seconds_of_a_file(model, source, left)
    said = _told(what, len(left), len(source.found.files), things=source.what)
    return [(said, each * len(left))] if left else []


def _seconds_of_an_edit(model: Any, source: DrawnEdits, left: Sequence[Any]) -> float:
    """Out of edits in few steps, of which more are as many times longer."""
    few = 1, 1 + _TRIED_STEPS
    once, longer = (_seconds_of_a_file(model, dataclasses.replace(source, draw_steps=steps), left) for steps in few)
    return once + max(0.0, longer - once) / _TRIED_STEPS * (source.draw_steps - 1)


def _seconds_of_a_file(model: Any, source: SeenSource, left: Sequence[Any]) -> float:
    """The mean of some of those that are left, after one that is not counted.

    By chance: what is encoded already, of another run or by a plan before, takes no time, and counts by its share.
    """
    make, seconds = source.encoder(model, told_of=_TRIED_FILES), list[float]()
    some = random.sample(left, min(_TRIED_FILES, len(left)))
    for file in captioned(some, caption=source.caption):
        try:
            shape, _ = source.look_at(file)
        except BrokenFile:
            continue  # the start says so, for all of them
        seconds.append(seconds_of(functools.partial(make, shape, [file]), model.load_device))
    counted = seconds[1:] or seconds
    return statistics.fmean(counted) if counted else 0.0
