"""One node from a MODEL to its few-step student: it chooses what the other nodes ask, says what and why, and what it takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from ....samplers.recipe import Recipe
from ....trainers.objective.method import MethodOptions
from ....trainers.storage.files import read_metadata
from ....trainers.storage.run_folder import RunFolder
from ....trainers.students.adapters import LoRALayers
from ....trainers.training.distillation import Recorded
from ....trainers.training.optimisation.options import OF_NEW_RUNS, TrainOptions
from ... import host
from ...host import folders, graph
from ...sampling.recipes import as_trained
from .. import distillation
from ..data import preview_prompts
from ..data.folder_data import OF_CLIPS, OF_EDITS
from ..learning import option_inputs as inputs
from ..learning import starting_lora
from ..telling import HASHING, MESSAGES, PROBING
from . import from_folder
from .cards import NO_CARD, cards
from .choosing import CARDS, GOALS, Wishes

TRAIN, PLAN = "train", "plan only"
STEPS = ["1", "2", "4", "8"]


RARE = (
    "negative_prompt",
    "guidance",
    "side",
    "pictures",
    "iterations",
    "memory",
    "seed",
    "start_lora",
    "frames",
    *OF_EDITS,
)
"""Inputs that few people need."""


@host.signals.asked_whether_changed
class MakeItFast:
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS", "STRING", "STRING")
    RETURN_NAMES = ("student", "sampler", "sigmas", "run_name", "plan")
    OUTPUT_TOOLTIPS = (
        "The finished student: sample it at cfg 1.",
        "The sampler that it was trained for.",
        "The noise levels that it was trained on.",
        "The run's name, for Load Distilled Student, Loss Chart and the saving nodes.",
        "What was chosen, why, and what it takes.",
    )
    FUNCTION = "make"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    GATHERED = distillation.Distill.GATHERED
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["distill", "train", "speed lora", "turbo", "lightning", "few step", "own lcm", "one click"]
    DESCRIPTION = (
        "From your model to a few-step LoRA of it, without the other nodes: chooses method, data, student and settings by the "
        "model's family and the memory at hand, tries them, says what was chosen and what it will take, and trains. The run is "
        "that of Distill Model with the same settings: cancel, resume and files are as there."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "model": ("MODEL", {"tooltip": "What is to become fast, as wired: its LoRAs are learnt too."}),
                "steps": (
                    STEPS,
                    {"default": "4", "tooltip": "In which the result draws. 4 is the safe choice for a LoRA."},
                ),
                "goal": (
                    list(GOALS),
                    {
                        "tooltip": "closest to my model: progressive distillation, which keeps seeds and composition. sharpest: "
                        "distribution matching (DMD), from prompts alone. cheapest to train: an LCM-LoRA."
                    },
                ),
                "run_name": (
                    "STRING",
                    {
                        "default": "my fast model",
                        "tooltip": "Names the result's file. The same name goes on with the same run.",
                    },
                ),
                "do": (
                    [TRAIN, PLAN],
                    {
                        "tooltip": "plan only: chooses, tries a few iterations, says what the whole would take, and stops."
                    },
                ),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Encodes the prompts or captions."}),
                "vae": ("VAE", {"tooltip": "Shows previews, and encodes the files of a folder."}),
                "prompts": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "One on each line, of the kind that you draw; your model draws the training pictures itself. "
                        "Empty: 240 everyday prompts that come with the pack.",
                    },
                ),
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Pictures with captions, in place of prompts; of a model of video clips with captions, and "
                        "frames says how long. Relative paths are in ComfyUI's input folder.",
                    },
                ),
                "negative_prompt": ("STRING", {"default": "", "tooltip": "Baked in with the guidance."}),
                "guidance": inputs.guidance_scale(
                    0.0, "The cfg that is baked in. 0: what is usual for the model's family.", least=0.0
                ),
                "side": inputs.count(
                    0, "Of the training pictures, about, in pixels. 0: what is usual for the model's family.", most=8192
                ),
                "pictures": inputs.count(
                    480,
                    "That the model draws from the prompts, if there is no folder: the same number of each prompt, and of no "
                    "more prompts than this.",
                    least=1,
                    most=100000,
                ),
                "iterations": inputs.count(
                    0, "Optimiser steps, of each halving where there are several. 0: what is usual for the goal."
                ),
                "memory": (
                    list(CARDS),
                    {"tooltip": "What the run must fit into: what is free on this machine, or a card of that size."},
                ),
                "seed": host.limits.seed("Of every random draw."),
                "latents": (
                    "LATENT",
                    {"tooltip": "Training latents out of the graph, in place of prompts and folder."},
                ),
                "positive": ("CONDITIONING", {"tooltip": "With latents: one prompt for each, or one for all."}),
                "negative": ("CONDITIONING", {"tooltip": "With latents: the empty or negative prompt."}),
                "preset": (
                    [NO_CARD, *cards()],
                    {
                        "tooltip": "Rank, batch, largest pictures and memory for a card of that size, from the files in the "
                        "pack's folder cards. side and memory count before it. none: as the machine has memory."
                    },
                ),
                "start_lora": (
                    [starting_lora.NOTHING, *folders.lora_files()],
                    {
                        "default": starting_lora.NOTHING,
                        "tooltip": "What the LoRA begins as: a finished student of the same model, such as one made with the "
                        "goal closest, or a published speed LoRA. With the goal sharpest 400 iterations are then usual instead "
                        "of 1500.",
                    },
                ),
                "previews": inputs.PREVIEWS,
                "frames": inputs.count(
                    0,
                    "Of the clips of a model of video, of the folder or drawn from the prompts: 81 for Wan, 97 for LTX-2, 124 "
                    "for MiniMax H3, say. 0: for models of still pictures.",
                    most=10000,
                ),
                **OF_CLIPS,
                **OF_EDITS,
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }
        return inputs.folded(declared, RARE)

    @classmethod
    def VALIDATE_INPUTS(cls, run_name: Any = None, folder: Any = None, references: Any = "") -> bool | str:
        """Before anything is loaded, where the values are typed in; linked ones are None here and checked when they arrive."""
        named = folders.error_of_name(run_name, what="run name")
        if named is not True or folder is None or references is None:
            return named
        return host.signals.error_of(lambda: from_folder.require_places(folder, references))

    @classmethod
    def IS_CHANGED(cls, run_name: str | None = None, **_: Any) -> float:
        return distillation.Distill.IS_CHANGED(run_name=run_name)  # which may be wrapped, and then takes names alone

    def make(
        self,
        model: Any,
        steps: str,
        goal: str,
        run_name: str,
        do: str,
        vae: Any = None,
        previews: Any = None,
        prompt: Any = None,
        unique_id: Any = None,
        extra_pnginfo: Any = None,
        **wishes: Any,
    ) -> dict[str, Any]:
        run = folders.run_named(run_name)
        with MESSAGES.before(run, node=unique_id):
            wanted = Wishes(model=model, vae=vae, steps=int(steps), goal=goal, layers=_layers_of(run), **wishes)
            preview_prompts.require_shown(previews, model, vae=vae is not None)
            options, told = _chosen(run, wanted, node=unique_id)
        if do == PLAN and told is not None:
            nothing = graph.nothing_yet("do is 'plan only'; set it to 'train' for a student.")
            return {"ui": {"text": ["\n".join(told)]}, "result": (nothing, nothing, nothing, run_name, "\n".join(told))}
        trained = {name: value for name, value in dataclasses.asdict(options).items() if name not in OF_NEW_RUNS}
        student, *_ = distillation.Distill().distil(
            model,
            run_name=run_name,
            vae=vae,
            previews=previews,
            method=wanted.method,
            student=wanted.student,
            prompt=prompt,
            unique_id=unique_id,
            extra_pnginfo=extra_pnginfo,
            **trained,
            **wanted.data(),
        )
        recipe = Recipe.from_metadata(read_metadata(run.student_file), source=run.name)
        finished = f"the run {run_name!r} is finished; its student is loaded."
        text = finished if told is None else "\n".join(told)
        return {"ui": {"text": [text]}, "result": (student, *as_trained(recipe), run_name, text)}


def _chosen(run: RunFolder, wanted: Wishes, *, node: str | None) -> tuple[TrainOptions, list[str] | None]:
    """The options, and what is told of the plan; None of a run that is finished with all that is wanted."""
    wanted.require_goes_on(run)
    if wanted.start_lora != starting_lora.NOTHING and not run.begun:
        with MESSAGES.phase(HASHING, run=run.name, node=node):
            wanted.require_start()
    if _is_done(run, wanted.method):
        return wanted.options, None
    with MESSAGES.phase(PROBING, run=run.name, node=node):
        options, plan = wanted.planned(run)
    told = [*wanted.told(), *plan.told()]
    host.models.log.info("FewStep plan for %r: %s", run.name, "; ".join(told))
    MESSAGES.plan(told, run=run, node=node)
    return options, told


def _layers_of(run: RunFolder) -> LoRALayers | None:
    """On which a run that has begun learns: to fewer steps it goes on with the student that it has."""
    known = Recorded.of(run).student.get("layers") if run.begun else None
    return LoRALayers(known) if known else None


def _is_done(run: RunFolder, method: MethodOptions) -> bool:
    """Whether the run is finished with all that is asked: fewer steps than its own are further stages of it."""
    if not run.finished:
        return False
    asked, there = (options.get("target_steps", 0) for options in (method.written(), Recorded.of(run).method_options))
    return not 0 < asked < there
