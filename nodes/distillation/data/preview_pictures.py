"""Preview pictures as files: one row above the other, and in the file itself what each column is of."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from ....trainers.storage import reading
from ....trainers.storage.files import write_atomically
from ...sampling.comparison import stacked

_SAID = "fewstep.preview"
_ABOUT = {"columns": reading.is_count, "prompts": lambda value: value is None or reading.is_texts(value)}
NOTHING = {"columns": None, "prompts": None}
"""Of pictures that an older version kept."""


def write(file: Path, rows: Sequence[Tensor], *, prompts: Sequence[str] | None) -> Image.Image:
    """Rows of pictures (N, H, W, 3) in [0, 1] as a PNG file in full size. prompts: of each column, where somebody chose them."""
    picture = Image.fromarray(stacked(rows).mul(255).byte().cpu().numpy())
    said = PngImagePlugin.PngInfo()
    about = {"columns": len(rows[0]), "prompts": None if prompts is None else list(prompts)}
    said.add_itxt(_SAID, json.dumps(about))
    content = io.BytesIO()
    picture.save(content, format="PNG", pnginfo=said)
    write_atomically(file, content.getvalue())  # another process may be watching
    return picture


def opened(file: Path) -> Image.Image:
    """A picture of ours, however large: Image.open refuses those above 179 million pixels, of files from anywhere."""
    return PngImagePlugin.PngImageFile(file)


def size(file: Path) -> tuple[int, int] | None:
    """Width and height of a file that `write` wrote, of both rows together; None for what is no picture."""
    try:
        with opened(file) as picture:
            return picture.size
    except (OSError, SyntaxError):
        return None


def about(file: Path) -> dict[str, Any]:
    """{columns, prompts} of a file that `write` wrote; NOTHING of older ones. ValueError for what is no picture."""
    try:
        with opened(file) as picture:
            said = picture.info.get(_SAID)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file.name} is damaged or no PNG picture.") from error
    if said is None:
        return NOTHING
    return reading.require(reading.parsed(said.encode(), what=_SAID), _ABOUT, what=_SAID)
