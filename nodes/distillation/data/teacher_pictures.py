"""Training data from prompts, whose pictures or clips the teacher draws, once."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....samplers.schedules import trailing_sigmas
from ....trainers.data.batches import Data, TensorData
from ....trainers.data.cache import Shard, first_made, forget, made_so_far
from ....trainers.data.joining import in_buckets
from ....trainers.data.streams import stream
from ....trainers.objective.choices import require_at_least_one
from ....trainers.storage.files import write_atomically
from ....trainers.storage.identity import other_answers
from ....trainers.storage.reading import read_json, without_nan
from ....trainers.storage.run_folder import RunFolder
from ... import host
from ...host.sampling.models import Conditioning
from ...host.teachers.data import Empty
from .data_sources import (
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
class PromptSource(MadeOnce):
    """Prompts whose pictures the teacher draws, on the trailing schedule. ValueError, naming the input, for values of no use.

    The noise of picture i is drawn from (seed, i) alone. pairs: it is kept beside the picture. clip: the host's, None where
    the data are made already. guidance: what a guidance-distilled model is told, 0 for its own. frames: of a clip, where the
    pictures are clips.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 512
    height: int = 512
    pictures_per_prompt: int = 16
    steps: int = 32
    cfg: float = 7.5
    sampler: str = "euler"
    seed: int = 0
    batch_size: int = 8
    pairs: bool = False
    clip: Any = None
    guidance: float = 0.0
    frames: int = 1

    def __post_init__(self) -> None:
        require_prompts(self.prompts, width=self.width, height=self.height)
        require_at_least_one(self, "pictures_per_prompt", "steps", "batch_size", "frames")
        require_cfg(cfg=self.cfg)
        if self.sampler not in host.data.SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; allowed are {', '.join(host.data.SAMPLERS)}.")

    def told(self) -> dict[str, float]:
        return {"guidance": self.guidance}

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        sigmas = sigmas_of(model, steps=self.steps)
        empty = empty_sample(model, width=self.width, height=self.height, frames=self.frames)
        forget_anothers(model, run, of=self.described() | of_teacher(model, teacher_sha256))
        return self.kept(
            model,
            run,
            source=self.described()
            | {"sigmas": sigmas.tolist()}
            | of_teacher(model, teacher_sha256)
            | patches_of(model, run)
            | ({"batch_size": None} if run.begun else {}),  # its pictures are there, drawn as they were
            plan=lambda: self._plan(model, sigmas, empty, folder=run.data_folder),
        )

    def encoders(self, model: Any) -> dict[str, Any]:
        return {"clip": self.clip}

    def described(self) -> dict[str, Any]:
        """What decides the data and can be told without looking at any file or weight, as JSON values."""
        names = {field.name for field in dataclasses.fields(self)} - {"clip", "guidance", "frames"}
        options = {name: getattr(self, name) for name in sorted(names)}
        options |= of_guidance(self.guidance) | of_frames(self.frames)
        return {"kind": "prompts", **options}

    def _plan(self, model: Any, sigmas: Tensor, empty: Empty, *, folder: Path) -> list[Shard]:
        """A shard is what the teacher draws at once, so that a resumed cache is drawn in the same batches."""

        def first(batch: range) -> Sequence[TensorData]:
            _require_followed(model, texts, self._prompt(batch[0]), empty)
            parts = make(batch)
            keep_answers(model, parts, folder)
            return parts

        require_connected("Training Prompts (Teacher's Pictures)", clip=self.clip)
        count = len(self.prompts) * self.pictures_per_prompt
        texts = Texts(model, self.clip, self.negative, told=self.told())
        progress = Progress(count)
        starts = range(0, count, self.batch_size)
        batches = [range(start, min(start + self.batch_size, count)) for start in starts]
        make = functools.partial(self._shard, model, texts, progress, sigmas, empty)
        later = [Shard(functools.partial(make, batch)) for batch in batches[1:]]
        return [Shard(functools.partial(first, batches[0])), *later]

    def _shard(
        self, model: Any, texts: Texts, progress: Progress, sigmas: Tensor, empty: Empty, batch: range
    ) -> list[TensorData]:
        kinds: dict[Any, list[int]] = {}
        for i in batch:
            progress.next()
            kinds.setdefault(host.data.kind_of(texts.conditioning(self._prompt(i))), []).append(i)
        groups = [group for alike in kinds.values() for group in self._together(model, texts, empty, alike)]
        return [part for group in groups for part in self._drawn(model, texts, sigmas, empty, group)]

    def _together(self, model: Any, texts: Texts, empty: Empty, pictures: Sequence[int]) -> Sequence[Sequence[int]]:
        """Pictures of prompts of one kind, in one batch where the host can sample them so, else each alone."""
        prompts = [texts.conditioning(self._prompt(i)) for i in pictures]
        return [pictures] if drawn_together(model, prompts, empty) else [[i] for i in pictures]

    def _drawn(
        self, model: Any, texts: Texts, sigmas: Tensor, empty: Empty, pictures: Sequence[int]
    ) -> list[TensorData]:
        """pictures: their numbers, of prompts that can be sampled in one batch."""
        noise = torch.stack([self._noise(i, empty.x0.shape[1:]) for i in pictures])
        positive = host.data.batched([texts.conditioning(self._prompt(i)) for i in pictures])
        latents = host.data.draw(
            model,
            self.sampler,
            sigmas,
            noise=empty.for_host(noise),
            positive=positive,
            negative=texts.negative,
            cfg=self.cfg,
        )
        x0 = host.inputs.latents_for_training(model, {"samples": latents}).cpu()
        return texts.parts(
            Sample(x0[j : j + 1], self._prompt(i), noise[j : j + 1] if self.pairs else None, streams=empty.streams)
            for j, i in enumerate(pictures)
        )

    def _prompt(self, picture: int) -> str:
        return self.prompts[picture // self.pictures_per_prompt]

    def _noise(self, picture: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(stream(self.seed, picture)))


def drawn_together(model: Any, prompts: Sequence[Conditioning], empty: Empty) -> bool:
    """Whether the host draws pictures of prompts of one kind in a batch as it draws each alone."""
    together = host.data.batched(prompts)
    return host.inputs.encoded_together(model, prompts, together, latents=empty.x0, shapes=empty.streams)


def require_cfg(**cfg: float) -> None:
    """ValueError, naming the input, for guidance that no teacher draws with."""
    for name, value in cfg.items():
        if not 1.0 <= value <= 100.0:
            raise ValueError(f"{name} is {value}; allowed is 1 (no guidance) to 100.")


def sigmas_of(model: Any, *, steps: int) -> Tensor:
    """The noise levels (steps + 1,) on which a teacher draws training data: the trailing schedule (Lin et al. 2023)."""
    return trailing_sigmas(steps, table=host.models.noise_levels(host.models.model_sampling_of(model)))


def patches_of(model: Any, run: RunFolder) -> dict[str, Any]:
    """What changes the pictures that the MODEL draws and is in no weight; of a run that has begun its own identity tells."""
    return {"changes": None if run.begun else {kind: len(made) for kind, made in host.identity.changes(model).items()}}


def _require_followed(model: Any, texts: Texts, prompt: str, empty: Empty) -> None:
    """ValueError for patches that training could not follow, before the teacher draws for hours with them."""
    sample = in_buckets(texts.parts([Sample(empty.x0, prompt, streams=empty.streams)]), model.load_device).first(1)
    host.following.require_followed(model, sample)


_ANSWERS = "teacher.json"


def keep_answers(model: Any, parts: Sequence[TensorData], folder: Path) -> None:
    """What the teacher says of the first picture that it drew: much changes what a MODEL draws and is in no weight."""
    asked = in_buckets(parts, model.load_device).first(1)
    host.training.loaded(model)
    write_atomically(folder / _ANSWERS, json.dumps(without_nan(host.identity.answers_of(model, asked))).encode())


def forget_anothers(model: Any, run: RunFolder, *, of: Mapping[str, Any]) -> None:
    """Pictures of a start that came to nothing, where this MODEL would draw others: it is asked the same once more.

    of: what their source says of them; those of another source give way unasked.
    """
    folder = run.data_folder
    if run.begun or not made_so_far(folder, of=of):
        return
    asked = first_made(folder, device=model.load_device) if (folder / _ANSWERS).exists() else None
    if asked is None:
        return
    host.training.loaded(model)
    differing = list(other_answers(read_json(folder / _ANSWERS), without_nan(host.identity.answers_of(model, asked))))
    if differing:
        host.signals.say(
            f"the pictures in {folder} were drawn by another teacher ({differing[0]}); they are drawn anew."
        )
        forget(folder)
