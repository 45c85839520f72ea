"""What LoRA files call layers, and what files say of the model that they are for: in kohya's words and in diffusers'."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ....trainers.students.adapters import AdapterSet, LowRank, lora_file
from ..sampling.models import classes_of


class Naming(Enum):
    """Of a LoRA file's layers."""

    STUDENT = "as the student"
    KOHYA = "kohya"
    DIFFUSERS = "diffusers"


class Precision(Enum):
    """Of a file's values."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def named(model: Any, adapters: AdapterSet, *, naming: Naming, precision: Precision) -> dict[str, Tensor]:
    """The tensors of a LoRA file of adapters, by their paths, that count once. ValueError for what has no such names.

    kohya: as the student, but SDXL after the blocks of its own files (input_blocks), as kohya's scripts have it. diffusers: for
    UNets as the student; for others lora_A and lora_B under the names of diffusers' transformers, layers that are one here and
    several there divided; under diffusion_model where the host knows no others, or none of all rows (FLUX.2, Lumina 2), which
    diffusers converts for many.
    """
    tensors = dict(_after_diffusers(model, adapters)) if _is_divided(model, naming) else None
    if tensors is None:
        own = Naming.KOHYA if naming is Naming.KOHYA and _is_sdxl(model) else Naming.STUDENT
        names = _after_files(adapters) if own is Naming.KOHYA else lora_names(model, adapters)
        tensors = lora_file(adapters, alpha=None, names=names)
    _require_read(model, tensors)
    return {name: value.to(getattr(torch, precision.value)) for name, value in tensors.items()}


def _is_divided(model: Any, naming: Naming) -> bool:
    return naming is Naming.DIFFUSERS and not any(name.startswith("unet.") for name in _known(model))


def _is_sdxl(model: Any) -> bool:
    return "SDXL" in classes_of(model)


def _known(model: Any) -> dict[str, Any]:
    """What the host's loader knows a layer by, and the weight that it then changes, or a tuple: weight, rows, order of rows."""
    known: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    return known


