"""Folders of clips and of sounds as training data, for models of video and of sound."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....trainers.data import clips
from ....trainers.data.cache import Shard
from ....trainers.data.files import BrokenFile
from ....trainers.data.listing import Captioned, Found
from ....trainers.data.pictures import PIXELS, Size, fitted
from ... import host
from .folder_sources import FolderSource, Look, SeenSource
from .pieces import Piece, seed_of

FIRST, ALL = "the first", "all"
PIECES = (FIRST, ALL)
"""Which of the pieces of the wanted length that a file has one after another are samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFolder(SeenSource):
    """Clips with captions. frames: of a sample. frame_rate: how many a second, 0 for those of the file. pieces: of PIECES.

    audio_vae: encodes what is heard, for models that draw clips with their sound, and for them alone. clip_vision: looks at the
    first frame, for models that go on from it and are told that, too.
    """

    node = "Training Clips (Folder)"
    kind = what = "clips"
    endings = clips.CLIP_ENDINGS
    together = 8
    may_lack = ("clip_vision",)

    frames: int = 17
    frame_rate: float = 16.0
    pieces: str = FIRST
    audio_vae: Any = None
    clip_vision: Any = None

    def __post_init__(self) -> None:
        clips.require_reader()
        _require_pieces(self.pieces)
        super().__post_init__()

    def encoders(self, model: Any) -> dict[str, Any]:
        heard = {"audio_vae": self.audio_vae} if host.with_sound.draws_sound(model) else {}
        seen = {"clip_vision": self.clip_vision} if host.data.looks_by_clip_vision(model) else {}
        return super().encoders(model) | heard | seen

    def _require_encoders(self, model: Any) -> None:
        super()._require_encoders(model)
        host.data.require_no_clip_vision(model, self.clip_vision)
        host.with_sound.require_no_audio_vae(model, self.audio_vae)
        if host.with_sound.draws_sound(model):
            host.with_sound.require_rate(model, self.frame_rate)
            self._heard()

    def _heard(self) -> tuple[int, int]:
        """(samples of a piece, samples a second)"""
        return host.encoding.samples_over(self.audio_vae, seconds=self.frames / self.frame_rate)

    def _own(self) -> dict[str, Any]:
        own = {"frames": self.frames, "frame_rate": self.frame_rate, "pieces": self.pieces}
        return super()._own() | own

    def _require_vae(self) -> None:
        host.encoding.require_frames(self.vae, frames=self.frames, bucket_step=self.bucket_step)

    @classmethod
    def require_model(cls, model: Any) -> None:
        if not host.data.takes_first_frame(model):
            super().require_model(model)

    def unseen(self, model: Any) -> str:
        """What to do, where a model looks by CLIP vision and none is connected; else nothing."""
        if self.clip_vision is not None or not host.data.looks_by_clip_vision(model):
            return ""
        return (
            "this model looks at its picture by CLIP vision, too, and clip_vision is not connected: draw with its student "
            "without clip_vision_output, or connect it"
        )

    def _plan(self, model: Any, files: Sequence[Captioned]) -> list[Shard]:
        if unseen := self.unseen(model):
            host.signals.say(f"{unseen}.", warning=True)
        return super()._plan(model, files)

    def _of_model(self, model: Any) -> dict[str, Any]:
        return {"first_frame": "told"} if host.data.takes_first_frame(model) else {}

    def told(self) -> dict[str, float]:
        return super().told() | {"frame_rate": self.frame_rate}

    def _beside(
        self, model: Any, encoder: host.encoding.LatentEncoder, file: Captioned, piece: Piece
    ) -> dict[str, Any]:
        if not host.data.takes_first_frame(model):
            return {}
        make = functools.partial(_first_frame_of, piece)
        latents = encoder.latents(make, seed=piece.seed, of={**piece.of, "kept": "the first frame"})
        looked = self.clip_vision is not None
        seen = host.encoding.seen_in(self.clip_vision, piece.samples()[:1]) if looked else None
        return {"told": host.data.first_frame_told(model, latents, seen=seen)}

    def _glance_at(self, file: Found) -> None:
        if self.audio_vae is not None:
            clips.require_sound(file.path)

    def look(self, file: Path) -> Look:
        most = self.frames if self.pieces == FIRST else None  # of a film no more than that is trained on
        found = clips.frame_count(file, rate=self.frame_rate, most=most, heed=host.signals.check_cancelled)
        if found < self.frames:
            at = f" at {self.frame_rate:g} a second" if self.frame_rate else ""
            raise BrokenFile(f"it has {found} frames{at}, fewer than {self.frames}")
        if self.audio_vae is not None:
            clips.require_sound(file)
        return super().look(file)

    def _size(self, file: Path) -> Size:
        return clips.clip_size(file)

    def _pieces(self, file: Captioned, shape: Size) -> Iterator[Piece]:
        seen = functools.partial(fitted, size=shape)
        found = clips.clip_pieces(file.path, frames=self.frames, rate=self.frame_rate, seen=seen, hashed=file.hashed)
        found = islice(found, 1 if self.pieces == FIRST else None)
        for number, (frames, sound) in enumerate(zip(found, self._sounds(file), strict=False)):
            for mirrored in (False, True) if self.flip else (False,):
                of = {"clip": file.sha256, "piece": number, "frames": self.frames, "frame_rate": self.frame_rate}
                of |= {"size": shape, "mirrored": mirrored, "pixels": PIXELS}
                make = functools.partial(_turned, frames, mirrored=mirrored)
                heard = None if sound is None else _turned(sound, mirrored=mirrored)  # left and right change, too
                yield Piece(make, of, seed=seed_of(file) + 2 * number + mirrored, sound=heard)

    def _sounds(self, file: Captioned) -> Iterator[Tensor | None]:
        """Of each piece, without an end; None where no sound is wanted."""
        if self.audio_vae is None:
            return itertools.repeat(None)
        samples, rate = self._heard()
        every = self.frames / self.frame_rate
        return clips.sounds_beside(file.path, every=every, samples=samples, rate=rate, hashed=file.hashed)

    def _with_its_sound(self, model: Any, piece: Piece, latents: Tensor) -> Any:
        if piece.sound is None:
            return latents
        heard = functools.partial(_same, piece.sound)
        sound = self._sound_encoder.latents(heard, seed=piece.seed, of={**piece.of, "kept": "the sound"})
        return host.with_sound.and_sound(model, latents, sound, frames=self.frames, frame_rate=self.frame_rate)

    @functools.cached_property
    def _sound_encoder(self) -> host.encoding.LatentEncoder:
        return host.encoding.LatentEncoder(self.audio_vae, host.folders.encodings())


