"""The MODEL's weights wherever the host keeps them: elsewhere, in pages, quantised, with their patches in or beside them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.utils
import torch
from torch import Tensor, nn

from .backward import preferring_attention

CASTS = "comfy_cast_weights"
"""The attribute by which layers of the host's own are known: those whose weight it may lend, patched on the way."""

UNPACKS = "cast_bias_weight"
"""The method by which layers of packs with a file format of their own (GGUF) make their weight and bias."""


def named(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(key, the layer, the name there, value) of all weights and buffers, as the host patches them by key."""
    for path, layer in network.named_modules():
        for name, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is not None:
                yield f"{path}.{name}" if path else name, layer, name, value


def bare(model: Any, key: str) -> Tensor:
    """A weight as it was loaded, without patches, of whatever class; in the type that the model has it in."""
    layer_path, _, name = key.rpartition(".")
    held = model.backup.get(key)
    held = getattr(model, "backup_buffers", {}).get(key) if held is None else getattr(held, "weight", held)
    layer = model.model.get_submodule(layer_path)
    return _in_its_type(model, layer, name, getattr(layer, name) if held is None else held)


def plain(value: Any) -> Tensor:
    """What a tensor of one of the host's quantised classes stands for; any other as it is."""
    return value.dequantize() if hasattr(value, "__tensor_flatten__") else value


def copied(model: Any) -> Any:
    """A copy of a loaded MODEL's network: ordinary float32 tensors on its device, its patches applied as the host saves them.

    The host's books on where the weights are stay behind.
    """
    with torch.inference_mode(False), torch.no_grad(), _books_set_aside(model.model):
        network = copy.deepcopy(model.model, _instead(model))
    for layer in network.modules():
        _no_longer_quantised(layer)
    for layer in preferring_attention(network):
        layer.function = None  # which may have no backward
    return network.float().to(model.load_device)


def _instead(model: Any) -> dict[int, Any]:
    """What a deep copy of the MODEL's network takes for its tensors, by their ids, and for what it shares."""
    base = model.model
    taken: dict[int, Any] = {id(shared): shared for shared in (base.latent_format, base.model_config)}
    for key, layer, name, value in named(base):
        if id(value) not in taken:
            mine = _as_saved(model, key, layer, name, value)
            weight = isinstance(value, nn.Parameter)
            taken[id(value)] = nn.Parameter(mine, requires_grad=value.requires_grad) if weight else mine
    return taken


def _as_saved(model: Any, key: str, layer: Any, name: str, value: Tensor) -> Tensor:
    beside = key in model.patches and hasattr(layer, CASTS) and key not in model.backup
    if hasattr(layer, UNPACKS):
        mine = _unpacked(layer, name, device=model.load_device)
    else:
        mine = plain(_patched(model, key) if beside else value)
    mine = (
        torch.zeros_like(mine, device=model.load_device) if mine.is_meta else mine
    )  # as the host fills what no file has
    mine = _in_its_type(model, layer, name, mine)
    smoothing = getattr(layer, "pre_quant_scale", None) if name == "weight" else None
    dtype = torch.float32 if mine.is_floating_point() else mine.dtype
    mine = mine.detach().to(model.load_device, dtype, copy=True)
    return mine if smoothing is None else mine * smoothing.to(mine)


def _unpacked(layer: Any, name: str, *, device: torch.device) -> Tensor:
    """A weight or bias as its layer has it for a pass in float32, LoRAs included."""
    weight, bias = getattr(layer, UNPACKS)(torch.zeros(1, device=device))
    found: Tensor = {"weight": weight, "bias": bias}[name]
    return found


def _patched(model: Any, key: str) -> Tensor:
    """A weight beside which its patches are, with them: as the host makes it when it keeps the whole model on the device."""
    if "return_weight" in inspect.signature(model.patch_weight_to_device).parameters:
        return model.patch_weight_to_device(key, device_to=model.load_device, return_weight=True)
    own = comfy.utils.get_attr(model.model, key)
    return model.calculate_weight(
        model.patches[key], own.to(model.load_device, torch.float32, copy=True), key
    ).to(own.dtype)  # fmt: skip


def _in_its_type(model: Any, layer: Any, name: str, value: Tensor) -> Tensor:
    """Hosts that page weights hold them in their file's type, and bring them to the model's when they lend them."""
    return value if hasattr(value, "__tensor_flatten__") else value.to(type_of(model, layer, name, value))


def type_of(model: Any, layer: Any, name: str, value: Tensor) -> torch.dtype:
    """Of an ordinary weight, as the model has it."""
    paged = getattr(model, "is_dynamic", bool)()
    return getattr(layer, f"{name}_comfy_model_dtype", value.dtype) if paged else value.dtype


# --- the host's books ------------------------------------------------------------------------------------------------

_OF_A_LAYER = (
    *("_v", "_v_weight", "_v_bias", "_v_signature", "_v_block", "_v_block_faulted", "_pins", "_pin_state", "_prefetch"),
    *(
        "weight_lowvram_function",
        "bias_lowvram_function",
        "seed_key",
        "comfy_patched_weights",
        "prev_comfy_cast_weights",
    ),
)
_OF_A_NETWORK = (
    *("dynamic_vbars", "dynamic_pins", "dynamic_patchers", "model_loaded_weight_memory", "model_offload_buffer_memory"),
    *("model_lowvram", "lowvram_patch_counter", "current_weight_patches_uuid"),
)
"""Where the host notes what it holds of a weight elsewhere, and how much of a network is on the device."""


_WHILE_SAMPLING: dict[str, Any] = {
    "current_patcher": None,
    "_current_patcher": None,
    "prefix_cache": None,
    "prefix_cache_enabled": False,
    "_kv_cache_entries": [],
    "_visual_cache": None,
}
"""What a network, or the one in it, has while it is sampled, and what it has else."""

_ABSENT = object()


@contextmanager
def _books_set_aside(network: Any) -> Iterator[None]:
    """Inside, the network and its layers are as if they had never been loaded, but for the weights."""
    with ExitStack() as stack:
        for holder, absent in ((network, dict.fromkeys(_OF_A_NETWORK, _ABSENT)), (network.diffusion_model, {})):
            held = {name: value for name, value in _WHILE_SAMPLING.items() if name in holder.__dict__}
            stack.enter_context(_instead_of(holder, absent | held))
        for layer in network.modules():
            stack.enter_context(_instead_of(layer, dict.fromkeys(_OF_A_LAYER, _ABSENT) | _as_before_loading(layer)))
        yield


def _as_before_loading(layer: nn.Module) -> dict[str, Any]:
    """What the host changed on a layer, so that it lends its weight with patches."""
    before = {}
    if "prev_comfy_cast_weights" in layer.__dict__:
        before[CASTS] = layer.__dict__["prev_comfy_cast_weights"]
    for name in ("weight_function", "bias_function"):
        functions = layer.__dict__.get(name)
        several = functions if isinstance(functions, list) else [functions]
        others = [one for one in several if type(one).__name__ != "LowVramPatch"]
        if len(others) < len(several):
            before[name] = others or _ABSENT
    return before


@contextmanager
def _instead_of(holder: Any, values: dict[str, Any]) -> Iterator[None]:
    """Inside, attributes of its own have other values or are absent."""
    own = {name: holder.__dict__.pop(name) for name in values if name in holder.__dict__}
    try:
        holder.__dict__.update({name: value for name, value in values.items() if value is not _ABSENT})
        yield
    finally:
        for name in values:
            holder.__dict__.pop(name, None)
        holder.__dict__.update(own)


def _no_longer_quantised(layer: Any) -> None:
    """A layer of the host's quantised kind, whose weight is an ordinary one now."""
    for name in ("layout_type", "quant_format"):
        layer.__dict__.pop(name, None)
    for name in ("input_scale", "pre_quant_scale"):
        layer._parameters.pop(name, None)
    if "dtype" in layer.__dict__.get("factory_kwargs", {}):  # what it makes of weights that it loads
        layer.factory_kwargs = {**layer.factory_kwargs, "dtype": torch.float32}
