"""Another program on the card: holds as many bytes as it is told, one line after the other, and says "held" or why not.

A process of its own, so that neither torch nor a host that pages its weights counts them as theirs.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

GIB = 2**30


class Room:
    """Makes a card as small as wanted for what runs inside."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        before, self._total = torch.cuda.mem_get_info()
        self._other = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hold(0)
        self._own = max(0, before - torch.cuda.mem_get_info()[0])

    def leave(self, gibibytes: float) -> None:
        """So many of the card, what this process already has of it included; 0 for all of it. MemoryError where it cannot."""
        self._hold(int(self._total - self._own - gibibytes * GIB) if gibibytes else 0)

    def leave_free(self, size: float) -> None:
        """So many bytes beside what is held now."""
        self._hold(0)
        self._hold(max(0, int(self._torch.cuda.mem_get_info()[0] - size)))

    def _hold(self, size: int) -> None:
        given, taken = self._other.stdin, self._other.stdout
        if given is None or taken is None:
            raise RuntimeError("the process that holds memory has no pipes.")
        print(size, file=given, flush=True)
        answer = taken.readline().strip()
        if answer != "held":
            raise MemoryError(f"{size} bytes could not be held: {answer or 'it ended'}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._other.kill()
        self._other.wait()


def main() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, place = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    _require(cuda.cuInit(0))
    _require(cuda.cuDeviceGet(ctypes.byref(device), 0))
    _require(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    _require(cuda.cuCtxSetCurrent(context))
    for line in sys.stdin:
        if place:
            _require(cuda.cuMemFree_v2(place))
            place = ctypes.c_void_p()
        size = int(line)
        failed: Any = cuda.cuMemAlloc_v2(ctypes.byref(place), ctypes.c_size_t(size)) if size else 0
        print(f"CUDA error {failed}" if failed else "held", flush=True)


def _require(error: int) -> None:
    if error:
        sys.exit(f"CUDA error {error}")


if __name__ == "__main__":
    main()
