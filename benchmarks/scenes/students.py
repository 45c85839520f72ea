"""Students of the scenes' teacher by every method, at 8, 4, 2 and 1 network calls, beside the best solver at as many.

All methods get the same data and the same training compute: passes of the network, a backward pass counted as two. A training
is a run folder in .fewstep/scenes/students, so that it may be stopped and goes on; each row is written as it comes.
Writes benchmarks/results/scenes_students.json and .md.

    python launch.py bench scenes students --methods progressive guidance consistency --seeds 3 --noise-seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...samplers.few_step import draw_from_noise
from ...samplers.noise import Denoiser
from ...trainers.methods import Consistency, DistributionMatching, GuidanceDistillation, Progressive, read_method
from ...trainers.objective.method import MethodOptions, TeacherKind
from ...trainers.storage.export import read_student
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import FullWeightsStudent
from ...trainers.training.distillation import Distillation
from ...trainers.training.loop import Metrics
from ...trainers.training.options import TrainOptions
from . import judges, students_page, teacher
from .curves import TEST_SEED
from .judged import PICTURES, Jury, Row
from .machine import RESULTS, ROOT, device
from .network import as_denoiser, noise_levels
from .parts import Parts
from .solvers import CHUNK, FAMILY, noise
from .world import Split, to_pictures

HOME = ROOT / ".fewstep" / "scenes" / "students"
SCALE, LEARNT, BATCH = 2.0, 2**14, 64
"""Guidance that is baked in; the first scenes of the teacher's own that all students learn from."""
STEPS = (8, 4, 2, 1)
PREDICTION = "v_prediction"
COMPUTED_IN = torch.bfloat16
"""While students learn, as their teacher did: in half of the time. Pictures are drawn in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """method, options: as run.json has them. passes: of the network in an iteration, a backward pass counting as two.

    steps: in which the student is for drawing. after: the trial whose student of as many steps, of the same seed, it begins as.
    """

    method: str
    options: dict[str, Any]
    passes: str
    ema_decay: float = 0.0
    steps: tuple[int, ...] = STEPS
    after: str = ""

    def settings(self) -> dict[str, Any]:
        written = {**dataclasses.asdict(self), "steps": list(self.steps), "learnt": LEARNT, "batch": BATCH}
        if not self.after:
            del written["after"]
        return written


_COMMON = {"guidance_scale": SCALE, "weighting": "truncated_snr"}
_MATCHING = {
    "guidance_scale": SCALE,
    "companion_learning_rate": 1e-3,
    "companion_updates": 2,
    "companion_first": 50,
    "rollout": "segments",
}
_IN_4 = Trial(
    method=DistributionMatching.name,
    options={**_MATCHING, "steps": 4, "iterations": 1032, "learning_rate": 1e-4},
    passes="1082 of 1.5 + 1 + 2 x 3, of which 1032 of 2 + 1 + 3 more",
    steps=(4,),
)
_PROGRESSIVE = Trial(
    method=Progressive.name,
    options={**_COMMON, "start_steps": 16, "target_steps": 1, "iterations": 700, "learning_rate": 5e-4},
    passes="700 of 2 x 2 + 3 to 8 steps, then 2100 of 2 + 3",
)
_IN_1_TO_4 = Trial(
    method=DistributionMatching.name,
    options={**_MATCHING, "steps": 4, "fewest_steps": 1, "iterations": 1092, "learning_rate": 2e-4},
    passes="1142 of 0.75 + 1 + 2 x 3, of which 1092 of 2 + 1 + 3 more",
    steps=(4, 2, 1),
)
TRIALS = {
    "progressive": _PROGRESSIVE,
    "guidance": Trial(
        method=GuidanceDistillation.name,
        options={**_COMMON, "iterations": 3080, "learning_rate": 5e-4, "steps": 8},
        passes="3080 of 2 + 3",
    ),
    "consistency": Trial(
        method=Consistency.name,
        options={
            **_COMMON,
            "steps": 4,
            "iterations": 1925,
            "learning_rate": 5e-4,
            "levels": 16,
            "solver": "heun",
            "target_decay": 0.95,
            "distance": "squared",
        },
        passes="1925 of 2 x 2 + 1 + 3",
    ),
    "matching in 4": _IN_4,
    "matching in 4 by landings": dataclasses.replace(_IN_4, options={**_IN_4.options, "rollout": "landings"}),
    "decoupled matching in 4": dataclasses.replace(
        _IN_4,
        options={**_IN_4.options, "rollout": "landings", "guidance": "decoupled", "iterations": 966},
        passes="1016 of 1.5 + 1 + 2 x 3, of which 966 of 3 + 1 + 3 more",
    ),
    "rCM": Trial(
        method=DistributionMatching.name,
        options={
            **_MATCHING,
            "rollout": "fresh_noise",
            "steps": 4,
            "iterations": 730,
            "learning_rate": 5e-4,
            "consistency_levels": 16,
            "matching_weight": 0.05,
        },
        passes="780 of 1.5 + 1 + 2 x 3, of which 730 of 2 + 1 + 3 and 2 + 1 + 3 more",
        steps=(4, 2, 1),
    ),
    "matching in 1": Trial(
        method=DistributionMatching.name,
        options={**_MATCHING, "steps": 1, "iterations": 1158, "learning_rate": 2e-4},
        passes="1208 of 1 + 2 x 3, of which 1158 of 2 + 1 + 3 more",
        steps=(1,),
    ),
    "matching in 1 to 4": _IN_1_TO_4,
    "matching in 1 to 4 by landings": dataclasses.replace(
        _IN_1_TO_4, options={**_IN_1_TO_4.options, "rollout": "landings"}
    ),
    "decoupled matching in 1 to 4": dataclasses.replace(
        _IN_1_TO_4,
        options={**_IN_1_TO_4.options, "rollout": "landings", "guidance": "decoupled", "iterations": 1018},
        passes="1068 of 0.75 + 1 + 2 x 3, of which 1018 of 3 + 1 + 3 more",
    ),
    "progressive then matching in 4": dataclasses.replace(
        _IN_4,
        options={
            **_IN_4.options,
            "rollout": "landings",
            "companion_first": 200,
            "iterations": 365,
            "learning_rate": 5e-5,
        },
        passes="8400 of progressive to 4 steps, then 565 of 1.5 + 1 + 2 x 3, of which 365 of 2 + 1 + 3 more",
        after="progressive",
    ),
    "progressive three times as long": dataclasses.replace(
        _PROGRESSIVE,
        options={**_PROGRESSIVE.options, "iterations": 2100},
        passes="2100 of 2 x 2 + 3 to 8 steps, then 6300 of 2 + 3",
    ),
}
"""15,400 passes each, but where a name says that it is more."""


@functools.cache
def data() -> Any:
    return teacher.training_data(LEARNT)


def trained(label: str, seed: int) -> RunFolder:
    """The run of a trial, trained to its end or gone on with."""
    trial = TRIALS[label]
    chosen = read_method(trial.method, trial.options)
    run = RunFolder(HOME, f"{label} {seed}")
    distillation = Distillation(
        run=run,
        method=chosen.on(kind()),
        data=data(),
        options=TrainOptions(batch_size=BATCH, seed=seed, ema_decay=trial.ema_decay, checkpoint_every=100),
        teacher_sha256=Parts.sha256(teacher.FILE),
        prediction_type=PREDICTION,
    )
    as_trained = functools.partial(as_denoiser, precision=COMPUTED_IN)
    begun = teacher.load_teacher()
    if trial.after:
        tensors, *_ = read_student(_file(trial.after, trained(trial.after, seed), trial.steps[0]))
        begun = teacher.network_of(tensors)
    student = FullWeightsStudent(begun, teacher.load_teacher(), as_denoiser=as_trained)
    run.path.mkdir(parents=True, exist_ok=True)
    with run.locked():
        distillation.execute(student, observers=[_say])
    return run


def kind() -> TeacherKind:
    return TeacherKind(family=FAMILY, table=noise_levels(), prediction_type=PREDICTION, empty_prompt=True)


def _say(metrics: Metrics) -> None:
    if metrics.iteration % 100 == 0:
        left = f"{metrics.seconds_left:.0f} s left"
        print(
            f"{metrics.stage_name}: {metrics.iteration} of {metrics.iterations}, {metrics.loss:.5f}, {left}", flush=True
        )


@torch.no_grad()
def drawn_row(jury: Jury, denoiser: Denoiser, chosen: MethodOptions, steps: int, *, seed: int) -> Row:
    """By a student in so many steps, of as many calls."""
    sigmas, noises = chosen.schedule(steps, table=noise_levels()), noise(jury.pictures, seed=seed)
    latents = [
        draw_from_noise(denoiser, part.to(device()), sigmas, {"y": y.to(device())}, family=FAMILY, gamma=chosen.gamma)
        for part, y in zip(noises.split(CHUNK), jury.prompts.split(CHUNK), strict=True)
    ]
    return jury.row(to_pictures(torch.cat(latents).cpu()), jury.prompts)


def student(label: str, run: RunFolder, steps: int) -> Denoiser:
    """The one that was made for the steps, where the method makes one for each; else the only one."""
    tensors, *_ = read_student(_file(label, run, steps))
    return as_denoiser(teacher.network_of(tensors))


def _file(label: str, run: RunFolder, steps: int) -> Path:
    return run.stage_file(steps) if TRIALS[label].method == Progressive.name else run.student_file


def measure(
    parts: Parts, labels: list[str], *, seeds: int, noise_seeds: int, pictures: int = PICTURES
) -> Iterator[None]:
    """The first training seed of all methods, then the second; after each part there is a page to write."""
    jury = Jury(Split.TEST, pictures=pictures)
    for seed in range(seeds):
        for label in labels:
            settings = TRIALS[label].settings() | {"seed": seed}
            parts.part(f"training: {label}, {seed}", settings, functools.partial(_trained, label, seed))
            yield
            run = RunFolder(HOME, f"{label} {seed}")
            for k in range(noise_seeds):
                for steps in TRIALS[label].steps:
                    said = settings | {
                        "steps": steps,
                        "calls": steps,
                        "pictures": pictures,
                        "noise seed": TEST_SEED + k,
                    }
                    work = functools.partial(_scored, jury, label, run, steps, seed=TEST_SEED + k)
                    parts.part(f"{label}, {steps} calls, training {seed}, noise {k}", said, work)
                    yield


def _trained(label: str, seed: int) -> Row:
    return {"finished": trained(label, seed).finished}


def _scored(jury: Jury, label: str, run: RunFolder, steps: int, *, seed: int) -> Row:
    trial = TRIALS[label]
    return drawn_row(jury, student(label, run, steps), read_method(trial.method, trial.options), steps, seed=seed)


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
    parts = Parts(RESULTS / "scenes_students.json", command=command, sources=[teacher.FILE, judges.FILE])
    for _ in measure(parts, options.methods, seeds=options.seeds, noise_seeds=options.noise_seeds):
        students_page.write(parts.written)
