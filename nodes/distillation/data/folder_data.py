"""Training data nodes: folders of pictures, of clips and of sounds, with captions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from ....trainers.data.listing import NOT_READ, SUBFOLDERS, content_of
from ... import host
from ...host import folders
from ..learning import option_inputs as inputs
from .clip_sources import FIRST, PIECES, ClipFolder, SoundFolder
from .drawn_edits import pictures_of
from .folder_sources import CAPTION_SYNTAX, LITERAL, FolderSource, PictureFolder

Input = tuple[Any, dict[str, Any]]

CLIP: Input = (
    "CLIP",
    {
        "tooltip": "Encodes the texts. May stay unconnected once the run folder holds the encoded data, at a later start."
    },
)
NEGATIVE: Input = (
    "STRING",
    {
        "default": "",
        "multiline": True,
        "tooltip": "The empty or negative prompt, for guidance that is baked in and for caption dropout.",
    },
)
GUIDANCE: Input = (
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
AUDIO_VAE: Input = (
    "VAE",
    {
        "tooltip": "Encodes what is heard in the clips of a folder, for models that draw video with its sound, LTX-2 and MiniMax "
        "H3: the VAE of the model's sound. Nothing for all others."
    },
)
CLIP_VISION: Input = (
    "CLIP_VISION",
    {
        "tooltip": "Looks at the first frame of the clips of a folder, for Wan 2.1's models of image to video: CLIP vision H. "
        "Nothing for all others."
    },
)
OF_CLIPS = {"audio_vae": AUDIO_VAE, "clip_vision": CLIP_VISION}
"""What encodes more of a clip than its frames, for models that take it."""
REFERENCES: Input = (
    "STRING",
    {
        "default": "",
        "tooltip": f"For models that edit ({host.editing.FAMILIES}): the folder of the pictures before the edit, each by the "
        "name of the one after it, or several with numbers behind it (fox_1, fox_2); captions say what to change.",
    },
)
REFERENCE_METHOD: Input = (
    list(host.editing.METHODS),
    {
        "default": host.editing.USUAL,
        "tooltip": "Where the model takes the references to lie: what Edit Model Reference Method says in the graph that draws. "
        "usual: what the checkpoint says, as without that node. Of Qwen-Image-Edit 2511 files without its mark (GGUF, say) want "
        "index_timestep_zero.",
    },
)
OF_EDITS = {"references": REFERENCES, "reference_method": REFERENCE_METHOD}
DRAWN: dict[str, Input] = {
    "draw_steps": (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": 1000,
            "tooltip": "With one folder as folder and references: in how many steps the model draws the edit of each picture, 20 "
            "to 50. 0: nobody draws them, for methods that look at none.",
        },
    ),
    "draw_cfg": (
        "FLOAT",
        {
            "default": 4.0,
            "min": 1.0,
            "max": 100.0,
            "step": 0.1,
            "tooltip": "The guidance of that: 4 for Qwen-Image-Edit and JoyImage, 1 for FLUX.1 Kontext, say.",
        },
    ),
}
RARE = (
    *("bucket_step", "without_caption", "flip", "broken", "pieces", "subfolders", "caption_syntax"),
    *OF_EDITS,
    *DRAWN,
)
"""Inputs that editors may fold."""


def _folder(what: str) -> dict[str, Input]:
    tooltip = f"Where the {what} are. A relative path counts from ComfyUI's input folder."
    return {"folder": ("STRING", {"default": what, "tooltip": tooltip})}


def _size(resolution: int, step: int, tooltip: str, step_tooltip: str) -> dict[str, Input]:
    steps = {"default": step, "min": 8, "max": 512, "step": 8, "tooltip": step_tooltip}
    size = {"default": resolution, "min": 8, "max": 8192, "step": 8, "tooltip": tooltip}
    return {"resolution": ("INT", size), "bucket_step": ("INT", steps)}


def _captions(what: str) -> dict[str, Input]:
    """what: one of the files, with its article."""
    beside = f"For {what.partition(' ')[2]}s without a text file beside them."
    missing = f"Whether {what} without a text file takes the caption above, or is an error."
    return {
        "caption": ("STRING", {"default": "", "multiline": True, "tooltip": beside}),
        "without_caption": (_WITHOUT_CAPTION, {"tooltip": missing}),
        "negative": NEGATIVE,
    }


def _flip(what: str) -> dict[str, Input]:
    return {"flip": ("BOOLEAN", {"default": False, "tooltip": f"Adds every {what} mirrored left to right."})}


def _broken(what: str) -> dict[str, Input]:
    tooltip = (
        f"Files that cannot be read as {what}: stop names them all before any is encoded; skip leaves them out and names each in "
        "the log."
    )
    return {"broken": (_BROKEN, {"tooltip": tooltip})}


def _pieces(what: str) -> dict[str, Input]:
    tooltip = f"Which of the pieces of that length, one after another, are samples of {what} that holds several."
    return {"pieces": (list(PIECES), {"default": FIRST, "tooltip": tooltip})}


def _encoders(what: str) -> dict[str, Input]:
    tooltip = (
        f"Encodes the {what}. May stay unconnected once the run folder holds the encoded data: a later start then needs "
        "no VAE."
    )
    return {"vae": ("VAE", {"tooltip": tooltip}), "clip": CLIP}


def _reading(what: str) -> dict[str, Input]:
    below = (
        f"Whether {what} in folders below count too. With repeats, each below a folder 10_name counts ten times, and name "
        "describes those without a text of their own, as in kohya's scripts."
    )
    syntax = (
        "Whether parentheses in captions are letters, or emphasis as in a prompt: (word:1.2), with a backslash before those that "
        "are letters."
    )
    return {
        "subfolders": (list(SUBFOLDERS), {"default": NOT_READ, "tooltip": below}),
        "caption_syntax": (list(CAPTION_SYNTAX), {"default": LITERAL, "tooltip": syntax}),
    }


class _Folder:
    """What the nodes have in common. SOURCE: what they describe."""

    SOURCE: ClassVar[type[FolderSource]]
    RETURN_TYPES = ("FEWSTEP_DATA",)
    RETURN_NAMES = ("data",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"

    @classmethod
    def IS_CHANGED(cls, folder: Any = None, subfolders: Any = NOT_READ, **_: Any) -> str:
        """What the folder holds may change while its name stays."""
        return content_of(folders.training_folder(str(folder)), below=subfolders != NOT_READ)

    @classmethod
    def VALIDATE_INPUTS(cls, folder: Any = None, subfolders: Any = NOT_READ) -> bool | str:
        """Before anything runs, where the values are typed in; linked ones are None here and checked when they arrive."""
        return cls._error_of(cls.SOURCE, folder=folder, subfolders=subfolders)

    @staticmethod
    def _error_of(source: Callable[..., FolderSource], *, folder: Any, subfolders: Any) -> bool | str:
        if folder is None or subfolders is None:
            return True
        return host.signals.error_of(lambda: source(folder=folders.training_folder(folder), subfolders=subfolders))

    def source_of(self, **options: Any) -> FolderSource:
        return self.SOURCE(**options)

    def describe(self, folder: str, without_caption: str, broken: str, caption: str, **options: Any) -> dict[str, Any]:
        source = self.source_of(
            folder=folders.training_folder(folder),
            caption=caption if _chosen("without_caption", without_caption, _WITHOUT_CAPTION) == "use caption" else None,
            skip_broken=_chosen("broken", broken, _BROKEN) == "skip",
            **options,
        )
        return {"ui": {"text": [source.said(source.found)]}, "result": (source,)}


def _chosen(name: str, value: str, allowed: list[str]) -> str:
    """Hosts of mid-2024 do not check what is behind an optional input."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
    return value


