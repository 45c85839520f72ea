"""Student nodes: which weights learn, and how a finished student is put into a model again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from ....samplers.recipe import Recipe
from ....trainers.objective.guidance_range import GuidanceRange
from ....trainers.storage.export import (
    FULL_WEIGHTS,
    GUIDED_KEY,
    KIND_KEY,
    LORA,
    TEACHER_PREDICTION_KEY,
    read_student,
    require_finite_weights,
)
from ....trainers.storage.run_folder import RunFolder
from ....trainers.students.adapters import Adapters, LoRALayers, LoRAOptions
from ....trainers.students.gradient_checkpointing import checkpointed
from ....trainers.students.student import FullWeightsStudent, LoRAStudent, Student, copy_weights
from ....trainers.training.distillation import Recorded, said_in_run_json
from ....trainers.training.optimisation.options import AS_LOADED
from ... import host
from ...host import folders
from ...sampling.recipes import as_trained, kind_told, require_levels
from . import option_inputs as inputs
from . import starting_lora


class FullWeights:
    """All weights of a copy of the model learn, in float32."""


StudentOptions = LoRAOptions | FullWeights
_NOTHING: Mapping[str, str] = {}


class LoRAStudentNode:
    RETURN_TYPES = ("FEWSTEP_STUDENT",)
    RETURN_NAMES = ("student",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["train lora", "rank", "adapter", "distill"]
    DESCRIPTION = (
        "A LoRA learns, on the connected model itself: the teacher is the same weights with the LoRA off, so nothing is "
        "copied and nothing of the model changes. The result is a small file that every LoRA loader reads."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "rank": inputs.count(
                    32,
                    "Width of the LoRA. 32 to 128 for distillation; more learns more and makes a larger file.",
                    least=1,
                    most=1024,
                ),
                "alpha": inputs.number(
                    32.0, "The LoRA counts alpha / rank times; as large as the rank is usual.", least=0.01, most=1024.0
                ),
                "layers": (
                    [layers.value for layers in LoRALayers],
                    {
                        "default": LoRALayers.LINEAR.value,
                        "tooltip": "attention: smallest. linear: feed-forward and time layers too. linear_and_conv: also "
                        "the convolutions of a UNet, which few steps use most.",
                    },
                ),
            },
            "optional": {
                "start_lora": (
                    [starting_lora.NOTHING, *folders.lora_files()],
                    {
                        "default": starting_lora.NOTHING,
                        "tooltip": "What the LoRA begins as: a finished student of the same teacher, or a speed LoRA (LCM, "
                        "Lightning, Turbo, DMD2) for this kind of model. A few hundred iterations then do instead of thousands.",
                    },
                ),
                "start_strength": inputs.number(1.0, "With which start_lora counts.", least=-4.0, most=4.0),
            },
        }

    @classmethod
    def IS_CHANGED(cls, start_lora: str = starting_lora.NOTHING, **_: Any) -> float:
        return folders.lora_file(start_lora).stat().st_mtime if start_lora in folders.lora_files() else 0.0

    def make(
        self, layers: str, start_lora: str = starting_lora.NOTHING, start_strength: float = 1.0, **options: Any
    ) -> tuple[LoRAOptions]:
        lora = LoRAOptions(layers=LoRALayers(layers), **options)
        if start_lora == starting_lora.NOTHING:
            return (lora,)
        return (starting_lora.StartingLoRA.of(lora, file=start_lora, strength=start_strength),)


class FullWeightsStudentNode:
    RETURN_TYPES = ("FEWSTEP_STUDENT",)
    RETURN_NAMES = ("student",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["fine tune", "full finetune", "train model", "distill"]
    DESCRIPTION = (
        "All weights of a copy of the model learn, in float32: for small models, or where memory holds 20 bytes for each "
        "weight, ten times a checkpoint of 16 bits. The result is a whole diffusion model."
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
    SEARCH_ALIASES = ["load lora", "few step", "load trained"]
    DESCRIPTION = (
        "Loads a distilled student from a finished run or any of its stages, or from models/fewstep_students, together with "
        "the sampler and schedule that its file asks for."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher, or any model of the same architecture."}),
                "student": (
                    sorted(folders.student_files()),
                    {"tooltip": "A finished run, one of its stages, or a file in models/fewstep_students."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, student: str, **_: Any) -> float:
        path = folders.student_files().get(student)
        return path.stat().st_mtime if path else 0.0

    def load(self, model: Any, student: str) -> tuple[Any, Any, Tensor]:
        made, recipe, _ = loaded(model, student)
        return made, *as_trained(recipe)


def loaded(model: Any, student: str, *, merged: bool = False) -> tuple[Any, Recipe, dict[str, str]]:
    """(the student as a MODEL, its recipe, its file's metadata). ValueError when it does not fit the connected model.

    merged: of with_student.
    """
    path = folders.student_files().get(student)
    if path is None:
        raise ValueError(
            f"there is no student {student!r}; known are: {', '.join(sorted(folders.student_files())) or 'none'}."
        )
    tensors, recipe, metadata = read_student(path)
    require_finite_weights(tensors, what=student)
    sampling = host.models.model_sampling_of(model)
    found = (host.models.noise_family(sampling).value, host.models.prediction_type(sampling))
    teacher = (recipe.noise_family, metadata.get(TEACHER_PREDICTION_KEY, recipe.prediction_type))
    if found != teacher:
        raise ValueError(
            f"{student} was distilled from {kind_told(*teacher)}, but the connected model is {kind_told(*found)}. "
            "Connect the model that it was distilled from."
        )
    require_levels(recipe, sampling, file=student)
    lora = metadata.get(KIND_KEY) == LORA
    try:
        made = with_student(model, tensors, lora=lora, recipe=recipe, metadata=metadata, merged=merged)
        return made, recipe, metadata
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{student} does not fit the connected model: {error}") from error


def description(student: StudentOptions) -> dict[str, Any]:
    """Of run.json: what learns."""
    if isinstance(student, FullWeights):
        return {"kind": FULL_WEIGHTS}
    return {"kind": LORA, **dataclasses.asdict(student), "layers": student.layers.value}


def read(values: Mapping[str, Any]) -> StudentOptions:
    """From run.json's JSON values; the inverse of description. ValueError for what is none."""
    if values.get("kind") not in (FULL_WEIGHTS, LORA):
        raise ValueError(f"student.kind is {values.get('kind')!r}; allowed are {FULL_WEIGHTS} and {LORA}.")
    if values["kind"] == FULL_WEIGHTS:
        return FullWeights()
    return (starting_lora.StartingLoRA if "start_lora" in values else LoRAOptions).read(values)


def recorded_of(run: RunFolder) -> tuple[Recorded, StudentOptions]:
    """What run.json says of a run, and of its student. ValueError, naming the file, for what cannot be executed."""
    recorded = Recorded.of(run)
    with said_in_run_json(run):
        return recorded, read(recorded.student)


@contextmanager
def student_of(
    model: Any,
    options: StudentOptions,
    *,
    seed: int,
    prediction: str | None = None,
    scale_input: GuidanceRange | None = None,
    precision: str = AS_LOADED,
    gradient_checkpointing: bool = False,
) -> Iterator[Student]:
    """What learns, on or beside the MODEL; on leaving, the MODEL is as it was. ValueError for a precision of no use here.

    prediction: what the student predicts, where that is not what the MODEL does. scale_input: the guidance scales that it
    takes as an input, if it does.
    """
    host.precision.require(model, precision)
    require_scale_input(model, options, scale_input)
    between = host.carried.acting(model)
    memory = functools.partial(checkpointed, compared=bool(between)) if gradient_checkpointing else nullcontext
    converts = prediction not in (None, host.models.prediction_type(host.models.model_sampling_of(model)))
    if isinstance(options, FullWeights):  # the teacher is a second copy: later stages replace its weights
        copies = [_copy(model, scale_input) for _ in range(2)]
        with (
            host.backward.possible(),
            host.precision.computing_in(copies[0], precision),
            host.precision.computing_in(copies[1], precision),
            memory(copies[0].diffusion_model),
            memory(copies[1].diffusion_model),  # on which a companion learns
        ):
            yield FullWeightsStudent(
                *copies,
                as_denoiser=functools.partial(host.training.as_denoiser, model=model, prediction=prediction),
                named_weights=host.training.network_state_dict,
                first_teacher=functools.partial(host.training.as_denoiser, model=model) if converts else None,
                adapted=host.training.diffusion_model_of,
                between=between,
            )
        return
    with (
        host.backward.possible(),
        host.training.shared_network(model) as network,
        host.precision.computing_in(network, precision),
        Adapters(network.diffusion_model, options, device=model.load_device) as adapters,
        memory(network.diffusion_model),
    ):
        yield LoRAStudent(
            adapters,
            options,
            denoise=host.training.as_denoiser(network, model=model, prediction=prediction),
            names=host.naming.lora_names(model, adapters.paths),
            seed=seed,
            first_teacher=host.training.as_denoiser(network, model=model) if converts else None,
            between=between,
        )


def _copy(model: Any, scale_input: GuidanceRange | None) -> host.training.Network:
    """The MODEL's network, its guidance scale an input that learns, or the one that it has."""
    network = host.training.trainable_copy(model)
    if scale_input:
        host.guidance.learn_guidance(network, guidance_scale=scale_input.usual)
    else:
        host.guidance.fix_guidance(network)
    return network


def require_scale_input(model: Any, options: StudentOptions, scale_input: GuidanceRange | None) -> None:
    """ValueError where the student cannot take its guidance scale as an input."""
    if scale_input is None:
        return
    if isinstance(options, LoRAOptions):
        raise ValueError(
            f"the student is to take a guidance scale of {scale_input} as an input, which no LoRA file holds; connect "
            "Full-Weights Student, or choose one scale: guidance_scale_max 0 or scale_input off."
        )
    host.guidance.require_place(model)


def with_student(
    model: Any,
    tensors: dict[str, Tensor],
    *,
    lora: bool,
    recipe: Recipe,
    metadata: Mapping[str, str] = _NOTHING,
    merged: bool = False,
) -> Any:
    """The connected model as the student: with its LoRA, or with its weights, and read as it predicts.

    One that takes its guidance scale as an input is at the recipe's, until Guidance Embedding or a guider sets another. What it
    has learnt of its teacher's guidance (RescaleCFG), as the file's metadata say, is not done to it once more.
    merged: a LoRA goes into the weights, whatever they lose by it, as a file of them needs.
    """
    prediction = recipe.prediction_type
    if GUIDED_KEY in metadata:
        model = host.guiding.without(model)
    if lora:
        made = host.training.with_lora(model, tensors, merged=merged)
    else:
        network = _copy(model, None)
        cond_proj = host.guidance.learnt_cond_proj(tensors, network=network.diffusion_model)
        own = {name: value for name, value in tensors.items() if name != cond_proj}
        copy_weights(own, into=network.diffusion_model)
        made = host.training.model_from(network, like=model)
        if cond_proj:
            scale = recipe.guidance_scale
            made = host.guidance.with_guidance_embedding(made, tensors[cond_proj], guidance_scale=scale)
    if prediction == host.models.prediction_type(host.models.model_sampling_of(made)):
        return made
    return host.models.with_model_sampling(made, prediction=prediction)
