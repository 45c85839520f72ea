"""One distillation from start to file: what identifies it, whether to go on, train, export."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.batches import Data
from ..methods import read_method
from ..objective.choices import read_options
from ..objective.method import Method, MethodOptions, student_prediction
from ..objective.perceptual import Perceptual
from ..processes.group import Processes
from ..storage.export import FULL_WEIGHTS, GUIDED_KEY, LORA, SCALE_INPUT_KEY, TEACHER_PREDICTION_KEY, write_student
from ..storage.files import copy_atomically
from ..storage.identity import gone_on_with
from ..storage.prefixes import below
from ..storage.reading import Check, identity_in, is_object, require
from ..storage.run_folder import RunFolder
from ..students.student import Student, probe_writes_in_place
from .loop import Observer, train
from .optimisation.average import AVERAGE_BEGUN_AT, start_left
from .optimisation.options import OF_NEW_RUNS, TrainOptions
from .out_of_memory import naming_what_to_lower
from .stages import KeptStages

FORMAT = 1
"""Of run.json."""
_FREE = ("log_every", "checkpoint_every", "gradient_checkpointing", "accumulation")
"""Of TrainOptions: may differ between starts of one run, since they change nothing of its result but rounding. Who runs out of
memory may switch gradient checkpointing on, or raise accumulation, and go on with the same run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """A run folder and everything that must be equal for the run to be the same run.

    student: what of the model learns, as JSON values. origin: how a process elsewhere makes the teacher, as JSON values
    that the host's side understands, or None. teacher_is: what else identifies it, see storage's identity. started_from: of
    which run it goes on from which checkpoint, see starting. processes: all that train the run, of which the first alone writes.
    about: what the students' files say of the model besides, as metadata; no part of what the run is.
    """

    run: RunFolder
    method: Method
    data: Data
    options: TrainOptions
    teacher_sha256: str
    prediction_type: str
    student: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"kind": FULL_WEIGHTS})
    origin: Mapping[str, Any] | None = None
    teacher_is: Mapping[str, Any] | None = None
    started_from: Mapping[str, Any] | None = None
    processes: Processes = dataclasses.field(default_factory=Processes)
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """run.json: "run" identifies it and is compared on resume; the rest says how to execute it, and with what it was."""
        return {
            "run": {
                "format": FORMAT,
                **_settings(self.method, self.options, self.student),
                "teacher_sha256": self.teacher_sha256,
                "data_sha256": self._data_sha256,
                "prediction_type": self.prediction_type,
                "noise_family": self.method.family.value,
            },
            "teacher": self.origin,
            "teacher_is": self.teacher_is,
            "free": {key: getattr(self.options, key) for key in _FREE},
            **({"started_from": self.started_from} if self.started_from else {}),
            "made_with": {
                "torch": torch.__version__,
                "device": str(self.data.device),
                "platform": platform.platform(),
                "processes": self.processes.count,
            },
        }

    @property
    def start_left(self) -> float:
        """The largest share of a stage's first weights in the moving average that it results in; 0 without one.

        Of the stages that this run trains, and of that in which it started from another run as its average has it.
        """
        decay, warms_up = self.options.ema_decay, self.options.ema_warms_up
        start = self.run.description().get("started_from") or {}
        updates = [stage.updates for stage in self.method.stages()][start.get("stage", 0) :]
        if updates:
            updates[0] = max(updates[0] - start.get(AVERAGE_BEGUN_AT, 0), 0)
        return max((start_left(decay, count, warms_up=warms_up) for count in updates), default=0.0)

    @property
    def at_once(self) -> int:
        """Samples that pass a network together, in training and so in all that is drawn beside it."""
        return max(1, self.options.batch_size // (self.options.accumulation * self.processes.count))

    @property
    def student_prediction(self) -> str:
        """What the student's network predicts: what the teacher's does, unless the method has it otherwise."""
        return student_prediction(self.method, prediction_type=self.prediction_type)

    @functools.cached_property
    def _data_sha256(self) -> str:
        """Once, however often the run is asked what it is: the data may be large."""
        return self.data.sha256()

    def finished(self) -> bool:
        """Whether there is nothing to do. Makes the folder this run's; ValueError when it holds another.

        Or when the processes were not given one and the same run.
        """
        self.processes.require_same(self.description()["run"], what="the run")
        self.processes.on_first(lambda: self.run.claim(self.description(), **_compared(self.method)))
        return self.processes.on_first(lambda: self.run.finished)

    def execute(
        self,
        student: Student,
        *,
        observers: Sequence[Observer] = (),
        perceptual: Perceptual | None = None,
        heed: Callable[[], None] = lambda: None,
    ) -> bool:
        """Trains and exports; False when the run was finished before and nothing was done.

        perceptual: what measures the loss of a method whose distance is LPIPS. heed: called again and again
        in what is done between the iterations, which it stops by raising; the state is saved before.

        The caller holds the run's lock: processes.held_by_first(run.locked()), where there are several. ValueError when the
        folder holds another run or a damaged checkpoint. OutOfMemory, naming what to lower, when the device's memory does
        not suffice.
        """
        if self.finished():
            return False
        with naming_what_to_lower(self.options, student=self.student):
            student.writes_in_place = probe_writes_in_place(student, self.data.first(1))
            student.require_gradients(self.data.first(1))
            train(
                self.run,
                self.method,
                student,
                self.data,
                options=self.options,
                observers=observers,
                processes=self.processes,
                kept=self._kept(student, heed),
                perceptual=perceptual,
            )
        last = self.run.stage_file(self.method.stages()[-1].steps)
        self.processes.on_first(lambda: copy_atomically(last, self.run.student_file))
        return True

    def _kept(self, student: Student, heed: Callable[[], None]) -> KeptStages:
        return KeptStages(
            run=self.run,
            method=self.method,
            student=student,
            data=self.data,
            processes=self.processes,
            at_once=self.at_once,
            export=functools.partial(self._export, kind=student.kind),
            heed=heed,
        )

    def _export(self, tensors: Mapping[str, Tensor], stage: int, *, kind: str) -> None:
        recipe = self.method.recipe(stage=stage, prediction_type=self.prediction_type)
        write_student(
            self.run.stage_file(recipe.steps),
            tensors,
            kind=kind,
            recipe=recipe,
            teacher_sha256=self.teacher_sha256,
            title=", ".join(filter(None, (self.run.name, f"{recipe.steps} steps", recipe.part))),
            provenance=self._provenance(stage),
        )

    def _provenance(self, last: int) -> dict[str, str]:
        iterations = sum(stage.updates for stage in self.method.stages()[: last + 1])
        start = self.run.description().get("started_from")
        facts = {
            **self.about,
            "fewstep.seed": str(self.options.seed),
            "fewstep.iterations": str(iterations),
            **({"fewstep.ema_start_left": f"{self.start_left:.3g}"} if self.options.ema_decay else {}),
            **({"fewstep.started_from": json.dumps(start)} if start else {}),
            TEACHER_PREDICTION_KEY: self.prediction_type,
            **({GUIDED_KEY: self.method.guided_by} if self.method.guided_by else {}),
            **({SCALE_INPUT_KEY: str(self.method.scale_input)} if self.method.scale_input else {}),
        }
        if self.student["kind"] != LORA:
            return facts
        rank, alpha = str(self.student["rank"]), str(self.student["alpha"])
        return {**facts, "ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}


def require_goes_on(run: RunFolder, *, method: Method, options: TrainOptions, student: Mapping[str, Any]) -> None:
    """Of a run that has begun, before anything is made for it: ValueError, naming what differs, where these are not its settings.

    Its teacher and its data are asked for later. student: see Distillation.
    """
    if not run.begun:
        return
    found = run.description()
    others = {key: value for key, value in identity_in(found).items() if not key.startswith(_SETTINGS)}
    own = json.loads(json.dumps(_settings(method, as_begun(options, run), student)))
    gone_on_with(run.name, found, {"run": others | own}, finished=run.finished, **_compared(method))


_SETTINGS = ("method", "training.", "student.")


def _settings(method: Method, options: TrainOptions, student: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json's "run" says of all but teacher and data, JSON values."""
    compared = {key: value for key, value in dataclasses.asdict(options).items() if key not in _FREE}
    return {
        "method": method.name,
        **{f"method.{key}": value for key, value in method.options().items()},
        **{f"training.{key}": value for key, value in compared.items()},
        **{f"student.{key}": value for key, value in student.items()},
    }


def _compared(method: Method) -> dict[str, Any]:
    """How a run that has begun is compared with one of this method; see RunFolder.claim."""

    def extends(found: Mapping[str, Any], differing: Sequence[str]) -> bool:
        """Whether this run is one with the entries found and further stages."""
        of_the_method = all(key.startswith("method.") for key in differing)
        return of_the_method and method.continues(below(found, "method."))

    old = {f"method.{key}": value for key, value in method.options_of_old().items()}
    return {"absent": _OPTIONS_OF_OLD | old, "free": [f"training.{name}" for name in _FREE], "extends": extends}


_OPTIONS_OF_OLD = {
    f"training.{field.name}": field.default for field in dataclasses.fields(TrainOptions) if field.name not in _FREE
}
"""What a run does whose run.json is older than an option."""


def as_begun(options: TrainOptions, run: RunFolder) -> TrainOptions:
    """With what nobody chooses as the run has it that is in the folder; of a new one as given."""
    if not run.begun:
        return options
    found = _OPTIONS_OF_OLD | run.description()["run"]
    return dataclasses.replace(options, **{name: found[f"training.{name}"] for name in OF_NEW_RUNS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What run.json says of a run: enough, with the teacher and the cached data, to execute it anywhere.

    method_options: as they stand there. chosen: as they are meant.
    """

    method: str
    method_options: dict[str, Any]
    chosen: MethodOptions
    options: TrainOptions
    student: dict[str, Any]
    teacher_sha256: str
    origin: dict[str, Any] | None
    teacher_is: dict[str, Any] | None

    @classmethod
    def of(cls, run: RunFolder) -> Recorded:
        """ValueError, naming the file, when run.json is missing, damaged or of a newer version."""
        found = run.description()
        with said_in_run_json(run):
            require(found, _EXECUTED, what="it")
            said = identity_in(found)
            if said.get("format", FORMAT) != FORMAT:
                raise ValueError(f"its format is {said['format']!r}; known here is {FORMAT}")
            method, training, student = (below(said, part) for part in ("method.", "training.", "student."))
            return cls(
                method=said["method"],
                method_options=method,
                chosen=read_method(said["method"], method),
                options=read_options(TrainOptions, {**training, **found["free"]}),
                student=student,
                teacher_sha256=said["teacher_sha256"],
                origin=found["teacher"],
                teacher_is=found.get("teacher_is"),
            )


_EXECUTED: Mapping[str, Check] = {"free": is_object, "teacher": lambda value: value is None or is_object(value)}
"""Of run.json, beside what identifies the run."""


@contextlib.contextmanager
def said_in_run_json(run: RunFolder) -> Iterator[None]:
    """While what it says is read: ValueError, naming the file, in place of one that names an entry alone."""
    try:
        yield
    except ValueError as error:
        why = str(error).rstrip(".")
        raise ValueError(
            f"run.json of the run {run.name!r} is damaged or of another version of ComfyUI-FewStep ({why})."
        ) from error
