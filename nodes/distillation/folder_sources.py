"""Folders as training data: pictures with captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...trainers.data.batches import Data, TensorData
from ...trainers.data.cache import Shard, cached_data
from ...trainers.data.listing import NOT_READ, BrokenFile, Captioned, Listing, captioned, listed
from ...trainers.data.pictures import ENDINGS, PIXELS, Size, bucket_for, bucket_sizes, picture_size, pixels
from ...trainers.storage.run_folder import RunFolder
from .. import host
from .data_sources import SHARD_SAMPLES, MadeOnce, Progress, Sample, Texts, of_guidance, of_teacher, require_connected

LITERAL, PROMPT_SYNTAX = "literal", "prompt syntax"
CAPTION_SYNTAX = (LITERAL, PROMPT_SYNTAX)
"""How the parentheses of a caption are read: as letters, or as emphasis, as in a prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(MadeOnce):
    """Pictures with captions. ValueError, naming the input, for what cannot be trained on.

    resolution, bucket_step: see bucket_sizes. caption: of pictures without a text beside them; None makes them an error.
    negative: the empty prompt's text. flip: each picture is a second sample, mirrored. skip_broken: broken files are named in
    the log and left out; otherwise they are an error. vae, clip: the host's, None where the data are made already. subfolders:
    one of SUBFOLDERS. caption_syntax: one of CAPTION_SYNTAX, also for caption, not for negative. guidance: see Texts.
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
    subfolders: str = NOT_READ
    caption_syntax: str = LITERAL
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise ValueError(f"bucket_step is {self.bucket_step}; allowed are multiples of 8: 64, for example.")
        bucket_sizes(self.resolution, self.bucket_step)
        self.listing()

    def listing(self) -> Listing:
        """The pictures that are there now."""
        return listed(self.folder, ENDINGS, subfolders=self.subfolders)

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        listing = self.listing()
        host.signals.say(listing.said())
        progress = Progress(len(listing.files))
        pictures = captioned(listing.files, caption=self.caption, looked=progress.next)
        return cached_data(
            run.data_folder,
            source=self._source(pictures) | of_teacher(model, teacher_sha256),
            plan=lambda: self._plan(model, pictures),
            replace=not run.begun,
            device=model.load_device,
            newer=("caption_syntax",),
        )

    def _source(self, pictures: Sequence[Captioned]) -> dict[str, Any]:
        return (
            {
                "kind": "folder",
                "resolution": self.resolution,
                "bucket_step": self.bucket_step,
                "negative": self.negative,
                "flip": self.flip,
                "skip_broken": self.skip_broken,
                "pictures": {picture.name: picture.sha256 for picture in pictures},
                "captions": {picture.name: picture.caption for picture in pictures},
                "caption_syntax": self.caption_syntax,
                "vae": None if self.vae is None else host.encoding.weights_sha256(self.vae),
                "clip": None if self.clip is None else host.encoding.weights_sha256(self.clip),
            }
            | of_guidance(self.guidance)
            | ({} if self.subfolders == NOT_READ else {"subfolders": self.subfolders})
        )

    def _plan(self, model: Any, pictures: Sequence[Captioned]) -> list[Shard]:
        require_connected("Training Images (Folder)", vae=self.vae, clip=self.clip)
        groups = self._by_bucket(pictures)
        literal = self.caption_syntax == LITERAL
        texts = Texts(model, self.clip, self.negative, literal=literal, guidance=self.guidance)
        encoder = host.encoding.LatentEncoder(self.vae, host.folders.encodings())
        progress = Progress(sum(len(group) for group in groups.values()))
        return [
            functools.partial(self._shard, model, encoder, texts, progress, size, group[start : start + SHARD_SAMPLES])
            for size, group in groups.items()
            for start in range(0, len(group), SHARD_SAMPLES)
        ]

    def _by_bucket(self, pictures: Sequence[Captioned]) -> dict[Size, list[Captioned]]:
        """Every file is decoded once before any is encoded, so that all broken ones are named together."""
        buckets = bucket_sizes(self.resolution, self.bucket_step)
        groups: dict[Size, list[Captioned]] = {}
        broken = {picture.name: picture.broken for picture in pictures if picture.broken}
        progress = Progress(len(pictures))
        for picture in pictures:
            progress.next()
            try:
                if not picture.broken:
                    groups.setdefault(bucket_for(picture_size(picture.path), buckets), []).append(picture)
            except BrokenFile as error:
                broken[picture.name] = str(error)
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
        host.signals.say(f"{len(broken)} of {of} pictures in {self.folder} are skipped: {names}", warning=True)

    def _shard(
        self,
        model: Any,
        encoder: host.encoding.LatentEncoder,
        texts: Texts,
        progress: Progress,
        size: Size,
        pictures: Sequence[Captioned],
    ) -> list[TensorData]:
        samples = []
        for picture in pictures:
            progress.next()
            for mirrored in (False, True) if self.flip else (False,):
                latents = self._encoded(encoder, picture, size, mirrored=mirrored)
                x0 = host.inputs.latents_for_training(model, {"samples": latents}).cpu()
                samples.append(Sample(x0, picture.caption, repeats=picture.repeats))
        return texts.parts(samples)

    def _encoded(
        self, encoder: host.encoding.LatentEncoder, origin: Captioned, size: Size, *, mirrored: bool
    ) -> Tensor:
        def picture() -> Tensor:
            upright = pixels(origin.path, size)
            return (upright.flip(1) if mirrored else upright)[None]

        seed = int(origin.sha256[:15], 16) + mirrored
        of = {"picture": origin.sha256, "size": size, "mirrored": mirrored, "pixels": PIXELS}
        latents = encoder.latents(picture, seed=seed, of=of)
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"the VAE makes NaN or infinite values of {origin.name}; SDXL's own VAE does so in half precision: "
                "start ComfyUI with --fp32-vae, or take a VAE made for half precision."
            )
        return latents
