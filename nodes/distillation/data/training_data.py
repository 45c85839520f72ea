"""Training data from prompts alone, whose pictures the teacher draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import host
from ..learning import option_inputs as inputs
from .folder_data import CLIP, GUIDANCE, NEGATIVE
from .prompts_alone import PromptsAlone
from .teacher_pictures import PromptSource

_EVERYDAY = Path(__file__).parents[3] / "prompts" / "everyday.txt"
RARE = ("sampler", "batch_size")
"""Inputs of Teacher's Pictures that editors may fold."""
SIDE = (
    "INT",
    {
        "default": 512,
        "min": 8,
        "max": 8192,
        "step": 8,
        "tooltip": "Of the pictures in pixels: 512 for SD1.5, 1024 for SDXL and most flow models.",
    },
)


FRAMES = (
    "INT",
    {
        "default": 1,
        "min": 1,
        "max": 10000,
        "tooltip": "Of a clip, for models of video, as in the model's own empty latent: 81 for Wan, 97 for LTX-2, 124 for "
        "MiniMax H3, say, with the sound of the last two. 1: a still picture.",
    },
)


class TeacherPictures:
    RETURN_TYPES = ("FEWSTEP_DATA",)
    RETURN_NAMES = ("data",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which draws the pictures once and keeps them in the run's folder.",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["data set", "dataset", "synthetic", "train lora"]
    DESCRIPTION = (
        "Training data from prompts alone: the teacher, which is the model on Distill Model, draws the pictures itself, "
        "with a deterministic sampler on the trailing schedule. They are kept as latents in the run's folder; of a "
        "model of video, clips of so many frames. With pairs on, the noise that each was drawn from is kept too."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "prompts": ("STRING", {"default": "", "multiline": True, "tooltip": "One prompt on each line."}),
                "negative": NEGATIVE,
                "width": SIDE,
                "height": SIDE,
                "pictures_per_prompt": (
                    "INT",
                    {"default": 16, "min": 1, "max": 100000, "tooltip": "Each from a noise of its own."},
                ),
                "steps": (
                    "INT",
                    {"default": 32, "min": 1, "max": 1000, "tooltip": "At which the teacher draws well."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 7.5,
                        "min": 1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "The teacher's guidance: 7 for SD1.5 and SDXL, 2.5 to 4.5 for most flow models; 1 is none.",
                    },
                ),
                "sampler": (
                    list(host.data.SAMPLERS),
                    {"default": "euler", "tooltip": "The host's samplers that add no noise of their own."},
                ),
                "seed": host.limits.seed("Of the noise of every picture."),
                "batch_size": (
                    "INT",
                    {"default": 8, "min": 1, "max": 4096, "tooltip": "Pictures that the teacher draws at once."},
                ),
                "pairs": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Keeps the noise beside the picture, for methods that learn from such pairs.",
                    },
                ),
            },
            "optional": {"clip": CLIP, "guidance": GUIDANCE, "frames": FRAMES},
        }
        return inputs.folded(declared, RARE)

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: Any = None) -> bool | str:
        """Before anything runs, where it is typed in; a linked one is checked when it arrives."""
        return host.signals.error_of(lambda: PromptSource(prompts=lines(prompts))) if isinstance(prompts, str) else True

    def describe(self, prompts: str, **options: Any) -> tuple[Any]:
        return (PromptSource(prompts=lines(prompts), **options),)


class TrainingPrompts:
    RETURN_TYPES = ("FEWSTEP_DATA",)
    RETURN_NAMES = ("data",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which encodes the prompts once and keeps them in the run's folder.",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["data set", "dataset", "data-free", "dmd"]
    DESCRIPTION = (
        "Training data for methods that want no pictures (Distribution Matching): prompts, and the size at which the student "
        "draws, of video the frames too. Nothing is drawn beforehand."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        drawn = TeacherPictures.INPUT_TYPES()
        shared = {name: drawn["required"][name] for name in ("prompts", "negative", "width", "height")}
        return {"required": shared, "optional": drawn["optional"]}

    VALIDATE_INPUTS = TeacherPictures.VALIDATE_INPUTS

    def describe(self, prompts: str, **options: Any) -> tuple[Any]:
        return (PromptsAlone(prompts=lines(prompts), **options),)


def usual_prompts(clip: Any) -> tuple[str, ...]:
    """Where none are given: everyday ones, or those of a text encoder that knows no others, the demo's."""
    return getattr(clip, "usual_prompts", ()) or lines(_EVERYDAY.read_text(encoding="utf-8"))


def lines(text: str) -> tuple[str, ...]:
    """The prompts in a text, one on each line."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
