"""How much memory a forward pass takes from its beginning until backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def left_in_memory(forward: Callable[[], Tensor]) -> int:
    """Bytes of all that a forward pass makes and leaves behind while its result lives: what backward will ask for.

    Whoever holds it: autograd, or who computes again instead. What was there before, such as weights, is not counted.
    """
    with _Watching() as watching:
        result = forward()
    left = watching.left()
    del result
    return left


class _Watching(TorchDispatchMode):
    """Notes every storage that an operator returns and was not given; without keeping any alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[Any, int]] = {}  # by address: the last that was made there

    def __torch_dispatch__(self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        output = func(*args, **kwargs)
        for storage in _storages(output):
            if storage._cdata not in given:
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        return output

    def left(self) -> int:
        return sum(size for reference, size in self._made.values() if not reference.expired())


def _storages(values: Any) -> Iterator[UntypedStorage]:
    """Of ordinary tensors; those of quantised classes have none of their own."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and not hasattr(value, "__tensor_flatten__"):
            yield value.untyped_storage()
