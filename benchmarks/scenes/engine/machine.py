"""Where results go, and what made them."""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def device() -> torch.device:
    """What the scenes' networks are on: the card where there is one. Judges read on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(learning_in: torch.dtype | None = None) -> dict[str, Any]:
    """learning_in: what the scenes' networks of this table are trained in; None where it trains none of them."""
    said = {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if learning_in is torch.float32:
        said["learning_in"] = "float32"  # bfloat16 goes without saying
    return said | ({"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def computing_in(precision: torch.dtype, *, on: torch.device) -> torch.autocast:
    """Inside, convolutions and products are computed in it."""
    return torch.autocast(on.type, precision, enabled=precision is not torch.float32)


def learning_precision() -> torch.dtype:
    """What the scenes' networks compute in while they learn."""
    return faster_precision(device())


@functools.cache
def faster_precision(on: torch.device) -> torch.dtype:
    """bfloat16 takes half of float32's time where the processor has instructions for it, and ten times as long where not."""
    return min((torch.bfloat16, torch.float32), key=lambda precision: _seconds_of_a_layer(precision, on))


def _seconds_of_a_layer(precision: torch.dtype, on: torch.device) -> float:
    """Forward and backward, the best of three after one that is not counted."""
    x = torch.ones(64, 64, 8, 8, device=on, requires_grad=True)
    weight = torch.ones(64, 64, 3, 3, device=on)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        with computing_in(precision, on=on):
            torch.nn.functional.conv2d(x, weight, padding=1).sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def save_picture(picture: Tensor, path: Path) -> None:
    """(H, W, 3) in [0, 1], as PNG."""
    from PIL import Image

    Image.fromarray(picture.mul(255).byte().numpy()).save(path)
