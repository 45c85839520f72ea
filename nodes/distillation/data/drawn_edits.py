"""Pictures before an edit as training data, whose edits the teacher draws; and which source is meant by a folder's inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ....trainers.data.batches import Data, TensorData
from ....trainers.data.cache import Shard
from ....trainers.data.joining import in_buckets
from ....trainers.data.listing import Captioned, Listing
from ....trainers.objective.choices import require_at_least_one
from ....trainers.storage.run_folder import RunFolder
from ... import host
from .data_sources import Progress, Sample, Texts
from .edit_sources import EditFolder
from .folder_sources import Encoders, PictureFolder
from .teacher_pictures import forget_anothers, keep_answers, patches_of, require_cfg, sigmas_of

_SAMPLER = "euler"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnEdits(EditFolder):
    """Pictures before an edit, each with the text that asks for it: the teacher draws what becomes of them, once, on the trailing
    schedule, from noise that the picture's content decides. folder and references are one.

    draw_steps, draw_cfg: of the teacher, which has to draw well. ValueError, naming the input, for values of no use.
    """

    kind = "drawn edits"
    together = 8

    draw_steps: int
    draw_cfg: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "draw_steps")
        require_cfg(draw_cfg=self.draw_cfg)
        if not self.alone:
            raise ValueError(
                f"draw_steps is {self.draw_steps}, but folder has the pictures after the edit, which are not drawn then; set it "
                "to 0, or give the folder of references as folder, too."
            )

    @property
    def lacking(self) -> str:
        return ""

    def said(self, listing: Listing) -> str:
        return f"{PictureFolder.said(self, listing)} The model draws the edit of each, in {self.draw_steps} steps."

    def _own(self) -> dict[str, Any]:
        return super()._own() | {"draw_steps": self.draw_steps, "draw_cfg": self.draw_cfg}

    def kept(
        self,
        model: Any,
        run: RunFolder,
        *,
        source: Mapping[str, Any],
        plan: Callable[[], Sequence[Shard]],
        newer: Collection[str] = (),
    ) -> Data:
        forget_anothers(model, run, of=self.described() | {"teacher_sha256": source["teacher_sha256"]})
        decided = {"sigmas": sigmas_of(model, steps=self.draw_steps).tolist(), **patches_of(model, run)}
        drawing = functools.partial(_looked_at, model, plan, run.data_folder)
        return super().kept(model, run, source={**source, **decided}, plan=drawing, newer=newer)

    def _shard(
        self, model: Any, by: Encoders, progress: Progress, shape: Any, files: Sequence[Captioned]
    ) -> list[TensorData]:
        """Encoded together, then drawn: a card that holds one of the models alone would change them for each picture else."""
        asked = self._samples(model, by, shape, files, before=host.signals.check_cancelled)
        drawn, each = [], len(asked) // len(files)
        for number, sample in enumerate(asked):
            if number % each == 0:
                progress.next()
            drawn.append(self._drawn(model, by.texts, sample))
        return by.texts.parts(drawn)

    def _encoded(self, model: Any, by: Encoders, file: Captioned, shape: Any) -> Iterator[Sample]:
        """As it is drawn from: noise."""
        width, height = shape
        empty = host.data.empty(model, width=width, height=height)
        for piece in self._pieces(file, shape):
            noise = torch.randn(empty.x0.shape, generator=torch.Generator().manual_seed(piece.seed))
            beside = self._beside(model, by.latents, file, piece)
            sample = Sample(empty.x0, file.caption, noise, file.repeats, streams=empty.streams, **beside)
            yield sample._replace(prompts=by.texts.prompts(sample))

    def _drawn(self, model: Any, texts: Texts, sample: Sample) -> Sample:
        host.signals.check_cancelled()
        positive, negative = texts.prompts(sample)
        latents = host.data.draw(
            model,
            _SAMPLER,
            sigmas_of(model, steps=self.draw_steps),
            noise=sample.noise,
            positive=positive,
            negative=negative,
            cfg=self.draw_cfg,
        )
        return sample._replace(x0=host.inputs.latents_for_training(model, {"samples": latents}).cpu(), noise=None)


def _looked_at(model: Any, plan: Callable[[], Sequence[Shard]], folder: Path) -> list[Shard]:
    """With a look at the first of what is drawn. ValueError for patches that training could not follow."""
    first, *later = plan()

    def make() -> Sequence[TensorData]:
        parts = first.make()
        host.following.require_followed(model, in_buckets(parts, model.load_device).first(1))
        keep_answers(model, parts, folder)
        return parts

    return [Shard(make, of=first.of), *later]


def pictures_of(
    *,
    references: str = "",
    reference_method: str = host.editing.USUAL,
    draw_steps: int = 0,
    draw_cfg: float = 4.0,
    **options: Any,
) -> PictureFolder:
    """references: as a user names the folder, nothing for pictures of no edits. draw_steps: 0 where nothing is drawn."""
    if references.strip():
        folder = host.folders.training_folder(references)
        given = {"references": folder, "reference_method": reference_method, **options}
        return DrawnEdits(draw_steps=draw_steps, draw_cfg=draw_cfg, **given) if draw_steps else EditFolder(**given)
    require_references(reference_method=reference_method, draw_steps=draw_steps)
    return PictureFolder(**options)


def require_references(*, reference_method: str = host.editing.USUAL, draw_steps: int = 0) -> None:
    """ValueError, naming the input, for one that says something of references where none are given."""
    usual = {"reference_method": (reference_method, host.editing.USUAL), "draw_steps": (draw_steps, 0)}
    for name, (value, nothing) in usual.items():
        if value != nothing:
            raise ValueError(
                f"{name} is {value!r}, but references is empty; give the folder, or set {name} to {nothing}."
            )
