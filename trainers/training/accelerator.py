"""What torch has for a device of any maker, in a module of the device's name: torch.cuda (AMD's too), torch.xpu, torch.mps."""

from __future__ import annotations

from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "mps":
        torch.mps.synchronize()  # there is one, and none is named
        return
    wait = getattr(_module(device), "synchronize", None)
    if wait is not None:
        wait(device)


def counts_memory(device: torch.device) -> bool:
    """Whether its allocator tells the most that it has held."""
    return hasattr(_module(device), "max_memory_allocated")


def forget_most_held(device: torch.device) -> None:
    """What has been held is forgotten, where it is counted."""
    if counts_memory(device):
        _module(device).reset_peak_memory_stats(device)


def held(device: torch.device) -> int:
    """Bytes of tensors now, of a device that counts them."""
    return int(_module(device).memory_allocated(device))


def most_held(device: torch.device) -> int | None:
    """Bytes of tensors at most since forget_most_held; None where nobody counts."""
    return int(_module(device).max_memory_allocated(device)) if counts_memory(device) else None


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type, None)
