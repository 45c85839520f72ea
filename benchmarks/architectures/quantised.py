"""Models whose linear layers are of a format of fewer bits, as the host loads files of that format."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .setup import CPU, Architecture

Made = tuple[Any, Any]
"""(MODEL of the format, MODEL of ordinary float32 weights that hold the same values)"""
COMFY_QUANT = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")


def formats() -> list[str]:
    """Those of the host's own quantised class that this host has."""
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        return []
    return [name for name in COMFY_QUANT if name in QUANT_ALGOS]


def comfy_quant(architecture: Architecture, form: str, *, old_keys: bool = False) -> Made:
    """Of the host's own quantised class. old_keys: of the files of scaled float8 before it, which the host converts."""
    import comfy.utils

    plain = architecture.model()
    with torch.inference_mode():
        state = _weights(plain)
        for name, layer in linear_layers(plain.model.diffusion_model):
            quantised = as_quantised(layer.weight.data, form)
            state |= quantised.state_dict(f"{name}.weight")
            if old_keys:
                state[f"{name}.scale_weight"] = state.pop(f"{name}.weight_scale")
            else:
                state[f"{name}.comfy_quant"] = mark(form)
            layer.weight.copy_(quantised.dequantize())
        if old_keys:
            state["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
            state, _ = comfy.utils.convert_old_quants(state)
        return _loaded(architecture, state, quant_config={"mixed_ops": True}), plain


def in_type(architecture: Architecture, dtype: torch.dtype) -> Made:
    """All weights of a type, which the host brings to float32 for every forward."""
    plain = architecture.model()
    with torch.inference_mode():
        for value in plain.model.diffusion_model.parameters():
            value.copy_(value.to(dtype))
        return _loaded(architecture, _weights(plain), dtype=dtype), plain


def gguf(architecture: Architecture, form: str, *, pack: Path) -> Made:
    """By the classes of ComfyUI-GGUF. pack: its folder. form: Q8_0, Q4_0."""
    from gguf import GGMLQuantizationType, quants

    made, kind = _module(pack, "ops"), GGMLQuantizationType[form]
    plain = architecture.model()
    with torch.inference_mode():
        state = _weights(plain)
        for name, layer in linear_layers(plain.model.diffusion_model):
            packed = quants.quantize(layer.weight.numpy(), kind)
            state[f"{name}.weight"] = made.GGMLTensor(
                torch.from_numpy(packed), tensor_type=kind, tensor_shape=layer.weight.shape
            )
            layer.weight.copy_(torch.from_numpy(quants.dequantize(packed, kind)))
        model = _loaded(architecture, state, custom_operations=made.GGMLOps())
        return _module(pack, "nodes").GGUFModelPatcher.clone(model), plain


def gguf_pack() -> Path | None:
    """The folder of ComfyUI-GGUF among the host's packs, or on Python's path."""
    import folder_paths

    places = [*map(Path, folder_paths.get_folder_paths("custom_nodes")), *map(Path, sys.path)]
    return next((place / "ComfyUI-GGUF" for place in places if (place / "ComfyUI-GGUF").is_dir()), None)


def _module(pack: Path, name: str) -> Any:
    package = "comfyui_gguf_for_benchmarks"
    if package not in sys.modules:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(pack)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def as_quantised(weight: Tensor, form: str) -> Any:
    """A weight in the host's own class, with a scale of its own."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    return QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"], scale="recalculate")


def mark(form: str) -> Tensor:
    """What a file says beside a layer's weight of that form."""
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


def linear_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Those that all formats can hold."""
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features % 32 == layer.out_features % 32 == 0
    ]


def contents(model: Any) -> dict[str, Tensor]:
    """The bytes of all weights, by name, with those that quantised ones are made of."""
    return {
        f"{name}.{part}": _bytes(value if part == "" else getattr(value, part))
        for name, value in model.model.named_parameters()
        for part in (value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else [""])
    }


def _bytes(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor).detach().reshape(-1).view(torch.uint8)


def _loaded(
    architecture: Architecture, state: dict[str, Tensor], *, dtype: torch.dtype = torch.float32, **how: Any
) -> Any:
    """A MODEL of these weights that computes in float32. how: of the host's configuration."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, architecture.config)(dict(architecture.network))
    for name, value in how.items():
        setattr(config, name, value)
    config.set_inference_dtype(dtype, torch.float32)
    network = config.get_model({}, "model.diffusion_model.").eval()
    missing, unexpected = network.diffusion_model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"the host's network lacks {missing} of the file, which has {unexpected} besides.")
    return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)
