"""The student: which weights learn, and what it learns from. Methods and the loop see denoisers only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..samplers.noise import Denoiser


class Student(Protocol):
    """teacher and denoiser are plain denoisers; only parameters() learn."""

    teacher: Denoiser
    denoiser: Denoiser

    def parameters(self) -> list[nn.Parameter]:
        """The weights that the optimiser steps, in a fixed order."""

    def promote(self) -> None:
        """The student of the finished stage becomes the teacher of the next."""

    def state_dict(self) -> dict[str, Tensor]:
        """Teacher and student weights: all that a later process needs to go on."""

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of state_dict. ValueError when names or shapes differ."""

    def autograd(self) -> AbstractContextManager[object]:
        """Entered around each forward and backward pass of the student."""


class FullWeightsStudent:
    """All weights learn: two modules of one architecture, which this object owns and changes.

    module, teacher_module: the student and the teacher. as_denoiser: reads a module as D(x, sigma, **condition).
    writes_in_place: whether the modules' forward overwrites tensors that autograd saved (ComfyUI of mid-2024 adds in
    place in its transformer blocks); each pass then keeps copies of what is overwritten, at some cost in time.
    """

    def __init__(
        self,
        module: nn.Module,
        teacher_module: nn.Module,
        *,
        as_denoiser: Callable[[nn.Module], Denoiser],
        writes_in_place: bool = False,
    ) -> None:
        self.module = module.train().requires_grad_(True)
        self._teacher_module = teacher_module.eval().requires_grad_(False)
        self.denoiser = as_denoiser(self.module)
        self.teacher = as_denoiser(self._teacher_module)
        self._writes_in_place = writes_in_place

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def promote(self) -> None:
        self._teacher_module.load_state_dict(self.module.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        modules = {"student": self.module, "teacher": self._teacher_module}
        return {f"{role}.{k}": v for role, module in modules.items() for k, v in module.state_dict().items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        for role, module in (("student.", self.module), ("teacher.", self._teacher_module)):
            own = {name.removeprefix(role): value for name, value in tensors.items() if name.startswith(role)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(f"these weights do not fit the model: {error}") from error

    def autograd(self) -> AbstractContextManager[object]:
        if self._writes_in_place:
            return torch.autograd.graph.allow_mutation_on_saved_tensors()
        return contextlib.nullcontext()
