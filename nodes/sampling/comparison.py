"""Teacher against student: pictures of the same noise, one beside the other, and how near they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...trainers.measures.evaluate import psnr
from ..host import folders

MOST_SHOWN = 8


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """(rows * H, N * W, C) of rows of pictures (N, H, W, C), the first above."""
    return torch.cat([torch.cat(list(row), dim=1) for row in rows])


class Compare:
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The teacher's pictures above, the student's below; connect to Save Image.",)
    FUNCTION = "compare"
    CATEGORY = "few-step/distillation"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["benchmark", "side by side", "before after", "psnr", "slider"]
    DESCRIPTION = (
        "Shows a teacher's and a student's pictures of the same noise under a slider, with their PSNR: how near the student "
        "is to its teacher. Sample both with one seed; any two batches of pictures of one size can be compared."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "teacher": ("IMAGE", {"tooltip": "What the student should be near to: pictures in many steps."}),
                "student": ("IMAGE", {"tooltip": "As many pictures of the same size, drawn from the same noise."}),
            }
        }

    def compare(self, teacher: Tensor, student: Tensor) -> dict[str, Any]:
        teacher, student = (pictures[..., :3] for pictures in (teacher, student))
        if teacher.shape != student.shape:
            raise ValueError(
                f"teacher is {_described(teacher)} and student is {_described(student)}; give as many pictures of the same "
                "size, drawn from the same noise."
            )
        picture = stacked([pictures[:MOST_SHOWN].cpu() for pictures in (teacher, student)])
        said = f"PSNR {psnr(student, teacher):.1f} dB over {_described(teacher)}"
        shown = folders.keep_for_view(picture)
        return {"ui": {"text": [said], "comparison": [shown]}, "result": (picture[None],)}


def _described(pictures: Tensor) -> str:
    count, height, width = pictures.shape[:3]
    return f"{count} picture{'s' if count > 1 else ''} of {width}x{height}"
