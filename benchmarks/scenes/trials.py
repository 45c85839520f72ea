"""What is trained to be compared: every method with the same training compute, and the table of it in parts that resume."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...trainers.methods import Consistency, DistributionMatching, GuidanceDistillation, Progressive, read_method
from ...trainers.objective.method import MethodOptions
from ...trainers.storage.run_folder import RunFolder
from .curves import TEST_SEED
from .engine.parts import Figures, Parts

SCALE = 2.0
"""Guidance that is baked in."""
STEPS = (8, 4, 2, 1)
ADDED = {"noise between steps": "new for each picture and seed"}
"""In the settings of a row whose student adds some. Where it is missing, the row is older, and its noise was that of one seed."""


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

    @property
    def chosen(self) -> MethodOptions:
        return read_method(self.method, self.options)

    def settings(self) -> dict[str, Any]:
        """As JSON values; without an entry that is newer than results which lack it, where it says nothing."""
        written = {**dataclasses.asdict(self), "steps": list(self.steps)}
        return {key: value for key, value in written.items() if key != "after" or value}

    def file(self, run: RunFolder, steps: int) -> Path:
        """Of the student that was made for the steps, where the method makes one for each; else of the only one."""
        return run.stage_file(steps) if self.method == Progressive.name else run.student_file


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
_THEN_MATCHING = {**_MATCHING, "rollout": "landings", "learning_rate": 5e-5}
_CRITIC = {"adversarial_weight": 10.0, "critic_learning_rate": 3e-3}
_CRITIC_AFTER_HALF = {**_THEN_MATCHING, **_CRITIC, "companion_first": 60, "learning_rate": 1e-4}
_CRITIC_THEN_IN_4 = {**_THEN_MATCHING, **_CRITIC, "steps": 4, "companion_first": 100}
_THEN_IN_4 = dataclasses.replace(
    _IN_4,
    options={**_THEN_MATCHING, "steps": 4, "companion_first": 200, "iterations": 365},
    passes="8400 of progressive to 4 steps, then 565 of 1.5 + 1 + 2 x 3, of which 365 of 2 + 1 + 3 more",
    after="progressive",
)
_LONGER_IN_4 = dataclasses.replace(
    _THEN_IN_4,
    options={**_CRITIC_THEN_IN_4, "iterations": 1112},
    passes="8400 of progressive to 4 steps, "
    "then 1212 of 1.5 + 1 + 2 x 3 + 2 x 2.25, of which 1112 of 2 + 1 + 1.5 + 3 more",
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
    "matching in 4 with fresh noise": dataclasses.replace(_IN_4, options={**_IN_4.options, "rollout": "fresh_noise"}),
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
    "progressive then matching in 4": _THEN_IN_4,
    "progressive then matching in 4 with fresh noise": dataclasses.replace(
        _THEN_IN_4, options={**_THEN_IN_4.options, "rollout": "fresh_noise"}
    ),
    "progressive then matching in 2": dataclasses.replace(
        _IN_4,
        options={**_THEN_MATCHING, "steps": 2, "companion_first": 100, "iterations": 203},
        passes="11900 of progressive to 2 steps, then 303 of 0.5 + 1 + 2 x 3, of which 203 of 2 + 1 + 3 more",
        steps=(2,),
        after="progressive",
    ),
    "half progressive": dataclasses.replace(
        _PROGRESSIVE,
        options={**_PROGRESSIVE.options, "iterations": 350},
        passes="350 of 2 x 2 + 3 to 8 steps, then 1050 of 2 + 3",
    ),
    "half progressive then matching in 1": dataclasses.replace(
        _IN_4,
        options={**_THEN_MATCHING, "steps": 1, "companion_first": 100, "iterations": 540, "learning_rate": 1e-4},
        passes="7700 of half progressive, then 640 of 1 + 2 x 3, of which 540 of 2 + 1 + 3 more",
        steps=(1,),
        after="half progressive",
    ),
    "progressive then matching with a critic in 4": dataclasses.replace(
        _THEN_IN_4,
        options={**_CRITIC_THEN_IN_4, "iterations": 278},
        passes="8400 of progressive to 4 steps, then 378 of 1.5 + 1 + 2 x 3 + 2 x 2.25, of which 278 of 2 + 1 + 1.5 + 3 more",
    ),
    "progressive then matching with a critic in 4 four times as long": dataclasses.replace(
        _LONGER_IN_4, options={**_LONGER_IN_4.options, "learning_rate": 1e-4}
    ),
    "progressive then matching with a critic in 4 four times as long at half that rate": _LONGER_IN_4,
    "half progressive then matching with a critic in 2": dataclasses.replace(
        _IN_4,
        options={**_CRITIC_AFTER_HALF, "steps": 2, "iterations": 447},
        passes="5950 of half progressive to 2 steps, "
        "then 507 of 0.5 + 1 + 2 x 3 + 2 x 2.25, of which 447 of 2 + 1 + 1.5 + 3 more",
        steps=(2,),
        after="half progressive",
    ),
    "half progressive then matching with a critic in 2 four times as long": dataclasses.replace(
        _IN_4,
        options={**_CRITIC_AFTER_HALF, "steps": 2, "iterations": 1788},
        passes="5950 of half progressive to 2 steps, "
        "then 1848 of 0.5 + 1 + 2 x 3 + 2 x 2.25, of which 1788 of 2 + 1 + 1.5 + 3 more",
        steps=(2,),
        after="half progressive",
    ),
    "half progressive then matching with a critic in 1": dataclasses.replace(
        _IN_4,
        options={**_CRITIC_AFTER_HALF, "steps": 1, "iterations": 369},
        passes="7700 of half progressive, then 429 of 1 + 2 x 3 + 2 x 2.25, of which 369 of 2 + 1 + 1.5 + 3 more",
        steps=(1,),
        after="half progressive",
    ),
    "half progressive then matching with a critic in 1 at guidance 3": dataclasses.replace(
        _IN_4,
        options={**_CRITIC_AFTER_HALF, "steps": 1, "iterations": 369, "guidance_scale": 3.0},
        passes="7700 of half progressive, then 429 of 1 + 2 x 3 + 2 x 2.25, of which 369 of 2 + 1 + 1.5 + 3 more",
        steps=(1,),
        after="half progressive",
    ),
    "half progressive then matching with a critic in 1 four times as long": dataclasses.replace(
        _IN_4,
        options={**_CRITIC_AFTER_HALF, "steps": 1, "iterations": 1476},
        passes="7700 of half progressive, then 1536 of 1 + 2 x 3 + 2 x 2.25, of which 1476 of 2 + 1 + 1.5 + 3 more",
        steps=(1,),
        after="half progressive",
    ),
    "progressive three times as long": dataclasses.replace(
        _PROGRESSIVE,
        options={**_PROGRESSIVE.options, "iterations": 2100},
        passes="2100 of 2 x 2 + 3 to 8 steps, then 6300 of 2 + 3",
    ),
}
"""15,400 passes each, but where a name says that it is more or less."""


def adds_noise(settings: Figures) -> bool:
    """Whether the student of a row, or of a part without any, adds noise between its steps."""
    return settings.get("calls", 1) > 1 and read_method(settings["method"], settings["options"]).gamma > 0.0


class Subject(Protocol):
    """A teacher, and what judges its students. pictures: in a row. about: of all trainings, as JSON values."""

    trials: Mapping[str, Trial]
    pictures: int
    about: Figures

    def trained(self, label: str, seed: int) -> RunFolder:
        """The run of a trial, trained to its end or gone on with."""

    def row(self, label: str, run: RunFolder, steps: int, *, seed: int) -> Figures:
        """Of pictures by the run's student in so many steps, of as many calls. seed: of the noise."""


def measure(parts: Parts, subject: Subject, labels: Sequence[str], *, seeds: int, noise_seeds: int) -> Iterator[None]:
    """The first training seed of all trials, then the second; after each part there is a page to write."""
    for seed in range(seeds):
        for label in labels:
            trial = subject.trials[label]
            settings = trial.settings() | subject.about | {"seed": seed}
            run = functools.cache(functools.partial(subject.trained, label, seed))
            parts.part(f"training: {label}, {seed}", settings, lambda run=run: {"finished": run().finished})
            yield
            for k in range(noise_seeds):
                for steps in trial.steps:
                    said = settings | {
                        "steps": steps,
                        "calls": steps,
                        "pictures": subject.pictures,
                        "noise seed": TEST_SEED + k,
                    }
                    said |= ADDED if adds_noise(said) else {}
                    work = functools.partial(_drawn, subject, label, run, steps, seed=TEST_SEED + k)
                    parts.part(f"{label}, {steps} calls, training {seed}, noise {k}", said, work)
                    yield


def _drawn(subject: Subject, label: str, run: Callable[[], RunFolder], steps: int, *, seed: int) -> Figures:
    return subject.row(label, run(), steps, seed=seed)
