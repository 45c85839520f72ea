"""What training data are made from, as Distill Model gets it: a description, carried out when a run has no data yet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...samplers.schedules import trailing_sigmas
from ...trainers.data.batches import Buckets, Condition, Data, TensorData
from ...trainers.data.cache import Shard, cached_data, in_buckets, write_data
from ...trainers.data.pictures import (
    BrokenPicture,
    Captioned,
    Size,
    bucket_for,
    bucket_sizes,
    captioned,
    picture_files,
    picture_size,
    pixels,
)
from ...trainers.objective.choices import require_at_least_one
from ...trainers.storage.run_folder import RunFolder
from .. import host
from ..host.models import Conditioning

SHARD_PICTURES = 64
"""Pictures in one file of the cache: what a kill costs at most, beside the file's own overhead."""


class DataSource(Protocol):
    """A FEWSTEP_DATA, or what is connected in the graph. The caller of its methods holds the run's lock."""

    @property
    def unconditional(self) -> Condition | None:
        """The empty prompt's inputs as far as they are known before the data are made; None where there will be none."""

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        """The run's data: read from its folder, or made and kept there."""

    def keep(self, run: RunFolder) -> None:
        """Called before training: from here on the data are in the run's folder, for another process."""


@dataclasses.dataclass(frozen=True)
class DataInGraph:
    """Data that are made already."""

    data: TensorData | Buckets

    @property
    def unconditional(self) -> Condition | None:
        return self.data.unconditional

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        return self.data

    def keep(self, run: RunFolder) -> None:
        write_data(run.data_folder, self.data, replace=not run.begun)


class _MadeOnce:
    """Sources whose building keeps the data, which always hold an empty prompt."""

    @property
    def unconditional(self) -> Condition | None:
        return {}

    def keep(self, run: RunFolder) -> None:
        """Nothing is left to do."""


