"""LPIPS (Zhang et al. 2018): how far apart two pictures look, by the features that a network for photographs sees in them.

The weights are looked for on this machine and never downloaded: the linear heads are in the Python package lpips, VGG16's
are the file that torchvision keeps.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pictures = Callable[[Tensor], Tensor]
"""Latents (B, ...) in the model's own scale to pictures (B, 3, H, W) in [0, 1], with gradient."""

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""The distances (B,) of what was found to what was wanted, latents (B, ...) both; the gradient is of the first alone."""

LEAST_SIDE = 224
"""Pixels. Smaller pictures are enlarged, as in Song et al.'s code of consistency models; VGG16's own size."""

VGG_FILE = "vgg16-397923af.pth"
_OTHERS = "or choose another distance: squared or pseudo_huber."


def vgg_path() -> Path:
    """Where torchvision keeps the weights; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE


def require_lpips() -> None:
    """ValueError, naming what to install or which file to put where, unless lpips_distance finds all that it needs."""
    _library()
    if not vgg_path().is_file():
        raise ValueError(
            f"distance is 'lpips', which needs VGG16's weights, but there is no {vgg_path()}. Put torchvision's file "
            f"{VGG_FILE} there (https://download.pytorch.org/models/{VGG_FILE}), {_OTHERS}"
        )


def lpips_distance(pictures: Pictures, *, device: torch.device) -> Perceptual:
    """LPIPS of the pictures that latents decode to, version 0.1 on VGG16, on the device. ValueError as of require_lpips."""
    compare = _network().to(device)

    def distance(found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            there = _enlarged(pictures(wanted.detach()).to(device).float())
        return compare(_enlarged(pictures(found).to(device).float()), there, normalize=True).flatten()

    return distance


def _enlarged(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) with the shorter side at least LEAST_SIDE."""
    height, width = pictures.shape[-2:]
    least = min(height, width)
    if least >= LEAST_SIDE:
        return pictures
    size = [round(side * LEAST_SIDE / least) for side in (height, width)]
    return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False)


def _library() -> Any:
    try:
        return importlib.import_module("lpips")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was made for another torch
        raise ValueError(
            f"distance is 'lpips', which needs the Python packages lpips and torchvision ({error}). Install them into "
            f"ComfyUI's Python (pip install lpips), {_OTHERS}"
        ) from error


def _network() -> Any:
    """The library's network with the weights of both files. It would download them itself, and so is made without."""
    library = _library()
    require_lpips()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # of the library's way to ask for no weights
        network = library.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    heads = Path(library.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    _load(network, heads, names={name: name for name in network.state_dict() if name.startswith(_HEADS)})
    _load(network.net, vgg_path(), names={name: _in_vgg(name) for name in network.net.state_dict()})
    return network.eval().requires_grad_(False)


_HEADS = ("lin0.", "lin1.", "lin2.", "lin3.", "lin4.")


def _in_vgg(name: str) -> str:
    """torchvision's name of a weight: slice3.14.bias is features.14.bias."""
    return f"features.{name.split('.', 1)[1]}"


def _load(module: nn.Module, file: Path, *, names: Mapping[str, str]) -> None:
    """The weights of a file into a module. names: what the file calls each. ValueError, naming the file, if it lacks one."""
    tensors, own = _read(file), module.state_dict()
    for name, there in names.items():
        found = tensors.get(there)
        if not isinstance(found, Tensor) or found.shape != own[name].shape:
            raise ValueError(f"{file} has no {there} of the shape {tuple(own[name].shape)}; put the right file there.")
        own[name].copy_(found)


def _read(file: Path) -> dict[str, Any]:
    """No objects are unpickled. ValueError, naming the file, for one that is damaged."""
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of many kinds
        raise ValueError(f"{file} is damaged or holds no weights ({error}); put the right file there.") from error
