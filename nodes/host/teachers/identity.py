"""What identifies a MODEL: its bare weights and its patches, hashed apart, for it does not matter where the host keeps them; and
what it answers, for much changes that and is in no weight."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....samplers.noise import Denoiser, guided
from ....trainers.data.batches import Batch
from ....trainers.measures.answers import answers
from ....trainers.storage.files import some_of, tensors_sha256
from ....trainers.storage.kept_hashes import kept
from ..editor import signals
from ..files import folders
from ..memory import bypass, weights
from ..sampling import guidance
from ..sampling.models import model_sampling_of, noise_family, noise_levels
from . import carried, guiding, training

_NETWORK = "diffusion_model."


def teacher_parts(model: Any) -> dict[str, str]:
    """Hashes of a loaded MODEL as wired: weights, patches, and what is beside its layers. The same under every loading policy.

    ValueError for a patch of a kind that nothing is known of.
    """
    return {
        "weights": weights_sha256(_held(model), owner=model.model, file=file_of(model)),
        "patches": patches_sha256(model),
        "beside": tensors_sha256(_beside(model)),
    }


def held_in(model: Any) -> str:
    """The type of most of a MODEL's weights, wherever the host keeps them: "bfloat16"; of quantised ones their format's name."""
    found: Counter[str] = Counter()
    for _, layer, slot, value in weights.named(model.model):
        quantised = hasattr(value, "__tensor_flatten__")
        kind = _format_of(value) if quantised else weights.type_of(model, layer, slot, value)
        found[str(kind).removeprefix("torch.")] += value.numel()
    ((most, _),) = found.most_common(1)
    return most


def sha256_of(parts: Mapping[str, str]) -> str:
    """All of a MODEL's teacher_parts in one."""
    lines = [f"{name} {part}" for name, part in parts.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_old(model: Any) -> str | None:
    """What the first version called a loaded MODEL: a hash of its weights as they lay. None where that says too little."""
    if set(model.patches) - set(model.backup):
        return None
    lying = dict(model.model.diffusion_model.state_dict())
    if any(value.is_meta for value in lying.values()):
        return None
    return tensors_sha256(lying | _beside(model))


def _beside(model: Any) -> dict[str, Tensor]:
    embedding = guidance.embedding_of(model)
    known = bypass.weights(model.model.diffusion_model)
    if embedding is not None:
        known |= {"guidance": embedding.cond_proj, "guidance_scale": torch.tensor(embedding.guidance_scale)}
    return known


# --- weights ---------------------------------------------------------------------------------------------------------

_of_networks: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()
"""Hashes of weights that no file is known of, by their sample."""


def weights_sha256(tensors: Mapping[str, Tensor], *, owner: nn.Module, file: tuple[Any, ...] | None) -> str:
    """tensors_sha256, kept: for as long as owner lives, whose they are; and where file is known, from one start to the next.

    file: which they come from, see file_of. A sample of the values, beside that, would tell if they had been changed since.
    """
    sample = tensors_sha256({name: _sample(value) for name, value in tensors.items()})
    if file is not None:
        key = json.dumps([*file, sample])
        return kept(folders.known_weights(), key, lambda: tensors_sha256(tensors, heard=signals.hashed))
    known = _of_networks.setdefault(owner, {})
    if sample not in known:
        known[sample] = tensors_sha256(tensors, heard=signals.hashed)
    return known[sample]


def _sample(value: Tensor) -> Tensor:
    """About 64 of its values, and its shape."""
    values = some_of(value).contiguous().view(torch.uint8).cpu()
    return torch.cat([values, torch.tensor(value.shape, dtype=torch.int64).view(torch.uint8)])


def file_of(model: Any) -> tuple[Any, ...] | None:
    """(path, bytes, time) of the files that a MODEL was loaded from, where the host says so."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    first = arguments[0] if arguments else None
    paths = [Path(path) for path in (first if isinstance(first, list | tuple) else [first]) if isinstance(path, str)]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def _held(model: Any) -> dict[str, Tensor]:
    """The bytes of a MODEL's bare weights by name, those of quantised ones by their parts."""
    return {
        name: part
        for key, layer, slot, _ in weights.named(model.model)
        if key.startswith(_NETWORK) and slot not in layer._non_persistent_buffers_set
        for name, part in _parts(key, weights.bare(model, key))
    }


def _parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Of a tensor of whatever class: the ordinary ones that hold its bytes."""
    if hasattr(value, "__tensor_flatten__"):
        kind = _format_of(value)
        for inner in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name} {kind} {inner}", getattr(value, inner))
        return
    with torch._C.DisableTorchFunctionSubclass():
        ordinary = value.as_subclass(Tensor).detach()
        yield name, torch.zeros_like(ordinary, device="cpu") if ordinary.is_meta else ordinary


def _format_of(value: Any) -> str:
    """Of a tensor of one of the host's quantised classes."""
    return str(getattr(value, "_layout_cls", type(value).__name__))


# --- patches ---------------------------------------------------------------------------------------------------------


def patches_sha256(model: Any) -> str:
    """Of all that is to be added to a MODEL's weights, in the same form whatever classes the host has for it."""
    digest = hashlib.sha256()
    for key in sorted(model.patches):
        for line in _said(model.patches[key], of=key):
            digest.update(f"{key} {line}\n".encode())
    return digest.hexdigest()


def _said(value: Any, *, of: str) -> Iterator[str]:
    """A patch as lines of text."""
    if isinstance(value, Tensor):
        yield tensors_sha256(dict(_parts("", value)))
    elif value is None or isinstance(value, bool | int | float | str | torch.dtype):
        yield repr(value)
    elif isinstance(value, tuple | list):
        yield from _said_in_turn(value, of=of)
    elif hasattr(value, "weights") and hasattr(value, "name"):  # an adapter of newer hosts, a pair in older ones
        yield from _said_in_turn((value.name, value.weights), of=of)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}"
    else:
        raise ValueError(f"the MODEL's patches change {of} by a {type(value).__name__}, which FewStep cannot identify.")


