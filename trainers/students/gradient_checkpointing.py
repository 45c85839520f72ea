"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a block's activations are computed again when backward asks.

torch.utils.checkpoint does this for blocks that write to nothing. The host's add in place: on their inputs, which it refuses,
and on what autograd saved, where it gives wrong gradients without an error, since behind saved-tensor hooks torch checks no
versions. So the hooks here are our own. They copy an input before a block overwrites it, and note which saved tensors the
first pass overwrote later, so that the second keeps those as they were.

The graph is the one without checkpointing, and its gradients are the same, bit for bit, for blocks that draw no random
numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Forward = Callable[..., Any]


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """The members of the network's chains by path, none inside another: each is recomputed as one.

    A chain is a ModuleList or a Sequential; members without layers of their own are too small to count. A member that
    holds several blocks itself, as SDXL's spatial transformers do, is taken apart. ValueError when there is no chain.
    """
    found = _blocks_below(network, "")
    if not found:
        raise ValueError("gradient_checkpointing is on, but this model has no chain of blocks; switch it off.")
    return found


def _blocks_below(module: nn.Module, path: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        member = _is_chain(module) and not _is_chain(child) and any(True for _ in child.children())
        found |= {here: child} if member and _longest_list(child) < 2 else _blocks_below(child, here)
    return found


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _longest_list(module: nn.Module) -> int:
    return max((len(inner) for inner in module.modules() if isinstance(inner, nn.ModuleList)), default=0)


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Inside, every block of the network recomputes its activations in backward; on leaving there is no trace of it.

    Passes without gradient pay nothing. What a block reads beside its arguments, such as the adapters that are active,
    must be the same in backward. ValueError when the network has no blocks.
    """
    blocks = list(blocks_of(network).values())
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = recomputed(block.forward)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


def recomputed(forward: Forward) -> Forward:
    """The same function of tensors, which keeps its inputs instead of its activations for backward."""
    overwrites: set[_Name] | None = None  # which inputs; not known before it ran once

    def forward_or_again(*args: Any, **kwargs: Any) -> Any:
        nonlocal overwrites
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        inputs = _Inputs(args, kwargs, copied=overwrites)
        call = _Call(forward, inputs)
        with saved_tensors_hooks(call.pack, call.unpack):
            output = forward(*args, **kwargs)  # on the caller's own: into some of it hosts write
        call.passed()
        overwrites = inputs.settle(args, kwargs)
        return output

    return forward_or_again


_Name = int | str
"""Of an argument: its position or its keyword."""


def _by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[_Name, Any]:
    return dict([*enumerate(args), *kwargs.items()])


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[_Name, Tensor]:
    return {name: value for name, value in _by_name(args, kwargs).items() if isinstance(value, Tensor)}


class _Inputs:
    """A call's arguments as they were before it, for a second call. copied: what it will overwrite; None: perhaps all."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, copied: set[_Name] | None) -> None:
        self._positional = len(args)
        self._values = {name: _as_it_is(value) for name, value in _by_name(args, kwargs).items()}
        tensors = _tensors(args, kwargs)
        self._versions = {name: value._version for name, value in tensors.items()}
        for name in tensors if copied is None else copied & tensors.keys():
            self._values[name] = tensors[name].clone()

    def settle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[_Name]:
        """After the call: needless copies go. The names of what it overwrote."""
        given = _tensors(args, kwargs)
        overwritten = {name for name, value in given.items() if value._version != self._versions[name]}
        for name, value in given.items():
            if name not in overwritten:
                self._values[name] = value
            elif self._values[name] is not value:
                self._versions[name] = self._values[name]._version
        return overwritten

    def call(self, forward: Forward) -> Any:
        """RuntimeError when one was overwritten since, which only a copy would have outlived."""
        changed = [name for name, version in self._versions.items() if self._values[name]._version != version]
        if changed:
            raise RuntimeError(
                f"inputs {changed} of a checkpointed block were overwritten before backward; switch gradient_checkpointing "
                "off for this model."
            )
        args = [self._values[i] for i in range(self._positional)]
        return forward(*args, **{name: value for name, value in self._values.items() if isinstance(name, str)})


def _as_it_is(value: Any) -> Any:
    """Dictionaries copied, for the host goes on writing into them; all else as given."""
    return {key: _as_it_is(inner) for key, inner in value.items()} if isinstance(value, dict) else value


class _Saved:
    """Stands in the graph for a tensor that autograd saved, and holds it from the second pass on."""

    value: Tensor


class _Call:
    """One call of a block: stand-ins for what autograd saved in it, filled by calling it again.

    The graph owns the stand-ins, and this object through its hooks: what the graph lets go of is freed at once.
    """

    def __init__(self, forward: Forward, inputs: _Inputs) -> None:
        self._forward, self._inputs = forward, inputs
        self._saved: list[tuple[weakref.ref[_Saved], torch.Size]] = []
        self._seen: list[tuple[Tensor, int]] = []
        self._overwritten: set[int] = set()

    def pack(self, tensor: Tensor) -> _Saved:
        """In the first pass."""
        saved = _Saved()
        self._saved.append((weakref.ref(saved), tensor.shape))
        self._seen.append((tensor, tensor._version))
        return saved

    def passed(self) -> None:
        """After the first pass: which of the saved tensors it overwrote itself."""
        self._overwritten = {i for i, (tensor, version) in enumerate(self._seen) if tensor._version != version}
        self._seen.clear()

    def unpack(self, saved: _Saved) -> Tensor:
        """In backward."""
        if not hasattr(saved, "value"):
            self._second_pass()
        return saved.value

    def _second_pass(self) -> None:
        again: list[torch.Size] = []

        def pack(tensor: Tensor) -> None:
            self._fill(len(again), tensor)
            again.append(tensor.shape)

        with torch.enable_grad(), saved_tensors_hooks(pack, _no_way_back):
            self._inputs.call(self._forward)
        if again != [shape for _, shape in self._saved]:
            raise RuntimeError(
                f"a checkpointed block saved {len(self._saved)} tensors and then {len(again)}, or others; switch "
                "gradient_checkpointing off for this model."
            )

    def _fill(self, index: int, tensor: Tensor) -> None:
        saved = self._saved[index][0]() if index < len(self._saved) else None
        if saved is not None:
            saved.value = tensor.detach().clone() if index in self._overwritten else tensor.detach()


def _no_way_back(_: None) -> Tensor:
    raise RuntimeError("the second pass of a checkpointed block has no backward of its own.")
