"""Folders as training data: what all have in common, and those of pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ....trainers.data.batches import Data, TensorData
from ....trainers.data.cache import Shard, is_whole
from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import NOT_READ, Captioned, Found, Listing, captioned, listed, require_any, some_of
from ....trainers.data.looked import Looked
from ....trainers.data.pictures import ENDINGS, Size, bucket_for, bucket_sizes, enlarged, picture_size, stated_size
from ....trainers.storage.run_folder import RunFolder
from ... import host
from .data_sources import SHARD_SAMPLES, MadeOnce, Progress, Sample, Texts, of_guidance, of_teacher, require_connected
from .pieces import Piece, of_picture, require_finite, seed_of, upright

LITERAL, PROMPT_SYNTAX = "literal", "prompt syntax"
CAPTION_SYNTAX = (LITERAL, PROMPT_SYNTAX)
"""How the parentheses of a caption are read: as letters, or as emphasis, as in a prompt."""


_NAMED = 5
"""Of many files."""
_LOOKED = "files.json"
"""Beside a run's data."""


class Look(NamedTuple):
    """shape: what files that are encoded to one shape have in common. enlarged: how many times one is, where that is above 1."""

    shape: Hashable
    enlarged: float = 1.0


class Encoders(NamedTuple):
    """What files and their captions are encoded by."""

    latents: host.encoding.LatentEncoder
    texts: Texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(MadeOnce):
    """Files with captions. ValueError, naming the input, for what cannot be trained on.

    caption: of files without a text beside them; None makes them an error. negative: the empty prompt's text. skip_broken:
    broken files are named in the log and left out; otherwise they are an error. vae, clip: the host's, None where the data
    are made already. subfolders: one of SUBFOLDERS. caption_syntax: one of CAPTION_SYNTAX, also for caption, not for
    negative.
    """

    node: ClassVar[str]
    kind: ClassVar[str]
    what: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    together: ClassVar[int] = SHARD_SAMPLES
    """Files in one file of the cache."""
    may_lack: ClassVar[tuple[str, ...]] = ()
    """Encoders without which data can be made."""

    folder: Path
    caption: str | None = ""
    negative: str = ""
    skip_broken: bool = False
    vae: Any = None
    clip: Any = None
    subfolders: str = NOT_READ
    caption_syntax: str = LITERAL

    def __post_init__(self) -> None:
        require_any(self.folder, self.endings, what=self.what, subfolders=self.subfolders)

    @functools.cached_property
    def found(self) -> Listing:
        """The files that were there when this was first asked."""
        return self.listing()

    def listing(self) -> Listing:
        """The files that are there now."""
        return listed(self.folder, self.endings, what=self.what, subfolders=self.subfolders)

    def said(self, listing: Listing) -> str:
        """For the user, before any file is opened."""
        return listing.said()

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        listing = self.listing()
        host.signals.say(self.said(listing))
        kept = run.data_folder / _LOOKED
        if is_whole(run.data_folder):  # else something is made of the files
            self._looked.read(kept)
        files = self._captioned(listing)
        data = self.kept(
            model,
            run,
            source=self._source(files) | of_teacher(model, teacher_sha256) | self._of_model(model),
            plan=lambda: self._plan(model, self._hashed_anew(listing, files)),
            newer=("caption_syntax",),
        )
        self._looked.keep(kept)
        return data

    @functools.cached_property
    def _looked(self) -> Looked:
        return Looked()

    def _captioned(self, listing: Listing) -> list[Captioned]:
        looked = Progress(len(listing.files)).next
        return captioned(listing.files, caption=self.caption, looked=looked, hashed=self._looked.hashed)

    def _hashed_anew(self, listing: Listing, files: list[Captioned]) -> list[Captioned]:
        """What shards are made of: where a hash was only known, the file is read."""
        if not self._looked.forget():
            return files
        return self._captioned(listing)

    def encoders(self, model: Any) -> dict[str, Any]:
        return {"vae": self.vae, "clip": self.clip}

    def _source(self, files: Sequence[Captioned]) -> dict[str, Any]:
        return self.described() | {
            self.what: {file.name: file.sha256 for file in files},
            "captions": {file.name: file.caption for file in files},
        }

    def described(self) -> dict[str, Any]:
        """What decides the data and can be told without looking at any file or weight, as JSON values."""
        decided = {
            "kind": self.kind,
            "negative": self.negative,
            "skip_broken": self.skip_broken,
            "caption_syntax": self.caption_syntax,
        }
        return decided | self._own() | ({} if self.subfolders == NOT_READ else {"subfolders": self.subfolders})

    def _plan(self, model: Any, files: Sequence[Captioned]) -> list[Shard]:
        self.require_model(model)
        self._require_encoders(model)
        groups = self._by_shape(files)
        make = self.encoder(model, told_of=sum(len(group) for group in groups.values()))
        shards = [
            (shape, group[start : start + self.together])
            for shape, group in groups.items()
            for start in range(0, len(group), self.together)
        ]
        return [
            Shard(functools.partial(make, shape, some), of=tuple(file.name for file in some)) for shape, some in shards
        ]

    def encoder(self, model: Any, *, told_of: int) -> Callable[[Hashable, Sequence[Captioned]], list[TensorData]]:
        """Makes training data of files of one shape. told_of: how many files there are, for the progress."""
        self._require_encoders(model)
        literal = self.caption_syntax == LITERAL
        texts = Texts(model, self.clip, self.negative, literal=literal, told=self.told())
        encoder = host.encoding.LatentEncoder(self.vae, host.folders.encodings())
        return functools.partial(self._shard, model, Encoders(encoder, texts), Progress(told_of))

    def _require_encoders(self, model: Any) -> None:
        encoders = self.encoders(model).items()
        require_connected(self.node, **{name: each for name, each in encoders if name not in self.may_lack})
        self._require_vae()

    def _by_shape(self, files: Sequence[Captioned]) -> dict[Hashable, list[Captioned]]:
        """Every file is decoded once before any is encoded, so that all broken ones are named together."""
        groups: dict[Hashable, list[Captioned]] = {}
        times: dict[str, float] = {}

        def group(file: Captioned) -> None:
            shape, times[file.name] = self.look_at(file)
            groups.setdefault(shape, []).append(file)

        self._look_at_all(files, group, before=Progress(len(files)).next)
        self._say_enlarged({name: by for name, by in times.items() if by > 1.0}, of=len(files))
        return groups

    def glance(self) -> None:
        """ValueError, naming the files, where names and beginnings of files say that some cannot be used: in no time."""
        self._look_at_all(self.found.files, self._glance_at, before=host.signals.check_cancelled)

    def _look_at_all(self, files: Sequence[Any], look: Callable[[Any], None], *, before: Callable[[], None]) -> None:
        """Names together those of which look raises BrokenFile, see _say_broken. before: is called before each."""
        broken: dict[str, str] = {}
        for file in files:
            before()
            try:
                look(file)
            except BrokenFile as error:
                broken[file.name] = str(error)
        self._say_broken(broken, of=len(files))

    def _glance_at(self, file: Found) -> None:
        """BrokenFile where it cannot be used, as far as that shows before it is decoded."""

    def look_at(self, file: Captioned) -> Look:
        """BrokenFile where a file, or its caption, cannot be used."""
        if file.broken:
            raise BrokenFile(file.broken)
        return self.look(file.path)

    def _say_broken(self, broken: dict[str, str], *, of: int) -> None:
        if not broken:
            return
        names = some_of([f"{name} ({reason})" for name, reason in broken.items()], "; ")
        if not self.skip_broken or len(broken) == of:
            raise ValueError(
                f"{len(broken)} of {of} {self.what} in {self.folder} cannot be used: {names}. Remove or repair them"
                f"{'.' if self.skip_broken else f', or set broken to skip on {self.node}.'}"
            )
        host.signals.say(f"{len(broken)} of {of} {self.what} in {self.folder} are skipped: {names}", warning=True)

    def _say_enlarged(self, times: Mapping[str, float], *, of: int) -> None:
        if not times:
            return
        most = sorted(times, key=lambda name: -times[name])[:_NAMED]
        names = ", ".join(f"{name} ({times[name]:.2g} times)" for name in most)
        host.signals.say(
            f"{len(times)} of {of} {self.what} in {self.folder} are smaller than what they are trained at and are enlarged: "
            f"{names}{', and others less' if len(times) > _NAMED else ''}. A lower resolution leaves them as they are.",
            warning=True,
        )

    def _shard(
        self, model: Any, by: Encoders, progress: Progress, shape: Hashable, files: Sequence[Captioned]
    ) -> list[TensorData]:
        return by.texts.parts(self._samples(model, by, shape, files, before=progress.next))

    def _samples(
        self, model: Any, by: Encoders, shape: Hashable, files: Sequence[Captioned], *, before: Callable[[], None]
    ) -> list[Sample]:
        """before: is called before each file."""
        samples: list[Sample] = []
        for file in files:
            before()
            try:
                samples += self._encoded(model, by, file, shape)
            except BrokenFile as error:
                raise ValueError(
                    f"{file.name} became another file while the {self.what} were encoded: {error}. Start once more, which looks "
                    "at all of them again."
                ) from error
        return samples

    def _encoded(self, model: Any, by: Encoders, file: Captioned, shape: Any) -> Iterator[Sample]:
        for piece in self._pieces(file, shape):
            host.signals.check_cancelled()
            latents = by.latents.latents(piece.samples, seed=piece.seed, of=piece.of)
            require_finite(latents, name=file.name)
            latent = {"samples": self._with_its_sound(model, piece, latents)}
            x0, streams = host.inputs.latents_for_training(model, latent).cpu(), host.inputs.stream_shapes(latent)
            beside = self._beside(model, by.latents, file, piece)
            yield Sample(x0, file.caption, repeats=file.repeats, streams=streams, **beside)

    # --- what a kind of file has of its own

    def _own(self) -> dict[str, Any]:
        """What decides the data beside what all kinds have in common, by name."""
        raise NotImplementedError

    def _require_vae(self) -> None:
        """ValueError where the VAE cannot encode such files."""

    @classmethod
    def require_model(cls, model: Any) -> None:
        """ValueError for a model that such files alone do not suffice for."""
        host.data.require_no_picture(model)

    def _of_model(self, model: Any) -> dict[str, Any]:
        """What of the model decides the data, beside what it is."""
        return {}

    def told(self) -> dict[str, float]:
        """See Texts."""
        return {}

    def _beside(
        self, model: Any, encoder: host.encoding.LatentEncoder, file: Captioned, piece: Piece
    ) -> dict[str, Any]:
        """What more a Sample has, by its name there."""
        return {}

    def _with_its_sound(self, model: Any, piece: Piece, latents: Tensor) -> Any:
        """The samples of a LATENT."""
        return latents

    def look(self, file: Path) -> Look:
        """BrokenFile where it cannot be used."""
        raise NotImplementedError

    def _pieces(self, file: Captioned, shape: Any) -> Iterator[Piece]:
        """What is encoded of a file of that shape, each a sample of its own."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenSource(FolderSource):
    """What is seen, in buckets of about equal area. resolution, bucket_step: see bucket_sizes. flip: each is a second sample,
    mirrored. guidance: what a guidance-distilled model is told, 0 for its own.
    """

    resolution: int = 512
    bucket_step: int = 64
    flip: bool = False
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise ValueError(f"bucket_step is {self.bucket_step}; allowed are multiples of 8: 64, for example.")
        bucket_sizes(self.resolution, self.bucket_step)
        super().__post_init__()

    def _require_encoders(self, model: Any) -> None:
        super()._require_encoders(model)
        host.data.require_patches(model, bucket_step=self.bucket_step)

    def _own(self) -> dict[str, Any]:
        decided = {"resolution": self.resolution, "bucket_step": self.bucket_step, "flip": self.flip}
        return decided | of_guidance(self.guidance)

    def told(self) -> dict[str, float]:
        return {"guidance": self.guidance}

    def look(self, file: Path) -> Look:
        return self._look(self._size(file))

    def _look(self, size: Size) -> Look:
        bucket = bucket_for(size, bucket_sizes(self.resolution, self.bucket_step))
        return Look(bucket, enlarged(size, bucket))

    def _size(self, file: Path) -> Size:
        """As it is seen."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFolder(SeenSource):
    """Pictures with captions."""

    node = "Training Images (Folder)"
    kind = "folder"
    what = "pictures"
    endings = ENDINGS

    @classmethod
    def require_model(cls, model: Any) -> None:
        host.with_sound.require_no_sound(model)
        super().require_model(model)

    def _require_vae(self) -> None:
        host.encoding.require_sides(self.vae, bucket_step=self.bucket_step)

    def small(self) -> list[float]:
        """How many times each of those that are smaller than what they are trained at is enlarged, by what their files say."""
        found = []
        for file in self.found.files:
            host.signals.check_cancelled()
            size = self._stated_size(file.path)
            found += [] if size is None else [self._look(size).enlarged]
        return [times for times in found if times > 1.0]

    def _glance_at(self, file: Found) -> None:
        self._glance_at_picture(file.path)

    def _glance_at_picture(self, picture: Path) -> None:
        """BrokenFile where its beginning is that of no picture."""
        if self._stated_size(picture) is None:
            picture_size(picture)  # which says why

    def _stated_size(self, picture: Path) -> Size | None:
        """Of each that was found the beginning is read once, by whoever asks first."""
        if picture not in self._stated:
            self._stated[picture] = stated_size(picture)
        return self._stated[picture]

    @functools.cached_property
    def _stated(self) -> dict[Path, Size | None]:
        return {}

    def _size(self, file: Path) -> Size:
        return picture_size(file)

    def _pieces(self, file: Captioned, shape: Size) -> Iterator[Piece]:
        for mirrored in (False, True) if self.flip else (False,):
            make = functools.partial(upright, file, shape, mirrored=mirrored)
            yield Piece(make, of_picture(file, shape, mirrored=mirrored), seed=seed_of(file) + mirrored)
