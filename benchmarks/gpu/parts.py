"""What the GPU book measures in one process or in one of several, at a model's true shapes.

Sampling, a training step, and gradients where weights are in pages. Weights are random; what a step takes and holds does not
depend on their values.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ...samplers.few_step import sample_few_step
from ...samplers.schedules import trailing_sigmas
from ...trainers.data.batches import Batch, TensorData
from ...trainers.methods.distribution_matching import DistributionMatchingOptions
from ...trainers.methods.rollout import Rollout
from ...trainers.objective.method import MethodOptions
from ...trainers.processes.group import Processes
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.students.student import probe_writes_in_place
from ...trainers.training.loop import train
from ...trainers.training.options import TrainOptions
from ..architectures import quantised
from ..architectures.parts import scatter
from ..training.setup import halving
from .room import Room
from .shapes import SHAPES, Shape

STEPS, ITERATIONS, SECONDS = 4, 3, 4.0
"""Of a drawing; of a training; of rounds in which contenders are timed, two at least."""
SCALED = "fp8 scaled"
PRECISIONS = {
    "bf16": (torch.bfloat16, None),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
    SCALED: (torch.bfloat16, torch.bfloat16),
}
"""(what weights are held in, what is computed in where that is not the same); scaled: linear layers of the host's own class."""


class Subject:
    """A MODEL of a shape as the host would have loaded it, its weights beside the device, with one prompt and latents."""

    def __init__(self, shape: Shape, precision: str, device: torch.device, *, batch: int = 1) -> None:
        import comfy.model_patcher

        from ...nodes.host import inputs

        self.device, generator = device, torch.Generator(device).manual_seed(0)
        self.network = _network(shape, precision, device=device, generator=generator)
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.model = patcher(self.network, load_device=device, offload_device=torch.device("cpu"))
        self.size = self.model.model_size()
        text = torch.randn(1, shape.tokens, shape.width, generator=generator, device=device)
        pooled = torch.randn(1, shape.pooled, generator=generator, device=device) if shape.pooled else None
        prompt = [[text, {"pooled_output": pooled} if shape.pooled else {}]]
        drawn = torch.randn(batch, *shape.latent, generator=generator, device=device)
        latents = inputs.latents_for_training(self.model, {"samples": self.model.model.process_latent_out(drawn)})
        condition = inputs.condition_for_training(self.model, prompt, latents=latents, name="positive")
        self.data = TensorData(x0=latents, condition=condition, unconditional=condition)

    def now(self) -> float:
        """When everything asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_device(self) -> int:
        """Bytes of weights that the host has on the device; hosts of old put them there whole, and do not say."""
        return int(getattr(self.model, "loaded_size", self.model.model_size)())


def _network(shape: Shape, precision: str, *, device: torch.device, generator: torch.Generator) -> Any:
    """Drawn on the device, and loaded beside it as from a file; under inference mode, as a host's loaders run."""
    with torch.inference_mode():
        with _weights_at_once():
            drawn = _config(shape, precision).get_model({}, "", torch.device("cpu")).diffusion_model
        for weight in drawn.parameters():
            scale = 0.1 if weight.ndim == 1 else 0.5 / max(weight[0].numel(), 1) ** 0.5
            weight.copy_((scale * torch.randn(weight.shape, generator=generator, device=device)).to(weight.dtype))
        state, how = drawn.state_dict(), {}
        if precision == SCALED:
            state, how = state | _scaled(drawn, device=device), {"quant_config": {"mixed_ops": True}}
        made = _config(shape, precision, **how).get_model({}, "", torch.device("cpu")).eval()
        made.diffusion_model.load_state_dict(state, assign=True)
    return made


def _weights_at_once() -> AbstractContextManager[object]:
    """Inside, layers have weights when they are made; where the host pages them, it waits for the file's."""
    memory = sys.modules.get("comfy.memory_management")
    return mock.patch.object(memory, "aimdo_enabled", False) if hasattr(memory, "aimdo_enabled") else nullcontext()


def _config(shape: Shape, precision: str, **how: Any) -> Any:
    import comfy.supported_models

    config = getattr(comfy.supported_models, shape.config)(dict(shape.network))
    for name, value in how.items():
        setattr(config, name, value)
    config.set_inference_dtype(*PRECISIONS[precision])
    return config


def _scaled(network: torch.nn.Module, *, device: torch.device) -> dict[str, Tensor]:
    """Its linear layers as files of today have them in float8, with a scale for each."""
    form, state = "float8_e4m3fn", {}
    for name, layer in quantised.linear_layers(network):
        weight = quantised.as_quantised(layer.weight.to(device), form)
        state |= {key: value.cpu() for key, value in weight.state_dict(f"{name}.weight").items()}
        state[f"{name}.comfy_quant"] = quantised.mark(form)
    return state


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
LORA = LoRAOptions(rank=16, alpha=16.0)


