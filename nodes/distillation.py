"""Distillation nodes: a method, the trainer, and what becomes of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..trainers.charts import loss_chart
from ..trainers.data import TensorData
from ..trainers.distillation import Distillation
from ..trainers.export import read_student
from ..trainers.files import tensors_sha256
from ..trainers.loop import OPTIMISERS, TrainOptions
from ..trainers.run_folder import RunFolder
from ..trainers.student import FullWeightsStudent
from ..trainers.targets.progressive import Progressive, ProgressiveOptions
from ..trainers.weighting import Weighting
from . import folders, host, host_training
from .observing import Preview, Show


class ProgressiveDistillation:
    RETURN_TYPES = ("FEWSTEP_METHOD",)
    RETURN_NAMES = ("method",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model.",)
    FUNCTION = "make"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "Progressive distillation (Salimans and Ho 2022): the student learns to do in one step what its teacher does in "
        "two, then becomes the teacher, until the target step count is reached. 64 to 4 steps takes four halvings."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "start_steps": (
                    "INT",
                    {"default": 64, "min": 2, "max": 1000, "tooltip": "Steps at which the teacher still samples well."},
                ),
                "target_steps": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 500,
                        "tooltip": "Steps of the final student: start_steps divided by two, once for each halving.",
                    },
                ),
                "iterations": (
                    "INT",
                    {"default": 500, "min": 0, "max": 1000000, "tooltip": "Optimiser steps in each halving."},
                ),
                "weighting": (
                    [weighting.value for weighting in Weighting],
                    {
                        "tooltip": "Weight of the squared error over noise levels. truncated_snr = max(SNR, 1) is the "
                        "paper's choice for distillation; snr_plus_one is the v-error; snr is the eps-error, which "
                        "vanishes where few-step students live; constant is the x0-error."
                    },
                ),
                "learning_rate": (
                    "FLOAT",
                    {
                        "default": 5e-4,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.000001,
                        "round": False,
                        "tooltip": "At the start of each halving; it falls linearly to 0 within the halving.",
                    },
                ),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Classifier-free guidance baked in during the first halving. The student is then "
                        "sampled at cfg 1, at half the cost of a step. 1 bakes in none.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_steps: Any = None, target_steps: Any = None, iterations: Any = None) -> bool | str:
        """Before anything runs, where the values are typed in; linked values are checked when they arrive."""
        if not all(isinstance(value, int) for value in (start_steps, target_steps, iterations)):
            return True
        return host.error_of(
            lambda: ProgressiveOptions(
                start_steps=start_steps,
                target_steps=target_steps,
                iterations=iterations,
                weighting=Weighting.CONSTANT,
                learning_rate=1e-3,
                guidance_scale=1.0,
            )
        )

    def make(self, weighting: str, **options: Any) -> tuple[ProgressiveOptions]:
        return (ProgressiveOptions(weighting=Weighting(weighting), **options),)


class Distill:
    RETURN_TYPES = ("MODEL", "LOSS_MAP", "STRING")
    RETURN_NAMES = ("student", "loss", "run_name")
    OUTPUT_TOOLTIPS = (
        "The finished student: sample it at cfg 1 with the Lightning sampler and the trailing schedule.",
        "The loss of every logged iteration, for Loss Chart and the host's own loss nodes.",
        "The run's name, for Evaluate Digits.",
    )
    FUNCTION = "distil"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "Trains a few-step student out of the connected model, which itself stays as it is. The queue waits until it is "
        "done. Cancel saves the state; queueing again with the same run name goes on from there. Everything is kept in "
        "output/fewstep/runs/<run name>. All weights of a copy of the model learn, in float32: for models that fit in "
        "memory four times over."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher, as wired: its LoRAs and patches are distilled too."}),
                "latents": ("LATENT", {"tooltip": "Training pictures as latents, from VAE Encode or a data node."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "One prompt for each latent in the same order, or a single one for all."},
                ),
                "method": ("FEWSTEP_METHOD", {"tooltip": "How to distil, from a method node."}),
                "run_name": (
                    "STRING",
                    {
                        "default": "my student",
                        "tooltip": "Names the run's folder. The same name goes on with the same run, or loads it when "
                        "it is finished; another teacher, data or settings need another name.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "tooltip": "Drives every random draw: order of the data, noise, noise levels.",
                    },
                ),
                "batch_size": ("INT", {"default": 64, "min": 1, "max": 4096, "tooltip": "Pictures in each iteration."}),
                "optimiser": (list(OPTIMISERS), {"default": "adam", "tooltip": "The paper uses adam without decay."}),
                "weight_decay": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001, "tooltip": "0 is none."},
                ),
                "gradient_clip": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.1,
                        "tooltip": "Largest norm of the gradient.",
                    },
                ),
                "checkpoint_every": (
                    "INT",
                    {
                        "default": 200,
                        "min": 1,
                        "max": 100000,
                        "tooltip": "Iterations between checkpoints and previews.",
                    },
                ),
            },
            "optional": {
                "negative": (
                    "CONDITIONING",
                    {"tooltip": "The empty or negative prompt, needed when the method bakes guidance in."},
                ),
                "vae": ("VAE", {"tooltip": "Shows and keeps preview pictures during training: teacher above student."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, run_name: Any = None) -> bool | str:
        return True if run_name is None else host.error_of(lambda: RunFolder(Path(), str(run_name)))

    def distil(
        self,
        model: Any,
        latents: dict[str, Tensor],
        positive: host.Conditioning,
        method: ProgressiveOptions,
        run_name: str,
        negative: host.Conditioning | None = None,
        vae: Any = None,
        **options: Any,
    ) -> tuple[Any, dict[str, list[float]], str]:
        with torch.inference_mode(False), torch.enable_grad():
            run = RunFolder(folders.runs_root(), run_name)
            train_options = TrainOptions(**options)
            data = _training_data(model, latents, positive, negative)
            sampling = host.model_sampling_of(model)
            resolved = Progressive(
                method,
                family=host.noise_family(sampling),
                table=host.noise_levels(sampling),
                unconditional=data.unconditional,
            )
            network = host_training.trainable_copy(model)
            with run.locked():
                distillation = Distillation(
                    run=run,
                    method=resolved,
                    data=data,
                    options=train_options,
                    teacher_sha256=tensors_sha256(host_training.network_state_dict(network)),
                    prediction_type=host.prediction_type(sampling),
                )
                _execute(distillation, network, model=model, vae=vae)
            network.diffusion_model.load_state_dict(distillation.result())
        losses = [loss for stage in run.losses().values() for loss in stage]
        return host_training.model_from(network, like=model), {"loss": losses}, run_name


def _training_data(
    model: Any, latents: dict[str, Tensor], positive: host.Conditioning, negative: host.Conditioning | None
) -> TensorData:
    x0 = host_training.latents_for_training(model, latents)
    unconditional = None
    if negative is not None:
        unconditional = host_training.condition_for_training(model, negative, latents=x0, name="negative")
    condition = host_training.condition_for_training(model, positive, latents=x0, name="positive")
    return TensorData(x0=x0, condition=condition, unconditional=unconditional)


def _execute(distillation: Distillation, network: host_training.Network, *, model: Any, vae: Any) -> None:
    """Trains network in place; the teacher is a second copy, since later stages replace its weights."""
    data = distillation.data
    student = FullWeightsStudent(
        network,
        host_training.trainable_copy(model),
        as_denoiser=host_training.as_denoiser,
        writes_in_place=host_training.writes_in_place(network, latents=data.x0, condition=data.condition),
    )
    preview = None if vae is None else Preview(distillation, student, model=model, vae=vae)
    show = Show(distillation, preview)
    distillation.execute(student, weights=lambda: host_training.network_state_dict(network), observers=[show])


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
        weights, recipe, _ = read_student(path)
        sampling = host.model_sampling_of(model)
        found = (host.noise_family(sampling).value, host.prediction_type(sampling))
        if found != (recipe.noise_family, recipe.prediction_type):
            raise ValueError(
                f"{student} is a {recipe.noise_family} {recipe.prediction_type} student, but the connected model is "
                f"{' '.join(found)}. Connect the model that it was distilled from."
            )
        network = host_training.trainable_copy(model)
        try:
            network.diffusion_model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{student} does not fit the connected model: {error}") from error
        sampler = host.sampler(sample_few_step, gamma=recipe.gamma)
        return host_training.model_from(network, like=model), sampler, torch.tensor(recipe.sigmas)


class LossChart:
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The chart; connect to Save Image or Preview Image.",)
    FUNCTION = "draw"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = "Draws the loss of a finished run, one curve for each halving, on a log axis."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "run_name": ("STRING", {"forceInput": True, "tooltip": "From Distill Model."}),
            }
        }

    def draw(self, run_name: str) -> tuple[Tensor]:
        losses = RunFolder(folders.runs_root(), run_name).losses()
        if not losses:
            raise ValueError(f"the run {run_name!r} has logged nothing yet; distil first.")
        return (loss_chart(losses)[None],)
