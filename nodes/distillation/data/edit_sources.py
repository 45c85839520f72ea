"""A folder of edited pictures as training data: each beside what it was made of, and a text that says how."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.cache import Shard
from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import Captioned, Found, Listing, captioned, listed
from ....trainers.data.pictures import Size, bucket_for, bucket_sizes, picture_size
from ... import host
from .data_sources import Progress
from .folder_sources import PictureFolder
from .pieces import Piece, of_picture, seed_of, upright

_NUMBER = re.compile(r"(.+)_(\d+)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditFolder(PictureFolder):
    """Pictures after an edit, with the text that asked for it. references: the folder of those before it, by the same names, or
    several for one with a number behind each: fox_1, fox_2. reference_method: how a model is told them, see host.editing.METHODS.

    references may be the folder itself: then nobody has drawn the edits, and each picture is its own reference.
    """

    kind = "edits"

    references: Path
    reference_method: str = host.editing.USUAL

    def __post_init__(self) -> None:
        super().__post_init__()
        host.editing.require_method(self.reference_method)
        if not self._with_reference(self.found):
            first = self.found.files[0].name
            raise ValueError(
                f"references is {str(self.references)!r}, but none of its {len(self._listed)} pictures has the name of one in "
                f"{self.folder}: the picture before {first} is called {_stem(first)}, with any ending."
            )

    @property
    def alone(self) -> bool:
        """Whether there are the pictures before the edit, and no others."""
        return self.references == self.folder

    @property
    def lacking(self) -> str:
        return "references is the folder itself, of pictures before an edit that nobody has drawn" if self.alone else ""

    @functools.cached_property
    def _listed(self) -> tuple[Found, ...]:
        return listed(self.references, self.endings, what="references", subfolders=self.subfolders).files

    @functools.cached_property
    def _referenced(self) -> dict[str, list[Found]]:
        """By the edited picture's name below its folder, without the ending: that of its name, then by their numbers."""
        edited = {_stem(file.name): file.name for file in self.found.files}
        found: dict[str, dict[int, Found]] = {}
        for file in self._listed:
            of, number = _numbered(_stem(file.name), among=edited)
            there = found.setdefault(of, {}).setdefault(number, file)
            if of in edited and there is not file:
                raise ValueError(
                    f"references is {str(self.references)!r}, which holds {there.name} and {file.name}, each by its name the "
                    f"picture before {edited[of]}; leave one of them."
                )
        return {of: [numbered[number] for number in sorted(numbered)] for of, numbered in found.items()}

    def _with_reference(self, listing: Listing) -> int:
        return sum(_stem(file.name) in self._referenced for file in listing.files)

    @functools.cached_property
    def _hashed(self) -> dict[str, list[Captioned]]:
        """Those that were read, by the edited picture's name as above."""
        return {}

    def _read(self, stem: str) -> list[Captioned]:
        if stem not in self._hashed:
            self._hashed[stem] = captioned(self._referenced[stem], caption="", hashed=self._looked.hashed)
        return self._hashed[stem]

    def _hashed_anew(self, listing: Listing, files: list[Captioned]) -> list[Captioned]:
        anew = super()._hashed_anew(listing, files)
        if anew is not files:
            self._hashed.clear()
        return anew

    @property
    def most(self) -> int:
        """References of one picture."""
        return max(len(self._referenced.get(_stem(file.name), ())) for file in self.found.files)

    def said(self, listing: Listing) -> str:
        found = super().said(listing)
        if self.alone:
            return f"{found} Each is the picture before an edit that nobody has drawn."
        several = f", up to {self.most} each" if self.most > 1 else ""
        return f"{found} {self._with_reference(listing)} with a reference in {self.references}{several}."

    @classmethod
    def require_model(cls, model: Any) -> None:
        host.editing.require_edits(model)
        super().require_model(model)

    def require_told_by(self, model: Any) -> None:
        """ValueError, naming the input, for a model that is not told references so, or not so many."""
        host.editing.require_edits(model, method=self.reference_method)
        for file in self.found.files:
            of = self._referenced.get(_stem(file.name), ())
            host.editing.require_so_many(model, len(of), of=file.name)

    def _plan(self, model: Any, files: Sequence[Captioned]) -> list[Shard]:
        self.require_told_by(model)
        return super()._plan(model, files)

    def _own(self) -> dict[str, Any]:
        usual = self.reference_method == host.editing.USUAL  # of which older folders know nothing
        return super()._own() | ({} if usual else {"reference_method": self.reference_method})

    def _source(self, files: Sequence[Captioned]) -> dict[str, Any]:
        named = [(file.name, _stem(file.name)) for file in files if _stem(file.name) in self._referenced]
        progress, hashes = Progress(len(named)), {}
        for name, stem in named:
            progress.next()
            of = [each.sha256 for each in self._read(stem)]
            hashes[name] = of[0] if len(of) == 1 else of
        return super()._source(files) | {"references": hashes}

    def _glance_at(self, file: Found) -> None:
        for reference in self._referenced[self._stem_of(file.name)]:
            with _of_reference(reference.name):
                self._glance_at_picture(reference.path)
        super()._glance_at(file)

    def _stem_of(self, name: str) -> str:
        if (stem := _stem(name)) not in self._referenced:
            raise BrokenFile(f"there is no picture of its name in {self.references}")
        return stem

    def look_at(self, file: Captioned) -> Any:
        for reference in self._read(self._stem_of(file.name)):
            with _of_reference(reference.name):
                if reference.broken:
                    raise BrokenFile(reference.broken)
                self._sizes[reference.name] = picture_size(reference.path)
        return super().look_at(file)

    @functools.cached_property
    def _sizes(self) -> dict[str, Size]:
        """Of references that were looked at: to know one is to decode its file."""
        return {}

    def _beside(
        self, model: Any, encoder: host.encoding.LatentEncoder, file: Captioned, piece: Piece
    ) -> dict[str, Any]:
        mirrored, latents, pictures = piece.of["mirrored"], [], []
        for reference in self._read(_stem(file.name)):
            own = bucket_for(self._sizes[reference.name], bucket_sizes(self.resolution, self.bucket_step))
            size = piece.of["size"] if host.editing.of_one_size(model) else own
            make = functools.cache(functools.partial(upright, reference, size, mirrored=mirrored))
            of = of_picture(reference, size, mirrored=mirrored)
            latents.append(encoder.latents(make, seed=seed_of(reference) + mirrored, of=of))
            pictures += [] if host.editing.text_node(model) is None else [make()]
        return self._told(model, latents, pictures)

    def like(self, model: Any, x0: Tensor) -> dict[str, Any]:
        """As far as it costs memory and time, what a Sample has of the most references that one has. x0: (1, ...)"""
        grey = torch.full((1, self.resolution, self.resolution, 3), 0.5)
        pictures = [] if host.editing.text_node(model) is None else [grey] * self.most
        return self._told(model, [torch.zeros_like(x0, device="cpu")] * self.most, pictures)

    def _told(self, model: Any, latents: Sequence[Tensor], pictures: Sequence[Tensor]) -> dict[str, Any]:
        told = host.editing.told(model, latents, method=self.reference_method)
        return {"told": told, "pictures": pictures}


@contextlib.contextmanager
def _of_reference(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenFile as error:
        raise BrokenFile(f"its reference {name}: {error}") from error


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _numbered(stem: str, *, among: Collection[str]) -> tuple[str, int]:
    """Of which edited picture a reference of that name is, and its number there: -1 of the picture's own name."""
    with_number = _NUMBER.fullmatch(stem)
    if stem not in among and with_number and with_number[1] in among:
        return with_number[1], int(with_number[2])
    return stem, -1
