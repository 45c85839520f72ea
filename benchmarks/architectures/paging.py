"""A current host's dynamic VRAM on the CPU: its own code, with its allocator replaced by one that has as little room as told.

Pages that are given up, and cast buffers between two uses, are overwritten through raw pointers, of which torch knows nothing,
as the real ones are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy
import torch
from torch import Tensor

Page = tuple["Pages | CastBuffer", int, int]
"""(what holds it, where it begins there, bytes)"""

ELSEWHERE = torch.device("cpu", 0)
"""Not equal to the device on which the weights are, and yet the same."""


class Pages:
    """Stands in for comfy_aimdo's ModelVBAR. room: bytes of weights that may be resident at a time."""

    room = 0

    def __init__(self, size: int, device: Any) -> None:
        self._memory = numpy.zeros(size, dtype=numpy.uint8)
        self._resident: dict[int, tuple[int, int]] = {}  # bytes and signature, by where it begins
        self._pinned: dict[int, int] = {}
        self._end, self._count = 0, 0

    def alloc(self, size: int) -> Page:
        start, self._end = self._end, self._end + (int(size) + 511) // 512 * 512
        return (self, start, int(size))

    def fault(self, start: int, size: int) -> int | None:
        """A signature that is new whenever the page was given up meanwhile; None where there is no room."""
        if start not in self._resident:
            if not self._make_room(size):
                return None
            self._count += 1
            self._resident[start] = (size, self._count)
        self._pinned[start] = self._pinned.get(start, 0) + 1
        return self._resident[start][1]

    def unpin(self, start: int, size: int) -> None:
        self._pinned[start] -= 1

    def _make_room(self, wanted: int) -> bool:
        for start, (size, _) in list(self._resident.items()):
            if self.loaded_size() + wanted <= self.room:
                break
            if not self._pinned.get(start):
                del self._resident[start]
                self._memory[start : start + size] = 0x5B
        return self.loaded_size() + wanted <= self.room

    def loaded_size(self) -> int:
        return sum(size for size, _ in self._resident.values())

    def view(self, start: int, size: int) -> Tensor:
        return torch.from_numpy(self._memory[start : start + size])

    def prioritize(self) -> None:
        pass

    def free_memory(self, size: int) -> int:
        return 0


class CastBuffer:
    """Stands in for comfy_aimdo's VRAMBuffer."""

    def __init__(self) -> None:
        self._memory = numpy.zeros(2**22, dtype=numpy.uint8)

    def size(self) -> int:
        return len(self._memory)

    def get(self, size: int, offset: int = 0) -> Page:
        self._memory[offset : offset + size] = 0x5B
        return (self, offset, size)

    def view(self, start: int, size: int) -> Tensor:
        return torch.from_numpy(self._memory[start : start + size])


class Stream(contextlib.nullcontext[None]):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = CastBuffer()

    def wait_stream(self, other: Any) -> None:
        pass


class NoPins:
    size = 0

    def __init__(self, *_: Any) -> None:
        pass

    def truncate(self, *_: Any, **__: Any) -> None:
        pass


def install(patches: Any, *, room: int) -> None:
    """Has the host page weights, and lend them for a device that is not theirs. room: bytes.

    patches: pytest's monkeypatch, or another whose setattr(owner, name, value) somebody undoes.
    """
    import comfy.model_management
    import comfy.ops
    import comfy.pinned_memory
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    streams = [Stream(), Stream()]
    patches.setattr(Pages, "room", room)
    vbar = comfy_aimdo.model_vbar
    patches.setattr(vbar, "ModelVBAR", Pages)
    patches.setattr(vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b)
    patches.setattr(comfy_aimdo.host_buffer, "HostBuffer", NoPins)
    patches.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda page, device: page[0].view(*page[1:]))
    patches.setattr(comfy.pinned_memory, "get_pin", lambda *_, **__: None)
    patches.setattr(comfy.pinned_memory, "pin_memory", lambda *_, **__: False)
    management = comfy.model_management
    patches.setattr(management, "is_device_cpu", lambda device: False)
    patches.setattr(management, "get_offload_stream", lambda device: streams.reverse() or streams[0])
    patches.setattr(management, "get_aimdo_cast_buffer", lambda stream, device: stream.buffer)
    patches.setattr(management, "current_stream", lambda device: streams[0])
    patches.setattr(management, "pinned_hostbuf_size", lambda size: 0)
    lend = comfy.ops.cast_bias_weight

    def elsewhere(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return lend(layer, *args, **{**kwargs, "device": ELSEWHERE})

    patches.setattr(comfy.ops, "cast_bias_weight", elsewhere)


def paged(model: Any) -> Any:
    """The MODEL with weights in pages."""
    import comfy.model_patcher

    made = comfy.model_patcher.ModelPatcherDynamic(model.model, ELSEWHERE, torch.device("cpu"))
    if not made.is_dynamic():
        raise ValueError("this MODEL's weights cannot be put into pages.")
    return made
