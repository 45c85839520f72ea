"""What the GPU book measures in one process or in one of several, at a model's true shapes.

Sampling, a training step, a plan, and gradients where weights are in pages. Weights are random; what a step takes and holds does
not depend on their values.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import sample_few_step
from ...samplers.schedules import trailing_sigmas
from ...trainers.methods.distribution_matching import DistributionMatchingOptions
from ...trainers.methods.rollout import Rollout
from ...trainers.objective.method import MethodOptions
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.students.student import probe_writes_in_place
from ...trainers.training.loop import train
from ...trainers.training.optimisation.options import TrainOptions
from ..training.setup import halving
from .bench import Bench, Part
from .gradients import gradients, pulls
from .subject import Subject

STEPS, ITERATIONS, SECONDS = 4, 3, 4.0
"""Of a drawing; of a training; of rounds in which contenders are timed, two at least."""
PLANNED = 12
"""Iterations of a training that a plan is held against: steps of one and the same run differ by half where a processor's noise
sets their pace."""


# --- what is measured ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def sampling(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """Seconds of a bare call; ours and the host's euler over as many bare calls, medians over rounds of each round's ratio."""
    import comfy.k_diffusion.sampling as theirs

    from ...nodes import host

    bench.leave(room)
    denoiser = host.training.as_denoiser(host.training.loaded(subject.model), model=subject.model)
    sampled = host.models.model_sampling_of(subject.model)
    sigmas = trailing_sigmas(STEPS, table=host.models.noise_levels(sampled)).to(subject.device)
    one = subject.data.first(1)
    start, family = one.x0, host.models.noise_family(sampled)

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return denoiser(x, sigma, **one.condition)

    def ours(gamma: float) -> Callable[[], object]:
        return lambda: sample_few_step(model, start, sigmas, {"seed": 0}, disable=True, family=family, gamma=gamma)

    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: [model(start, sigma.expand(1)) for sigma in sigmas[:-1]],
        "lightning": ours(0.0),
        "lcm": ours(1.0),
        "euler": lambda: theirs.sample_euler(model, start, sigmas, disable=True),
    }
    _timed(subject, contenders, 0)
    rounds: list[dict[str, float]] = []
    begin = subject.now()
    while len(rounds) < 2 or subject.now() - begin < SECONDS:
        rounds.append(_timed(subject, contenders, len(rounds)))
    found = {
        name: statistics.median(one[name] / one["bare"] for one in rounds) for name in contenders if name != "bare"
    }
    return {"call": statistics.median(one["bare"] for one in rounds) / STEPS, **found, "rounds": len(rounds)}


def _timed(subject: Subject, contenders: dict[str, Callable[[], object]], turn: int) -> dict[str, float]:
    """The order turns round, so that none is always the one after a slow one."""
    names, seconds = list(contenders), {}
    first = turn % len(names)
    for name in names[first:] + names[:first]:
        begin = subject.now()
        contenders[name]()
        seconds[name] = subject.now() - begin
    return seconds


PROGRESSIVE = halving(iterations=ITERATIONS)
MATCHING = DistributionMatchingOptions(
    steps=4,
    iterations=ITERATIONS,
    learning_rate=1e-5,
    guidance_scale=2.0,
    companion_first=0,
    companion_updates=1,
    rollout=Rollout.LANDINGS,
)
CRITIC = dataclasses.replace(MATCHING, adversarial_weight=1.0)
LORA = LoRAOptions(rank=16, alpha=16.0)


def training(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """Seconds of a LoRA's optimiser step with gradient checkpointing; the most bytes that torch held, and the host of weights."""
    return _trained(subject, bench, room, PROGRESSIVE)


def matching(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """The same of distribution matching: one update of the companion and one of the student, with the teacher's guidance."""
    return _trained(subject, bench, room, MATCHING)


def critic(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """The same with a critic: one update more, and its pull on what the student draws."""
    return _trained(subject, bench, room, CRITIC)


def plan(subject: Subject, bench: Bench, room: float) -> dict[str, Any]:
    """What a plan says before a run, beside what that then takes, twice. pairs: seconds of a step; bytes are the second's."""
    rounds = [_planned_and_run(subject, bench, room) for _ in range(2)]
    return {**rounds[-1], "pairs": [(found["planned step"], found["step"]) for found in rounds]}


def _planned_and_run(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    from ...nodes.distillation import planning, running

    bench.leave(room)
    options = halving(iterations=PLANNED)
    trial = planning.Trial(
        model=subject.model,
        run=RunFolder(bench.folder, "plan"),
        method=running.method_on(subject.model, options, empty_prompt=True),
        student=LORA,
        sample=subject.data.first(1),
    )
    planned = planning.planned(trial, TrainOptions(batch_size=1, gradient_checkpointing=True))
    return {
        "planned step": planned.costs[0].iteration.seconds,
        "planned bytes": planned.held,
        **_trained(subject, bench, room, options),
    }


def _trained(subject: Subject, bench: Bench, room: float, options: MethodOptions) -> dict[str, float]:
    from ...nodes.distillation import running
    from ...nodes.distillation.learning import students

    bench.leave(room)
    method = running.method_on(subject.model, options, empty_prompt=True)
    stamps: list[float] = []
    with (
        torch.inference_mode(False),
        students.student_of(subject.model, LORA, seed=0, gradient_checkpointing=True) as student,
    ):
        student.writes_in_place = probe_writes_in_place(student, subject.data.first(1))
        train(
            RunFolder(bench.folder, f"{time.monotonic_ns()}" if bench.processes.count == 1 else "bench"),
            method,
            student,
            subject.data,
            options=TrainOptions(batch_size=bench.processes.count, checkpoint_every=10**6),
            observers=[lambda _: stamps.append(subject.now())],
            processes=bench.processes,
        )
        held = subject.on_device()
    if not bench.is_first:
        return {}
    return {"step": statistics.median(b - a for a, b in itertools.pairwise(stamps)), "weights": held, **bench.peak()}


PARTS: dict[str, Part] = {
    "gradients": gradients,
    "pulls": pulls,
    "training": training,
    "matching": matching,
    "critic": critic,
    "plan": plan,
    "sampling": sampling,
}