def _said_in_turn(values: Any, *, of: str) -> Iterator[str]:
    """Without what is absent at the end, of which hosts have learnt to add more."""
    values = list(values)
    while values and values[-1] is None:
        values.pop()
    yield f"{len(values)}:"
    for value in values:
        yield from _said(value, of=of)


# --- what else changes what a MODEL draws ------------------------------------------------------------------------------


def changes(model: Any) -> dict[str, list[str]]:
    """Patches and wrappers of a MODEL's forward, and what is put into its layers: who made them, by kind.

    Without what a training step does not use, or what only makes sampling faster.
    """
    options = model.model_options.get("transformer_options", {})
    found = {f"{kind} patches": list(several) for kind, several in options.get("patches", {}).items()}
    for kind, by_place in options.get("patches_replace", {}).items():
        found[f"{kind} replacements"] = list(by_place.values())
    for kind, keyed in carried.wrappers(model).items():
        found[f"wrappers around {kind}"] = [one for several in keyed.values() for one in several]
    for kind, several in getattr(model, "injections", {}).items():
        found[f"{kind} injections"] = list(several)
    found |= {f"{kind} of guidance": list(carried.functions(held)) for kind, held in carried.guiding(model).items()}
    return {kind: sorted(map(_maker, several)) for kind, several in sorted(found.items()) if several}


def _maker(function: Any) -> str:
    """The file and the class or function in which a patch was made."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__.rsplit('.', 1)[-1]}.{named.__qualname__.split('.')[0]}"


def computes_in(model: Any) -> str:
    """What the MODEL's network computes in and where: "bfloat16 on cuda"."""
    network = model.model
    return f"{network.manual_cast_dtype or network.get_dtype()} on {model.load_device.type}".removeprefix("torch.")


# --- what it answers -------------------------------------------------------------------------------------------------

_ASKED_AT = (0.5, 0.75)
"""Shares of the MODEL's table of noise levels at which it is asked: 1.6 and 4.1 of SD1.5's 0.03 to 14.6."""

_GUIDED_AT = 3.0
"""The scale at which it is asked, where it has functions of its own for guidance."""


def answers_of(model: Any, first: Batch) -> dict[str, list[dict[str, Any]]]:
    """What a loaded MODEL answers to the sample in fixed noise, by what it computes in; see storage's identity."""
    table = noise_levels(model_sampling_of(model))
    return {computes_in(model): _answers(model, first, table)}


def _answers(model: Any, first: Batch, table: Tensor) -> list[dict[str, Any]]:
    sigmas = [float(table[int(share * (len(table) - 1))]) for share in _ASKED_AT]
    family = noise_family(model_sampling_of(model))
    with torch.inference_mode(False), training.shared_network(model) as network:
        denoiser = _as_guided(training.as_denoiser(network, model=model), model, first)
        found = answers(denoiser, first, sigmas=sigmas, family=family)
    return [{"sigma": sigma, "numbers": numbers} for sigma, numbers in zip(sigmas, found, strict=True)]


def _as_guided(denoiser: Denoiser, model: Any, first: Batch) -> Denoiser:
    """Where the MODEL has functions of its own for that, guided by them: what they are set to is in no weight either."""
    rule, unconditional = guiding.rule_of(model), first.unconditional
    if rule is None or (unconditional is None and rule.needs_both):
        return denoiser
    scale = 1.0 if unconditional is None else _GUIDED_AT
    return guided(denoiser, guidance_scale=scale, unconditional=unconditional or {}, rule=rule)
