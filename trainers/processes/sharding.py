"""Full weights divided over processes: each keeps a part of every tensor, and gathers a block of layers while it computes.

torch's FSDP2 (torch.distributed.fsdp.fully_shard). Student, teacher, gradients, average and optimiser state then need
1 / processes of the memory each. Outside of training, in checkpoints and exports, tensors are whole: a checkpoint is the
same file whatever the number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from ...samplers.noise import Denoiser

_SINCE = "2.7"
"""The torch that has all of it under its present names."""


class Channel(Protocol):
    """What the first process says to the others, see Processes."""

    @property
    def is_first(self) -> bool: ...

    @property
    def count(self) -> int: ...

    def tell(self, number: int) -> None: ...

    def hear(self) -> int: ...


# --- tensors ---------------------------------------------------------------------------------------------------------


def is_divided(value: Tensor) -> bool:
    """Whether this is a DTensor, asked without importing that: a run of one process needs none, and old torch has none."""
    return hasattr(value, "device_mesh")


def whole(value: Tensor) -> Tensor:
    """A divided tensor with the parts of all processes, which must all ask for it; others as they are."""
    parts: Any = value.detach()
    return parts.full_tensor() if is_divided(value) else value


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, on the CPU if they were divided. Every process must take part.

    keep: whether this process wants them; others get {}. One after another, so that no GPU holds two of them.
    """
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = whole(value).cpu() if is_divided(value) else value
        if keep:
            kept[name] = full
    return kept


def part(value: Tensor, *, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is. Where `like` has another shape or is whole, value itself."""
    if not is_divided(like) or is_divided(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    own: Any = like
    # src_data_rank: all processes have the whole tensor, none needs to be sent its part
    return distribute_tensor(value.to(like.device), own.device_mesh, own.placements, src_data_rank=None)


# --- networks --------------------------------------------------------------------------------------------------------


def divide(
    networks: Sequence[nn.Module], *, forward: Callable[[nn.Module], Tensor], count: int, writes_in_place: bool
) -> None:
    """Divides the weights of networks of one architecture over all processes.

    forward: one pass, by which is found what is called as a module: FSDP acts there. Hosts call parts of a network by other
    ways (ComfyUI's UNets run the layers of a Sequential themselves). writes_in_place: see Student. ValueError for an older
    torch, for weights outside of all calls, and when a divided network computes something else.
    """
    if TorchVersion(torch.__version__) < _SINCE:
        raise ValueError(
            f"full weights on several processes need torch {_SINCE} or newer; this is {torch.__version__}. Update torch, "
            "train a LoRA, or use one process."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(networks[0].parameters()).device.type, (count,))
    for network in networks:
        called, expected = _traced(network, forward)
        for unit in reversed(_units(network, called)):  # a block before what it is in
            unit.register_forward_hook(_without_views)  # before FSDP's own, which then sees the copies
            # also of the outermost: what a pass leaves gathered would not be seen in parameters()
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
            if writes_in_place:
                unit.register_forward_pre_hook(_with_own_inputs, with_kwargs=True)
        _require_as_before(forward(network).detach(), expected)


def _traced(network: nn.Module, forward: Callable[[nn.Module], Tensor]) -> tuple[set[int], Tensor]:
    """The ids of the modules that a pass calls, and its result."""
    called: set[int] = set()
    hooks = [m.register_forward_pre_hook(lambda module, _: called.add(id(module))) for m in network.modules()]
    try:
        with torch.no_grad():
            return called, forward(network)
    finally:
        for hook in hooks:
            hook.remove()


def _units(network: nn.Module, called: set[int]) -> list[nn.Module]:
    """What gathers its weights together: the blocks, which networks keep in ModuleLists, and the outermost for the rest.

    Of each, the outermost modules that a pass calls. Outer before inner.
    """
    blocks = [block for found in network.modules() if isinstance(found, nn.ModuleList) for block in found]
    outermost = _outermost(network, called)
    covered = {id(weight) for unit in outermost for weight in unit.parameters()}
    outside = [name for name, weight in network.named_parameters() if id(weight) not in covered]
    if outside:
        raise ValueError(
            f"the weight {outside[0]} is in no module that this network's pass calls, so that full weights cannot be "
            "divided over several processes; train a LoRA, or use one process."
        )
    chosen = {id(unit) for root in [*blocks, *outermost] for unit in _outermost(root, called)}
    return [module for module in network.modules() if id(module) in chosen]


def _outermost(module: nn.Module, called: set[int]) -> list[nn.Module]:
    """The called modules with weights, in module or that itself, that are in no other of them."""
    if id(module) in called:
        return [module] if any(True for _ in module.parameters()) else []
    return [unit for child in module.children() for unit in _outermost(child, called)]


def _without_views(_: nn.Module, __: object, output: Any) -> Any:
    """A unit's outputs as tensors of their own: writing into a view would drop FSDP's hook on it, and with it the gathering."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.requires_grad and value._is_view() else value

    return type(output)(map(own, output)) if type(output) in (tuple, list) else own(output)


def _with_own_inputs(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A unit's inputs as tensors of their own: FSDP passes views that autograd lets nobody write into."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.requires_grad else value

    return tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}


def _require_as_before(found: Tensor, expected: Tensor) -> None:
    """ValueError for a network that counts on a block's writing into its caller's tensors, which copies prevent."""
    off = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if not off < 1e-2:
        raise ValueError(
            f"this network computes something else when its weights are divided over several processes (off by {off:.2g} "
            "of its output's norm); train a LoRA, or use one process."
        )


class Joined:
    """Passes of divided networks for the first process alone, a preview say: each needs the weights of all processes.

    passes: one cheap pass of each network, by which the others join; the shape of what they compute does not matter.
    """

    def __init__(self, channel: Channel, passes: Sequence[Callable[[], object]]) -> None:
        self._channel, self._passes, self._announcing = channel, passes, False

    def announced(self, denoiser: Denoiser, number: int) -> Denoiser:
        """denoiser, whose passes while the others wait are told to them as passes[number]."""

        def denoise(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
            if self._announcing:
                self._channel.tell(number + 1)
            return denoiser(x, sigma, **condition)

        return denoise

    @contextlib.contextmanager
    def following_the_first(self) -> Iterator[None]:
        """Around what the first process does alone; the others join its passes until it leaves."""
        if not self._channel.is_first:
            while number := self._channel.hear():
                with torch.no_grad():
                    self._passes[number - 1]()
            yield
            return
        self._announcing = True
        try:
            yield
        finally:
            self._announcing = False
            self._channel.tell(0)
