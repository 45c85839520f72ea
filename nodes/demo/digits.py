"""The digits demo: a teacher that is distilled in minutes on a CPU, its prompt, its data and its judge."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import sample_few_step
from ...trainers.measures.charts import picture_grid, quality_chart
from ...trainers.measures.digits import DIGITS, DigitClassifier, load_pictures, to_latents, to_pictures
from ...trainers.measures.evaluate import DigitJudge, FeatureStatistics, Score, table
from ...trainers.storage.files import read_tensors, write_atomically
from ...trainers.storage.reading import without_nan
from ...trainers.training.distillation import Recorded
from .. import host
from ..host import folders
from . import digits_model

CLASSIFIER_FILE = digits_model.ASSETS / "digits_classifier.safetensors"


class DemoTeacher:
    RETURN_TYPES = ("MODEL", "VAE", "CLIP")
    OUTPUT_TOOLTIPS = (
        "A small v-prediction UNet that draws handwritten digits; prompt it with Digit Prompt.",
        "Shows a digit at 32 x 32 pixels.",
        "Reads a text of digits, for nodes that want a CLIP; Digit Prompt does the same.",
    )
    FUNCTION = "load"
    CATEGORY = "few-step/demo"
    SEARCH_ALIASES = ["mnist", "toy model", "example", "tutorial"]
    DESCRIPTION = (
        "A real, tiny diffusion model of handwritten digits, shipped with the pack, for trying distillation out on any "
        "machine. Use Empty Latent Image at 32 x 32, the stock KSampler, VAE Decode and the rest as with any model."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any, digits_model.DigitVAE, digits_model.DigitCLIP]:
        return digits_model.load_teacher(), digits_model.DigitVAE(), digits_model.DigitCLIP()


class DigitPrompt:
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The prompt; several digits are spread over the pictures of a batch, in order.",)
    FUNCTION = "encode"
    CATEGORY = "few-step/demo"
    SEARCH_ALIASES = ["mnist", "example", "tutorial"]
    DESCRIPTION = "Says which digits the demo teacher draws. Leave it empty for the negative (empty) prompt."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "digits": (
                    "STRING",
                    {"default": "0123456789", "tooltip": "One or more of 0 to 9, or nothing for the empty prompt."},
                )
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, digits: Any = None) -> bool | str:
        return host.signals.error_of(lambda: digits_model.prompt(str(digits or "")))

    def encode(self, digits: str) -> tuple[host.models.Conditioning]:
        return (digits_model.prompt(digits),)


class DigitsData:
    RETURN_TYPES = ("LATENT", "CONDITIONING")
    OUTPUT_TOOLTIPS = ("1797 digits as latents.", "The label of each, in the same order.")
    FUNCTION = "load"
    CATEGORY = "few-step/demo"
    SEARCH_ALIASES = ["mnist", "dataset", "example", "tutorial"]
    DESCRIPTION = "scikit-learn's data set of 1797 handwritten digits, for distilling the demo teacher."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[dict[str, Tensor], host.models.Conditioning]:
        pictures, labels = load_pictures()
        return {"samples": to_latents(pictures)}, digits_model.condition(labels)


class EvaluateDigits:
    RETURN_TYPES = ("STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("table", "chart", "pictures")
    OUTPUT_TOOLTIPS = (
        "Frechet distance, accuracy and PSNR for each model and step count, as Markdown.",
        "Quality over steps, teacher against student.",
        "The same noise drawn by each model at each step count.",
    )
    OUTPUT_NODE = True
    FUNCTION = "evaluate"
    CATEGORY = "few-step/demo"
    SEARCH_ALIASES = ["benchmark", "fid", "psnr", "quality", "compare steps"]
    DESCRIPTION = (
        "Measures what distillation bought: both models draw the same noise at several step counts. Frechet distance to "
        "the real digits and accuracy are measured on the features of a small classifier (this is not FID); PSNR "
        "compares with the teacher's own picture at its first step count. Writes report.json into the run's folder."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "teacher": ("MODEL", {"tooltip": "The undistilled demo teacher."}),
                "student": ("MODEL", {"tooltip": "The distilled student."}),
                "teacher_steps": (
                    "STRING",
                    {"default": "64, 8, 4", "tooltip": "Step counts for the teacher; the first is the reference."},
                ),
                "student_steps": ("STRING", {"default": "4", "tooltip": "Step counts for the student."}),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "The teacher's guidance: the scale that was baked into the student, for a fair comparison.",
                    },
                ),
                "count": ("INT", {"default": 2000, "min": 100, "max": 20000, "tooltip": "Pictures for each row."}),
                "seed": host.limits.seed("Of the noise."),
                # last: the editor of 2024 counts it among the widgets, whose values it saves by position
                "run_name": ("STRING", {"forceInput": True, "tooltip": "From Distill Model; the report goes there."}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, teacher_steps: Any = None, student_steps: Any = None) -> bool | str:
        given = {"teacher_steps": teacher_steps, "student_steps": student_steps}
        return host.signals.error_of(
            lambda: [_step_counts(str(text), name=name) for name, text in given.items() if text is not None]
        )

    def evaluate(
        self,
        teacher: Any,
        student: Any,
        teacher_steps: str,
        student_steps: str,
        guidance_scale: float,
        count: int,
        seed: int,
        run_name: str,
    ) -> dict[str, Any]:
        run = folders.run_named(run_name)
        method = Recorded.of(run).chosen
        levels = host.models.noise_levels(host.models.model_sampling_of(teacher))
        judged = _Judged(count=count, seed=seed)
        for steps in _step_counts(teacher_steps, name="teacher_steps"):
            judged.add("teacher", teacher, sigmas=method.grid.sigmas(steps, table=levels), cfg=guidance_scale)
        for steps in _step_counts(student_steps, name="student_steps"):
            judged.add("student", student, sigmas=method.schedule(steps, table=levels), cfg=1.0, gamma=method.gamma)
        report = {
            "scores": [dataclasses.asdict(score) for score in judged.scores],
            "pictures": count,
            "noise_seed": seed,
            **run.description(),
        }
        write_atomically(run.place("report.json"), (json.dumps(without_nan(report), indent=2) + "\n").encode())
        text = table(judged.scores)
        grid = picture_grid(judged.rows)
        return {"ui": {"text": [text]}, "result": (text, quality_chart(judged.scores)[None], grid[None])}


class _Judged:
    """Rows of the table and of the grid, all from the same noise; the first row is the reference of PSNR."""

    def __init__(self, *, count: int, seed: int) -> None:
        self.scores: list[Score] = []
        self.rows: dict[str, Tensor] = {}
        self._labels, self._seed = torch.arange(count) % DIGITS, seed
        self._noise = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
        self._reference: Tensor | None = None
        self._judge = load_judge()

    def add(self, name: str, model: Any, *, sigmas: Tensor, cfg: float, gamma: float = 0.0) -> None:
        host.signals.check_cancelled()
        steps = len(sigmas) - 1
        start = time.perf_counter()
        latents = host.models.sample(
            model,
            host.models.sampler(sample_few_step, gamma=gamma),
            sigmas,
            noise=self._noise,
            positive=digits_model.condition(self._labels),
            negative=digits_model.prompt(""),
            cfg=cfg,
            seed=self._seed,
        )
        seconds = time.perf_counter() - start
        pictures = to_pictures(latents.float())  # hosts may be told to keep 16 bits of what is sampled
        nfe = steps if cfg == 1.0 else 2 * steps
        score = self._judge.score(
            pictures, self._labels, reference=self._reference, model=name, steps=steps, nfe=nfe, seconds=seconds
        )
        self.scores.append(score)
        self.rows[f"{name}, {steps} steps"] = pictures[:DIGITS].expand(-1, 3, -1, -1).movedim(1, -1)
        if self._reference is None:
            self._reference = pictures


def load_judge() -> DigitJudge:
    """The shipped classifier and the feature statistics of the real digits."""
    with torch.inference_mode(False):
        tensors, _ = read_tensors(CLASSIFIER_FILE)
        real = FeatureStatistics(tensors.pop("real.mean"), tensors.pop("real.covariance"))
        classifier = DigitClassifier()
        classifier.load_state_dict(tensors)
        return DigitJudge(classifier.eval().requires_grad_(False), real)


def _step_counts(text: str, *, name: str) -> list[int]:
    """ "64, 8, 4" as numbers. ValueError, naming the input, otherwise."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1000 for part in parts):
        raise ValueError(f"{name} is {text!r}; give step counts from 1 to 1000 with commas between: 64, 8, 4.")
    return [int(part) for part in parts]
