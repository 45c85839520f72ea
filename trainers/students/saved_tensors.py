"""For networks that overwrite in place what autograd saved for backward: what is overwritten is copied just before.

torch.autograd.graph.allow_mutation_on_saved_tensors promises the same, and gives wrong gradients without an error (seen in
torch 2.13): it knows a saved tensor by its id and address, which the next tensor may have once it has let go of the first,
and then answers with the first one's copy. Here a storage is known by its address only as long as somebody keeps it there.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def copied_when_overwritten() -> Iterator[None]:
    """Inside, what a pass overwrites in place stays for its backward as it was saved.

    Views count as what they look into. Weights that learn are left alone: no pass overwrites them, but FSDP gathers them
    anew into the same memory.
    """
    kept: dict[int, WeakSet[_Saved]] = defaultdict(WeakSet)  # by storage: what is in it still

    def pack(value: Tensor) -> _Saved:
        saved = _Saved(value)
        if not _is_learning(value):
            kept[_storage(value)].add(saved)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved.value), _Watching(kept):
        yield


class _Saved:
    """Stands in the graph for a tensor that autograd saved. Detached: an output with its graph would own itself."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach()

    def leave(self, copies: dict[object, Tensor]) -> None:
        """Out of the storage that is about to be written to. copies: those made already, for all who saved the same."""
        value = self.value
        same = (value.dtype, value.storage_offset(), value.shape, value.stride())
        if same not in copies:
            copies[same] = value.clone()
        self.value = copies[same]


class _Watching(TorchDispatchMode):
    def __init__(self, kept: Mapping[int, WeakSet[_Saved]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for i, name in _written_by(func):
            given = args[i] if i < len(args) else kwargs.get(name)
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, Tensor):
                    self._let_go(value)
        return func(*args, **kwargs)

    def _let_go(self, written: Tensor) -> None:
        copies: dict[object, Tensor] = {}
        saved = self._kept.get(_storage(written))
        while saved:
            saved.pop().leave(copies)


@functools.cache
def _written_by(func: Any) -> list[tuple[int, str]]:
    """Place and name of the arguments that an operator writes to. Kept: to ask costs as much as a small operator does."""
    given = enumerate(func._schema.arguments)
    return [(i, argument.name) for i, argument in given if argument.alias_info and argument.alias_info.is_write]


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _is_learning(value: Tensor) -> bool:
    owner = value if value._base is None else value._base
    return owner.is_leaf and owner.requires_grad
