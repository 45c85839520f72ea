"""Tiny models of the host's own classes with random weights, and the prompts and latents that belong to them.

Everything but the size is as a checkpoint would have it: the host's configuration class, what it reads off a file, the
latent format, what a prompt carries. The tables are in pictures.py, videos.py and the newer ones beside them.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
TOKENS = 8
DEEP = 8
_COUNTS = (
    *("depth", "depth_single_blocks", "num_layers", "num_single_layers", "n_layers", "layers", "num_blocks"),
    *("num_visual_blocks", "num_dit_layers"),
)
"""What networks call their numbers of blocks."""


@dataclass(frozen=True)
class Noise:
    """Unit noise of this shape beyond the batch, in the place of a tensor."""

    shape: tuple[int, ...]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, *self.shape, generator=generator)


@dataclass(frozen=True)
class Ones(Noise):
    """A mask that hides nothing."""

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.ones(batch, *self.shape, dtype=torch.long)


@dataclass(frozen=True)
class Numbers(Noise):
    """Whole numbers below a limit, as tokens are."""

    limit: int

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.limit, (batch, *self.shape), generator=generator)


@dataclass(frozen=True)
class Architecture:
    """config: the host's class. network: what the host reads off a checkpoint. latent: one sample's (channels, ...).

    streams: of a nested latent, one sample's each, in the place of latent. width: of the text's embeddings. pooled: of the
    pooled one, 0 for none. options: what else a prompt carries; Noise where that is a tensor. marks: tensors of the file
    beside the network, by which the host tells the prediction. encoder: a large part of the network that works on prompts
    alone, and is left out; of a list of blocks all but the first. deep: what the network has for many blocks beside the
    numbers of them, see deeper. fixed: sizes that the host's class sets itself, whatever a file holds, made small. samplers_own:
    settings of the host's ModelSamplingDiscrete, where only behind that its own euler and lcm are right. at_once: how many
    samples the host's samplers are given. frames: of a video, where a network's batch is one.
    """

    config: str
    network: dict[str, Any]
    latent: tuple[int, ...]
    width: int
    pooled: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Noise] = field(default_factory=dict)
    streams: tuple[tuple[int, ...], ...] = ()
    encoder: str | None = None
    deep: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    samplers_own: dict[str, Any] = field(default_factory=dict)
    at_once: int = 2
    frames: int = 0

    def for_the_hosts_samplers(self, model: Any) -> Any:
        """The MODEL as samplers_own has it."""
        if not self.samplers_own:
            return model
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        return ModelSamplingDiscrete().patch(model, **self.samplers_own)[0]

    def deeper(self) -> Architecture:
        """With eight blocks wherever the network's numbers of blocks say how many, so that their share of it shows."""
        counts = {key: DEEP for key in _COUNTS if isinstance(self.network.get(key), int)}
        return replace(self, network={**self.network, **counts, **self.deep})

    def known(self) -> bool:
        """Whether this host has the class."""
        import comfy.supported_models

        return hasattr(comfy.supported_models, self.config)

    def model(self, *, seed: int = 0, computes_in: torch.dtype | None = None, **changed: Any) -> Any:
        """A MODEL: float32, on the CPU, weights drawn from the seed. changed: in its network."""
        import comfy.model_patcher
        import comfy.supported_models

        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():  # as in a host, whose loaders run under it too
            config = getattr(comfy.supported_models, self.config)(_of_this_host({**self.network, **changed}))
            config.unet_config.update(self.fixed)
            config.set_inference_dtype(torch.float32, computes_in)
            marks = torch.Generator().manual_seed(seed)
            network = config.get_model({name: mark.draw(1, marks)[0] for name, mark in self.marks.items()}).eval()
            if self.encoder:
                _leave_out(network.diffusion_model, self.encoder)
            for name, weight in network.diffusion_model.state_dict().items():
                weight.copy_(_weight(name, weight.shape, generator))
        return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)

    def conditioning(self, *, seed: int = 0, batch: int = 1) -> list[list[Any]]:
        """CONDITIONING of one entry of the given batch."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(batch, TOKENS, self.width, generator=generator)
        pooled = {"pooled_output": torch.randn(batch, self.pooled, generator=generator)} if self.pooled else {}
        return [[text, {**pooled, **_drawn_of(self.options, batch, generator)}]]

    def noise(self, *, seed: int = 0, batch: int = 2) -> Any:
        """Unit noise in the shape of the model's latents; of several streams the host's nested tensor."""
        generator = torch.Generator().manual_seed(seed)
        if not self.streams:
            return torch.randn(batch * max(1, self.frames), *self.latent, generator=generator)
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([torch.randn(batch, *shape, generator=generator) for shape in self.streams])

    def samples(self, model: Any, latents: Any) -> Tensor:
        """Latents like noise as a training has them, (batch, ...)."""
        from ...nodes.host import inputs

        apart = latents.split(self.frames) if self.frames else [latents]
        return torch.cat([inputs.latents_for_training(model, {"samples": each}) for each in apart])


_NEWER = "txt_ids_dims"
"""Of Flux, in hosts that ask for its text's places."""


def _of_this_host(network: dict[str, Any]) -> dict[str, Any]:
    if _NEWER not in network:
        return network
    known = importlib.import_module("comfy.ldm.flux.model").FluxParams.__dataclass_fields__
    return {key: value for key, value in network.items() if key != _NEWER or key in known}


def _leave_out(network: nn.Module, path: str) -> None:
    above, _, name = path.rpartition(".")
    part = network.get_submodule(path)
    if isinstance(part, nn.ModuleList):
        del part[1:]
    else:
        delattr(network.get_submodule(above), name)


def _drawn_of(options: Any, batch: int, generator: torch.Generator) -> Any:
    """With every Noise in lists and dictionaries drawn."""
    if isinstance(options, Noise):
        return options.draw(batch, generator)
    if isinstance(options, dict):
        return {key: _drawn_of(value, batch, generator) for key, value in options.items()}
    return [_drawn_of(value, batch, generator) for value in options] if isinstance(options, list) else options


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """No layer is left at zero, as trainers leave the last ones: a constant output would test nothing."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:  # the scale of a norm
        return 1.0 + 0.1 * noise
    if name == "pos_embed":
        return 0.5 * noise
    return noise / math.prod(shape[1:]) ** 0.5
