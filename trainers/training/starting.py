"""A new run that begins where another stopped: with its student's weights, at its place, and with settings of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..objective.method import Method, student_prediction
from ..storage import checkpoints
from ..storage.identity import another_teacher
from ..storage.run_folder import RunFolder
from ..students.student import EVERY_LAYER
from .distillation import Distillation
from .optimisation.average import AVERAGE_BEGUN_AT, RESULT, is_averaged
from .optimisation.optimisers import STATE_PREFIX, result_in_state

_SAME = ("method", "teacher_sha256", "prediction_type", "noise_family")
"""Of a run's entries, beside those of its student: what its weights mean depends on them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a checkpoint gives another run. position: stage, stage_iteration and more for the loop. said: of it in run.json."""

    tensors: Mapping[str, Tensor]
    position: Mapping[str, Any]
    said: Mapping[str, Any]

    def save(self, new: Distillation) -> None:
        """As the first checkpoint of the new run's folder. Its optimiser begins anew, as the settings may be others."""
        before = sum(stage.iterations for stage in new.method.stages()[: self.position["stage"]])
        position = {**self.position, "started": True}
        new.run.save_checkpoint(before + self.position["stage_iteration"], self.tensors, position)


def start_from(source: RunFolder, new: Distillation, *, method: Method) -> Start:
    """The last good checkpoint of source for a new run. method: of source. ValueError, naming what does not fit."""
    _require_alike(source, new)
    file, (tensors, position, sha256) = _last_good(source)
    start = {name: position[name] for name in ("stage", "stage_iteration")}
    _require_place(source, start, there=method, here=new.method)
    _require_meaning(source, there=method, here=new.method, prediction_type=new.prediction_type)
    _require_taught(source, start["stage"], there=method, here=new.method, prediction_type=new.prediction_type)
    own = new.student.get("rank", EVERY_LAYER.rank)
    _require_companions(source, start["stage"], there=method, here=new.method, own=own)
    # an average that the new run does not go on with would be an old one to whoever starts from there
    left = (STATE_PREFIX,) if new.options.ema_decay else (STATE_PREFIX, RESULT)
    kept = {name: value for name, value in tensors.items() if not name.startswith(left)}
    if begun_at := _average_begins_at(tensors, position, new=new):
        start[AVERAGE_BEGUN_AT] = begun_at
    said = {"run": source.name, "checkpoint": file.stem, "sha256": sha256, **start}
    moments, values = result_in_state(tensors, position)
    return Start(tensors=kept | moments, position=start | values, said=said)


def _average_begins_at(tensors: Mapping[str, Tensor], position: Mapping[str, Any], *, new: Distillation) -> int:
    """After how many updates of the stage its result's average begins: where the source's did, or has none, at the start."""
    if not new.options.ema_decay:
        return 0
    lead = new.method.stages()[position["stage"]].lead
    done = max(int(position["stage_iteration"]) - lead, 0)  # as the new run counts, whose lead may be another
    return min(int(position.get(AVERAGE_BEGUN_AT, 0)), done) if is_averaged(tensors) else done


def require_started_from(run: RunFolder, name: str) -> None:
    """ValueError when a begun run was not started from the run of that name."""
    said = run.description().get("started_from")
    if said is None or said["run"] != name:
        began = "at its own beginning" if said is None else f"from {said['run']!r}"
        raise ValueError(
            f"start_from is {name!r}, but the run {run.name!r} is there already and was begun {began}. Choose another run name "
            "for a new run, or leave start_from empty to go on with this one."
        )


