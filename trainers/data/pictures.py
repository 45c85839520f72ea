"""Picture files: what is broken, the size that each is trained at, its pixels.

Sizes are buckets of about equal area, so that pictures of any aspect ratio are trained with little of them cut off
(NovelAI 2022, "NovelAI Improvements on Stable Diffusion", aspect ratio bucketing; kohya's sd-scripts do the same).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features
from torch import Tensor
from torch.nn.functional import interpolate

from .files import BrokenFile, content, require_file

_HEIC = (".heic", ".heif")
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", *_HEIC)
_STILLS = ("MPO", "HEIF")
"""Formats of cameras and phones, which keep other views, depth or a gain map behind the one picture that is meant."""
PIXELS = 3
"""Raised when other pixels are made of the same file, so that what was encoded of it before is not taken."""
LONGEST_SIDE = 2.0
"""The longest side of a bucket, in square roots of its area: an aspect ratio of up to 4 to 1."""

Size = tuple[int, int]
"""(width, height) in pixels."""


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
    """Width and height as it is seen. The whole file is decoded: BrokenFile when any part of it cannot be."""
    return _upright(path).size


def stated_size(path: Path) -> Size | None:
    """As it is stored, by the file's beginning: nothing is decoded. None for what is no picture."""
    try:
        require_file(path)
        if path.suffix.lower() in _HEIC:
            _register_heic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return picture.size
    except MemoryError:
        raise
    except Exception:  # of many kinds, by what is broken
        return None


def pixels(path: Path, size: Size, *, read: Callable[[Path], bytes] = content) -> Tensor:
    """(H, W, 3) in [0, 1], float32: enlarged or reduced until it covers size, then cut at its centre. read: gives its bytes."""
    return fitted(_colours(_in_srgb(_upright(path, read=read))), size)


def enlarged(picture: Size, size: Size) -> float:
    """How many times a picture is enlarged to cover size; below 1 it is reduced."""
    return max(size[0] / picture[0], size[1] / picture[1])


def fitted(picture: Tensor, size: Size) -> Tensor:
    """(H, W, 3) at another size (width, height), without a change of its aspect ratio: what is too much is cut off.

    Bicubic, antialiased as Pillow's.
    """
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    if max(width * scale / size[0], height * scale / size[1]) > _STRIP:
        picture = _middle(picture, (math.ceil(_STRIP * size[1] / scale), math.ceil(_STRIP * size[0] / scale)))
        height, width = picture.shape[:2]
    covering = (max(round(height * scale), size[1]), max(round(width * scale), size[0]))
    resized = interpolate(picture.movedim(-1, 0)[None], covering, mode="bicubic", antialias=True)[0]
    resized = resized.clamp(0.0, 1.0).movedim(0, -1)
    return _middle(resized, (size[1], size[0])).contiguous()


_STRIP = 8
"""So many times too long, a picture is cut before it is enlarged too: 2000 x 4 pixels would become 256,000 x 512."""


def _middle(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """At most so many rows and columns of (H, W, 3)."""
    top, left = (max(there - kept, 0) // 2 for there, kept in zip(picture.shape, size, strict=False))
    return picture[top : top + size[0], left : left + size[1]]


def _upright(path: Path, *, read: Callable[[Path], bytes] = content) -> Image.Image:
    """The one picture of a file, decoded and turned as its EXIF says. BrokenFile otherwise.

    As large as Pillow takes it, twice its limit of warning: 179 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(path, read(path)) as picture:
                if getattr(picture, "n_frames", 1) > 1 and picture.format not in _STILLS:
                    raise BrokenFile(f"it holds {picture.n_frames} pictures, not one")
                if picture.mode == "F":
                    raise BrokenFile("it holds floating-point values, of which nothing says what is black and white")
                _load_whole(picture)
                turn = _TURNS.get(_orientation(picture))
                return picture.copy() if turn is None else picture.transpose(turn)
    except (BrokenFile, MemoryError):
        raise
    except Exception as error:  # of many kinds, by what is broken
        raise BrokenFile(str(error) or type(error).__name__) from error


def _load_whole(picture: Image.Image) -> None:
    """OSError where a part is missing, whatever other node packs have told Pillow for the whole process: it would be grey."""
    told, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        picture.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = told


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation. ImageOps.exif_transpose writes all of EXIF anew, and fails at any tag of an odd type."""


def _orientation(picture: Image.Image) -> int:
    """1, as it is, where the file does not say it legibly."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # of many kinds; the picture itself is whole
        return 1


def _opened(path: Path, found: bytes) -> Image.Image:
    """BrokenFile for what no reader knows, naming the one that is not installed."""
    known = path.suffix.lower() not in _HEIC or _register_heic()
    try:
        return Image.open(io.BytesIO(found))
    except UnidentifiedImageError as error:
        if not known:
            raise BrokenFile("HEIC is read with pillow-heif: python -m pip install pillow-heif") from error
        if path.suffix.lower() == ".avif" and "avif" not in features.get_supported():
            raise BrokenFile("this Pillow reads no AVIF, 11.3 does: python -m pip install -U pillow") from error
        raise BrokenFile("it is of no known picture format, or cut off at its beginning") from error


def _register_heic() -> bool:
    """Whether there is a reader of HEIC."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _in_srgb(picture: Image.Image) -> Image.Image:
    """With the colours that its profile means (Display P3 of phones, Adobe RGB of cameras, inks); models know sRGB alone."""
    profile = picture.info.get("icc_profile")
    if not profile or not features.check("littlecms2"):
        return picture
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    try:
        given, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(picture, given, wanted, outputMode=mode) or picture
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one for another mode; the picture itself is whole
        return picture


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
