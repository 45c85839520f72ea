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

    A chain is a ModuleList or a Sequential; members without layers of their own are too small to count. A member that is
    little more than a chain itself, as SDXL's spatial transformers are, is taken apart. Empty where there is no chain.
    """
    return _blocks_below(network, "")


def _blocks_below(module: nn.Module, path: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        member = _is_chain(module) and not _is_chain(child) and _has_layers(child)
        found |= {here: child} if member and not _is_little_more_than_a_chain(child) else _blocks_below(child, here)
    return found


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_little_more_than_a_chain(module: nn.Module) -> bool:
    """Of several blocks of one class: lists of a projection and its dropout, or of experts deeper down, are parts of a block."""
    return any(_is_chain(own) and _several_alike(own) and _size(own) > _size(module) / 2 for own in module.children())


def _several_alike(chain: nn.Module) -> bool:
    members = list(chain.children())
    return len(members) > 1 and len({type(member) for member in members}) == 1 and all(map(_has_layers, members))


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@contextmanager
def checkpointed(network: nn.Module, *, compared: bool = False) -> Iterator[None]:
    """Inside, every block of the network recomputes its activations in backward; on leaving there is no trace of it.

    Passes without gradient pay nothing. What a block reads beside its arguments, such as the adapters that are active,
    must be the same in backward. compared: RuntimeError in backward where it was not, as with patches that count their calls;
    a look at some of each block's values. ValueError when the network has no blocks.
    """
    blocks = list(blocks_of(network).values())
    if not blocks:
        raise ValueError("gradient_checkpointing is on, but this model has no chain of blocks; switch it off.")
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = recomputed(block.forward, compared=compared)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


def recomputed(forward: Forward, *, compared: bool = False) -> Forward:
    """The same function of tensors, which keeps its inputs instead of its activations for backward. compared: see checkpointed.

    What others overwrite of its inputs once it has returned is known when the first of its calls is let go of, with backward
    or without; until then backward is refused.
    """
    overwrites: set[_Name] | None = None  # which inputs; not known before it ran once
    overwritten_since: set[_Name] = set()

    def forward_or_again(*args: Any, **kwargs: Any) -> Any:
        nonlocal overwrites
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        inputs = _Inputs(args, kwargs, copied=overwrites, since=overwritten_since)
        call = _Call(forward, inputs)
        with saved_tensors_hooks(call.pack, call.unpack):
            output = forward(*args, **kwargs)  # on the caller's own: into some of it hosts write
        call.passed(_looked_at(output) if compared else None)
        overwrites = inputs.settle()
        return output

    return forward_or_again


_Name = tuple[Any, ...]
"""Of a tensor among a call's (args, kwargs): the places that lead to it, through tuples, lists and dictionaries."""


def _tensors(value: Any, name: _Name = ()) -> Iterator[tuple[_Name, Tensor]]:
    """Networks of several streams give their blocks tuples, which those overwrite like any other input."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, (*name, key))


def _rebuilt(value: Any, tensors: dict[_Name, Tensor], name: _Name = ()) -> Any:
    """The same tuples, lists and dictionaries anew, for the host goes on writing into them, with these tensors in them."""
    if isinstance(value, Tensor):
        return tensors[name]
    if isinstance(value, dict):
        return {key: _rebuilt(inner, tensors, (*name, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        items = [_rebuilt(inner, tensors, (*name, i)) for i, inner in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


class _Inputs:
    """A call's arguments as they were before it, for a second call.

    copied: what it will overwrite; None: perhaps all. since: what others do after it, found out at the end of this object.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, copied: set[_Name] | None, since: set[_Name]
    ) -> None:
        given = (args, kwargs)
        self._since = since
        self._tensors = dict(_tensors(given))
        self._given = _rebuilt(given, self._tensors)
        self._versions = {name: value._version for name, value in self._tensors.items()}
        known = None if copied is None else copied | since
        once = {id(value): value.clone() for name, value in self._tensors.items() if known is None or name in known}
        self._tensors |= {name: once[id(value)] for name, value in self._tensors.items() if id(value) in once}

    def __del__(self) -> None:
        self._since.update(self._changed())

    def settle(self) -> set[_Name]:
        """After the call: needless copies go. The names of what it overwrote."""
        given = dict(_tensors(self._given))
        overwritten = {name for name, value in given.items() if value._version != self._versions[name]}
        for name, value in given.items():
            if name not in overwritten | self._since:  # without its graph: overwritten later, it would lead to itself
                self._tensors[name] = value.detach().requires_grad_(value.requires_grad)
            elif self._tensors[name] is not value:
                self._versions[name] = self._tensors[name]._version
        self._given = _rebuilt(self._given, self._tensors)
        return overwritten

    def call(self, forward: Forward) -> Any:
        """RuntimeError when one was overwritten since, which only a copy would have outlived."""
        changed = self._changed()
        if changed:
            raise RuntimeError(
                f"inputs {', '.join(map(_said, changed))} of a checkpointed block were overwritten before backward; switch "
                "gradient_checkpointing off for this model."
            )
        args, kwargs = _rebuilt(self._given, self._tensors)
        return forward(*args, **kwargs)

    def _changed(self) -> list[_Name]:
        return [name for name, version in self._versions.items() if self._tensors[name]._version != version]


def _said(name: _Name) -> str:
    """As the block calls it: its position or keyword and what is inside."""
    return ".".join(str(part) for part in name[1:])


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
        self._gave: list[Tensor] | None = None

    def pack(self, tensor: Tensor) -> _Saved:
        """In the first pass."""
        saved = _Saved()
        self._saved.append((weakref.ref(saved), tensor.shape))
        self._seen.append((tensor, tensor._version))
        return saved

    def passed(self, gave: list[Tensor] | None) -> None:
        """After the first pass: which of the saved tensors it overwrote itself. gave: what to compare the second with."""
        self._gave = gave
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

        inputs = self._inputs
        del (
            self._inputs
        )  # one that the block overwrites leads to the second graph, which holds pack: a ring nobody collects
        with torch.enable_grad(), saved_tensors_hooks(pack, _no_way_back):
            output = inputs.call(self._forward)
        if self._gave is not None and _differ(_looked_at(output), self._gave):
            raise RuntimeError(
                "a checkpointed block gave another answer when it was computed again, so that its gradients would be wrong: "
                "something wired into the model counts its calls, remembers or draws random numbers. Switch "
                "gradient_checkpointing off, or remove that node."
            )
        if again != [shape for _, shape in self._saved]:
            raise RuntimeError(
                f"a checkpointed block saved {len(self._saved)} tensors and then {len(again)}, or others; switch "
                "gradient_checkpointing off for this model."
            )

    def _fill(self, index: int, tensor: Tensor) -> None:
        saved = self._saved[index][0]() if index < len(self._saved) else None
        if saved is not None:
            saved.value = tensor.detach().clone() if index in self._overwritten else tensor.detach()


_LOOKED_AT = 64
_ROUNDING = 0.05
"""Of the values' deviation: by what two passes of one block may differ."""


def _looked_at(output: Any) -> list[Tensor]:
    """Some values of each tensor, of their own: hosts write into what a block gives."""
    several = [value.detach().flatten() for _, value in _tensors(output)]
    return [value[:: max(1, len(value) // _LOOKED_AT)].clone() for value in several]


def _differ(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return any(
        bool((one - other).abs().max() > _ROUNDING * other.float().std(unbiased=False))
        for one, other in zip(found, wanted, strict=True)
        if len(other)
    )


def _no_way_back(_: None) -> Tensor:
    raise RuntimeError("the second pass of a checkpointed block has no backward of its own.")
