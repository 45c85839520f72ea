"""Trains the teacher that draws scenes: the plain v-loss in the loop of every distillation, cut and gone on from at any time.

    python launch.py bench scenes teacher --iterations 40000 --falling 3000
    python launch.py bench scenes teacher --export      the newest checkpoint as the file that is shipped

What it gains is written to benchmarks/results/scenes_teacher.json as it goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....samplers.noise import Denoiser
from ....trainers.data.batches import TensorData
from ....trainers.methods.denoising import Denoising
from ....trainers.storage.files import read_tensors, write_atomically, write_tensors
from ....trainers.storage.run_folder import RunFolder
from ....trainers.students.student import FullWeightsStudent
from ....trainers.training.loop import Metrics, train
from ....trainers.training.optimisation.options import TrainOptions
from ..engine.machine import RESULTS, ROOT, device, learning_precision, machine
from .network import SIGMA_MAX, SIGMA_MIN, SceneNetwork, as_denoiser, noise_levels
from .world import KINDS, Split, drawn, to_latents

FILE = ROOT / "assets" / "scenes_teacher.safetensors"
HOME = ROOT / ".fewstep" / "scenes" / "teacher"
STEADY, FALLING = "steady", "falling"
"""Its two runs: at one learning rate, which may end anywhere, and from there with the rate falling to 0."""
ENDLESS = 10**7
PICTURES, SEED = 2**17, 0
"""What it learns from: the first scenes of the training split."""
OPTIONS = TrainOptions(
    batch_size=64,
    optimiser="adamw",
    weight_decay=0.01,
    seed=SEED,
    warmup=200,
    ema_decay=0.999,
    ema_warms_up=True,
    checkpoint_every=250,
)
SCHEDULES = {STEADY: "constant", FALLING: "linear"}
LEARNING_RATE, DROPOUT, LOOK_EVERY = 1.5e-3, 0.1, 1000
EMPTY = {"y": torch.zeros(1, KINDS)}
REPORT = RESULTS / "scenes_teacher.json"


def load_teacher(file: Path = FILE) -> SceneNetwork:
    """The shipped teacher, in float32."""
    tensors, _ = read_tensors(file)
    return network_of({name: value.float() for name, value in tensors.items()})


def network_of(tensors: Mapping[str, Tensor]) -> SceneNetwork:
    network = SceneNetwork().to(device(), memory_format=torch.channels_last)
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)


def training_data(count: int = PICTURES) -> TensorData:
    """The first scenes of the training split, and the empty prompt."""
    pictures, captions = drawn(Split.TRAIN, count)
    return TensorData(x0=to_latents(pictures), condition={"y": captions}, unconditional=EMPTY, batch_device=device())


@torch.no_grad()
def v_error(denoiser: Denoiser, *, count: int = 1024) -> float:
    """The mean squared error of v on the first scenes of the tuning split, at levels even in the angle and fixed noise."""
    pictures, captions = drawn(Split.TUNING, count)
    x0, noise = to_latents(pictures), torch.randn(count, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.linspace(math.atan(SIGMA_MIN), math.atan(SIGMA_MAX), count).tan()
    found = torch.cat(
        [
            denoiser(x + s[:, None, None, None] * n, s, y=y) - x
            for x, n, s, y in zip(
                *(value.to(device()).split(128) for value in (x0, noise, sigma, captions)), strict=True
            )
        ]
    ).cpu()
    return float(((1.0 + sigma**-2.0) * found.square().mean(dim=(1, 2, 3))).mean())


class Enough(Exception):
    """Ends the steady run, which has no end of its own; the loop saves it."""


class Watch:
    """An observer that notes the average's error as it falls, and keeps what it was for a curve of pictures.

    It ends a run of more iterations after the last that is asked for.
    """

    def __init__(
        self, student: FullWeightsStudent, report: dict[str, Any], *, run: str, before: int, last: int
    ) -> None:
        self._student, self._report, self._run, self._before, self._last = student, report, run, before, last
        curve = report["curve"]
        self._seconds_before = curve[-1]["seconds"] if curve else 0.0

    def __call__(self, metrics: Metrics) -> None:
        iteration = self._before + metrics.iteration
        if iteration % LOOK_EVERY == 0 or metrics.iteration == self._last:
            self._look(metrics, iteration)
        if metrics.iteration == self._last < metrics.iterations:
            raise Enough

    def _look(self, metrics: Metrics, iteration: int) -> None:
        with self._student.result():
            error = v_error(self._student.denoiser)
            weights = {name: value.half().cpu() for name, value in self._student.module.state_dict().items()}
            write_tensors(HOME / f"at {iteration:06d}.safetensors", weights, metadata={})
        seconds = round(self._seconds_before + metrics.seconds, 1)
        point = {"run": self._run, "iteration": iteration, "seconds": seconds, "loss": metrics.loss, "v_error": error}
        self._report["curve"].append(point)
        self._report["date"] = datetime.date.today().isoformat()
        write_report(self._report)
        print(f"iteration {iteration}, {seconds:.0f} s: error of v {error:.4f}", flush=True)


def write_report(report: dict[str, Any]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    write_atomically(REPORT, (json.dumps(report, indent=1) + "\n").encode())


def train_teacher(iterations: int, falling: int) -> None:
    """Goes on from what was trained before. A steady run that was cut later than iterations counts as it is."""
    report = {
        "machine": machine(learning_precision()),
        "seed": SEED,
        "pictures": PICTURES,
        "batch": OPTIONS.batch_size,
        "learning rate": LEARNING_RATE,
        "weights": sum(value.numel() for value in SceneNetwork().parameters()),
        "curve": json.loads(REPORT.read_text(encoding="utf-8"))["curve"] if _trained(STEADY) else [],
    }
    data = training_data()
    torch.manual_seed(SEED)
    network = SceneNetwork()
    if _trained(STEADY) < iterations:
        _run(STEADY, network, data, report, iterations=iterations, before=0)
    if falling:
        tensors, _ = _checkpoint(STEADY)
        network.load_state_dict(_average(tensors))
        _run(FALLING, network, data, report, iterations=falling, before=_trained(STEADY))
    export()


def _run(
    name: str, network: SceneNetwork, data: TensorData, report: dict[str, Any], *, iterations: int, before: int
) -> None:
    """The steady run is one that would go on: so it may be gone on with, whatever it was to end at."""
    method = Denoising(
        table=noise_levels(),
        iterations=ENDLESS if name == STEADY else iterations,
        learning_rate=LEARNING_RATE,
        condition_dropout=DROPOUT,
    )
    student = FullWeightsStudent(
        network.to(device(), memory_format=torch.channels_last),
        SceneNetwork().to(device()),
        as_denoiser=lambda module: as_denoiser(module, precision=learning_precision()),
    )
    options = dataclasses.replace(OPTIONS, learning_rate_schedule=SCHEDULES[name])
    run = RunFolder(HOME, name)
    run.path.mkdir(parents=True, exist_ok=True)
    watch = Watch(student, report, run=name, before=before, last=iterations)
    with run.locked(), contextlib.suppress(Enough):
        train(run, method, student, data, options=options, observers=[watch])


def _checkpoint(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    loaded = RunFolder(HOME, name).load_checkpoint()
    if loaded is None:
        raise ValueError(f"{HOME / name} holds no checkpoint; train the teacher first.")
    return loaded


def _average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint, by name; the network has no other tensors."""
    return {name: tensors[f"average.{i}"] for i, (name, _) in enumerate(SceneNetwork().named_parameters())}


