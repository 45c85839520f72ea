"""Low-rank adapters (Hu et al. 2021, section 4.1) beside the layers of a network that itself stays as it is.

They hang on forward hooks. So the network keeps its modules, names and weights, whoever else holds it sees no change,
any kind of layer will do (also quantised ones: only inputs and outputs are touched), and taking them off is exact. peft
replaces modules instead, which would rename the host's weights under its own patching.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..objective.choices import read_options, require_at_least_one


class LoRALayers(Enum):
    """Which layers learn. Attention layers are found by the names that UNets and DiTs give them."""

    ATTENTION = "attention"
    LINEAR = "linear"
    LINEAR_AND_CONV = "linear_and_conv"


_ATTENTION = re.compile(r"(^|[._])(attn\d*|attention|to_q|to_k|to_v|to_out|qkv)([._]|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAOptions:
    """rank: width of the bottleneck. alpha: the adapter counts alpha / rank times. ValueError for values of no use."""

    rank: int = 32
    alpha: float = 32.0
    layers: LoRALayers = LoRALayers.LINEAR

    def __post_init__(self) -> None:
        require_at_least_one(self, "rank")
        if not 0.0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0.")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> LoRAOptions:
        """From run.json's JSON values, kind aside. ValueError as read_options has it."""
        return read_options(cls, {name: value for name, value in values.items() if name != "kind"})


@dataclasses.dataclass(frozen=True)
class LowRank:
    """One layer's adapter: down (rank, in) or (rank, in, k, k), up (out, rank) or (out, rank, 1, 1)."""

    down: Tensor
    up: Tensor


AdapterSet = dict[str, LowRank]
"""Adapters by the path of their layer in the network."""


Layer = Any
"""nn.Linear, nn.Conv2d, or a linear layer of the network's own class with the sizes of the former, as quantised ones are."""


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    sizes = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sizes and weight is not None and len(weight.shape) == 2


def adaptable_layers(network: nn.Module, layers: LoRALayers) -> dict[str, Layer]:
    """The layers that an adapter can be put beside, by path. ValueError when the network has none of the kind."""
    found: dict[str, Layer] = {}
    for path, module in network.named_modules():
        linear = _is_linear(module) and (layers is not LoRALayers.ATTENTION or _ATTENTION.search(path))
        convolution = isinstance(module, nn.Conv2d) and layers is LoRALayers.LINEAR_AND_CONV and module.groups == 1
        if linear or convolution:
            found[path] = module
    if not found:
        allowed = ", ".join(kind.value for kind in LoRALayers if kind is not layers)
        raise ValueError(f"layers is {layers.value}, but this model has no such layer; try {allowed}.")
    return found


class Adapters:
    """Several sets of adapters on one network, of which one is active at a time, or none.

    Used as a context: on leaving it, every hook is off. With no set active the network's output is its own, bit for bit.
    """

    def __init__(self, network: nn.Module, options: LoRAOptions, *, device: torch.device | None = None) -> None:
        """device: where adapters live; None for where their layers' weights do, which may be elsewhere than they compute."""
        self.network = network
        self._layers, self._device = adaptable_layers(network, options.layers), device
        self._scale, self._rank = options.alpha / options.rank, options.rank
        self._active: AdapterSet = {}
        self._hooks: list[Any] = []

    @property
    def paths(self) -> list[str]:
        """Of the layers that carry an adapter, in the network's order."""
        return list(self._layers)

    def __enter__(self) -> Adapters:
        self._hooks = [
            layer.register_forward_hook(self._hook(path), with_kwargs=True) for path, layer in self._layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextlib.contextmanager
    def active(self, adapters: AdapterSet) -> Iterator[None]:
        """Forward passes inside count these; {} is the bare network."""
        before, self._active = self._active, adapters
        try:
            yield
        finally:
            self._active = before

    def new_set(self, *, generator: torch.Generator, rank: int = 0) -> AdapterSet:
        """Trainable float32 adapters that change nothing yet: down as torch initialises layers, up at zero.

        rank: where it is not the options' own; all count alpha / rank of those.
        """
        return {
            path: _new_adapter(layer, rank or self._rank, generator, self._device or layer.weight.device)
            for path, layer in self._layers.items()
        }

    def _hook(self, path: str) -> Any:
        def add(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Any:
            adapter = self._active.get(path)
            if adapter is None:
                return output
            x = args[0] if args else kwargs["input"]
            return torch.add(output, _low_rank(layer, adapter, x), alpha=self._scale)

        return add


def _low_rank(layer: Layer, adapter: LowRank, x: Tensor) -> Tensor:
    """up(down(x)) in x's own precision; the adapters themselves stay float32, on the device where they are."""
    down, up = adapter.down.to(x), adapter.up.to(x)
    if _is_linear(layer):
        return F.linear(F.linear(x, down), up)
    return F.conv2d(layer._conv_forward(x, down, None), up)  # with its stride, dilation and padding, of whatever mode


def _new_adapter(layer: Layer, rank: int, generator: torch.Generator, device: torch.device) -> LowRank:
    if _is_linear(layer):
        down, up = torch.empty(rank, layer.in_features), torch.zeros(layer.out_features, rank)
    else:
        down, up = torch.empty(rank, layer.in_channels, *layer.kernel_size), torch.zeros(layer.out_channels, rank, 1, 1)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    return LowRank(down.to(device).requires_grad_(), up.to(device).requires_grad_())


def flattened(adapters: AdapterSet) -> dict[str, Tensor]:
    """By "<path>.down" and "<path>.up"."""
    return {f"{path}.{part}": getattr(a, part) for path, a in adapters.items() for part in ("down", "up")}


def copied(adapters: AdapterSet) -> AdapterSet:
    """The same values, frozen."""
    return {path: LowRank(a.down.detach().clone(), a.up.detach().clone()) for path, a in adapters.items()}


@torch.no_grad()
def load_into(adapters: AdapterSet, tensors: Mapping[str, Tensor]) -> None:
    """Fills adapters from `flattened` tensors. ValueError when a name is missing or too many, or a shape differs."""
    own = flattened(adapters)
    require_same_shapes(own, tensors, what="adapters")
    for name, value in own.items():
        value.copy_(tensors[name])


def require_same_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, what: str) -> None:
    """ValueError when a name is missing or too many, or a shape differs."""
    differing = sorted(own.keys() ^ given.keys()) or [name for name in own if own[name].shape != given[name].shape]
    if differing:
        raise ValueError(f"these {what} do not fit the model: {len(differing)} differ, {differing[0]} first.")


OVERSAMPLED = 10
"""Directions that are looked for beyond the rank (Halko et al. 2011, section 4.2): those found last are the least exact."""


def nearest(change: Tensor, *, rank: int) -> LowRank:
    """The adapter of at most that rank nearest to a change of a weight (out, in) or (out, in, k, k), counted once.

    Exact to rounding where the change has no higher rank. By torch's randomised decomposition (Halko et al. 2011, algorithms
    4.4 and 5.1), with draws of its own, so that the same change gives the same adapter.
    """
    there = change.device if change.device.type != "mps" else torch.device("cpu")  # for which torch lacks a part of it
    matrix = change.flatten(1).float().to(there)
    with torch.random.fork_rng([there] if matrix.is_cuda else []):
        torch.manual_seed(0)
        found = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLED, *matrix.shape), niter=4)
    u, s, v = (part[..., :rank] for part in found)
    up, down = (u * s.sqrt()).to(change.device), (v * s.sqrt()).T.to(change.device)
    ones = (1,) * (change.ndim - 2)
    return LowRank(down.reshape(-1, *change.shape[1:]), up.reshape(*up.shape, *ones))


