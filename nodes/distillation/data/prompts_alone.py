"""Training data without pictures: prompts and a picture's size, for methods in which the student draws its own samples."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ....trainers.data.batches import Data, TensorData
from ....trainers.data.cache import Shard
from ....trainers.objective.choices import require_at_least_one
from ....trainers.storage.run_folder import RunFolder
from ...host.teachers.data import Empty
from .data_sources import (
    SHARD_SAMPLES,
    MadeOnce,
    Progress,
    Sample,
    Texts,
    empty_sample,
    of_frames,
    of_guidance,
    of_teacher,
    require_connected,
    require_prompts,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptsAlone(MadeOnce):
    """Each prompt is a sample whose x0 nobody looks at. ValueError, naming the input, for values of no use.

    clip: the host's, None where the data are made already. guidance, frames: see teacher_pictures.PromptSource.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 512
    height: int = 512
    clip: Any = None
    guidance: float = 0.0
    frames: int = 1

    def __post_init__(self) -> None:
        require_prompts(self.prompts, width=self.width, height=self.height)
        require_at_least_one(self, "frames")

    @property
    def lacking(self) -> str:
        return "data is Training Prompts (No Pictures)"

    def told(self) -> dict[str, float]:
        return {"guidance": self.guidance}

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        options = {name: getattr(self, name) for name in ("prompts", "negative", "width", "height")}
        options |= of_guidance(self.guidance) | of_frames(self.frames)
        empty = empty_sample(model, width=self.width, height=self.height, frames=self.frames)
        source = {"kind": "prompts alone", **options, **of_teacher(model, teacher_sha256)}
        return self.kept(model, run, source=source, plan=lambda: self._plan(model, empty))

    def encoders(self, model: Any) -> dict[str, Any]:
        return {"clip": self.clip}

    def _plan(self, model: Any, empty: Empty) -> list[Shard]:
        require_connected("Training Prompts (No Pictures)", clip=self.clip)
        texts = Texts(model, self.clip, self.negative, told=self.told())
        progress = Progress(len(self.prompts))
        starts = range(0, len(self.prompts), SHARD_SAMPLES)
        return [Shard(functools.partial(self._shard, texts, progress, empty, start)) for start in starts]

    def _shard(self, texts: Texts, progress: Progress, empty: Empty, start: int) -> list[TensorData]:
        samples, x0 = [], empty.x0.cpu()
        for prompt in self.prompts[start : start + SHARD_SAMPLES]:
            progress.next()
            samples.append(Sample(x0, prompt, streams=empty.streams))
        return texts.parts(samples)
