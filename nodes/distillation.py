"""Distillation nodes: a method, the trainer, and what becomes of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..trainers.adapters import LoRAOptions
from ..trainers.charts import loss_chart
from ..trainers.data import TensorData
from ..trainers.distillation import Distillation
from ..trainers.files import tensors_sha256
from ..trainers.learning_rates import SCHEDULES
from ..trainers.optimisers import OPTIMISERS
from ..trainers.options import AS_LOADED, PRECISIONS, TrainOptions
from ..trainers.run_folder import RunFolder
from ..trainers.targets.progressive import Progressive, ProgressiveOptions
from . import folders, host, host_training, students
from .observing import Preview, Show


class Distill:
    RETURN_TYPES = ("MODEL", "LOSS_MAP", "STRING", "LORA_MODEL")
    RETURN_NAMES = ("student", "loss", "run_name", "lora")
    OUTPUT_TOOLTIPS = (
        "The finished student: sample it at cfg 1 with the Lightning sampler and the trailing schedule.",
        "The loss of every logged iteration, for Loss Chart and the host's own loss nodes.",
        "The run's name, for Evaluate Digits.",
        "The LoRA's weights, for the host's own LoRA nodes; the file is in output/loras/fewstep already.",
    )
    FUNCTION = "distil"
    CATEGORY = "few-step/distillation"
    DESCRIPTION = (
        "Trains a few-step student out of the connected model, which itself stays as it is. The queue waits until it is "
        "done. Cancel saves the state; queueing again with the same run name goes on from there. Everything is kept in "
        "output/fewstep/runs/<run name>. By default a LoRA learns, beside weights that nobody copies or changes; it is "
        "also put into output/loras/fewstep for the host's LoRA loaders."
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
                "optimiser": (
                    list(OPTIMISERS),
                    {
                        "default": "adam",
                        "tooltip": "The paper uses adam without decay. adamw8bit and schedule_free want a library each, "
                        "which the error names; schedule_free wants the constant learning rate schedule.",
                    },
                ),
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
                "student": (
                    "FEWSTEP_STUDENT",
                    {"tooltip": "What learns: LoRA Student or Full-Weights Student. Unconnected: a LoRA of rank 32."},
                ),
                "accumulation": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Pieces that a batch passes the network in, one after another: more need less memory "
                        "and more time, and the result is the same. batch_size must be a multiple.",
                    },
                ),
                "learning_rate_schedule": (
                    list(SCHEDULES),
                    {
                        "default": "linear",
                        "tooltip": "Within each halving: linear falls to 0, the paper's choice; cosine falls to 0; constant.",
                    },
                ),
                "warmup": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 100000,
                        "tooltip": "Iterations in which the learning rate rises from 0, in each halving.",
                    },
                ),
                "ema_decay": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 0.99999,
                        "step": 0.00001,
                        "round": False,
                        "tooltip": "Moving average of the weights, which is then what a halving results in: 0.99 to 0.999 "
                        "smooths. 0 is none, the paper's choice.",
                    },
                ),
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": AS_LOADED,
                        "tooltip": "What the networks compute in. as_loaded: a LoRA in what ComfyUI uses for this model, "
                        "full weights in float32. What learns, targets and losses are float32 whatever you choose.",
                    },
                ),
                "gradient_checkpointing": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Keeps only the inputs of the network's blocks for the backward pass and computes the "
                        "rest again: much less memory, about a third more time, the same result. May be changed when "
                        "going on with a run.",
                    },
                ),
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
        student: students.StudentOptions | None = None,
        **options: Any,
    ) -> tuple[Any, dict[str, list[float]], str, dict[str, Tensor]]:
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
            chosen = student or LoRAOptions()
            with run.locked():
                distillation = Distillation(
                    run=run,
                    method=resolved,
                    data=data,
                    options=train_options,
                    teacher_sha256=tensors_sha256(host_training.network_state_dict(host_training.loaded(model))),
                    prediction_type=host.prediction_type(sampling),
                    student=students.description(chosen),
                )
                if not distillation.finished():
                    try:
                        _train(distillation, chosen, model=model, vae=vae)
                    finally:
                        host_training.free_memory()
            tensors = distillation.result()
            losses = [loss for stage in run.losses().values() for loss in stage]
            lora = isinstance(chosen, LoRAOptions)
            if lora:
                folders.publish_lora(run.student_file, name=run.name)
            finished = students.with_student(model, tensors, lora=lora)
            return finished, {"loss": losses}, run_name, tensors if lora else {}


def _train(distillation: Distillation, student: students.StudentOptions, *, model: Any, vae: Any) -> None:
    options = distillation.options
    with students.student_of(
        model,
        student,
        seed=options.seed,
        precision=options.precision,
        gradient_checkpointing=options.gradient_checkpointing,
    ) as learning:
        preview = None if vae is None else Preview(distillation, learning, model=model, vae=vae)
        distillation.execute(learning, observers=[Show(distillation, preview)])


def _training_data(
    model: Any, latents: dict[str, Tensor], positive: host.Conditioning, negative: host.Conditioning | None
) -> TensorData:
    x0 = host_training.latents_for_training(model, latents)
    unconditional = None
    if negative is not None:
        unconditional = host_training.condition_for_training(model, negative, latents=x0, name="negative")
    condition = host_training.condition_for_training(model, positive, latents=x0, name="positive")
    return TensorData(x0=x0, condition=condition, unconditional=unconditional)


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
