"""Nodes that write a finished student into a file of another kind."""

from __future__ import annotations

from typing import Any

from ....trainers.storage.export import CHECKPOINT, KIND_KEY, LORA, about_merged, write_model
from ... import host
from ...host import folders
from ...host.files.naming import Naming, Precision
from . import option_inputs as inputs
from .students import LoadStudent, loaded


class SaveStudentCheckpoint:
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("The checkpoint's file, as Load Checkpoint and Apply Recipe list it.",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["merge lora", "bake lora", "save model", "export", "distilled"]
    DESCRIPTION = (
        "Merges a finished student into its teacher and saves a whole checkpoint, text encoder and VAE included, to "
        "output/checkpoints/fewstep. Load Checkpoint lists it; Apply Recipe finds its sampler and schedule in it."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher that the student was distilled from."}),
                "clip": ("CLIP", {"tooltip": "The text encoder that goes into the checkpoint."}),
                "vae": ("VAE", {"tooltip": "The VAE that goes into the checkpoint."}),
                "student": LoadStudent.INPUT_TYPES()["required"]["student"],
                "name": inputs.new_name("my student"),
            }
        }

    IS_CHANGED = LoadStudent.IS_CHANGED

    @classmethod
    def VALIDATE_INPUTS(cls, name: Any = None) -> bool | str:
        return folders.error_of_name(name, what="name of the file")

    def save(self, model: Any, clip: Any, vae: Any, student: str, name: str) -> dict[str, Any]:
        host.checkpoints.require_loadable(model)
        file = folders.new_model(name, folder="checkpoints")
        made, _, metadata = loaded(model, student, merged=True)
        about = about_merged(metadata, kind=CHECKPOINT, title=name) | host.naming.said_of_model(model, lora=False)
        said = host.checkpoints.save_checkpoint(file, made, clip, vae, metadata=about)
        folders.list_own_models()
        text = "\n".join([str(file), *([said] if said else []), *_left_out(model)])
        return {"ui": {"text": [text]}, "result": (f"fewstep/{file.name}",)}


class SaveStudentLoRA:
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("The LoRA's file, as Load LoRA and Apply Recipe list it.",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["merge lora", "combine loras", "style lora", "export"]
    DESCRIPTION = (
        "Makes one LoRA of a student's and of all LoRAs that are wired into its teacher: a style, or the guidance that was "
        "distilled first. It goes to output/loras/fewstep and wants the bare checkpoint. The student's own file stays as it is."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher that the student was distilled from, its LoRAs wired in."}),
                "student": LoadStudent.INPUT_TYPES()["required"]["student"],
                "rank": inputs.count(
                    64,
                    "Of the new file. Nothing is lost if it is no less than the ranks of all the LoRAs together; the node says "
                    "what a smaller one loses.",
                    least=1,
                    most=1024,
                ),
                "name": inputs.new_name("my student in one"),
            },
            "optional": {
                "names": (
                    [naming.value for naming in Naming],
                    {
                        "default": Naming.STUDENT.value,
                        "tooltip": "Of the file's layers; ComfyUI loads all. kohya: for kohya's scripts; others than the "
                        "student's with SDXL. diffusers: for pipelines of Flux, SD3, Qwen-Image, Z-Image, Wan and their kind.",
                    },
                ),
                "precision": (
                    [precision.value for precision in Precision],
                    {"default": Precision.FLOAT32.value, "tooltip": "Of the file's values; 16 bits halve it."},
                ),
            },
        }
        return inputs.folded(declared, ("names", "precision"))

    IS_CHANGED = LoadStudent.IS_CHANGED
    VALIDATE_INPUTS = SaveStudentCheckpoint.VALIDATE_INPUTS

    def save(
        self,
        model: Any,
        student: str,
        rank: int,
        name: str,
        names: str = Naming.STUDENT.value,
        precision: str = Precision.FLOAT32.value,
    ) -> dict[str, Any]:
        file = folders.new_model(name, folder="loras")
        made, _, metadata = loaded(model, student, merged=True)
        if metadata[KIND_KEY] != LORA:
            raise ValueError(
                f"{student} has full weights, with all that was wired into its teacher in them; it needs no merging."
            )
        adapters, lost = host.training.lora_in_one(made, rank=rank)
        tensors = host.naming.named(made, adapters, naming=Naming(names), precision=Precision(precision))
        about = about_merged(metadata, kind=LORA, title=name) | host.naming.said_of_model(model, lora=True)
        sizes = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
        write_model(file, tensors, metadata=about | sizes, new=True)
        folders.list_own_models()
        lines = [str(file), f"of the change to the weights {100.0 * lost:.3g} percent is lost at rank {rank}"]
        return {"ui": {"text": ["\n".join([*lines, *_left_out(model)])]}, "result": (f"fewstep/{file.name}",)}


def _left_out(model: Any) -> list[str]:
    """A line for people on what the student was trained with beside the teacher's weights, or none."""
    found = host.carried.in_no_file(model)
    return (
        [f"not in the file: {'; '.join(found)}. Connect it behind the loader, as behind the teacher's."]
        if found
        else []
    )
