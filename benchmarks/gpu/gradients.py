"""Gradients where weights are in pages, beside those of weights that are on the card whole."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...trainers.data.batches import Batch
from ...trainers.students.adapters import LoRAOptions
from ...trainers.students.student import probe_writes_in_place
from ..architectures.parts import scatter
from .bench import Bench
from .subject import Subject

ROOMS = {"all": 1.0, "half": 0.5, "hardly any": 0.05}
"""Of the weights there is room for, beside what a pass needs."""


def gradients(subject: Subject, bench: Bench, room: float) -> dict[str, Any]:
    """Cosines of a LoRA's gradients with those of weights that are all on the device and in no pages.

    For each room, with and without checkpointing, just loaded and after a drawing. same: of the latter with themselves again.
    """
    return _beside_resident(subject, bench, room, _gradient, ROOMS, drawn=(False, True))


def pulls(subject: Subject, bench: Bench, room: float) -> dict[str, Any]:
    """The same of a critic's pull on a noisy latent, with room for hardly any of the weights."""
    return _beside_resident(subject, bench, room, _pull, list(ROOMS)[-1:], drawn=(False,))


def _beside_resident(
    subject: Subject,
    bench: Bench,
    room: float,
    gradient: Callable[..., Tensor],
    shares: Iterable[str],
    *,
    drawn: tuple[bool, ...],
) -> dict[str, Any]:
    import comfy.model_patcher

    bench.leave(room)
    resident = comfy.model_patcher.ModelPatcher(subject.network, subject.device, torch.device("cpu"))
    wanted = gradient(subject, resident)
    same = _cosine(gradient(subject, resident), wanted)
    needed = bench.peak()["pool"] - subject.size  # what torch had from the card: more than its tensors
    bench.leave(room)
    found: dict[str, Any] = {"same": same, "paged": bool(getattr(subject.model, "is_dynamic", bool)())}
    for share, sampled, checkpointing in itertools.product(shares, drawn, (False, True)):
        bench.leave(0.0)
        if share != "all":
            air = 0.2 * min(needed, subject.size)  # less than the weights that are to have no room
            bench.leave_free(needed + air + ROOMS[share] * subject.size)
        if sampled:
            _draw(subject)
        one = gradient(subject, subject.model, gradient_checkpointing=checkpointing)
        said = ", ".join([share, *["drawn before"] * sampled, *["checkpointing"] * checkpointing])
        found[said] = {"cosine": _cosine(one, wanted), "weights": subject.on_device() / subject.size}
    return found


def _gradient(subject: Subject, model: Any, *, gradient_checkpointing: bool = False) -> Tensor:
    """Of all adapters of a LoRA that counts, by the student's answer to one noisy latent, from a teacher's."""
    from ...nodes.distillation.learning import students

    batch, lora = _smaller(subject), LoRAOptions(rank=4, alpha=8.0)
    with (
        torch.inference_mode(False),
        students.student_of(model, lora, seed=0, gradient_checkpointing=gradient_checkpointing) as student,
    ):
        scatter(student)
        student.writes_in_place = probe_writes_in_place(student, batch)
        sigma = torch.full((1,), 0.6, device=batch.x0.device)
        with torch.no_grad():
            target = student.teacher(batch.x0, sigma, **batch.condition)
        with student.autograd():
            F.mse_loss(student.denoiser(batch.x0, sigma, **batch.condition), target).backward()
        return torch.cat(
            [value.grad.flatten().double().cpu() for value in student.parameters() if value.grad is not None]
        )


def _pull(subject: Subject, model: Any, *, gradient_checkpointing: bool = False) -> Tensor:
    """Of a critic whose heads are drawn, on one noisy latent."""
    from ...nodes.distillation.learning import students

    batch = _smaller(subject)
    with (
        torch.inference_mode(False),
        students.student_of(
            model, LoRAOptions(rank=4, alpha=8.0), seed=0, gradient_checkpointing=gradient_checkpointing
        ) as student,
    ):
        student.writes_in_place = probe_writes_in_place(student, batch)
        critic = student.critic(batch, seed=0)
        sigma = torch.full((1,), 0.6, device=batch.x0.device)
        return critic.gradient(batch.x0, sigma, **batch.condition).flatten().double().cpu()


def _smaller(subject: Subject) -> Batch:
    """A latent of half the height and width, so that there is room for all that a pass holds without checkpointing."""
    one = subject.data.first(1)
    return dataclasses.replace(one, x0=one.x0[..., ::2, ::2].contiguous())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@torch.inference_mode()
def _draw(subject: Subject) -> None:
    from ...nodes import host

    denoiser = host.training.as_denoiser(host.training.loaded(subject.model), model=subject.model)
    one = _smaller(subject)
    for sigma in (1.0, 0.5):
        denoiser(one.x0, torch.full((1,), sigma, device=subject.device), **one.condition)
