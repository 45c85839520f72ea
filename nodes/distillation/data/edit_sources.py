"""A folder of edited pictures as training data: each beside what it was made of, and a text that says how."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from torch import Tensor

from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import Captioned, Found, Listing, captioned, listed
from ....trainers.data.pictures import bucket_for, bucket_sizes, picture_size
from ... import host
from .folder_sources import PictureFolder, Piece, glance_at, of_picture, seed_of, upright

Reference = TypeVar("Reference")


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
        if not self._with_reference(self.found):
            first = self.found.files[0].name
            raise ValueError(
                f"references is {str(self.references)!r}, but none of its {sum(map(len, self._referenced.values()))} pictures "
                f"has the name of one in {self.folder}: the picture before {first} is called {_stem(first)}, with any ending."
            )
        for file in self.found.files:
            self._require_one_reference(file.name)

    def _require_one_reference(self, name: str) -> None:
        there = [each.name for each in self._referenced.get(_stem(name), ())]
        if len(there) > 1:
            raise ValueError(
                f"references is {str(self.references)!r}, which holds {' and '.join(there)}, each by its name the picture before "
                f"{name}; leave one of them."
            )

    @functools.cached_property
    def _referenced(self) -> dict[str, list[Found]]:
        """By its name below the folder, without the ending."""
        found: dict[str, list[Found]] = {}
        for file in listed(self.references, self.endings, what="references", subfolders=self.subfolders).files:
            found.setdefault(_stem(file.name), []).append(file)
        return found

    def _with_reference(self, listing: Listing) -> int:
        return sum(_stem(file.name) in self._referenced for file in listing.files)

    @functools.cached_property
    def _read(self) -> dict[str, Captioned]:
        return {stem: captioned(files[:1], caption="")[0] for stem, files in self._referenced.items()}

    def said(self, listing: Listing) -> str:
        return f"{super().said(listing)} {self._with_reference(listing)} with a reference in {self.references}."

    @classmethod
    def require_model(cls, model: Any) -> None:
        host.editing.require_edits(model)
        super().require_model(model)

    def _source(self, files: Sequence[Captioned]) -> dict[str, Any]:
        there = {file.name: self._read.get(_stem(file.name)) for file in files}
        hashes = {name: reference.sha256 for name, reference in there.items() if reference is not None}
        return super()._source(files) | {"references": hashes}

    def _glance_at(self, file: Found) -> None:
        reference = self._reference_of(file.name, self._referenced)[0]
        with _of_reference(reference.name):
            glance_at(reference.path)
        super()._glance_at(file)

    def _reference_of(self, name: str, among: Mapping[str, Reference]) -> Reference:
        if (stem := _stem(name)) not in among:
            raise BrokenFile(f"there is no picture of its name in {self.references}")
        return among[stem]

    def look_at(self, file: Captioned) -> Any:
        reference = self._reference_of(file.name, self._read)
        with _of_reference(reference.name):
            if reference.broken:
                raise BrokenFile(reference.broken)
            picture_size(reference.path)
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


@contextlib.contextmanager
def _of_reference(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenFile as error:
        raise BrokenFile(f"its reference {name}: {error}") from error


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