def _require_alike(source: RunFolder, new: Distillation) -> None:
    if source.name == new.run.name:
        raise ValueError(f"start_from is {source.name!r}, which is the run's own name; choose another run name.")
    there, here = source.description(), json.loads(json.dumps(new.description()))
    found, wanted = there["run"], here["run"]
    names = [*_SAME, *sorted(name for name in {*found, *wanted} if name.startswith("student."))]
    lines = [
        f"{name}: there {found.get(name)}, here {wanted.get(name)}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
    lines += another_teacher(there.get("teacher_is"), here["teacher_is"])
    if lines:
        raise _unfit(
            source, f"what its weights mean differs: {'; '.join(lines)}. Restore that, or leave start_from empty."
        )


def _last_good(source: RunFolder) -> tuple[Path, checkpoints.Checkpoint]:
    """The newest checkpoint that is whole and finite."""
    reasons = []
    for file in reversed(source.checkpoints()):
        try:
            found = checkpoints.read(file)
        except ValueError as error:
            reasons.append(str(error).rstrip("."))
            continue
        if all(bool(value.isfinite().all()) for value in found.tensors.values()):
            return file, found
        reasons.append(f"{file.name} holds values that are NaN or infinite")
    raise _unfit(source, f"it has no good checkpoint{''.join(f'; {reason}' for reason in reasons)}.")


def _require_place(source: RunFolder, start: Mapping[str, int], *, there: Method, here: Method) -> None:
    """Its stage is one of the new run's too, and not over there."""
    number, done = start["stage"], start["stage_iteration"]
    if number >= len(there.stages()):
        raise _unfit(
            source, "it is finished. Load Distilled Student loads what it became, as the model of another run."
        )
    wanted, names = there.stages()[number].name, [stage.name for stage in here.stages()]
    if names[number : number + 1] != [wanted]:
        raise _unfit(source, f"it is in its stage {number + 1} ({wanted}); the stages here are {', '.join(names)}.")
    if done >= here.stages()[number].iterations:
        raise _unfit(
            source,
            f"it has done {done} iterations of its stage {number + 1} ({wanted}), which has {here.stages()[number].iterations} "
            "here; raise iterations.",
        )


def _require_meaning(source: RunFolder, *, there: Method, here: Method, prediction_type: str) -> None:
    """The student's network predicts the same and has the same inputs."""
    one, other = (student_prediction(method, prediction_type=prediction_type) for method in (there, here))
    if one != other:
        raise _unfit(source, f"its student predicts {one}, and here {other}.")
    if (there.scale_input is None) != (here.scale_input is None):
        raise _unfit(source, "one of the two students takes its guidance scale as an input, and the other does not.")


def _require_taught(source: RunFolder, stage: int, *, there: Method, here: Method, prediction_type: str) -> None:
    """The teacher of a later stage is the student of the one before: what that learnt is baked in, on its levels alone."""
    for number in range(stage):
        one, other = (method.stages()[number] for method in (there, here))
        if not _same(one.sigmas, other.sigmas) or not _same(one.teacher_sigmas, other.teacher_sigmas):
            raise _unfit(
                source,
                f"it is in its stage {stage + 1}, whose teacher learnt stage {number + 1} on other noise levels than are asked "
                "for here: restore grid, start_steps, merged_steps and level range.",
            )
        scales = [
            method.recipe(stage=number, prediction_type=prediction_type).guidance_scale for method in (there, here)
        ]
        if scales[0] != scales[1]:
            raise _unfit(
                source,
                f"it is in its stage {stage + 1}, whose teacher has a guidance_scale of {scales[0]:g} baked in, and here that is "
                f"{scales[1]:g}: restore it.",
            )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _require_companions(source: RunFolder, stage: int, *, there: Method, here: Method, own: int) -> None:
    """Those that both have are of one size. own: the rank of one that is given as 0, see Student.companion."""
    ranks = {one.name: one.rank or own for one in there.companions(stage=stage)}
    for one in here.companions(stage=stage):
        rank = one.rank or own
        if ranks.get(one.name, rank) != rank:
            raise _unfit(
                source,
                f"companion_rank is {ranks[one.name]} there and {rank} here. Restore that, or leave start_from empty.",
            )


def _unfit(source: RunFolder, why: str) -> ValueError:
    return ValueError(f"start_from is {source.name!r}, but no run like this one can begin there: {why}")
