"""A folder of edited pictures as training data: each beside what it was made of, and a text that says how."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import Captioned, captioned, listed
from ....trainers.data.pictures import bucket_for, bucket_sizes, picture_size
from ... import host
from .folder_sources import PictureFolder, Piece, of_picture, seed_of, upright


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditFolder(PictureFolder):
    """Pictures after an edit, with the text that asked for it. references: the folder of those before it, by the same names."""

    kind = "edits"

    references: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.references == self.folder:
            raise ValueError(
                f"references is {str(self.references)!r}, the folder of the edited pictures itself; give another."
            )
        _ = self._referenced

    @functools.cached_property
    def _referenced(self) -> dict[str, Any]:
        """By its name below the folder, without the ending."""
        found = listed(self.references, self.endings, what="references", subfolders=self.subfolders)
        return {_stem(file.name): file for file in found.files}

    @functools.cached_property
    def _read(self) -> dict[str, Captioned]:
        return {stem: captioned((file,), caption="")[0] for stem, file in self._referenced.items()}

    @classmethod
    def require_model(cls, model: Any) -> None:
        host.editing.require_edits(model)
        super().require_model(model)

    def _source(self, files: Sequence[Captioned]) -> dict[str, Any]:
        there = {file.name: self._read.get(_stem(file.name)) for file in files}
        hashes = {name: reference.sha256 for name, reference in there.items() if reference is not None}
        return super()._source(files) | {"references": hashes}

    def look_at(self, file: Captioned) -> Any:
        reference = self._read.get(_stem(file.name))
        if reference is None:
            raise BrokenFile(f"there is no picture of its name in {self.references}")
        if reference.broken:
            raise BrokenFile(f"its reference {reference.name}: {reference.broken}")
        try:
            picture_size(reference.path)
        except BrokenFile as error:
            raise BrokenFile(f"its reference {reference.name}: {error}") from error
        return super().look_at(file)

    def _beside(
        self, model: Any, encoder: host.encoding.LatentEncoder, file: Captioned, piece: Piece
    ) -> dict[str, Any]:
        reference, mirrored = self._read[_stem(file.name)], piece.of["mirrored"]
        size = bucket_for(picture_size(reference.path), bucket_sizes(self.resolution, self.bucket_step))
        make = functools.partial(upright, reference, size, mirrored=mirrored)
        of = of_picture(reference, size, mirrored=mirrored)
        latents = encoder.latents(make, seed=seed_of(reference) + mirrored, of=of)
        return {"told": host.editing.told(latents), "picture": self._looked_at(model, make)}

    def _looked_at(self, model: Any, make: functools.partial[Tensor]) -> Tensor | None:
        return make() if host.editing.looks_by_text_encoder(model) else None


def pictures_of(*, references: str = "", **options: Any) -> PictureFolder:
    """references: as a user names the folder, nothing for pictures that are none of edits."""
    if not references.strip():
        return PictureFolder(**options)
    return EditFolder(references=host.folders.training_folder(references), **options)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
