"""A GPU that every machine has: what waits for it is counted, and what a Mac's does not do is refused."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("mps", 0)
CPU = torch.device("cpu")
_NAMES = (GPU.type, "meta")
"""As which it is asked for: torch's own parts take it for the one device that has no memory, and so no driver."""
aten = torch.ops.aten
_COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy_}
_INDEXING = {aten.index, aten.index_put, aten.index_put_}
"""Which take indices from the CPU, too."""
_SIZED_BY_VALUES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim}
_READS = {aten._local_scalar_dense, aten.equal, *_SIZED_BY_VALUES}
_LACKING = {aten.linalg_qr}
"""Which torch has not for a Mac's, https://github.com/pytorch/pytorch/issues/177370."""


class _OnGpu(Tensor):
    """values: the same on the CPU, where they are computed."""

    @staticmethod
    def __new__(cls, values):
        if values.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"{GPU} has no float64")
        own = {"dtype": values.dtype, "strides": values.stride(), "storage_offset": values.storage_offset()}
        with torch.inference_mode(False):
            return Tensor._make_wrapper_subclass(cls, values.shape, device="meta", **own)

    def __init__(self, values):
        self.values_on_gpu = values

    @property
    def device(self):
        return GPU

    def tolist(self):
        return self.cpu().tolist()

    def __torch_dispatch__(self, *_):
        raise RuntimeError("there is no GPU here")


class _Gpu(TorchDispatchMode):
    """read, sent: how often values went from GPU and to it, for which the CPU waits until it is idle."""

    def __init__(self):
        super().__init__()
        self.read = self.sent = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # calls that come whole in inference mode alone
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        there = self._noted(func.overloadpacket, args, kwargs)
        here = tree_map_only(_OnGpu, lambda one: one.values_on_gpu, (args, kwargs))
        here_args, here_kwargs = tree_map_only(torch.device, lambda _: CPU, here)
        found = func(*here_args, **here_kwargs)
        if not there:
            return found
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, _OnGpu, found))

    def _noted(self, kind, args, kwargs):
        """Whether what a call gives lies on GPU."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        own = [isinstance(one, _OnGpu) for one in tensors]
        others = any(one.ndim for one in tensors if not isinstance(one, _OnGpu))
        copies, indexes = kind in _COPIES, kind in _INDEXING and own[0]
        device = kwargs.get("device")
        there = device.type in _NAMES if device else any(own[:1] if copies else own)
        if kind in _LACKING and there:
            raise NotImplementedError(f"{GPU} has no {kind}")
        if any(own) and others and not (copies or indexes):
            raise RuntimeError(f"{kind} of tensors that are not on the same device, but on {GPU} and {CPU}")
        if kwargs.get("non_blocking") and (there or any(own)):
            raise RuntimeError("a copy that is not waited for may be read before it is there")
        masked = indexes and any(isinstance(i, _OnGpu) and i.dtype is torch.bool for i in args[1])
        self.sent += there and others and (copies or indexes)
        self.read += any(own) and (kind in _READS or masked or (copies and not there))
        return there


class _Generator(torch.Generator):
    """The CPU's, whatever device it is asked for."""

    def __new__(cls, device=CPU):
        return super().__new__(cls)


def _on_asked(make):
    """Of numbers, which torch sends where no mode sees it."""

    def made(*args, device=None, **kwargs):
        found = make(*args, **kwargs)
        return found if device is None else found.to(device)

    return made


@contextlib.contextmanager
def gpu():
    """Inside, tensors, modules and generators may be on GPU."""
    with pytest.MonkeyPatch.context() as patches, _Gpu() as counted:
        patches.setattr(torch, "Generator", _Generator)
        for make in (torch.tensor, torch.as_tensor):
            patches.setattr(torch, make.__name__, _on_asked(make))
        yield counted
