"""Distillation nodes: a method, the trainer, and what becomes of its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...trainers.measures.charts import loss_chart
from ...trainers.objective.method import Method, MethodOptions, student_prediction
from ...trainers.storage.places import is_link
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.training.distillation import Distillation, as_begun, require_goes_on
from ...trainers.training.learning_rates import SCHEDULES
from ...trainers.training.optimisers import OPTIMISERS
from ...trainers.training.options import AS_LOADED, PRECISIONS, TrainOptions
from .. import host
from ..host import folders, graph
from . import perceptual, running, starting, teacher
from .data import preview_prompts
from .data.data_in_graph import data_in_graph
from .data.data_sources import DataInGraph, DataSource
from .learning import option_inputs as inputs
from .learning import starting_lora, students
from .learning.starting_lora import StartingLoRA
from .observing import Show
from .telling import ENCODING, EXPORTING, HASHING, MESSAGES, PROBING

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
        self,
        model: Any,
        *,
        run_name: str,
        vae: Any = None,
        student: students.StudentOptions | None = None,
        **given: Any,
    ) -> tuple[Any, dict[str, list[float]], str, dict[str, Tensor]]:
        chosen = student or LoRAOptions()
        run = folders.run_named(run_name)
        with MESSAGES.of_run(run, node=given.get("unique_id")) as told:
            perceptual.require(given["method"].written(), vae=vae)
            with prepared(model, run_name, chosen, has_vae=vae is not None, **given) as distillation:
                if not distillation.finished():
                    MESSAGES.begin(PROBING)
                    running.execute(
                        distillation, chosen, model=model, vae=vae, show=lambda preview: Show(distillation, preview)
                    )
                told["start_left"] = distillation.start_left
                MESSAGES.begin(EXPORTING)
                return running.finished(run, chosen, model=model, told=told)


@contextmanager
def prepared(
    model: Any,
    run_name: str,
    student: students.StudentOptions | None,
    *,
    method: MethodOptions,
    latents: dict[str, Tensor] | list[dict[str, Tensor]] | None = None,
    positive: host.models.Conditioning | list[host.models.Conditioning] | None = None,
    negative: host.models.Conditioning | None = None,
    data: DataSource | None = None,
    start_from: str = "",
    previews: preview_prompts.Previews | None = None,
    has_vae: bool = False,
    elsewhere: bool = False,
    prompt: Mapping[str, Any] | None = None,
    unique_id: str | None = None,
    extra_pnginfo: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Distillation]:
    """The run of these inputs, its folder locked and its data in it. Tensors made inside may be trained on, unlike in nodes.

    elsewhere: another process trains it, perhaps another Python's.
    """
    with torch.inference_mode(False), torch.enable_grad():
        run = folders.run_named(run_name)
        preview_prompts.require_shown(previews, model, vae=has_vae)
        train_options = TrainOptions(ema_warms_up=True, **options)
        source = _source(model, data, latents, positive, negative, dropout=train_options.caption_dropout)
        method = running.method_as_begun(method, run)
        resolved = running.method_on(model, method, empty_prompt=source.unconditional is not None)
        predicts = host.models.prediction_type(host.models.model_sampling_of(model))
        _require_pictures(resolved, source)
        host.precision.require(model, train_options.precision)
        students.require_scale_input(model, student or LoRAOptions(), resolved.scale_input)
        require_goes_on(
            run, method=resolved, options=train_options, student=students.description(student or LoRAOptions())
        )
        if not run.begun:  # before hours go into its data
            train_options.require_suit(resolved.stages(), libraries=not elsewhere)
            starting.require_there(start_from)
        with (
            run.gone_if_refused(keep_data=not isinstance(source, DataInGraph)),
            run.locked(),
            host.signals.heeding(lambda: run.cancel_asked),
        ):
            with MESSAGES.phase(HASHING):
                hashes = teacher.hashed(model, begun_with=teacher.sha256_said(run))
            if isinstance(student, StartingLoRA) and not run.begun:
                starting_lora.require_suits(
                    student,
                    model=model,
                    teacher_sha256=hashes.sha256,
                    prediction=student_prediction(resolved, prediction_type=predicts),
                )
            with MESSAGES.phase(ENCODING):
                training_data = source.build(model, run, teacher_sha256=hashes.sha256)
            distillation = Distillation(
                run=run,
                method=resolved,
                data=training_data,
                options=as_begun(train_options, run),
                teacher_sha256=hashes.sha256,
                prediction_type=predicts,
                student=students.description(student or LoRAOptions()),
                origin=graph.upstream(prompt or {}, str(unique_id), running.ORIGIN),
                teacher_is=teacher.described(model, training_data.first(1), parts=hashes.parts),
                about=host.naming.said_of_model(model, lora=not isinstance(student, students.FullWeights)),
            )
            distillation, start = starting.started(distillation, start_from, model=model)
            if not distillation.finished():
                source.keep(run)
                preview_prompts.keep(run, previews, model, data=training_data, told=source.told())
                _keep_workflow(run, extra_pnginfo)
                if start:
                    start.save(distillation)
            yield distillation


def _keep_workflow(run: RunFolder, extra_pnginfo: Mapping[str, Any] | None) -> None:
    """The editor sends it beside the prompt; other programs need not."""
    if extra_pnginfo and extra_pnginfo.get("workflow"):
        run.keep_workflow(extra_pnginfo["workflow"])


def _require_pictures(method: Method, source: DataSource) -> None:
    if method.needs_pictures and not source.has_pictures:
        raise ValueError(
            f"data is Training Prompts (No Pictures), but {method.name.replace('_', ' ')} learns from pictures; connect Training "
            "Prompts (Teacher's Pictures) or Training Images (Folder), or take Distribution Matching with consistency_levels and "
            "adversarial_weight at 0."
        )


def _source(
    model: Any, data: DataSource | None, latents: Any, positive: Any, negative: Any, *, dropout: float
) -> DataSource:
    """Of what is connected, as `prepared` takes it. ValueError for neither kind of data, half of one, or both."""
    by_hand = {"latents": latents, "positive": positive, "negative": negative}
    connected = [name for name, given in by_hand.items() if given is not None]
    if data is not None and connected:
        raise ValueError(
            f"data is connected, and so is {' and '.join(connected)}; connect data alone (its node has the negative prompt), or "
            "latents and positive."
        )
    if data is None and not {"latents", "positive"} <= {*connected}:
        have = [name for name in connected if name != "negative"]
        raise ValueError(
            f"of the training data {' and '.join(have) or 'nothing'} is connected; connect latents and positive, or data."
        )
    return data or data_in_graph(model, latents, positive, negative, dropout=dropout)


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
        losses = folders.run_named(run_name).losses()
        if not losses:
            raise ValueError(f"the run {run_name!r} has logged nothing yet; distil first.")
        return (loss_chart(losses)[None],)
