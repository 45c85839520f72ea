"""Where results go, and what made them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def device() -> torch.device:
    """What the scenes' networks are on: the card where there is one. Judges read on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    said = {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return said | ({"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def save_picture(picture: Tensor, path: Path) -> None:
    """(H, W, 3) in [0, 1], as PNG."""
    from PIL import Image

    Image.fromarray(picture.mul(255).byte().numpy()).save(path)