class _Texts:
    """Samples with their texts as training data, in one shape each."""

    def __init__(self, model: Any, clip: Any, negative: str) -> None:
        self._model, self._negative = model, negative
        # as many as a shard holds; all texts of a folder would fill the memory
        self.conditioning = functools.lru_cache(maxsize=SHARD_PICTURES)(functools.partial(host.data.encode_text, clip))

    @property
    def negative(self) -> Conditioning:
        return self.conditioning(self._negative)

    def parts(self, samples: Iterable[tuple[Tensor, Tensor | None, str]]) -> list[TensorData]:
        """samples: (x0 (1, ...), noise (1, ...) or None, text). Those of one shape together, in order."""
        found = in_buckets(self._sample(x0, noise, text) for x0, noise, text in samples)
        return [found] if isinstance(found, TensorData) else list(found.buckets)

    def _sample(self, x0: Tensor, noise: Tensor | None, text: str) -> TensorData:
        positive = self.conditioning(text)
        condition, empty = (
            host.inputs.condition_for_training(self._model, prompt, latents=x0, name=name)
            for prompt, name in ((positive, "positive"), (self.negative, "negative"))
        )
        condition, empty = host.inputs.in_one_length(self._model, positive, condition, empty, latents=x0)
        condition, empty = ({name: value.cpu() for name, value in inputs.items()} for inputs in (condition, empty))
        return TensorData(x0=x0, condition=condition, unconditional=empty, noise=noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(_MadeOnce):
    """Pictures with captions. ValueError, naming the input, for what cannot be trained on.

    resolution, bucket_step: see bucket_sizes. caption: of pictures without a text beside them; None makes them an error.
    negative: the empty prompt's text. flip: each picture is a second sample, mirrored. skip_broken: broken files are named in
    the log and left out; otherwise they are an error. vae, clip: the host's, None where the data are made already.
    """

    folder: Path
    resolution: int = 512
    bucket_step: int = 64
    caption: str | None = ""
    negative: str = ""
    flip: bool = False
    skip_broken: bool = False
    vae: Any = None
    clip: Any = None

    def __post_init__(self) -> None:
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise ValueError(f"bucket_step is {self.bucket_step}; allowed are multiples of 8: 64, for example.")
        bucket_sizes(self.resolution, self.bucket_step)
        picture_files(self.folder)

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        pictures = captioned(picture_files(self.folder), caption=self.caption)
        return cached_data(
            run.data_folder,
            source=self._source(pictures) | _of_teacher(model, teacher_sha256),
            plan=lambda: self._plan(model, pictures),
            replace=not run.begun,
            device=model.load_device,
        )

    def _source(self, pictures: Sequence[Captioned]) -> dict[str, Any]:
        return {
            "kind": "folder",
            "resolution": self.resolution,
            "bucket_step": self.bucket_step,
            "negative": self.negative,
            "flip": self.flip,
            "skip_broken": self.skip_broken,
            "pictures": {picture.path.name: picture.sha256 for picture in pictures},
            "captions": {picture.path.name: picture.caption for picture in pictures},
            "vae": None if self.vae is None else host.data.weights_sha256(self.vae),
            "clip": None if self.clip is None else host.data.weights_sha256(self.clip),
        }

    def _plan(self, model: Any, pictures: Sequence[Captioned]) -> list[Shard]:
        _require_connected("Training Images (Folder)", vae=self.vae, clip=self.clip)
        groups = self._by_bucket(pictures)
        texts = _Texts(model, self.clip, self.negative)
        progress = _Progress(sum(len(group) for group in groups.values()))
        return [
            functools.partial(self._shard, model, texts, progress, size, group[start : start + SHARD_PICTURES])
            for size, group in groups.items()
            for start in range(0, len(group), SHARD_PICTURES)
        ]

    def _by_bucket(self, pictures: Sequence[Captioned]) -> dict[Size, list[Captioned]]:
        """Every file is decoded once before any is encoded, so that all broken ones are named together."""
        buckets = bucket_sizes(self.resolution, self.bucket_step)
        groups: dict[Size, list[Captioned]] = {}
        broken: dict[str, str] = {}
        for picture in pictures:
            host.signals.check_cancelled()
            try:
                groups.setdefault(bucket_for(picture_size(picture.path), buckets), []).append(picture)
            except BrokenPicture as error:
                broken[picture.path.name] = str(error)
        self._say_broken(broken, of=len(pictures))
        return groups

    def _say_broken(self, broken: dict[str, str], *, of: int) -> None:
        if not broken:
            return
        names = "; ".join(f"{name} ({reason})" for name, reason in broken.items())
        if not self.skip_broken or len(broken) == of:
            raise ValueError(
                f"{len(broken)} of {of} pictures in {self.folder} cannot be used: {names}. Remove or repair them"
                f"{'.' if self.skip_broken else ', or set broken to skip.'}"
            )
        host.models.log.warning("%d of %d pictures in %s are skipped: %s", len(broken), of, self.folder, names)

    def _shard(
        self, model: Any, texts: _Texts, progress: _Progress, size: Size, pictures: Sequence[Captioned]
    ) -> list[TensorData]:
        samples = []
        for picture in pictures:
            progress.next()
            upright = pixels(picture.path, size)
            for mirrored in (False, True) if self.flip else (False,):
                x0 = self._encoded(model, upright.flip(1) if mirrored else upright, picture, mirrored=mirrored)
                samples.append((x0, None, picture.caption))
        return texts.parts(samples)

    def _encoded(self, model: Any, picture: Tensor, origin: Captioned, *, mirrored: bool) -> Tensor:
        seed = int(origin.sha256[:15], 16) + mirrored
        latents = host.data.encode_picture(self.vae, picture, seed=seed)
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"the VAE makes NaN or infinite values of {origin.path.name}; SDXL's own VAE does so in half precision: "
                "start ComfyUI with --fp32-vae, or take a VAE made for half precision."
            )
        return host.inputs.latents_for_training(model, {"samples": latents}).cpu()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource(_MadeOnce):
    """Prompts whose pictures the teacher draws, on the trailing schedule. ValueError, naming the input, for values of no use.

    The noise of picture i is drawn from (seed, i) alone. pairs: it is kept beside the picture. clip: the host's, None where
    the data are made already.
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

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts is empty; give one prompt on each line.")
        for name in ("width", "height"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed are multiples of 8: 512, for example.")
        require_at_least_one(self, "pictures_per_prompt", "steps", "batch_size")
        if not 1.0 <= self.cfg <= 100.0:
            raise ValueError(f"cfg is {self.cfg}; allowed is 1 (no guidance) to 100.")
        if self.sampler not in host.data.SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; allowed are {', '.join(host.data.SAMPLERS)}.")

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        sigmas = trailing_sigmas(self.steps, table=host.models.noise_levels(host.models.model_sampling_of(model)))
        shape = host.data.latent_shape(model, width=self.width, height=self.height)
        return cached_data(
            run.data_folder,
            source=self._source()
            | {"sigmas": sigmas.tolist()}
            | _of_teacher(model, teacher_sha256)
            | _patches_of(model, run)
            | ({"batch_size": None} if run.begun else {}),  # its pictures are there, drawn as they were
            plan=lambda: self._plan(model, sigmas, shape),
            replace=not run.begun,
            device=model.load_device,
        )

    def _source(self) -> dict[str, Any]:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "clip"}
        clip = None if self.clip is None else host.data.weights_sha256(self.clip)
        return {"kind": "prompts", **options, "clip": clip}

    def _plan(self, model: Any, sigmas: Tensor, shape: tuple[int, ...]) -> list[Shard]:
        """A shard is what the teacher draws at once, so that a resumed cache is drawn in the same batches."""
        _require_connected("Training Prompts (Teacher's Pictures)", clip=self.clip)
        count = len(self.prompts) * self.pictures_per_prompt
        texts, progress = _Texts(model, self.clip, self.negative), _Progress(count)
        starts = range(0, count, self.batch_size)
        batches = [range(start, min(start + self.batch_size, count)) for start in starts]
        return [functools.partial(self._shard, model, texts, progress, sigmas, shape, batch) for batch in batches]

    def _shard(
        self, model: Any, texts: _Texts, progress: _Progress, sigmas: Tensor, shape: tuple[int, ...], batch: range
    ) -> list[TensorData]:
        kinds: dict[Any, list[int]] = {}
        for i in batch:
            progress.next()
            kinds.setdefault(host.data.kind_of(texts.conditioning(self._prompt(i))), []).append(i)
        groups = [group for alike in kinds.values() for group in self._together(model, texts, shape, alike)]
        return [part for group in groups for part in self._drawn(model, texts, sigmas, shape, group)]

    def _together(
        self, model: Any, texts: _Texts, shape: tuple[int, ...], pictures: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """Pictures of prompts of one kind, in one batch where the host can sample them so, else each alone."""
        prompts = [texts.conditioning(self._prompt(i)) for i in pictures]
        x = torch.zeros(1, *shape, device=model.load_device)
        alike = host.inputs.encoded_together(model, prompts, host.data.batched(prompts), latents=x)
        return [pictures] if alike else [[i] for i in pictures]

    def _drawn(
        self, model: Any, texts: _Texts, sigmas: Tensor, shape: tuple[int, ...], pictures: Sequence[int]
    ) -> list[TensorData]:
        """pictures: their numbers, of prompts that can be sampled in one batch."""
        noise = torch.stack([self._noise(i, shape) for i in pictures])
        positive = host.data.batched([texts.conditioning(self._prompt(i)) for i in pictures])
        latents = host.data.draw(
            model, self.sampler, sigmas, noise=noise, positive=positive, negative=texts.negative, cfg=self.cfg
        )
        x0 = host.inputs.latents_for_training(model, {"samples": latents}).cpu()
        return texts.parts(
            (x0[j : j + 1], noise[j : j + 1] if self.pairs else None, self._prompt(i)) for j, i in enumerate(pictures)
        )

    def _prompt(self, picture: int) -> str:
        return self.prompts[picture // self.pictures_per_prompt]

    def _noise(self, picture: int, shape: tuple[int, ...]) -> Tensor:
        """splitmix64's increment keeps neighbouring seeds apart."""
        seed = (self.seed * 0x9E3779B97F4A7C15 + picture) % 2**63
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class _Progress:
    """The host's bar over samples, and its cancel."""

    def __init__(self, total: int) -> None:
        self._bar, self._total, self._done = host.signals.progress_bar(total), total, 0

    def next(self) -> None:
        host.signals.check_cancelled()
        self._done += 1
        self._bar.update_absolute(self._done, self._total)


def _of_teacher(model: Any, teacher_sha256: str) -> dict[str, Any]:
    """Its part in the data. The deviation of its noise is named where it is not 1, of which older folders know nothing."""
    scale = host.models.noise_scale(host.models.model_sampling_of(model))
    return {"teacher_sha256": teacher_sha256} | ({} if scale == 1.0 else {"noise_scale": scale})


def _patches_of(model: Any, run: RunFolder) -> dict[str, Any]:
    """What changes the pictures that the MODEL draws and is in no weight; of a run that has begun its own identity tells."""
    return {"changes": None if run.begun else {kind: len(made) for kind, made in host.identity.changes(model).items()}}


def _require_connected(node: str, **inputs: Any) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(
            f"the run's folder does not hold all of its training data, so they must be made: connect "
            f"{' and '.join(missing)} to {node}."
        )
