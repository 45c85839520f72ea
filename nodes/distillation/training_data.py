"""Training data nodes: a folder of pictures with captions, or prompts alone, whose pictures the teacher draws."""

from __future__ import annotations

from typing import Any

from ...trainers.data.pictures import content_of
from .. import host
from ..host import folders
from .data_sources import FolderSource, PromptSource

_CLIP_TOOLTIP = "Encodes the texts. May stay unconnected once the run folder holds the encoded data, at a later start."
_NEGATIVE_TOOLTIP = "The empty or negative prompt, for guidance that is baked in and for caption dropout."

_WITHOUT_CAPTION = ["use caption", "stop"]
_BROKEN = ["stop", "skip"]


class ImageFolder:
    RETURN_TYPES = ("FEWSTEP_DATA",)
    RETURN_NAMES = ("data",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which encodes the pictures once and keeps them in the run's folder.",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["data set", "dataset", "captions", "train lora", "load images"]
    DESCRIPTION = (
        "Pictures from a folder on disk as training data, each described by the .txt file of its name. They are resized "
        "to buckets of about equal area, encoded by the VAE and CLIP when Distill Model runs, and kept in the run's "
        "folder, so that a later start needs neither."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "folder": (
                    "STRING",
                    {
                        "default": "pictures",
                        "tooltip": "Where the pictures are. A relative path counts from ComfyUI's input folder.",
                    },
                ),
                "resolution": (
                    "INT",
                    {
                        "default": 512,
                        "min": 8,
                        "max": 8192,
                        "step": 8,
                        "tooltip": "Pictures are trained at about resolution x resolution pixels, in their own aspect "
                        "ratio: 512 for SD1.5, 1024 for SDXL.",
                    },
                ),
                "bucket_step": (
                    "INT",
                    {
                        "default": 64,
                        "min": 8,
                        "max": 512,
                        "step": 8,
                        "tooltip": "Sides are multiples of it. UNets want 64; a finer step cuts less off.",
                    },
                ),
                "caption": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "For pictures without a .txt file beside them."},
                ),
                "without_caption": (
                    _WITHOUT_CAPTION,
                    {"tooltip": "Whether a picture without a .txt file takes the caption above, or is an error."},
                ),
                "negative": ("STRING", {"default": "", "multiline": True, "tooltip": _NEGATIVE_TOOLTIP}),
                "flip": ("BOOLEAN", {"default": False, "tooltip": "Adds every picture mirrored left to right."}),
                "broken": (
                    _BROKEN,
                    {
                        "tooltip": "Files that cannot be read as one picture: stop names them all before any is encoded; "
                        "skip leaves them out and names each in the log."
                    },
                ),
            },
            "optional": {
                "vae": (
                    "VAE",
                    {
                        "tooltip": "Encodes the pictures. May stay unconnected once the run folder holds the encoded data: "
                        "a later start then needs no VAE."
                    },
                ),
                "clip": ("CLIP", {"tooltip": _CLIP_TOOLTIP}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: Any = None) -> bool | str:
        """Before anything runs, where it is typed in; a linked one is checked when it arrives."""
        if not isinstance(folder, str):
            return True
        return host.signals.error_of(lambda: FolderSource(folder=folders.pictures_folder(folder)))

    @classmethod
    def IS_CHANGED(cls, folder: Any = None, **_: Any) -> str:
        """What the folder holds may change while its name stays."""
        return repr(content_of(folders.pictures_folder(str(folder))))

    def describe(self, folder: str, without_caption: str, broken: str, caption: str, **options: Any) -> tuple[Any]:
        source = FolderSource(
            folder=folders.pictures_folder(folder),
            caption=caption if _chosen("without_caption", without_caption, _WITHOUT_CAPTION) == "use caption" else None,
            skip_broken=_chosen("broken", broken, _BROKEN) == "skip",
            **options,
        )
        return (source,)


def _chosen(name: str, value: str, allowed: list[str]) -> str:
    """Hosts of mid-2024 do not check what is behind an optional input."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
    return value


class TeacherPictures:
    RETURN_TYPES = ("FEWSTEP_DATA",)
    RETURN_NAMES = ("data",)
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which draws the pictures once and keeps them in the run's folder.",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["data set", "dataset", "synthetic", "train lora"]
    DESCRIPTION = (
        "Training data from prompts alone: the teacher, which is the model on Distill Model, draws the pictures itself, "
        "with a deterministic sampler on the trailing schedule. They are kept as latents in the run's folder. With pairs "
        "on, the noise that each was drawn from is kept too."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prompts": ("STRING", {"default": "", "multiline": True, "tooltip": "One prompt on each line."}),
                "negative": ("STRING", {"default": "", "multiline": True, "tooltip": _NEGATIVE_TOOLTIP}),
                "width": ("INT", {"default": 512, "min": 8, "max": 8192, "step": 8, "tooltip": "Of the pictures."}),
                "height": ("INT", {"default": 512, "min": 8, "max": 8192, "step": 8, "tooltip": "Of the pictures."}),
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
                        "tooltip": "The teacher's guidance; 1 is none.",
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
            "optional": {"clip": ("CLIP", {"tooltip": _CLIP_TOOLTIP})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: Any = None) -> bool | str:
        """Before anything runs, where it is typed in; a linked one is checked when it arrives."""
        return (
            host.signals.error_of(lambda: PromptSource(prompts=_lines(prompts))) if isinstance(prompts, str) else True
        )

    def describe(self, prompts: str, **options: Any) -> tuple[Any]:
        return (PromptSource(prompts=_lines(prompts), **options),)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