def _first_frame_of(piece: Piece) -> Tensor:
    """(T, H, W, 3): grey from the second on."""
    frames = piece.samples()
    grey = torch.full_like(frames, 0.5)
    grey[:1] = frames[:1]
    return grey


def _turned(frames: Tensor, *, mirrored: bool) -> Tensor:
    return frames.flip(2) if mirrored else frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundFolder(FolderSource):
    """Sounds with captions. seconds: of a sample, down to what the VAE encodes whole. pieces: of PIECES."""

    node = "Training Sounds (Folder)"
    kind = what = "sounds"
    endings = clips.SOUND_ENDINGS

    seconds: float = 10.0
    pieces: str = FIRST

    def __post_init__(self) -> None:
        clips.require_reader()
        _require_pieces(self.pieces)
        super().__post_init__()

    def _own(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "pieces": self.pieces}

    def _require_vae(self) -> None:
        self._length()

    def _length(self) -> tuple[int, int]:
        """(samples of a piece, samples a second)"""
        return host.encoding.samples_of(self.vae, seconds=self.seconds)

    def told(self) -> dict[str, float]:
        return {"seconds_start": 0.0, "seconds_total": self.seconds}

    def look(self, file: Path) -> Look:
        samples, rate = self._length()
        found = clips.sample_count(file, rate=rate)
        if found < samples:
            raise BrokenFile(f"it lasts {found / rate:.2f} seconds, less than {samples / rate:.2f}")
        return Look(samples)

    def _pieces(self, file: Captioned, shape: int) -> Iterator[Piece]:
        _, rate = self._length()
        found = clips.sound_pieces(file.path, samples=shape, rate=rate, hashed=file.hashed)
        for number, sound in enumerate(islice(found, 1 if self.pieces == FIRST else None)):
            of = {"sound": file.sha256, "piece": number, "samples": shape, "rate": rate}
            yield Piece(functools.partial(_same, sound), of, seed=seed_of(file) + number)


def _same(sound: Tensor) -> Tensor:
    return sound


def _require_pieces(pieces: str) -> None:
    if pieces not in PIECES:
        raise ValueError(f"pieces is {pieces!r}; allowed are {', '.join(PIECES)}.")