@torch.no_grad()
def begin_as(adapters: AdapterSet, changes: Iterable[tuple[str, Tensor]], *, scale: float) -> float:
    """New adapters become those nearest to changes of weights, by path; the share of the changes, of squares, that is lost.

    What a change needs of the rank is taken; the other directions stay new, so that they can learn. scale: with which the
    adapters count. ValueError naming a change of a layer that has no adapter here.
    """

    def become(path: str, change: Tensor) -> Tensor:
        require_adapters([path], on=adapters)
        own, found = adapters[path], nearest(change / scale, rank=len(adapters[path].down))
        strength = found.up.flatten(1).square().sum(dim=0)
        needed = int((strength > 1e-6 * strength.max().clamp(min=1e-30)).sum())
        own.down[:needed], own.up[:, :needed] = found.down[:needed], found.up[:, :needed]
        return scale * product(own).to(change)

    return share_lost(changes, become)


def require_adapters(changed: Iterable[str], *, on: Container[str]) -> None:
    """ValueError naming the first changed layer, by path, that is not among those with an adapter."""
    for path in changed:
        if path not in on:
            raise ValueError(f"it changes {path}, on which the student has no adapter; set layers to linear_and_conv.")


def share_lost(changes: Iterable[tuple[str, Tensor]], keep: Callable[[str, Tensor], Tensor]) -> float:
    """Of changes of weights by path, of squares, where keep gives what is kept of each; 0 where nothing changes."""
    whole = lost = 0.0
    for path, change in changes:
        whole += float(change.square().sum())
        lost += float((change - keep(path, change)).square().sum())
    return lost / whole if whole else 0.0


def product(adapter: LowRank) -> Tensor:
    """What the adapter adds to its layer's weight where it counts once, in that weight's shape."""
    return (adapter.up.flatten(1) @ adapter.down.flatten(1)).reshape(len(adapter.up), *adapter.down.shape[1:])


def lora_file(adapters: AdapterSet, *, alpha: float | None, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a LoRA file: lora_up, lora_down and alpha for each layer, under the names that loaders know.

    names: the loader's name of each layer by its path. alpha: None for each layer's own rank, which counts it once.
    float32 on the CPU.
    """
    tensors = {}
    for path, adapter in adapters.items():
        tensors[f"{names[path]}.lora_up.weight"] = adapter.up.detach().float().cpu()
        tensors[f"{names[path]}.lora_down.weight"] = adapter.down.detach().float().cpu()
        tensors[f"{names[path]}.alpha"] = torch.tensor(float(len(adapter.down) if alpha is None else alpha))
    return tensors


def from_lora_file(tensors: Mapping[str, Tensor], *, names: Mapping[str, str]) -> dict[str, Tensor]:
    """`flattened` adapters from the tensors of a LoRA file; the inverse of lora_file. Layers not in names keep their own."""
    paths = {name: path for path, name in names.items()}
    parts = {"up.weight": "up", "down.weight": "down"}
    flat = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".lora_")
        if part in parts:
            flat[f"{paths.get(layer, layer)}.{parts[part]}"] = value
    return flat
