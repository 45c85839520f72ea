"""The host's weights as tensors that autograd may save: it makes them under inference mode, where autograd refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Aliases:
    """Ordinary tensors on the memory of a network's own, which stand in their places."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # alias and what it stands for, by the alias's id

    def put(self) -> None:
        """Behind every plain weight and buffer that has none; again after the host has put others in their places.

        Those of quantised classes stay as they are: layers that hold them are asked for what autograd may see, see lending.
        """
        for slots, name, value in list(self._slots()):
            if type(value) in (Tensor, nn.Parameter) and id(value) not in self._own:
                alias = same_memory(value)
                self._own[id(alias)] = (alias, value)
                slots[name] = alias

    def take_off(self) -> None:
        """The host's own objects are back in their places."""
        for slots, name, value in list(self._slots()):
            if id(value) in self._own:
                slots[name] = self._own[id(value)][1]
        self._own.clear()

    def _slots(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        for module in self._network.modules():
            for slots in (module._parameters, module._buffers, vars(module)):  # some keep tables as plain attributes
                for name, value in slots.items():
                    yield slots, name, value


_present: dict[int, Aliases] = {}
"""By the id of the network that they are on."""


@contextmanager
def aliased(network: nn.Module) -> Iterator[None]:
    """Inside, the network's plain weights stand behind aliases; on leaving, the host's own objects are in their places."""
    aliases = _present[id(network)] = Aliases(network)
    try:
        aliases.put()
        yield
    finally:
        del _present[id(network)]
        aliases.take_off()


def lay_aside(network: nn.Module) -> None:
    """Before the host may put a network away, which may be aliased, until `renew`: an alias would hold what it moves."""
    if id(network) in _present:
        _present[id(network)].take_off()


def renew(network: nn.Module) -> None:
    """After the host has loaded a network again, which may be aliased: what it put there anew gets aliases too."""
    if id(network) in _present:
        _present[id(network)].put()


def same_memory(value: Tensor) -> Tensor:
    """A tensor that autograd may save, with what the host wrote on it, such as the type that it means to compute in."""
    with torch.inference_mode(False):
        alias = torch.empty(0, dtype=value.dtype, device=value.device)
        alias.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
        alias = nn.Parameter(alias, requires_grad=False) if isinstance(value, nn.Parameter) else alias
    alias.__dict__.update(value.__dict__)
    return alias
