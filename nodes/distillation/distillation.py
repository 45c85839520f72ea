"""Distillation nodes: a method, the trainer, and what becomes of its run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...trainers.measures.charts import loss_chart
from ...trainers.storage.places import is_link
from ...trainers.storage.run_folder import RunFolder
from ...trainers.training.optimisation.learning_rates import SCHEDULES
from ...trainers.training.optimisation.optimisers import OPTIMISERS
from ...trainers.training.optimisation.options import AS_LOADED, PRECISIONS
from .. import host
from ..host import folders
from . import perceptual, running
from .learning import option_inputs as inputs
from .observing import Show
from .telling import EXPORTING, MESSAGES, PROBING
from .wired import Wired, prepared

RARE = ("weight_decay", "gradient_clip", "learning_rate_schedule", "warmup", "caption_dropout", "start_from")
"""Inputs that few people need."""


@host.signals.asked_whether_changed
class Distill:
    RETURN_TYPES: tuple[str, ...] = ("MODEL", "LOSS_MAP", "STRING", "LORA_MODEL")
    RETURN_NAMES: tuple[str, ...] = ("student", "loss", "run_name", "lora")
    OUTPUT_TOOLTIPS: tuple[str, ...] = (
        "The finished student: sample it at cfg 1, with the sampler and sigmas that Load Distilled Student gives.",
        "The loss of every logged iteration, for Loss Chart and the host's own loss nodes.",
        "The run's name, for Evaluate Digits.",
        "The LoRA's weights, for the host's own LoRA nodes; the file is in output/loras/fewstep already.",
    )
    FUNCTION = "distil"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    GATHERED = ("latents", "positive", "negative")
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["train", "train lora", "training", "few step", "fast", "make lcm", "student", "resume"]
    DESCRIPTION = (
        "Trains a few-step student out of the connected model, which itself stays as it is. The queue waits until it is "
        "done. Cancel saves the state; queueing again with the same run name goes on from there. Everything is kept in "
        "output/fewstep/runs/<run name>. By default a LoRA learns, beside weights that nobody copies or changes; it is "
        "also put into output/loras/fewstep for the host's LoRA loaders."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher, as wired: its LoRAs and patches are distilled too."}),
                "method": ("FEWSTEP_METHOD", {"tooltip": "How to distil, from a method node."}),
                "run_name": (
                    "STRING",
                    {
                        "default": "my student",
                        "tooltip": "Names the run's folder. The same name goes on with the same run, or loads it when "
                        "it is finished; another teacher, data or settings need another name, but target_steps may be lowered.",
                    },
                ),
                "seed": host.limits.seed("Drives every random draw: order of the data, noise, noise levels."),
                "batch_size": ("INT", {"default": 16, "min": 1, "max": 4096, "tooltip": "Pictures in each iteration."}),
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
                "latents": (
                    "LATENT",
                    {"tooltip": "Training pictures as latents, from VAE Encode or a data set. Goes with positive."},
                ),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "One prompt for each latent in the same order, or a single one for all."},
                ),
                "negative": (
                    "CONDITIONING",
                    {
                        "tooltip": "The empty or negative prompt, needed when the method bakes guidance in. One for all, or one "
                        "for each latent: for editing models each with the picture of its positive."
                    },
                ),
                "vae": (
                    "VAE",
                    {
                        "tooltip": "Shows and keeps preview pictures during training: teacher above student. The distance lpips "
                        "needs it."
                    },
                ),
                "student": (
                    "FEWSTEP_STUDENT",
                    {"tooltip": "What learns: LoRA Student or Full-Weights Student. Unconnected: a LoRA of rank 32."},
                ),
                "accumulation": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Pieces that a batch passes the network in, one after another: more need less memory "
                        "and more time, and the result is the same. batch_size must be a multiple. May be changed when going "
                        "on with a run.",
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
                        "smooths. It warms up, so that a short run is not held at its start. 0 is none, the paper's choice.",
                    },
                ),
                "data": (
                    "FEWSTEP_DATA",
                    {
                        "tooltip": "Training data from Training Images, Clips or Sounds (Folder), or Training Prompts "
                        "(Teacher's Pictures, or none for Distribution Matching), in place of latents, positive and negative."
                    },
                ),
                "caption_dropout": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 0.99,
                        "step": 0.01,
                        "tooltip": "Share of the samples that see the empty prompt instead of theirs, so that the student "
                        "learns that too: 0.1 is usual where it is to be sampled with guidance. 0 is none.",
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
                        "rest again: less memory for activations, one forward more for each backward pass (a fifth to a "
                        "quarter of a step), the same result. May be changed when going on with a run.",
                    },
                ),
                "start_from": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of a run whose last good checkpoint this new run begins at, with the settings here: "
                        "after a loss that became NaN with a lower learning rate, say. Empty: at the beginning.",
                    },
                ),
                "previews": inputs.PREVIEWS,
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }
        return inputs.folded(declared, RARE)

    @classmethod
    def VALIDATE_INPUTS(cls, run_name: Any = None) -> bool | str:
        """Hosts report what is wrong on every input that is named here, so that one alone is."""
        return folders.error_of_name(run_name, what="run name")

    @classmethod
    def IS_CHANGED(cls, run_name: str | None = None, **_: Any) -> float:
        """The host remembers what came of the same inputs, but not that the run's folder was deleted since."""
        run = folders.run_named(run_name) if run_name is not None else None
        found = cls.result_of(run) if run and not is_link(run.path) else None
        return float("nan") if found is None else found  # a new NaN: lists of one and the same are equal

    @staticmethod
    def result_of(run: RunFolder) -> float | None:
        """Of a run whose result there is, the same as long as that stays; otherwise None."""
        return run.student_file.stat().st_mtime if run.finished else None

    def distil(
        self, model: Any, *, run_name: str, vae: Any = None, **given: Any
    ) -> tuple[Any, dict[str, list[float]], str, dict[str, Tensor]]:
        run = folders.run_named(run_name)
        with MESSAGES.of_run(run, node=given.get("unique_id")) as told:
            perceptual.require(given["method"].written(), vae=vae)
            wired = Wired.of(model=model, run_name=run_name, **given)
            with prepared(wired, vae=vae) as distillation:
                if not distillation.finished():
                    MESSAGES.begin(PROBING)
                    running.execute(
                        distillation,
                        wired.student,
                        model=model,
                        vae=vae,
                        show=lambda preview: Show(distillation, preview),
                    )
                told["start_left"] = distillation.start_left
                MESSAGES.begin(EXPORTING)
                return running.finished(run, wired.student, model=model, told=told)


class LossChart:
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The chart; connect to Save Image or Preview Image.",)
    FUNCTION = "draw"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["training curve", "graph", "plot", "metrics"]
    DESCRIPTION = "Draws the loss of a finished run, one curve for each halving, on a log axis."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "run_name": ("STRING", {"forceInput": True, "tooltip": "From Distill Model."}),
            }
        }

    def draw(self, run_name: str) -> tuple[Tensor]:
        run = folders.run_named(run_name)
        if not run.losses():
            raise ValueError(f"the run {run_name!r} has logged nothing yet; distil first.")
        return (loss_chart(run.metrics())[None],)
