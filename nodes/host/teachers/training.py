"""The host's MODEL as what training wants: networks of our own, weights that autograd may see."""

from __future__ import annotations

import gc
import inspect
import logging
import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....samplers.noise import Denoiser
from ....trainers.data.conditions import by_shape, is_mixed
from ....trainers.processes.sharding import is_divided
from ....trainers.storage.export import require_finite_weights
from ....trainers.students.adapters import AdapterSet, nearest, product, share_lost
from ..editor import signals
from ..memory import bypass, weights
from ..memory.aliases import aliased, lay_aside, renew
from ..memory.backward import ATTENTION_OVERRIDE, attention, without_preferred_attention
from ..memory.lending import lent_again
from ..sampling.conditions import host_inputs, one_for_all
from ..sampling.guidance import taking_scale
from ..sampling.kept_prompts import none_kept
from ..sampling.models import noise_scale, read_by, reading
from ..sampling.videos import for_each_frame, in_batch, of_batch
from . import carried, refusals

Network = Any
"""The host's model object (its BaseModel): a torch module with apply_model, diffusion_model and model_sampling."""
_NOTHING: Mapping[str, Any] = {}


def trainable_copy(model: Any) -> Network:
    """A copy of the MODEL's network as wired, its LoRAs and patches applied, that nobody else holds.

    Its weights are ordinary float32 tensors, whatever the host's own are and wherever it keeps them.
    """
    require_copyable(model)
    loaded(model)
    network = weights.copied(model)
    network.diffusion_model.dtype = torch.float32  # the host casts inputs to what this says
    network.manual_cast_dtype = None
    return network


def require_copyable(model: Any) -> None:
    """ValueError, naming it, for what is wired into the MODEL and would be missing in a trainable_copy."""
    bypass.require_none(model)
    carried.require_in_a_copy(model)


def loaded(model: Any) -> Network:
    """The MODEL's network on its device, LoRAs and patches applied. ValueError for what a training step cannot honour."""
    carried.require_supported(model)
    with torch.inference_mode():  # as nodes do: a quantised model loaded otherwise cannot be unloaded
        _load(model)
    renew(model.model)
    return model.model


def may_go(model: Any) -> None:
    """Before the host may put the MODEL away for another one, the VAE of a preview say. `loaded` brings it back to train on."""
    lay_aside(model.model)


def _load(model: Any) -> None:
    """Has the host put the MODEL on its device, whole where it fits and can be asked for that, and other models away from it.

    How much a backward pass will hold is not known before: the host is asked for the whole device, and loads another model
    again when that is used. With the models that its patches ask for beside it, as the host's samplers have them.
    """
    management = comfy.model_management
    wishes: dict[str, Any] = {"memory_required": management.get_total_memory(model.load_device)}
    known = inspect.signature(management.load_models_gpu).parameters
    room = _room_for(model)
    if model.model_size() > room:  # half of it for weights, the other for what a backward pass holds
        wishes["memory_required"] = room / 2
    elif "force_full_load" in known:
        wishes["force_full_load"] = True
    elif "minimum_memory_required" in known:  # what such hosts leave free beside the MODEL's weights
        wishes["minimum_memory_required"] = 0
    management.load_models_gpu([model, *carried.models_beside(model)], **wishes)


def _room_for(model: Any) -> float:
    """Bytes on the MODEL's device that its weights may take once other models have left it, which they do."""
    management, device = comfy.model_management, model.load_device
    if management.is_device_cpu(device):
        return math.inf
    own = [one for one in management.current_loaded_models if one.model is not None and model.is_clone(one.model)]
    held = model.loaded_size() if hasattr(model, "loaded_size") else model.model_size() * len(own)
    if held >= model.model_size():  # and stays, whatever a run beside it has taken
        return math.inf
    management.free_memory(management.get_total_memory(device), device, keep_loaded=own)
    return max(0.0, management.get_free_memory(device) + held - management.minimum_inference_memory())


def free_beside(model: Any) -> float:
    """Bytes that are free on the MODEL's device now, as the host counts them."""
    return float(comfy.model_management.get_free_memory(model.load_device))


