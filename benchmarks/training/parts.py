"""One part of the training benchmark: the loop, or the same step bare. Alone in a process, for its memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...trainers.data.batches import Batch, TensorData
from ...trainers.objective.loss import weighted_error
from ...trainers.objective.method import Method, Target
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import Student
from ...trainers.training import accelerator
from ...trainers.training.loop import Metrics, train
from ...trainers.training.optimisation.learner import Learning
from ...trainers.training.optimisation.options import TrainOptions
from .setup import METHODS, Setup, in_one_step, learning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(TensorData):
    """Data that notes how long each batch took."""

    waited: list[float] = dataclasses.field(default_factory=list)

    def batch(self, size: int, **how: Any) -> Batch:
        begin = _now(self.x0.device)
        drawn = super().batch(size, **how)
        self.waited.append(_now(self.x0.device) - begin)
        return drawn


def _now(device: torch.device) -> float:
    """When everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loop(student: Student, data: TensorData, method: Method, *, setup: Setup) -> tuple[float, float]:
    """(seconds of an iteration in the loop, over all but the first of a run; the share of them spent on data)."""
    stamps: list[float] = []
    device = data.x0.device
    timed = Timed(x0=data.x0, condition=data.condition)

    def stamp(metrics: Metrics) -> None:
        stamps.append(_now(device))

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder), "bench")
        train(run, method, student, timed, options=TrainOptions(batch_size=setup.batch), observers=[stamp])
    taken = stamps[-1] - stamps[0]
    return taken / (len(stamps) - 1), sum(timed.waited[1:]) / taken


def bare(student: Student, data: TensorData, method: Method, *, setup: Setup) -> tuple[float, float]:
    """The forwards of Work, and a forward, a backward and an optimiser step for each update; as many as method's iterations."""
    work = METHODS[setup.method]
    one = data.batch(setup.batch, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(setup.batch, device=data.x0.device)
    target = Target(one.x0, ones, one.condition, one.x0, ones)
    companion = student.companion(rank=0, seed=0) if work.updates else None
    own, others = _learner(student), _learner(companion) if companion else None
    without = [student.teacher] * work.teacher + [student.denoiser] * work.student
    without += [companion.denoiser] * work.companion if companion else []
    begin, iterations = 0.0, method.stages()[0].iterations
    for i in range(iterations):
        if i == 1:
            begin = _now(data.x0.device)
        with torch.no_grad():
            for denoiser in without:
                denoiser(target.x_t, target.sigma, **target.condition)
        own(target)
        for _ in range(work.updates if others else 0):
            others(target)
    return (_now(data.x0.device) - begin) / (iterations - 1), 0.0


def _learner(network: Learning) -> Callable[[Target], None]:
    """What does a forward, a backward and an optimiser step."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-6)

    def update(target: Target) -> None:
        optimiser.zero_grad(set_to_none=True)
        with network.autograd():
            weighted_error(network.denoiser, target)[0].backward()
        optimiser.step()

    return update


PARTS = {"loop": loop, "bare": bare}


class Peak:
    """The most bytes held since it was made, beyond what was held then: of the GPU, or of the process on Linux.

    ValueError elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if accelerator.counts_memory(device):
            accelerator.forget_most_held(device)
            self._before = accelerator.held(device)
            return
        if not sys.platform.startswith("linux"):
            raise ValueError(f"peak memory is measured on a GPU or on Linux; this is {sys.platform}.")
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak to what is held now
        self._before = _status("VmRSS")

    def bytes(self) -> int:
        most = accelerator.most_held(self._device)
        return (_status("VmHWM") if most is None else most) - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def memory(part: str, setup: Setup, *, iterations: int) -> dict[str, float]:
    """bytes, seconds and waiting of one part in a process of its own."""
    return in_a_process(__spec__.name, [part, dataclasses.asdict(setup), iterations])


def in_a_process(module: str, asked: list[Any], *, tame: bool = True) -> dict[str, Any]:
    """What a module prints as JSON of what it is asked, alone in a process. tame: where its memory is what counts."""
    # one arena, and everything above a page from the system: what is freed is then gone, and not kept for later
    tamed = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", module, json.dumps(asked)]
    environment = {**os.environ, **(tamed if tame else {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    part, options, iterations = json.loads(sys.argv[1])
    setup = Setup(**options)
    with learning(setup) as (student, data, table):
        method = in_one_step(setup.method, table, iterations=iterations)
        peak = Peak(data.x0.device)
        seconds, waiting = PARTS[part](student, data, method, setup=setup)
        print(json.dumps({"bytes": peak.bytes(), "seconds": seconds, "waiting": waiting}))


if __name__ == "__main__":
    main()