def _trained(name: str) -> int:
    """Iterations of the newest checkpoint of a run, 0 where there is none."""
    names = [path.stem for path in RunFolder(HOME, name).checkpoints()]
    return int(names[-1]) if names else 0


def export() -> None:
    """The average of the newest checkpoint, of the falling run if that began, as float16."""
    run = FALLING if _trained(FALLING) else STEADY
    tensors, _ = _checkpoint(run)
    steady, falling = _trained(STEADY), _trained(FALLING)
    said = f"{steady} steady, {falling} falling"
    command = f"python launch.py bench scenes teacher --iterations {steady} --falling {falling}"
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    write_report(report | {"command": command, "shipped": said})
    write_tensors(
        FILE,
        {name: value.half() for name, value in _average(tensors).items()},
        metadata={
            "data": f"benchmarks/scenes/world.py, scenes 0 to {PICTURES - 1} of the training split",
            "command": command,
            "seed": str(SEED),
            "iterations": said,
            "prediction_type": "v_prediction",
        },
    )
    print(f"{FILE.name}: the average after {said}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes teacher", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=40000, help="at one learning rate")
    parser.add_argument("--falling", type=int, default=3000, help="further ones, with the learning rate falling to 0")
    parser.add_argument(
        "--export", action="store_true", help="write the file from the newest checkpoint; train nothing"
    )
    options = parser.parse_args(arguments)
    if options.export:
        export()
    else:
        train_teacher(options.iterations, options.falling)
