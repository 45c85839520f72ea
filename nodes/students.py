"""Student nodes: which weights learn, and how a finished student is put into a model again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..trainers.adapters import Adapters, LoRALayers, LoRAOptions
from ..trainers.export import FULL_WEIGHTS, KIND_KEY, LORA, read_student
from ..trainers.gradient_checkpointing import checkpointed
from ..trainers.options import AS_LOADED
from ..trainers.student import FullWeightsStudent, LoRAStudent, Student
from . import folders, host, host_precision, host_training


class FullWeights:
    """All weights of a copy of the model learn, in float32."""


StudentOptions = LoRAOptions | FullWeights


class LoRAStudentNode:
    RETURN_TYPES = ("FEWSTEP_STUDENT",)
    RETURN_NAMES = ("student",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "A LoRA learns, on the connected model itself: the teacher is the same weights with the LoRA off, so nothing is "
        "copied and nothing of the model changes. The result is a small file that every LoRA loader reads."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "rank": (
                    "INT",
                    {
                        "default": 32,
                        "min": 1,
                        "max": 1024,
                        "tooltip": "Width of the LoRA. 32 to 128 for distillation; more learns more and makes a larger file.",
                    },
                ),
                "alpha": (
                    "FLOAT",
                    {
                        "default": 32.0,
                        "min": 0.01,
                        "max": 1024.0,
                        "step": 0.01,
                        "tooltip": "The LoRA counts alpha / rank times; as large as the rank is usual.",
                    },
                ),
                "layers": (
                    [layers.value for layers in LoRALayers],
                    {
                        "default": LoRALayers.LINEAR.value,
                        "tooltip": "attention: smallest. linear: feed-forward and time layers too. linear_and_conv: also "
                        "the convolutions of a UNet, which few steps use most.",
                    },
                ),
            }
        }

    def make(self, layers: str, **options: Any) -> tuple[LoRAOptions]:
        return (LoRAOptions(layers=LoRALayers(layers), **options),)


class FullWeightsStudentNode:
    RETURN_TYPES = ("FEWSTEP_STUDENT",)
    RETURN_NAMES = ("student",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "All weights of a copy of the model learn, in float32: for small models, or where memory holds the model about "
        "four times over. The result is a whole diffusion model."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[FullWeights]:
        return (FullWeights(),)


class LoadStudent:
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = (
        "The student; sample it at cfg 1.",
        "The sampler that the student was trained for.",
        "The noise levels that the student was trained on.",
    )
    FUNCTION = "load"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "Loads a distilled student from a finished run, or from models/fewstep_students, together with the sampler and "
        "schedule that its file asks for."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher, or any model of the same architecture."}),
                "student": (
                    sorted(folders.student_files()),
                    {"tooltip": "A finished run, or a file in models/fewstep_students."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, student: str, **_: Any) -> float:
        path = folders.student_files().get(student)
        return path.stat().st_mtime if path else 0.0

    def load(self, model: Any, student: str) -> tuple[Any, Any, Tensor]:
        path = folders.student_files().get(student)
        if path is None:
            raise ValueError(
                f"there is no student {student!r}; known are: {', '.join(sorted(folders.student_files())) or 'none'}."
            )
        tensors, recipe, metadata = read_student(path)
        sampling = host.model_sampling_of(model)
        found = (host.noise_family(sampling).value, host.prediction_type(sampling))
        if found != (recipe.noise_family, recipe.prediction_type):
            raise ValueError(
                f"{student} is a {recipe.noise_family} {recipe.prediction_type} student, but the connected model is "
                f"{' '.join(found)}. Connect the model that it was distilled from."
            )
        try:
            loaded = with_student(model, tensors, lora=metadata.get(KIND_KEY) == LORA)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{student} does not fit the connected model: {error}") from error
        sampler = host.sampler(sample_few_step, gamma=recipe.gamma)
        return loaded, sampler, torch.tensor(recipe.sigmas)


def description(student: StudentOptions) -> dict[str, Any]:
    """Of run.json: what learns."""
    if isinstance(student, FullWeights):
        return {"kind": FULL_WEIGHTS}
    return {"kind": LORA, **dataclasses.asdict(student), "layers": student.layers.value}


@contextmanager
def student_of(
    model: Any,
    options: StudentOptions,
    *,
    seed: int,
    precision: str = AS_LOADED,
    gradient_checkpointing: bool = False,
) -> Iterator[Student]:
    """What learns, on or beside the MODEL; on leaving, the MODEL is as it was. ValueError for a precision of no use here."""
    host_precision.require(model, precision)
    memory = checkpointed if gradient_checkpointing else nullcontext
    if isinstance(options, FullWeights):  # the teacher is a second copy: later stages replace its weights
        copies = [host_training.trainable_copy(model) for _ in range(2)]
        with (
            host_precision.computing_in(copies[0], precision),
            host_precision.computing_in(copies[1], precision),
            memory(copies[0].diffusion_model),
        ):
            yield FullWeightsStudent(
                *copies, as_denoiser=host_training.as_denoiser, named_weights=host_training.network_state_dict
            )
        return
    with (
        host_training.shared_network(model) as network,
        host_precision.computing_in(network, precision),
        Adapters(network.diffusion_model, options) as adapters,
        memory(network.diffusion_model),
    ):
        yield LoRAStudent(
            adapters,
            options,
            denoise=host_training.as_denoiser(network, model=model),
            names=host_training.lora_names(model, adapters.paths),
            seed=seed,
        )


def with_student(model: Any, tensors: dict[str, Tensor], *, lora: bool) -> Any:
    """The connected model as the student: with its LoRA, or with its weights."""
    if lora:
        return host_training.with_lora(model, tensors)
    network = host_training.trainable_copy(model)
    network.diffusion_model.load_state_dict(tensors)
    return host_training.model_from(network, like=model)
