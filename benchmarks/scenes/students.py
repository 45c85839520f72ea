"""Students of the scenes' teacher by every method, at 8, 4, 2 and 1 network calls, beside the best solver at as many.

All methods get the same data and the same training compute: passes of the network, a backward pass counted as two. A training
is a run folder in .fewstep/scenes/students, so that it may be stopped and goes on; each row is written as it comes.
Writes benchmarks/results/scenes_students.json and .md.

    python launch.py bench scenes students --methods progressive guidance consistency --seeds 3 --noise-seeds 3
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import draw_from_noise
from ...samplers.noise import Denoiser
from ...trainers.objective.method import MethodOptions, TeacherKind
from ...trainers.storage.export import read_student
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import FullWeightsStudent
from ...trainers.training.distillation import Distillation
from ...trainers.training.loop import Metrics
from ...trainers.training.optimisation.options import TrainOptions
from . import diversity, students_page
from .engine.machine import RESULTS, ROOT, device, learning_precision
from .engine.parts import Figures, Parts
from .judging import judges
from .judging.judged import PICTURES, Jury, Row
from .model import teacher
from .model.network import SceneNetwork, as_denoiser, noise_levels
from .model.solvers import CHUNK, FAMILY, Setting, draw, noise
from .model.world import Split, to_pictures
from .trials import TRIALS, Trial, measure

HOME = ROOT / ".fewstep" / "scenes" / "students"
LEARNT, BATCH = 2**14, 64
"""The first scenes of the teacher's own that all students learn from."""
PREDICTION = "v_prediction"


@functools.cache
def data() -> Any:
    return teacher.training_data(LEARNT)


class Scenes:
    """See trials.Subject."""

    def __init__(self, trials: Mapping[str, Trial] = TRIALS, *, pictures: int = PICTURES) -> None:
        self.trials, self.pictures = trials, pictures
        self.about: Figures = {"learnt": LEARNT, "batch": BATCH}

    @functools.cached_property
    def _jury(self) -> Jury:
        return Jury(Split.TEST, pictures=self.pictures)

    def trained(self, label: str, seed: int) -> RunFolder:
        trial = self.trials[label]
        run = RunFolder(HOME, f"{label} {seed}")
        distillation = Distillation(
            run=run,
            method=trial.chosen.on(kind()),
            data=data(),
            options=TrainOptions(batch_size=BATCH, seed=seed, ema_decay=trial.ema_decay, checkpoint_every=100),
            teacher_sha256=Parts.sha256(teacher.FILE),
            prediction_type=PREDICTION,
        )
        begun = teacher.load_teacher()
        if trial.after:
            begun = self._network(trial.after, self.trained(trial.after, seed), trial.steps[0])
        as_trained = functools.partial(as_denoiser, precision=learning_precision())
        student = FullWeightsStudent(begun, teacher.load_teacher(), as_denoiser=as_trained)
        run.path.mkdir(parents=True, exist_ok=True)
        with run.locked():
            distillation.execute(student, observers=[say])
        return run

    def row(self, label: str, run: RunFolder, steps: int, *, seed: int) -> Row:
        chosen = self.trials[label].chosen
        return drawn_row(self._jury, as_denoiser(self._network(label, run, steps)), chosen, steps, seed=seed)

    def spread(self, label: str, run: RunFolder, steps: int) -> Figures:
        """Of pictures of a few prompts, many of each."""
        chosen, network = self.trials[label].chosen, as_denoiser(self._network(label, run, steps))
        drawn = draw_student(network, chosen, steps, self._few_prompts, seed=diversity.SEED)
        return self._spread(drawn)

    def spread_of_teacher(self, setting: Sequence[Any]) -> Figures:
        """setting: of solvers.Setting."""
        noises = noise(len(self._few_prompts), seed=diversity.SEED)
        denoiser = as_denoiser(teacher.load_teacher())
        return self._spread(draw(denoiser, Setting(*setting), noise=noises, captions=self._few_prompts))

    @functools.cached_property
    def _few_prompts(self) -> Tensor:
        return self._jury.prompts[: diversity.PROMPTS].repeat_interleave(diversity.EACH, dim=0)

    def _spread(self, latents: Tensor) -> Figures:
        return {"spread": diversity.spread(self._jury.features(to_pictures(latents))[0]).written()}

    def _network(self, label: str, run: RunFolder, steps: int) -> SceneNetwork:
        tensors, *_ = read_student(self.trials[label].file(run, steps))
        return teacher.network_of(tensors)


def kind() -> TeacherKind:
    return TeacherKind(family=FAMILY, table=noise_levels(), prediction_type=PREDICTION, empty_prompt=True)


def say(metrics: Metrics) -> None:
    if metrics.iteration % 100 == 0:
        left = f"{metrics.seconds_left:.0f} s left"
        print(
            f"{metrics.stage_name}: {metrics.iteration} of {metrics.iterations}, {metrics.loss:.5f}, {left}", flush=True
        )


def drawn_row(jury: Jury, denoiser: Denoiser, chosen: MethodOptions, steps: int, *, seed: int) -> Row:
    """By a student in so many steps, of as many calls."""
    latents = draw_student(denoiser, chosen, steps, jury.prompts, seed=seed)
    return jury.row(to_pictures(latents), jury.prompts)


@torch.no_grad()
def draw_student(denoiser: Denoiser, chosen: MethodOptions, steps: int, prompts: Tensor, *, seed: int) -> Tensor:
    """Latents (N, 12, 8, 8) of prompts (N, 30). What is added between steps is new for each picture and seed, too."""
    sigmas, noises = chosen.schedule(steps, table=noise_levels()), noise(len(prompts), seed=seed)
    draw_part = functools.partial(draw_from_noise, denoiser, family=FAMILY, gamma=chosen.gamma)
    latents = [
        draw_part(part.to(device()), sigmas, {"y": y.to(device())}, seed=seed * 2**16 + i)
        for i, (part, y) in enumerate(zip(noises.split(CHUNK), prompts.split(CHUNK), strict=True))
    ]
    return torch.cat(latents).cpu()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes students",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument("--noise-seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    command = " ".join(["python launch.py bench scenes students", *arguments])
    sources = [teacher.FILE, judges.FILE]
    parts = Parts(RESULTS / "scenes_students.json", command=command, sources=sources, learning_in=learning_precision())
    scenes, best = Scenes(), students_page.best_setting()
    for _ in itertools.chain(
        measure(parts, scenes, options.methods, seeds=options.seeds, noise_seeds=options.noise_seeds),
        diversity.measure(parts, scenes, options.methods, seeds=options.seeds, setting=best),
    ):
        students_page.write(parts.written)
