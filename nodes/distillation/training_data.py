"""Training data nodes: a folder of pictures with captions, or prompts alone, whose pictures the teacher draws."""

from __future__ import annotations

from typing import Any

from ...trainers.data.listing import NOT_READ, SUBFOLDERS, content_of
from .. import host
from ..host import folders
from .data_sources import PromptSource
from .folder_sources import CAPTION_SYNTAX, LITERAL, FolderSource

_CLIP_TOOLTIP = "Encodes the texts. May stay unconnected once the run folder holds the encoded data, at a later start."
_NEGATIVE_TOOLTIP = "The empty or negative prompt, for guidance that is baked in and for caption dropout."

_GUIDANCE = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 100.0,
        "step": 0.1,
        "tooltip": "What a guidance-distilled model (FLUX.1-dev, HunyuanVideo) is told as its scale, as FluxGuidance does: 3.5, "
        "say. 0 leaves it the model's own; other models take none.",
    },
)

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
        "Pictures from a folder on disk as training data, each described by the text file of its name. They are resized "
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
                    {"default": "", "multiline": True, "tooltip": "For pictures without a text file beside them."},
                ),
                "without_caption": (
                    _WITHOUT_CAPTION,
                    {"tooltip": "Whether a picture without a text file takes the caption above, or is an error."},
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
                "subfolders": (
                    list(SUBFOLDERS),
                    {
                        "default": NOT_READ,
                        "tooltip": "Whether pictures in folders below count too. With repeats, each below a folder 10_name "
                        "counts ten times, and name describes those without a text of their own, as in kohya's scripts.",
                    },
                ),
                "caption_syntax": (
                    list(CAPTION_SYNTAX),
                    {
                        "default": LITERAL,
                        "tooltip": "Whether parentheses in captions are letters, or emphasis as in a prompt: (word:1.2), with "
                        "a backslash before those that are letters.",
                    },
                ),
                "guidance": _GUIDANCE,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, folder: Any = None, resolution: Any = None, bucket_step: Any = None, subfolders: Any = NOT_READ
    ) -> bool | str:
        """Before anything runs, where the values are typed in; linked values are checked when they arrive."""
        given = {"resolution": resolution, "bucket_step": bucket_step, "subfolders": subfolders}
        if folder is None or None in given.values():
            return True
        return host.signals.error_of(lambda: FolderSource(folder=folders.pictures_folder(folder), **given))

    @classmethod
    def IS_CHANGED(cls, folder: Any = None, subfolders: Any = NOT_READ, **_: Any) -> str:
        """What the folder holds may change while its name stays."""
        return repr(content_of(folders.pictures_folder(str(folder)), below=subfolders != NOT_READ))

    def describe(self, folder: str, without_caption: str, broken: str, caption: str, **options: Any) -> dict[str, Any]:
        source = FolderSource(
            folder=folders.pictures_folder(folder),
            caption=caption if _chosen("without_caption", without_caption, _WITHOUT_CAPTION) == "use caption" else None,
            skip_broken=_chosen("broken", broken, _BROKEN) == "skip",
            **options,
        )
        return {"ui": {"text": [source.listing().said()]}, "result": (source,)}


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
            "optional": {"clip": ("CLIP", {"tooltip": _CLIP_TOOLTIP}), "guidance": _GUIDANCE},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: Any = None, width: Any = None, height: Any = None) -> bool | str:
        """Before anything runs, where the values are typed in; linked values are checked when they arrive."""
        if not (isinstance(prompts, str) and isinstance(width, int) and isinstance(height, int)):
            return True
        return host.signals.error_of(lambda: PromptSource(prompts=_lines(prompts), width=width, height=height))

    def describe(self, prompts: str, **options: Any) -> tuple[Any]:
        return (PromptSource(prompts=_lines(prompts), **options),)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