class ImageFolder(_Folder):
    SOURCE = PictureFolder
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which encodes the pictures once and keeps them in the run's folder.",)
    SEARCH_ALIASES = ["data set", "dataset", "captions", "train lora", "load images"]
    DESCRIPTION = (
        "Pictures from a folder on disk as training data, each described by the text file of its name. They are resized "
        "to buckets of about equal area, encoded by the VAE and CLIP when Distill Model runs, and kept in the run's "
        "folder, so that a later start needs neither."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = _size(
            512,
            64,
            "Pictures are trained at about resolution x resolution pixels, in their own aspect ratio: 512 for SD1.5, 1024 for "
            "SDXL.",
            "Sides are multiples of it. UNets want 64; a finer step cuts less off.",
        )
        declared = {
            "required": _folder("pictures") | size | _captions("a picture") | _flip("picture") | _broken("one picture"),
            "optional": _encoders("pictures") | _reading("pictures") | {"guidance": GUIDANCE} | OF_EDITS | DRAWN,
        }
        return inputs.folded(declared, RARE)

    @classmethod
    def IS_CHANGED(cls, folder: Any = None, subfolders: Any = NOT_READ, references: Any = None, **_: Any) -> str:
        own = super().IS_CHANGED(folder, subfolders)
        given = references and str(references).strip()
        return f"{own} {super().IS_CHANGED(references, subfolders)}" if given else own

    @classmethod
    def VALIDATE_INPUTS(cls, folder: Any = None, subfolders: Any = NOT_READ, references: Any = None) -> bool | str:
        source = functools.partial(cls().source_of, references=references or "")
        return cls._error_of(source, folder=folder, subfolders=subfolders)

    def source_of(self, **options: Any) -> PictureFolder:
        return pictures_of(**options)


class ClipFolderNode(_Folder):
    SOURCE = ClipFolder
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which encodes the clips once and keeps them in the run's folder.",)
    SEARCH_ALIASES = ["video", "data set", "dataset", "captions", "load video", "wan", "ltx"]
    DESCRIPTION = (
        "Short clips of video from a folder on disk as training data for models of video, each described by the text file of "
        "its name. Frames are taken at an even rate, resized to buckets of about equal area and encoded by the VAE of the "
        "model when Distill Model runs. Of models that draw sound with their clips it is encoded, too; else it is left out."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = _size(
            480,
            16,
            "Clips are trained at about resolution x resolution pixels, in their own aspect ratio.",
            "Sides are multiples of it, which the VAE's own step must divide: 16 for Wan, 32 for LTX-Video.",
        )
        length: dict[str, Input] = {
            "frames": (
                "INT",
                {
                    "default": 17,
                    "min": 1,
                    "max": 4096,
                    "tooltip": "Of a sample: 4n + 1 for Wan and HunyuanVideo, 8n + 1 for LTX-Video. Longer clips are cut, "
                    "shorter ones are broken.",
                },
            ),
            "frame_rate": (
                "FLOAT",
                {
                    "default": 16.0,
                    "min": 0.0,
                    "max": 240.0,
                    "step": 0.01,
                    "tooltip": "Frames a second, which the model is told where it takes a rate: 16 for Wan, 24 or 25 for others. "
                    "0 takes every frame of the file.",
                },
            ),
        }
        captions, flip, broken = _captions("a clip"), _flip("clip"), _broken("a clip")
        declared = {
            "required": _folder("clips") | length | size | captions | flip | broken | _pieces("a clip"),
            "optional": _encoders("clips") | _reading("clips") | {"guidance": GUIDANCE} | OF_CLIPS,
        }
        return inputs.folded(declared, RARE)


class SoundFolderNode(_Folder):
    SOURCE = SoundFolder
    OUTPUT_TOOLTIPS = ("Connect to Distill Model, which encodes the sounds once and keeps them in the run's folder.",)
    SEARCH_ALIASES = ["audio", "music", "data set", "dataset", "captions", "load audio"]
    DESCRIPTION = (
        "Sounds from a folder on disk as training data for models of sound, each described by the text file of its name. They "
        "are brought to the VAE's sample rate, cut to one length and encoded when Distill Model runs."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        length = {
            "default": 10.0,
            "min": 0.01,
            "max": 3600.0,
            "step": 0.01,
            "tooltip": "Of a sample, down to what the VAE encodes whole; the model is told it where it takes a length. Longer "
            "sounds are cut, shorter ones are broken.",
        }
        seconds: dict[str, Input] = {"seconds": ("FLOAT", length)}
        captions, broken = _captions("a sound"), _broken("a sound")
        declared = {
            "required": _folder("sounds") | seconds | captions | broken | _pieces("a sound"),
            "optional": _encoders("sounds") | _reading("sounds"),
        }
        return inputs.folded(declared, RARE)
