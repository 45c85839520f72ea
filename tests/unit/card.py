"""A graphics card that every machine has: what waits for it is counted, and what a real one refuses is refused."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
CARD = torch.device("meta")
"""The one device besides the CPU that torch has without a driver."""
_SIZED_BY_VALUES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)
_READ = (aten._local_scalar_dense, aten.equal, *_SIZED_BY_VALUES)
_INDEXED = (aten.index, aten.index_put_, aten.index_put)
_MOVED = (aten._to_copy, aten.copy_, aten._foreach_copy_)


class _OnCard(Tensor):
    """values: the same on the CPU, where they are computed."""

    @staticmethod
    def __new__(cls, values):
        own = {"dtype": values.dtype, "strides": values.stride(), "storage_offset": values.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, values.shape, device=CARD, **own)

    def __init__(self, values):
        self.values_of_card = values

    def tolist(self):
        return self.cpu().tolist()

    def __torch_dispatch__(self, *_):
        raise RuntimeError("there is no card here")


class Card(TorchDispatchMode):
    """Inside, CARD has values. read, sent: how often some went from it and to it, for which the CPU waits until it is idle."""

    def __init__(self):
        super().__init__()
        self.read = self.sent = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind, kwargs = func.overloadpacket, dict(kwargs or {})
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        own, first = any(isinstance(value, _OnCard) for value in given), bool(args) and isinstance(args[0], _OnCard)
        others = any(value.ndim for value in given if not isinstance(value, _OnCard))
        device = kwargs.get("device")
        there = device == CARD or (device is None and own and (first or kind not in _MOVED))
        numbers_sent = own and others and first and kind in _INDEXED
        if own and others and kind not in _MOVED and not numbers_sent:
            raise RuntimeError(f"{func} of tensors on the card and on the CPU")
        self.sent += numbers_sent or (there and others and kind in _MOVED)
        self.read += own and (kind in _READ or (kind in _MOVED and not there) or _by_mask(kind, args))
        if device == CARD:
            kwargs["device"] = torch.device("cpu")
        here_args, here_kwargs = tree_map_only(_OnCard, lambda value: value.values_of_card, (args, kwargs))
        found = func(*here_args, **here_kwargs)
        if not there:
            return found
        found = tree_map_only(Tensor, _OnCard, found)
        return return_and_correct_aliasing(func, args, kwargs, found)


def _by_mask(kind, args):
    return kind in _INDEXED and any(isinstance(i, _OnCard) and i.dtype is torch.bool for i in args[1])
