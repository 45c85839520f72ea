"""A folder of pictures with captions: which there are, what is broken, the size that each is trained at, its pixels.

Sizes are buckets of about equal area, so that pictures of any aspect ratio are trained with little of them cut off
(NovelAI 2022, "NovelAI Improvements on Stable Diffusion", aspect ratio bucketing; kohya's sd-scripts do the same).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LONGEST_SIDE = 2.0
"""The longest side of a bucket, in square roots of its area: an aspect ratio of up to 4 to 1."""

Size = tuple[int, int]
"""(width, height) in pixels."""


class BrokenPicture(ValueError):
    """A file that cannot be read as one picture; the message says why."""


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture file, the text that describes it, and the SHA-256 of the file; empty for one that cannot be read."""

    path: Path
    caption: str
    sha256: str


def picture_files(folder: Path) -> list[Path]:
    """The pictures in folder itself, by name. ValueError when it is no folder or holds none."""
    if not _is_folder(folder):
        raise ValueError(f"the folder of training pictures is {str(folder)!r}, which is no folder.")
    files = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    if not files:
        raise ValueError(
            f"the folder {str(folder)!r} holds no pictures; looked for are {', '.join(ENDINGS)}, not below it."
        )
    return sorted(files, key=lambda path: path.name)


def _is_folder(path: Path) -> bool:
    """No also for what no system takes as a path, which Path.is_dir raises for."""
    return os.path.isdir(path)  # noqa: PTH112


def content_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, time of the last change in nanoseconds and size of all that is in folder: empty where there is no folder."""
    if not _is_folder(folder):
        return []
    files = [(path, path.stat() if path.exists() else path.lstat()) for path in sorted(folder.iterdir())]
    return [(path.name, found.st_mtime_ns, found.st_size) for path, found in files]


def captioned(files: Sequence[Path], *, caption: str | None) -> list[Captioned]:
    """Each with the text of the .txt file beside it, or caption where there is none.

    ValueError, naming the files, when a text is no UTF-8, or missing while caption is None.
    """
    texts = {path: _caption(path.with_suffix(".txt")) for path in files}
    missing = [path.name for path, text in texts.items() if text is None]
    if missing and caption is None:
        raise ValueError(f"{len(missing)} pictures have no caption file beside them: {', '.join(missing)}.")
    return [Captioned(path, caption or "" if text is None else text, _sha256(path)) for path, text in texts.items()]


def _sha256(file: Path) -> str:
    """Empty where nothing can be read: whoever decodes it then says why, and may leave it out."""
    try:
        return hashlib.sha256(_content(file)).hexdigest()
    except BrokenPicture:
        return ""


def _content(file: Path) -> bytes:
    """BrokenPicture for what is no file that can be read: a folder, or a pipe or device, which might never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise BrokenPicture("it is a folder, pipe or device, not a file")
        return file.read_bytes()
    except OSError as error:
        raise BrokenPicture(f"it cannot be read ({error.strerror or error})") from error


def _caption(file: Path) -> str | None:
    """The text on one line; None where there is no file. The encoding's mark that Windows' editors write is no text."""
    if not file.is_file():
        return None
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"the caption {str(file)!r} is no UTF-8 text ({error}).") from error


# --- sizes -----------------------------------------------------------------------------------------------------------


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """All sizes of at most resolution^2 pixels with sides that are multiples of step, as large as they can be.

    ValueError when a square of one step is too large already.
    """
    if step < 1 or resolution < step:
        raise ValueError(
            f"resolution is {resolution} and bucket_step is {step}; resolution must be at least bucket_step."
        )
    widths = range(step, int(LONGEST_SIDE * resolution) + 1, step)
    wide = [(width, resolution**2 // width // step * step) for width in widths if width >= resolution // step * step]
    sizes = {(w, min(h, w)) for w, h in wide if h >= step}
    return sorted(sizes | {(h, w) for w, h in sizes})


def bucket_for(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest, measured as a ratio; of two the larger one."""

    def distance(bucket: Size) -> tuple[float, int]:
        return abs(math.log(bucket[0] * size[1] / (bucket[1] * size[0]))), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


# --- pixels ----------------------------------------------------------------------------------------------------------


def picture_size(path: Path) -> Size:
    """Width and height as it is seen. The whole file is decoded: BrokenPicture when any part of it cannot be."""
    return _upright(path).size


def pixels(path: Path, size: Size) -> Tensor:
    """(H, W, 3) in [0, 1], float32: enlarged or reduced until it covers size, then cut at its centre."""
    return fitted(_colours(_upright(path)), size)


def fitted(picture: Tensor, size: Size) -> Tensor:
    """(H, W, 3) at another size (width, height), without a change of its aspect ratio: what is too much is cut off."""
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    covering = (max(round(height * scale), size[1]), max(round(width * scale), size[0]))
    resized = _resize(picture.movedim(-1, 0)[None], covering)[0].clamp(0.0, 1.0).movedim(0, -1)
    top, left = (covering[0] - size[1]) // 2, (covering[1] - size[0]) // 2
    return resized[top : top + size[1], left : left + size[0]].contiguous()


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    try:
        from kornia.geometry.transform import resize
    except ImportError as error:
        raise ImportError(
            "pictures are resized with kornia, which is not installed. Install it into ComfyUI's Python: "
            "python -m pip install kornia"
        ) from error
    return resize(picture, size, interpolation="bicubic", align_corners=False, antialias=True)


def _upright(path: Path) -> Image.Image:
    """The one picture of a file, decoded and turned as its EXIF says. BrokenPicture otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(_content(path))) as picture:
                if getattr(picture, "n_frames", 1) > 1:
                    raise BrokenPicture(f"it holds {picture.n_frames} pictures, not one")
                if picture.mode == "F":
                    raise BrokenPicture("it holds floating-point values, of which nothing says what is black and white")
                picture.load()
                return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise BrokenPicture("it is of no known picture format, or cut off at its beginning") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if isinstance(error, BrokenPicture):
            raise
        raise BrokenPicture(str(error)) from error


def _colours(picture: Image.Image) -> Tensor:
    """(H, W, 3) in [0, 1]. Grey becomes colour, 16 bits keep their depth, transparent parts are laid on white."""
    if picture.mode.startswith("I"):
        grey = torch.from_numpy(np.array(picture).astype(np.float32)) / 65535.0
        return grey.clamp(0.0, 1.0)[..., None].expand(-1, -1, 3).contiguous()
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layered = torch.from_numpy(np.array(picture.convert("RGBA"))).float() / 255.0
        alpha = layered[..., 3:]
        return layered[..., :3] * alpha + (1.0 - alpha)
    return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255.0