def training(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """Seconds of a LoRA's optimiser step with gradient checkpointing; the most bytes that torch held, and the host of weights."""
    return _trained(subject, bench, room, PROGRESSIVE)


def matching(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    """The same of distribution matching: one update of the companion and one of the student, with the teacher's guidance."""
    return _trained(subject, bench, room, MATCHING)


def plan(subject: Subject, bench: Bench, room: float) -> dict[str, Any]:
    """What a plan says before a run, beside what that then takes, twice. pairs: seconds of a step; bytes are the second's."""
    rounds = [_planned_and_run(subject, bench, room) for _ in range(2)]
    return {**rounds[-1], "pairs": [(found["planned step"], found["step"]) for found in rounds]}


def _planned_and_run(subject: Subject, bench: Bench, room: float) -> dict[str, float]:
    from ...nodes.distillation import planning, running

    bench.leave(room)
    trial = planning.Trial(
        model=subject.model,
        run=RunFolder(bench.folder, "plan"),
        method=running.method_on(subject.model, PROGRESSIVE, empty_prompt=True),
        student=LORA,
        sample=subject.data.first(1),
    )
    planned = planning.planned(trial, TrainOptions(batch_size=1, gradient_checkpointing=True))
    return {
        "planned step": planned.costs[0].iteration.seconds,
        "planned bytes": planned.held,
        **_trained(subject, bench, room, PROGRESSIVE),
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


ROOMS = {"all": 1.0, "half": 0.5, "hardly any": 0.05}
"""Of the weights there is room for, beside what a pass needs."""


def gradients(subject: Subject, bench: Bench, room: float) -> dict[str, Any]:
    """Cosines of a LoRA's gradients with those of weights that are all on the device and in no pages.

    For each room, with and without checkpointing, just loaded and after a drawing. same: of the latter with themselves again.
    """
    import comfy.model_patcher

    bench.leave(room)
    resident = comfy.model_patcher.ModelPatcher(subject.network, subject.device, torch.device("cpu"))
    wanted = _gradient(subject, resident)
    same = _cosine(_gradient(subject, resident), wanted)
    needed = bench.peak()["bytes"] - subject.size
    bench.leave(room)
    found: dict[str, Any] = {"same": same, "paged": bool(getattr(subject.model, "is_dynamic", bool)())}
    for share, sampled, checkpointing in itertools.product(ROOMS, (False, True), (False, True)):
        bench.leave(0.0)
        if share != "all":
            air = 0.2 * min(needed, subject.size)  # less than the weights that are to have no room
            bench.leave_free(needed + air + ROOMS[share] * subject.size)
        if sampled:
            _draw(subject)
        gradient = _gradient(subject, subject.model, gradient_checkpointing=checkpointing)
        said = ", ".join([share, *["drawn before"] * sampled, *["checkpointing"] * checkpointing])
        found[said] = {"cosine": _cosine(gradient, wanted), "weights": subject.on_device() / subject.size}
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


PARTS: dict[str, Callable[[Subject, Bench, float], dict[str, Any]]] = {
    "gradients": gradients,
    "training": training,
    "matching": matching,
    "plan": plan,
    "sampling": sampling,
}


class Bench:
    """One process's cells, one after the other. folder: of the runs, the same for all processes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.processes = Processes.from_environment()
        self.is_first = self.processes.is_first
        self._cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if self._cuda else torch.device("cpu")
        self._room = Room() if self._cuda and self.processes.count == 1 else None
        self._subject: tuple[Any, Subject] | None = None

    def measured(self, name: str, precision: str, part: str, room: float) -> dict[str, Any]:
        """The figures of a cell, or the words of what ended it, too little memory say."""
        try:
            return PARTS[part](self._subject_of(name, precision), self, room)
        except Exception as error:  # a cell like another: it tells what does not go
            words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if self._cuda:
            torch.cuda.synchronize()  # where the device itself has failed, this process ends
        return {"error": words}

    def _subject_of(self, name: str, precision: str) -> Subject:
        if self._subject is None or self._subject[0] != (name, precision):
            self._subject = None
            self.leave(0.0)
            made = Subject(SHAPES[name], precision, self.device, batch=self.processes.count)
            self._subject = ((name, precision), made)
        return self._subject[1]

    def leave(self, gibibytes: float) -> None:
        """Nothing on the device, and so much of it to use, 0 for all."""
        import comfy.model_management

        with torch.inference_mode():  # as they were loaded: a quantised model cannot be unloaded otherwise
            comfy.model_management.unload_all_models()
            if self._subject is not None and hasattr(self._subject[1].model, "detach"):
                self._subject[1].model.detach()  # what a student's clone of it loaded, a host that pages leaves there
        gc.collect()
        comfy.model_management.soft_empty_cache()
        if self._room is not None:
            self._room.leave(gibibytes)
            torch.cuda.reset_peak_memory_stats()

    def leave_free(self, size: float) -> None:
        if self._room is not None:
            self._room.leave_free(size)

    def peak(self) -> dict[str, float]:
        """bytes: the most that torch held at a time since `leave`. pool: what it had from the device for that."""
        if not self._cuda:  # of a process's own memory the training benchmark tells
            return dict.fromkeys(("bytes", "pool"), math.nan)
        return {"bytes": float(torch.cuda.max_memory_allocated()), "pool": float(torch.cuda.max_memory_reserved())}

    def __enter__(self) -> Self:
        self.processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._room is not None:
            self._room.__exit__(kind, value, trace)
        self.processes.__exit__(kind, value, trace)
