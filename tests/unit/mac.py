"""A stand-in for a Mac's GPU, on the CPU: a device that knows no float64, and takes no tensors of others but numbers."""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

MAC = torch.device("mps", 0)
HERE = (MAC.type, "meta")


class MacTensor(torch.Tensor):
    """A tensor that says it lies on MAC. held: the same on the CPU, which computes in its place."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        # torch itself takes it for one of no memory, for which it asks no driver
        with torch.inference_mode(False):
            return torch.Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **layout)

    def __init__(self, held):
        self.held = held

    @property
    def device(self):
        return MAC

    def __repr__(self):
        return f"MacTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


ATEN = torch.ops.aten
COPIES = {ATEN.to, ATEN._to_copy, ATEN.copy_}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_}
"""Which take indices from the CPU, too."""
LACKING = {ATEN.linalg_qr}
"""Which torch has not for such a device, https://github.com/pytorch/pytorch/issues/177370."""


def computed(func, args, kwargs):
    """What a call gives: on MAC where one of its tensors lies there, or where it is asked for there."""
    leaves, kind = tree_leaves((args, kwargs)), func.overloadpacket
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    here = there = any(isinstance(one, MacTensor) for one in tensors)
    for device in (leaf for leaf in leaves if isinstance(leaf, torch.device)):
        there = device.type in HERE
    if func is ATEN.to.other:
        there = isinstance(tensors[1], MacTensor)
    if not here and not there:
        return func(*args, **kwargs)
    if kind is ATEN._has_compatible_shallow_copy_type:
        return False  # so that modules that move get parameters of the other class
    _require_known(func, tensors if here else [])
    if kwargs.get("non_blocking"):
        raise RuntimeError("a copy that is not waited for may be read before it is there")
    bare = tree_map_only(MacTensor, lambda one: one.held, (args, kwargs))
    bare = tree_map_only(torch.device, lambda _: torch.device("cpu"), bare)
    given = func(*bare[0], **bare[1])
    if not there:  # a copy, which shares no memory with what it is of
        return given.clone() if any(given is one for one in bare[0]) else given
    given = tree_map_only(torch.Tensor, MacTensor, given)
    return return_and_correct_aliasing(func, args, kwargs, given) if here else given


def _require_known(func, tensors):
    """Raises as torch does for what the device has not, and for tensors that lie elsewhere and are no numbers."""
    kind = func.overloadpacket
    if kind in LACKING:
        raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device.")
    if kind in COPIES:
        return
    for one in tensors[:1] if kind in INDEXING else tensors:
        if one.ndim and not isinstance(one, MacTensor):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found mps:0 and cpu.")


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """From lists and to lists, which torch does below where a dispatch mode could see it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type in HERE:
            return func(*args, **kwargs | {"device": None}).to(MAC)
        if func is torch.Tensor.tolist and isinstance(args[0], MacTensor):
            return args[0].held.tolist()
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """The CPU's, whatever device it is asked for."""

    def __new__(cls, device="cpu"):
        return GENERATOR()


GENERATOR = torch.Generator


@contextlib.contextmanager
def mac():
    """Inside, tensors, modules and generators may be on MAC."""
    with pytest.MonkeyPatch.context() as patches, _Numbers(), _Dispatched():
        patches.setattr(torch, "Generator", _Generator)
        yield MAC