def beside_on_card(model: Any, *, gigabytes: float) -> float:
    """Bytes that a card of so many would have beside the MODEL's weights, all of them, and what the host keeps free."""
    return 1e9 * gigabytes - model.model_size() - comfy.model_management.minimum_inference_memory()


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Gives memory that a run no longer needs back to the device, through the host.

    Decorates what makes a run: when it returns, nothing there holds a part of the run any more.
    """
    try:
        yield
    finally:
        gc.collect()
        comfy.model_management.soft_empty_cache()


@contextmanager
def shared_network(model: Any) -> Iterator[Network]:
    """The MODEL's own network as wired, as autograd may see it, without a copy and whatever holds its weights.

    Inside, plain weights stand behind aliases, and layers keep no weight for backward (see lending).
    """
    network = loaded(model)
    with (
        aliased(network),
        without_preferred_attention(network),
        bypass.over(model, lent_again(network.diffusion_model)),
    ):
        yield network


def model_from(network: Network, *, like: Any) -> Any:
    """A MODEL around a network of ours, with the device policy of another MODEL, and told what that is (Scale RoPE)."""
    network = network.eval().requires_grad_(False)
    made = comfy.model_patcher.ModelPatcher(network, like.load_device, like.offload_device)
    made.model_options["transformer_options"] = _transformer_options(like.clone())
    return made


def _transformer_options(model: Any) -> dict[str, Any]:
    return model.model_options.get("transformer_options", {})


def as_denoiser(
    network: Network, *, model: Any = None, prediction: str | None = None, told: Mapping[str, Any] = _NOTHING
) -> Denoiser:
    """The host's network as D(x, sigma, **condition) -> x0, scalings and prediction type included.

    model: whose attention patches and wrappers count, as they do when the host samples it. prediction: what the network's output
    is taken for, if not for what the network's own sampling object says. told: what patches are told besides. x and x0 are in
    units of the deviation of the model's noise, see latents_for_training. A network that learns to take its guidance scale as an
    input is given it, (B,), by keyword.
    """
    # an override that is told to be None leaves attention to the host's own choice, see following
    told = {name: value for name, value in {ATTENTION_OVERRIDE: attention, **told}.items() if value is not None}
    scale = noise_scale(network.model_sampling)
    read = reading(network.model_sampling, prediction=prediction)

    def of_one_shape(x: Tensor, sigma: Tensor, guidance_scale: Tensor | None = None, **condition: Tensor) -> Tensor:
        # a fresh copy: the host's blocks write their position into it
        options = {} if model is None else carried.options(model, instead=_told_instead.get())
        mine = {**options, "cond_or_uncond": [0], "sigmas": sigma[:1], **told}
        rows, levels = in_batch(network, x), for_each_frame(network, sigma, like=x)
        if guidance_scale is not None:
            guidance_scale = for_each_frame(network, guidance_scale, like=x)
        with (
            refusals.of_prompts(),
            none_kept(network.diffusion_model),
            read_by(network, read),
            taking_scale(network, guidance_scale),
        ):
            if scale != 1.0:
                rows = scale * rows
            found = network.apply_model(rows, levels, transformer_options=mine, **host_inputs(condition))
            return of_batch(network, found if scale == 1.0 else found / scale, like=x)

    def denoiser(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        # of divided weights all processes must ask for a layer's equally often, and they have as many samples each
        alone = one_for_all(condition) or (is_mixed(condition) and any(map(is_divided, network.parameters())))
        return by_shape(of_one_shape, x, sigma, condition=condition, each_alone=alone)

    return denoiser


_told_instead: ContextVar[Mapping[str, Any] | None] = ContextVar("told_instead", default=None)


@contextmanager
def told_instead(transformer_options: Mapping[str, Any]) -> Iterator[None]:
    """Inside, denoisers tell their networks this in place of the MODEL's own options."""
    before = _told_instead.set(transformer_options)
    try:
        yield
    finally:
        _told_instead.reset(before)


def diffusion_model_of(network: Network) -> torch.nn.Module:
    """The network itself, in the host's object of it."""
    found: torch.nn.Module = network.diffusion_model
    return found


def network_state_dict(network: Network) -> dict[str, Tensor]:
    """The diffusion model's own weights, under its own names."""
    return dict(network.diffusion_model.state_dict())


# --- LoRA ------------------------------------------------------------------------------------------------------------


