"""A judge for any model: teacher and students draw the same prompts from the same noise, and a report says how they compare."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ....trainers.measures import report as measures
from ....trainers.measures.clip_score import clip_score
from ....trainers.measures.report_page import page
from ....trainers.objective.perceptual import lpips_distance, require_lpips
from ....trainers.storage import places
from ....trainers.storage.files import write_atomically
from ....trainers.storage.reading import without_nan
from ... import host
from ...host import folders
from ...sampling.comparison import stacked
from ..data import training_data
from ..learning import option_inputs as inputs
from .judging import Asked

MOST_SHOWN = 8
RARE = ("seed", "teacher_sampler", "negative_prompt", "name")
"""Inputs that editors may fold."""


class StudentReport:
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("pictures", "table", "report")
    OUTPUT_TOOLTIPS = (
        "The teacher's pictures above, below them those of each student, from the same noise.",
        "The figures as a Markdown table.",
        "Where report.html is.",
    )
    FUNCTION = "report"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    GATHERED = ("positive",)
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["evaluate", "benchmark", "judge", "compare methods", "psnr", "lpips", "clip score", "html"]
    DESCRIPTION = (
        "Draws your prompts from fixed noise by the teacher and one or several students, and writes a report with the pictures "
        "side by side in full size: PSNR to the teacher, diversity over seeds, forwards and seconds a picture; LPIPS and CLIP "
        "score where their weights are on this machine. Nothing is downloaded. Goes into the folder of the first run."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "teacher": ("MODEL", {"tooltip": "The model that the students were distilled from."}),
                "vae": ("VAE", {"tooltip": "The teacher's VAE."}),
                "runs": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The students, one on each line: names of finished runs, or names as Load Distilled Student "
                        "lists them. Several are compared in one table.",
                    },
                ),
                "seeds": inputs.count(2, "Pictures of each prompt, from seeds one after another.", least=1, most=64),
                "seed": host.limits.seed("The first of the seeds."),
                "teacher_steps": inputs.count(32, "In which the teacher draws.", least=1, most=1000),
                "teacher_cfg": inputs.guidance_scale(
                    0.0, "Of the teacher. 0: what is usual for the model's family.", least=0.0
                ),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Encodes the prompts."}),
                "prompts": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "One on each line. Empty: four everyday prompts that come with the pack.",
                    },
                ),
                "negative_prompt": ("STRING", {"default": "", "tooltip": "The teacher's, when its cfg is above 1."}),
                "side": inputs.count(
                    0, "Of the pictures, in pixels. 0: what is usual for the model's family.", most=8192
                ),
                "teacher_sampler": (list(host.data.SAMPLERS), {"tooltip": "That the teacher draws with."}),
                "latent": (
                    "LATENT",
                    {
                        "tooltip": "In place of side: an empty latent of the pictures' size, or of a video: its first frame, the "
                        "one in the middle and the last are judged, side by side."
                    },
                ),
                "positive": ("CONDITIONING", {"tooltip": "In place of clip and prompts: one or several."}),
                "negative": ("CONDITIONING", {"tooltip": "With positive: the empty or negative prompt."}),
                "student": ("MODEL", {"tooltip": "A further student, with sampler and sigmas."}),
                "sampler": ("SAMPLER", {"tooltip": "Of the connected student."}),
                "sigmas": ("SIGMAS", {"tooltip": "Of the connected student."}),
                "name": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Puts the report into output/fewstep/reports/<name>. Empty: into the first run.",
                    },
                ),
            },
        }
        return inputs.folded(declared, RARE)

    @classmethod
    def VALIDATE_INPUTS(cls, name: Any = None) -> bool | str:
        """Before the training whose student it judges. Of runs it cannot be said then."""
        given = name.strip() if isinstance(name, str) else name
        return given == "" or folders.error_of_name(given, what="name of the report")

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")  # runs may have been trained on, or deleted

    def report(self, teacher: Any, vae: Any, runs: str, **given: Any) -> dict[str, Any]:
        asked = Asked(teacher=teacher, vae=vae, runs=tuple(training_data.lines(runs)), **given)
        with torch.inference_mode():
            return _shown(asked, asked.drawn())


# --- what is written -------------------------------------------------------------------------------------------------


def _judges(device: torch.device) -> measures.Judges:
    heed = host.signals.check_cancelled
    return measures.Judges(
        lpips=_lpips(device), clip_score=clip_score(folders.clip_score_folder(), device=device, heed=heed)
    )


def _lpips(device: torch.device) -> measures.Distance | measures.Missing:
    try:
        require_lpips()
        found = lpips_distance(lambda pictures: pictures.movedim(-1, 1), device=device)
    except ValueError as error:  # also of a damaged file
        return measures.Missing(str(error).replace("distance is 'lpips', which", "it").split(", or choose")[0])

    def of_each(one: Tensor, other: Tensor) -> Tensor:
        distances = []
        for a, b in zip(one, other, strict=True):
            host.signals.check_cancelled()
            distances.append(found(a[None], b[None]).cpu())
        return torch.cat(distances)

    return of_each


def _shown(asked: Asked, drawn: Sequence[measures.Drawn]) -> dict[str, Any]:
    before = asked.folder
    files = _kept(asked, drawn)  # first: a judge that fails loses none
    judges = _judges(asked.teacher.load_device)
    figures = judges.of(drawn, asked.texts)
    folder = asked.folder
    if folder != before or not folder.is_dir():  # the run was deleted or renamed in all these minutes
        files = _kept(asked, drawn)
    notes = judges.told(asked.texts)
    written = _written(asked, drawn, figures, notes, folder=folder, files=files)
    text = "\n".join([measures.as_markdown(figures), "", *notes, "", str(written)])
    picture = stacked([one.flat[:MOST_SHOWN] for one in drawn])
    shown = folders.keep_for_view(picture)
    return {
        "ui": {"text": [text], "images": [shown]},
        "result": (picture[None], measures.as_markdown(figures), str(written)),
    }


def _kept(asked: Asked, drawn: Sequence[measures.Drawn]) -> dict[tuple[int, int, int], str]:
    """The pictures in full size: their places in the folder, as it is at each of them, by model, prompt and seed."""
    files = {}
    for m, one in enumerate(drawn):
        for p, s in ((p, s) for p in range(len(asked.labels)) for s in range(asked.seeds)):
            name = f"{m:02d}-{p:03d}-{s:02d}.png"
            content = _png(one.pictures[p, s])
            write_atomically(places.place(asked.folder, "pictures", name), content)
            files[m, p, s] = f"pictures/{name}"
    return files


def _written(
    asked: Asked,
    drawn: Sequence[measures.Drawn],
    figures: Sequence[measures.Figures],
    notes: Sequence[str],
    *,
    folder: Path,
    files: dict[tuple[int, int, int], str],
) -> Path:
    """report.html, which is returned, report.json and figures.csv."""
    seeds = [asked.seed + number for number in range(asked.seeds)]
    title = f"Teacher and {', '.join(one.name for one in drawn[1:])}"
    html = page(figures, drawn, title=title, prompts=asked.labels, seeds=seeds, files=files, notes=notes)
    report = {
        "models": [
            {**dataclasses.asdict(figure), "settings": dict(one.settings)}
            for figure, one in zip(figures, drawn, strict=True)
        ],
        "prompts": asked.labels,
        "seeds": seeds,
        "teacher": {"steps": asked.teacher_steps, "cfg": asked.cfg, "sampler": asked.teacher_sampler},
        "notes": list(notes),
    }
    for name, content in (
        ("report.html", html),
        ("report.json", json.dumps(without_nan(report), indent=2) + "\n"),
        ("figures.csv", measures.as_csv(figures)),
    ):
        write_atomically(places.place(folder, name), content.encode())
    return folder / "report.html"


def _png(picture: Tensor) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture.mul(255).round().byte().numpy()).save(content, format="PNG", compress_level=1)
    return content.getvalue()