def lora_names(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """What LoRA files call layers of the diffusion model, by their path in it, as every loader of the host knows it.

    For UNets these are kohya's names after diffusers' blocks, which diffusers and other tools read too; for DiTs
    lora_unet_ and the path. ValueError for a layer that the host's loader could not find again.
    """
    names: dict[str, str] = {}
    # the names after diffusers come last and win; label_emb has two of them and keeps its own, as in kohya
    for name, weight in _known(model).items():
        if name.startswith("lora_unet_") and isinstance(weight, str) and "label_emb" not in names.get(weight, ""):
            names[weight] = name
    wanted = {path: f"diffusion_model.{path}.weight" for path in paths}
    missing = [path for path, weight in wanted.items() if weight not in names]
    if missing:
        raise ValueError(f"this ComfyUI's LoRA loader has no name for {len(missing)} layers, {missing[0]} first.")
    return {path: names[weight] for path, weight in wanted.items()}


def _after_files(paths: Iterable[str]) -> dict[str, str]:
    return {path: f"lora_unet_{path.replace('.', '_')}" for path in paths}


def _after_diffusers(model: Any, adapters: AdapterSet) -> Iterator[tuple[str, Tensor]]:
    places = _places(model)
    if not all(_is_whole(places[path], rows=len(adapter.up)) for path, adapter in adapters.items() if path in places):
        places = {}  # a file with names of both kinds is one that diffusers does not read
    for path, adapter in adapters.items():
        for name, rows, turn in places.get(path) or [(f"diffusion_model.{path}", None, None)]:
            part = _rows(adapter, rows, path=path)
            up = part.up if turn is None else turn(part.up)
            yield f"{name}.lora_A.weight", part.down.detach().float().cpu().contiguous()
            yield f"{name}.lora_B.weight", up.detach().float().cpu().contiguous()


Place = tuple[str, Any, Any]
"""A name, (dimension, first, count) of the weight that it means or None for all, and the order of rows there or None."""


def _places(model: Any) -> dict[str, list[Place]]:
    """Of each layer's path: where diffusers' transformers have it. Parts count before the whole, and of a part the first name."""
    found: dict[str, dict[Any, Place]] = {}
    for name, target in _known(model).items():
        if name.startswith("transformer."):
            parts = [target] if isinstance(target, str) else list(target)
            weight, rows, turn = [*parts, None, None][:3]
            path = str(weight).removeprefix("diffusion_model.").removesuffix(".weight")
            found.setdefault(path, {}).setdefault(rows, (name, rows, turn))
    return {path: [p for rows, p in places.items() if rows or len(places) == 1] for path, places in found.items()}


def _is_whole(parts: list[Place], *, rows: int) -> bool:
    """Whether parts by rows make up all of them. The host divides FLUX.2 and Lumina 2 as their neighbours, FLUX and Z-Image."""
    by_rows = sorted(part[1:] for _, part, _ in parts if part is not None and part[0] == 0)
    ends = list(itertools.accumulate(count for _, count in by_rows))
    return not by_rows or ([first for first, _ in by_rows] == [0, *ends[:-1]] and ends[-1] == rows)


def _rows(adapter: LowRank, rows: Any, *, path: str) -> LowRank:
    if rows is None:
        return adapter
    dimension, first, count = rows
    if dimension != 0:
        raise ValueError(f"diffusers divides {path} by its inputs, which no LoRA file of this kind holds.")
    return LowRank(adapter.down, adapter.up[first : first + count])


def _require_read(model: Any, tensors: dict[str, Tensor]) -> None:
    """ValueError where the host's own loader would not find every layer of the file."""
    layers = {name.rsplit(".lora_", 1)[0].removesuffix(".alpha") for name in tensors}
    read = comfy.lora.load_lora(dict(tensors), {name: name for name in _known(model).keys() & layers})
    if len(read) < len(layers):
        raise ValueError(
            f"this ComfyUI reads {len(read)} of the {len(layers)} layers that the file would have under these names; choose "
            f"'{Naming.STUDENT.value}'."
        )


# --- what a file says of its model -----------------------------------------------------------------------------------

_OF_KOHYA = {
    "SD15": ("stable-diffusion-v1", "sd_v1"),
    "SD20": ("stable-diffusion-v2-512", "sd_v2"),
    "SDXL": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "SD3": ("stable-diffusion-3", "sd3"),
    "FluxSchnell": ("flux-1-schnell", "flux1"),
    "Flux": ("flux-1-dev", "flux1"),
    "Chroma": ("chroma", "chroma"),
    "Lumina2": ("lumina-2", "lumina2"),
    "ZImage": ("Z-Image", ""),
}
"""(modelspec.architecture, ss_base_model_version) by the host's configuration, as in sd-scripts' library/sai_model_spec.py, and
in that of musubi-tuner what sd-scripts does not know."""


def said_of_model(model: Any, *, lora: bool) -> dict[str, str]:
    """Metadata by which tools sort a file. Models that kohya's scripts do not know are called as the host calls them."""
    config = model.model.model_config
    kind = type(config)
    # the host's later models inherit from others that they are not: Flux2 from Flux
    alike = [base for base in kind.__mro__ if base.__name__ in _OF_KOHYA and _network(base) == _network(kind)]
    architecture, version = _OF_KOHYA[alike[0].__name__] if alike else (config.unet_config.get("image_model", ""), "")
    if version == "sd_v2" and model.model.model_type.name == "V_PREDICTION":
        architecture = "stable-diffusion-v2-768-v"
    said = {"modelspec.architecture": f"{architecture}/lora" if lora else architecture} if architecture else {}
    return said | ({"ss_base_model_version": version} if version and lora else {})


def _network(kind: Any) -> str:
    """Of a configuration: what the host calls its transformer, empty for UNets."""
    return str(kind.unet_config.get("image_model", ""))
