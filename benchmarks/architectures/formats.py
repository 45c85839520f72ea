"""Formats of weights and ways of holding them: what a LoRA learns on them, and whether what comes back is what was trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from . import paging, quantised
from .parts import apart, gradients, scatter
from .setup import Architecture
from .subject import LORA, Found, Subject, answer, trained

LEAST, SAME, ROUNDED = 0.999, 1e-5, 1e-2
"""The cosine of gradients, and what the student that comes back may differ by from the one that was trained.

ROUNDED: where weights have 16 bits, to which the host rounds them when it merges a LoRA, as every LoRA.
"""


class Format(NamedTuple):
    """about: in plain words. make: see quantised.Made. holding: entered around all of it, with the MODEL."""

    about: str
    make: Callable[[Architecture], quantised.Made]
    holding: Callable[[Any], Any] = nullcontext


def known() -> dict[str, Format]:
    """What this host has."""
    import comfy.model_patcher

    found = {
        "float32": Format("resident", _plain),
        "lowvram": Format("float32 that the host keeps elsewhere, and lends layer by layer", _plain, _offloaded),
    }
    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        found["paged"] = Format("float32 in pages, with room for half; the allocator is a stand-in", _plain, _paged)
    for name, dtype in _TYPES.items():
        found[name] = Format("plain weights of that type", partial(quantised.in_type, dtype=dtype))
    for form in quantised.formats():
        found[f"comfy_quant {form}"] = Format("the host's quantised class", partial(quantised.comfy_quant, form=form))
    if quantised.formats():
        old = partial(quantised.comfy_quant, form="float8_e4m3fn", old_keys=True)
        found["scaled fp8"] = Format("the same from a file of the keys before it, which the host converts", old)
    if (pack := quantised.gguf_pack()) is not None:
        for form in ("Q8_0", "Q4_0"):
            found[f"GGUF {form}"] = Format(
                "by the classes of ComfyUI-GGUF", partial(quantised.gguf, form=form, pack=pack)
            )
    return found


_TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


class Held(Subject):
    """A MODEL of a format, and its bytes before anything is done with it."""

    def __init__(self, architecture: Architecture, chosen: Format) -> None:
        model, plain = chosen.make(architecture)
        super().__init__(architecture, model=model, plain=plain)
        self.bytes = {name: value.clone() for name, value in quantised.contents(model).items()}


def student_back(subject: Subject) -> Found:
    """What the loader gives of a trained LoRA, from the student: largest difference, as a share of the largest value."""
    from ...nodes.host import training

    data = subject.data()
    with subject.student(LORA, data) as student, tempfile.TemporaryDirectory() as folder:
        scatter(student)
        trained(subject, student, data, folder)
        wanted, tensors = answer(student.denoiser, data), {k: v.clone() for k, v in student.exported().items()}
    with torch.inference_mode():
        loaded = training.with_lora(subject.model, tensors)
        found = apart(answer(subject.denoiser(loaded), data), wanted)
    sixteen = any(value.dtype.itemsize == 2 for value in subject.model.model.parameters())
    return Found(found, found < (ROUNDED if sixteen else SAME))


def unloaded(subject: Held) -> Found:
    """Weights that are other bytes after all of it, and after the host has unloaded the model."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        now = quantised.contents(subject.model)
    changed = sum(not torch.equal(value, now[name]) for name, value in subject.bytes.items())
    return Found(changed, changed == 0 and now.keys() == subject.bytes.keys())


PARTS: dict[str, Callable[[Any], Found]] = {
    "gradient": gradients("progressive", least=LEAST),
    "checkpointing": gradients("progressive", least=LEAST, gradient_checkpointing=True),
    "student": student_back,
    "unloaded": unloaded,
}
ABOUT = {
    "gradient": f"cosine of a LoRA's gradients with those of float32 weights of the same values; at least {LEAST}",
    "checkpointing": "the same with gradient checkpointing",
    "student": f"what comes back through the loader, from the student that was trained; at most {SAME}; of weights of "
    f"16 bits, to which the host rounds them with every LoRA that it merges, {ROUNDED}",
    "unloaded": "weights that are other bytes afterwards",
}


def _plain(architecture: Architecture) -> quantised.Made:
    return architecture.model(), architecture.model()


@contextmanager
def _offloaded(subject: Subject) -> Iterator[None]:
    """Has the host keep the MODEL's layers where they are, and lend them, as where there is no room for any."""
    import comfy.model_management as management

    def load(models: list[Any], **_: Any) -> None:
        management.unload_all_models()
        for one in models:
            if hasattr(one, "patch_model_lowvram"):
                one.patch_model_lowvram(one.load_device, lowvram_model_memory=1)
            else:
                one.partially_load(one.load_device, extra_memory=1 - one.loaded_size())

    with mock.patch.object(management, "load_models_gpu", load):
        yield


@contextmanager
def _paged(subject: Subject) -> Iterator[None]:
    size = sum(value.numel() * value.element_size() for value in subject.model.model.parameters())
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        paging.install(SimpleNamespace(setattr=put), room=size // 2)
        subject.model = paging.paged(subject.model)
        yield
