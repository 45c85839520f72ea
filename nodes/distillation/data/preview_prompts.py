"""A user's own prompts, which teacher and student draw at every checkpoint: encoded once and kept in the run's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ....trainers.data.batches import Batch, Data
from ....trainers.storage.files import read_tensors, write_tensors
from ....trainers.storage.places import is_regular
from ....trainers.storage.prefixes import below
from ....trainers.storage.run_folder import RunFolder
from ... import host
from .training_data import lines

MOST = 16
_PROMPTS = "fewstep.prompts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Previews:
    """A FEWSTEP_PREVIEWS: prompts with what encodes them. ValueError, naming the input, for none or too many."""

    prompts: tuple[str, ...]
    clip: Any = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.prompts) <= MOST:
            raise ValueError(
                f"prompts has {len(self.prompts)} lines; allowed are 1 to {MOST} prompts, one on each line: each is drawn in "
                "full size at every checkpoint."
            )

    def keep(self, run: RunFolder, model: Any, *, vae: Any, data: Data, told: Mapping[str, float]) -> None:
        """Of the shape of the first training sample, and with its picture where a model edits or goes on from one, in place of
        what was kept before. vae: of that picture, where the text encoder looks at it, too. told: see Texts.
        """
        encoder, first = host.encoding.TextEncoder(self.clip, host.folders.encodings()), data.first(1)
        like: dict[str, Any] = {"latents": first.x0, "shapes": host.inputs.shapes_told(first.condition)}
        looking, looked_at = host.editing.text_node(model), host.editing.looked_at(model, vae, first.condition)
        tensors: dict[str, Tensor] = {}
        for number, prompt in enumerate(self.prompts):
            if looking is not None and looked_at:
                made = looking.conditioning(self.clip, prompt, pictures=looked_at)
            else:
                made = encoder.conditioning(prompt)
            conditioning = host.inputs.told(model, made, told)
            condition = host.inputs.condition_for_training(model, conditioning, name="previews", **like)
            whole = host.conditions.with_pictures(condition, first.condition)
            tensors |= {f"{number:02d}.{name}": value.cpu().contiguous() for name, value in whole.items()}
        write_tensors(_file(run), tensors, metadata={_PROMPTS: json.dumps(self.prompts)})


class PreviewPrompts:
    RETURN_TYPES = ("FEWSTEP_PREVIEWS",)
    RETURN_NAMES = ("previews",)
    OUTPUT_TOOLTIPS = ("Connect to Make It Fast, Distill Model or Write Run.",)
    FUNCTION = "describe"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["sample prompts", "validation prompts", "checkpoint pictures"]
    DESCRIPTION = (
        "Prompts of your choice that teacher and student draw at every checkpoint of a run, in full size, each from the noise of "
        "seed 0. The pictures are in the run's folder, on the training node and in the list of runs; a click enlarges them."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "Encodes the prompts, once: they are kept in the run's folder."}),
                "prompts": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": f"One on each line, {MOST} at most: four or so tell enough, and each takes its time.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: Any = None) -> bool | str:
        return host.signals.error_of(lambda: Previews(prompts=lines(prompts))) if isinstance(prompts, str) else True

    def describe(self, clip: Any, prompts: str) -> tuple[Previews]:
        return (Previews(prompts=lines(prompts), clip=clip),)


def require_shown(previews: Previews | None, model: Any, *, vae: bool) -> None:
    """ValueError, naming the input, where they could not be. vae: whether one is connected."""
    if previews is not None and not vae:
        raise ValueError("previews is connected but vae is not, which shows what is drawn; connect it.")
    if previews is not None and not host.data.shows_pictures(model):
        raise ValueError("previews is connected, but this model draws no pictures; disconnect it.")


def keep(
    run: RunFolder, previews: Previews | None, model: Any, *, vae: Any, data: Data, told: Mapping[str, float]
) -> None:
    """See Previews; without any, the run goes on without those that it had."""
    if previews is None:
        _file(run).unlink(missing_ok=True)
    else:
        previews.keep(run, model, vae=vae, data=data, told=told)


def _file(run: RunFolder) -> Path:
    return run.place("previews.safetensors")


def kept(run: RunFolder, data: Data) -> list[tuple[str, Batch]]:
    """Each prompt as a batch of one, beside the first training sample's latent; none where the run keeps none."""
    if not is_regular(_file(run)):
        return []
    tensors, metadata = read_tensors(_file(run))
    first, found = data.first(1), []
    for number, prompt in enumerate(json.loads(metadata[_PROMPTS])):
        own = {name: value.to(data.device) for name, value in below(tensors, f"{number:02d}.").items()}
        found.append((prompt, dataclasses.replace(first, condition=own)))
    return found