def with_lora(model: Any, tensors: dict[str, Tensor], *, merged: bool = False) -> Any:
    """A clone with the tensors of a LoRA file, through the host's own loader. ValueError when it used not all of them.

    In its weights if merged, or where they have 16 bits and more; else beside its layers, for what was trained is what
    comes back. See bypass.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    modules = {name.rsplit(".lora_", 1)[0].removesuffix(".alpha") for name in tensors}
    unused = sorted(modules - known.keys())
    if unused:
        raise ValueError(f"{len(unused)} of the LoRA's {len(modules)} layers are not in this model, {unused[0]} first.")
    _require_sizes(model, tensors, {name: known[name] for name in sorted(modules)})
    with torch.inference_mode(False):
        if not merged and bypass.rounds_anew(model):
            return bypass.with_bypass(model, tensors)
        clone, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    return clone


def _require_sizes(model: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> None:
    """ValueError where a layer has another size here: the host only logs that, and samples the model without the LoRA."""
    for name, weight in known.items():
        if not isinstance(weight, str):
            continue  # a part of a layer
        own = _size(comfy.utils.get_attr(model.model, weight.removesuffix(".weight")))
        given = tensors[f"{name}.lora_up.weight"].shape[0], tensors[f"{name}.lora_down.weight"].shape[1]
        if own is not None and own != given:
            raise ValueError(
                f"its change of {weight} is of {given[1]} values to {given[0]}, and the layer of {own[1]} to {own[0]} here."
            )


def _size(layer: Any) -> tuple[int, int] | None:
    """(values out, values in), whatever holds its weights; None for what is no linear layer and no convolution."""
    if hasattr(layer, "in_features"):
        return layer.out_features, layer.in_features
    return (layer.out_channels, layer.in_channels // layer.groups) if hasattr(layer, "in_channels") else None


def lora_in_one(model: Any, *, rank: int) -> tuple[AdapterSet, float]:
    """All that LoRAs change in the MODEL as wired, as adapters that count once, and the share of it that is lost.

    rank: of each layer's adapter, at most. The share is of squares: 0 where all ranks together are no more than rank.
    ValueError where there is nothing to save, or something that such a file does not hold.
    """
    bypass.require_none(model)
    if not model.patches:
        raise ValueError("no LoRA is wired into this model, so there is nothing to save.")
    adapters = {}

    def save(path: str, change: Tensor) -> Tensor:
        adapters[path] = nearest(change, rank=rank)
        return product(adapters[path])

    return adapters, share_lost(Changes(model, what="the MODEL's patches").items(), save)


def changes_of(model: Any, file: Path, *, strength: float) -> Changes:
    """Of the MODEL's layers by a LoRA file, by the host's own loader of whatever form it has.

    ValueError, naming the file, for one that is for another model, changes what is no layer's weight, or holds NaN.
    """
    tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    # which kernel is to compute a layer's attention, as hosts from 0.38 on read it: it stands aside in training
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_OF_ATTENTION)}
    require_finite_weights(tensors, what=file.name)
    bare = model.clone()
    bare.patches = {}
    loaded, _ = comfy.sd.load_lora_for_models(bare, None, tensors, strength, 0.0)
    found = sum(len(patches) for patches in loaded.patches.values())
    parts = {_PART_OF_LAYER.split(name)[0] for name in tensors if not name.startswith(_OF_TEXT_ENCODER)}
    if found < len(parts):
        raise ValueError(f"{len(parts) - found} of the {len(parts)} layers of {file.name} are not in this model.")
    return Changes(loaded, what=file.name)


def require_sizes(changes: Changes) -> None:
    """ValueError where the host cannot compute a change: it only logs that, and goes on as if there were none."""
    with _errors_of_host() as said:
        for path in changes:
            signals.check_cancelled()
            changes[path]
            if said:
                raise ValueError(f"it does not fit the layer {path}, which has another size in this model ({said[0]}).")


@contextmanager
def _errors_of_host() -> Iterator[list[str]]:
    """What this thread logs as an error."""
    said: list[str] = []
    here = threading.get_ident()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here:
                said.append(record.getMessage())

    handler = Heard(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


_OF_TEXT_ENCODER = ("lora_te", "text_encoder", "te.")
_OF_ATTENTION = ".config"
_PART_OF_LAYER = re.compile(
    r"\.(?:lora_|lora\.|alpha$|hada_|lokr_|oft_|diff$|diff_b$|set_weight$|dora_scale$|reshape_weight$|processor\.)"
)


class Changes(Mapping[str, Tensor]):
    """What a MODEL's patches add to its layers' weights, by the layer's path, each computed as it is asked for.

    ValueError for what is no layer's weight, before anything is computed.
    """

    def __init__(self, model: Any, *, what: str) -> None:
        self._model, self._keys = model, dict[str, str]()
        for key in model.patches:
            if len(comfy.utils.get_attr(model.model, key).shape) not in (2, 4) or not key.endswith(".weight"):
                raise ValueError(f"{what} change {key}, which is no layer that such a LoRA can hold.")
            self._keys[key.removeprefix("diffusion_model.").removesuffix(".weight")] = key

    def __getitem__(self, path: str) -> Tensor:
        return _change(self._model, self._keys[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _change(model: Any, key: str) -> Tensor:
    """What the MODEL's patches add to a weight, in float32, whether the host has applied them at present or not."""
    own = weights.plain(weights.bare(model, key)).detach().to(model.load_device, torch.float32)
    calculate = getattr(comfy.lora, "calculate_weight", None) or model.calculate_weight
    changed = calculate(model.patches[key], own.clone(), key).float()
    if changed.shape != own.shape:
        raise ValueError(
            f"the MODEL's patches make {key} another size ({tuple(own.shape)} becomes {tuple(changed.shape)}), which no such "
            "LoRA can hold."
        )
    return changed - own
