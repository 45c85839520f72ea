"""What the benchmark of architectures looks at: a model, its data, a student of it, and a step of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...samplers.noise import Denoiser
from ...trainers.data.batches import TensorData
from ...trainers.methods.consistency import ConsistencyOptions
from ...trainers.methods.guidance import GuidanceOptions
from ...trainers.methods.progressive import ProgressiveOptions
from ...trainers.objective.method import Method, MethodOptions
from ...trainers.objective.weighting import Weighting
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.students.student import Student, probe_writes_in_place
from ...trainers.training.loop import train
from ...trainers.training.optimisation.options import TrainOptions
from .setup import Architecture

STEPS, BATCH, SEED, SIGMA = 4, 2, 7, 0.6
LORA = LoRAOptions(rank=4, alpha=8.0)
SAMPLERS = ("fewstep_lcm", "fewstep_lightning", "fewstep_tcd", "fewstep_consistency")
CLOSE, COSINE, SHARE = 1e-4, 0.9999, 0.3
_CHOSEN = {"iterations": 1, "learning_rate": 1e-3, "guidance_scale": 3.0, "weighting": Weighting.CONSTANT}
METHODS: dict[str, MethodOptions] = {
    "progressive": ProgressiveOptions(start_steps=2, target_steps=1, **_CHOSEN),
    "guidance": GuidanceOptions(steps=4, **_CHOSEN),
    "consistency": ConsistencyOptions(steps=4, levels=10, **_CHOSEN),
}
"""One stage of one iteration each, guided by two prompts."""


class Found(NamedTuple):
    """figure: what was measured. right: whether it is what it should be."""

    figure: float
    right: bool


class Subject:
    """One architecture: its MODEL, and what its prompts and latents are in training. Made by the host's own code."""

    def __init__(self, architecture: Architecture, *, model: Any = None, plain: Any = None) -> None:
        """model: another one of the architecture. plain: a MODEL of ordinary weights of the same values."""
        self.architecture = architecture
        self.model = model or architecture.model()
        self.plain = plain or self.model
        self.weights = {name: value.clone() for name, value in self.model.model.state_dict().items()}
        self.replaced = 0  # parameters of the MODEL that were other objects after a run

    def data(self) -> TensorData:
        """Two samples of one prompt, and the empty prompt."""
        from ...nodes.host import inputs

        noise = self.architecture.noise(batch=BATCH)
        latent = {"samples": noise if self.architecture.streams else self.model.model.process_latent_out(noise)}
        x0, shapes = self.architecture.samples(self.model, latent["samples"]), inputs.stream_shapes(latent)
        prompts = [
            inputs.condition_for_training(
                self.model, self.architecture.conditioning(seed=seed), latents=x0, name=name, shapes=shapes
            )
            for seed, name in ((1, "positive"), (2, "negative"))
        ]
        return TensorData(x0=x0, condition=prompts[0], unconditional=prompts[1])

    def method(self, name: str) -> Method:
        from ...nodes.distillation.running import method_on

        return method_on(self.model, METHODS[name], empty_prompt=True)

    @contextmanager
    def student(self, options: Any, data: TensorData, **how: Any) -> Iterator[Student]:
        """What learns, as a run has it. how: of student_of."""
        from ...nodes.distillation.learning import students
        from ...nodes.host import training

        own = list(training.loaded(self.model).parameters())
        with torch.inference_mode(False), students.student_of(self.model, options, seed=SEED, **how) as student:
            student.writes_in_place = probe_writes_in_place(student, data.first(1))
            student.require_gradients(data.first(1))
            yield student
        self.replaced += sum(a is not b for a, b in zip(own, self.model.model.parameters(), strict=True))

    def denoiser(self, model: Any) -> Denoiser:
        """Of a MODEL as the host loads it."""
        from ...nodes.host import training

        return training.as_denoiser(training.loaded(model), model=model)


def trained(subject: Subject, student: Student, data: TensorData, folder: str) -> None:
    """By one iteration of the loop."""
    run = RunFolder(Path(folder), "bench")
    train(run, subject.method("progressive"), student, data, options=TrainOptions(batch_size=BATCH))


@torch.no_grad()
def answer(denoiser: Denoiser, data: TensorData) -> Tensor:
    batch = data.first(BATCH)
    return denoiser(batch.x0, torch.full((len(batch.x0),), SIGMA), **batch.condition).clone()
