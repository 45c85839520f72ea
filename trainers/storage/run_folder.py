"""A training run is a folder. The node, the command line, the browser and resume all read and write this one thing.

run.json               what the run is: method, options, seed, teacher and data by hash
metrics.jsonl          one line for each logged iteration
checkpoints/*.safetensors   the last few states, each enough to go on from
previews/*.png         pictures at fixed noise
previews.safetensors   the prompts of a user's own that they are of, encoded, where there are such
data/                  what it trains on, see trainers/data/cache.py
stages/<n> steps.safetensors   the student of each finished stage, with its own sampling recipe
stages.json            how far each of them lands from its teacher
workflow.json          the editor's graph that it was last started from
error.txt              what ended the last start, where that was an error
stop, cancel           ask the process that trains it to stop after its next checkpoint, or at once
student.safetensors    the result, the last of them; its presence says that the run is finished
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...samplers.recipe import Recipe
from . import checkpoints, metrics, places, reading
from .files import copy_atomically, naming, read_metadata, remove_unfinished, write_atomically
from .identity import gone_on_with, others
from .locking import Lock, writable
from .places import is_link, is_regular, place, remove, remove_all, remove_unless_read, require_name, require_no_links

KEPT_CHECKPOINTS = 2
_WITHOUT_LOCK = ("note.txt", "stop", "cancel", "report")  # which others may be writing while a process takes the lock


class RunFolder:
    """The folder of one run below `root`. ValueError when `name` could lead elsewhere.

    Nothing in it is followed when it is a link: every file of it is found by `place`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = require_name(name, what="run name")
        self._root, self.path = root, root / name
        self._held: Lock | None = None
        self._claimed: Mapping[str, Any] | None = None

    def place(self, *names: str) -> Path:
        """Of a file or folder in it. ValueError when that, or what it lies in, is a link, or the run is gone that is held."""
        if self._held:
            self._held.require_in_place()
        return place(self._root, self.name, *names)

    def files(self, folder: str, ending: str) -> list[Path]:
        """Those with such an ending in a folder of it, by name; what is a link, a folder or a device is none."""
        found = self.place(folder)
        return [found / name for name in places.regular_files(found, ending=ending)]

    @property
    def student_file(self) -> Path:
        return self.place("student.safetensors")

    def students(self) -> list[Path]:
        """The result, where there is one, and the student of each finished stage."""
        return [self.student_file] * self.finished + self.files("stages", ".safetensors")

    @property
    def finished(self) -> bool:
        return is_regular(self.student_file)

    @property
    def begun(self) -> bool:
        """Whether the folder holds anything of worth: before, its name is free for another run."""
        return bool(self.checkpoints()) or self.finished or self._has_stages

    @property
    def _has_stages(self) -> bool:
        return bool(self.files("stages", ".safetensors"))

    def stage_file(self, steps: int) -> Path:
        """Of the student that a stage trained to draw in so many steps."""
        return self.place("stages", f"{steps} steps.safetensors")

    @property
    def data_folder(self) -> Path:
        return self.place("data")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Refuses a second process on the same folder; the system drops the lock when a process dies.

        What a killed process left half written is removed: a large model's checkpoint is tens of gigabytes. ValueError for
        a folder with a link in it.
        """
        if is_link(self.path):
            require_no_links(self.path)
        with writable(self._root):
            self.path.mkdir(parents=True, exist_ok=True)
        require_no_links(self.path)
        lock = self.lock
        with lock.held():
            remove_unfinished(self.path, but=_WITHOUT_LOCK)
            for asked in (self.place("stop"), self.place("cancel")):
                asked.unlink(missing_ok=True)  # it was meant for a process before
            self._held = lock
            try:
                yield
            finally:
                self._held = None

    @property
    def lock(self) -> Lock:
        return Lock(self.place(".lock"), name=self.name)

    @property
    def busy(self) -> bool:
        """Whether a process trains it now."""
        return self.lock.taken

    @property
    def stop_asked(self) -> bool:
        """Whether somebody wants it to stop after the next checkpoint."""
        return self.place("stop").exists()

    @property
    def cancel_asked(self) -> bool:
        """Whether somebody wants it to save and stop now."""
        return self.place("cancel").exists()

    def ask_to_stop(self, *, now: bool = False) -> None:
        """After the next checkpoint, or now, whichever process trains it. ValueError when none does."""
        if not self.busy:
            raise ValueError(f"nobody trains the run {self.name!r} now, so there is nothing to stop.")
        write_atomically(self.place("cancel" if now else "stop"), b"")

    def claim(
        self,
        description: Mapping[str, Any],
        *,
        absent: Mapping[str, Any] | None = None,
        free: Collection[str] = (),
        extends: Callable[[Mapping[str, Any], Sequence[str]], bool] = lambda found, differing: False,
    ) -> bool:
        """Makes the folder this run's, or checks that it already is. True when there was one to go on with.

        A run that stopped before anything was saved, at a missing library say, holds nothing: its folder may be taken.
        absent: what entries mean that a run.json older than them does not hold. free: entries of older ones that may differ;
        "free" becomes what is given, for a process elsewhere to go on with. extends: whether this run is the found one
        and more, given its entries and the names of those that differ; it then goes on as this one. ValueError, naming
        what of "run" and of the teacher differs, when the folder holds another run, or its newest checkpoint is another's.
        """
        now = json.loads(json.dumps(reading.without_nan(description)))
        self._claimed = now["run"]
        if not self.begun:
            self._write("run.json", description)
            return False
        before = self.description()
        compared: dict[str, Any] = {"absent": absent or {}, "free": free, "extends": extends}
        told, extending = gone_on_with(self.name, before, now, finished=self.finished, **compared)
        if (extending or not self.finished) and (newest := self.checkpoints()[-1:]):
            with self.going_on():
                checkpoints.require_of(newest[0], functools.partial(others, now["run"], **compared))
        if extending:
            self._reopen()
        if told != before:
            self._write("run.json", told)
        return True

    def _write(self, name: str, value: Any) -> None:
        """A JSON value, for people to read too."""
        write_atomically(self.place(name), (json.dumps(reading.without_nan(value), indent=2) + "\n").encode())

    def _reopen(self) -> None:
        """A finished run is one no longer; its student stays that of its last stage."""
        if not self.finished:
            return
        metadata = read_metadata(self.student_file)
        kept = self.stage_file(Recipe.from_metadata(metadata, source=str(self.student_file)).steps)
        if not kept.exists():
            copy_atomically(self.student_file, kept)
        self.student_file.unlink()

    def description(self) -> dict[str, Any]:
        """run.json. ValueError when it is missing or damaged."""
        file = self.place("run.json")
        try:
            return reading.require_description(reading.read_json(file))
        except FileNotFoundError as error:
            if self.begun:
                raise ValueError(
                    f"the run {self.name!r} has lost its run.json, which says what it is, and cannot go on. Restore {file}, "
                    "or choose another run name."
                ) from error
            raise ValueError(f"there is no run {self.name!r} in {self._root}.") from error
        except ValueError as error:
            raise ValueError(f"run.json of the run {self.name!r} is damaged ({error}).") from error

    def keep_workflow(self, workflow: Mapping[str, Any]) -> None:
        """The editor's graph, so that it can be opened again from the run."""
        write_atomically(self.place("workflow.json"), (json.dumps(workflow) + "\n").encode())

    def workflow(self) -> dict[str, Any]:
        """What keep_workflow kept. ValueError when the run was not started from an editor."""
        try:
            return reading.require(reading.read_json(self.place("workflow.json")), {}, what="workflow.json")
        except FileNotFoundError as error:
            raise ValueError(f"the run {self.name!r} keeps no workflow; it was not started from the editor.") from error

    def delete(self) -> None:
        """All of it, for good; links are removed, not followed. ValueError while a process trains it, or without one."""
        if is_link(self.path):
            remove(self.path)
            return
        self._require_there()
        file = self.path / ".lock"
        if os.path.lexists(file) and not is_regular(file):
            remove(file)  # whatever it is, no process of ours holds it
        lock = self.lock
        with lock.held():
            remove_all(self.path, but=[file.name, "run.json"])  # without it, who looks meanwhile sees a damaged run
            remove_all(self.path, but=[file.name])
            lock.remove_with_folder()

    def _require_there(self) -> None:
        if not self.path.is_dir():
            raise ValueError(f"there is no run {self.name!r} in {self._root}.")

    @contextlib.contextmanager
    def gone_if_refused(self, *, keep_data: bool) -> Iterator[None]:
        """A start, under the run's lock: one that an error ends before anything came of it leaves no run behind.

        What was in the folder before stays as it is: a run, data of a start before, somebody's own files. keep_data: so do data
        that were made, which may have taken hours.
        """
        before = self.contents()
        try:
            yield
        except BaseException:
            if "run.json" not in before and self.path.is_dir():
                self._forget_start(before, keep_data=keep_data)
            raise

    def contents(self) -> set[str]:
        """Names of what is in the folder, beside the lock."""
        return {path.name for path in self.path.iterdir()} - {".lock"}

    def _forget_start(self, before: Collection[str], *, keep_data: bool) -> None:
        if self.begun or os.path.lexists(self.place("metrics.jsonl")):
            return
        stays = {*before, *(["data"] if keep_data and self.files("data", ".safetensors") else [])}
        remove_all(self.path, but={".lock", *stays})
        if not stays and self._held:
            self._held.remove_with_folder()

    @contextlib.contextmanager
    def keeping_error(self, *, unless: type[Exception]) -> Iterator[None]:
        """A start of this run: an error inside is its error.txt, where it has a folder by then. unless: a wish to stop."""
        self.place("error.txt").unlink(missing_ok=True)
        try:
            yield
        except unless:
            raise
        except Exception as error:
            said = str(error) or type(error).__name__
            try:
                if self.path.is_dir():
                    write_atomically(self.place("error.txt"), f"{said}\n".encode(errors="replace"))
            except OSError as refused:  # by a full disk, say: what ended the start is still what helps
                raise error from (error.__cause__ or refused)
            raise

    def error(self) -> str | None:
        """What ended the last start, where that was an error."""
        file = self.place("error.txt")
        return reading.read_text(file).strip() if os.path.lexists(file) else None

    def checkpoints(self) -> list[Path]:
        """Newest last. Other files that somebody put beside them are none, and are left alone."""
        files = self.files("checkpoints", ".safetensors")
        return sorted((file for file in files if file.stem.isdecimal()), key=lambda file: int(file.stem))

    @property
    def saved(self) -> int | None:
        """The iteration at which it goes on, counted over all stages: that of the newest checkpoint. None without one.

        The newest metrics are of an earlier iteration where it was stopped between two of them, and of a later one where it
        was killed.
        """
        return int(kept[-1].stem) if (kept := self.checkpoints()) else None

    def save_checkpoint(self, iteration: int, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """iteration: counted over all stages, it names the file. position: JSON values, where to go on."""
        path = self.place("checkpoints", f"{iteration:08d}.safetensors")
        of = {checkpoints.OF_RUN: self._claimed} if self._claimed else {}
        checkpoints.write(path, tensors, {**position, **of})
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            remove_unless_read(old)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint, or None. ValueError when it is damaged: going on from an older one is the user's choice."""
        if not (existing := self.checkpoints()):
            return None
        with self.going_on():
            loaded = checkpoints.read(existing[-1])
        return loaded.tensors, loaded.position

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """While the newest checkpoint is taken: ValueError, naming it and what is left without it, where it is of no use."""
        try:
            yield
        except (ValueError, KeyError) as error:
            why = f"it holds no {error}." if isinstance(error, KeyError) else str(error)
            *older, newest = self.checkpoints()
            last = (
                "to go on from the student of the last finished stage" if self._has_stages else "to begin the run anew"
            )
            left = f"to go on from {older[-1].name}" if older else last
            raise ValueError(f"the run {self.name!r} cannot be resumed: {why} Delete {newest.name} {left}.") from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        path = self.place("metrics.jsonl")
        self.path.mkdir(parents=True, exist_ok=True)
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(reading.without_nan(line)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; the last may have been cut by a crash. ValueError for a damaged one."""
        return list(self._each_of_metrics())

    def _each_of_metrics(self) -> Iterator[dict[str, Any]]:
        return metrics.each(self.place("metrics.jsonl"), run=self.name)

    def metrics_as_found(self) -> reading.Lines:
        """What metrics.jsonl holds."""
        try:
            return reading.read_lines(self.place("metrics.jsonl"), reading.METRICS)
        except FileNotFoundError:
            return reading.Lines([], [])

    def repair(self) -> int:
        """Keeps of metrics.jsonl the lines that are whole, and what was there beside it. How many lines are kept.

        ValueError while a process trains it, and where nothing is to be repaired.
        """
        self._require_there()
        with self.locked():
            lines, wrong = self.metrics_as_found()
            if not wrong:
                raise ValueError(f"the metrics of the run {self.name!r} are whole; there is nothing to repair.")
            file = self.place("metrics.jsonl")
            names = (f"metrics.jsonl.damaged{f' {n}' if n > 1 else ''}" for n in itertools.count(1))
            file.replace(next(self.place(name) for name in names if not os.path.lexists(self.place(name))))
            metrics.write(file, lines)
            return len(lines)

    def losses(self) -> dict[str, list[float]]:
        """The logged loss of the student by stage name, in order; before its first update there is none."""
        by_stage: dict[str, list[float]] = {}
        for line in self._each_of_metrics():
            if line["loss"] is not None:
                by_stage.setdefault(line["stage_name"], []).append(line["loss"])
        return by_stage

    def comparisons(self) -> list[dict[str, Any]]:
        """stages.json, in the order of the stages; empty before the first has ended. ValueError for a damaged one."""
        return reading.require_all(self._read("stages.json", []), reading.COMPARISON, what="stages.json")

    def scores(self) -> list[dict[str, Any]]:
        """Of report.json, which Evaluate Digits writes; empty where there is none. ValueError for a damaged one."""
        report = reading.require(self._read("report.json", {"scores": []}), {}, what="report.json")
        return reading.require_all(report.get("scores"), reading.SCORE, what="scores in report.json")

    def _read(self, name: str, absent: Any) -> Any:
        try:
            return reading.read_json(self.place(name))
        except FileNotFoundError:
            return absent

    def keep_comparison(self, comparison: Mapping[str, Any]) -> None:
        """Into stages.json, in place of what it said of this stage. comparison: see stages.compared."""
        others = [found for found in self.comparisons() if found["steps"] != comparison["steps"]]
        self._write("stages.json", sorted([*others, dict(comparison)], key=lambda stage: -stage["steps"]))

    def forget_metrics_after(self, iteration: int) -> None:
        """Drops what was logged after the checkpoint that a run resumes from, so that no iteration stands twice."""
        metrics.forget_after(self.place("metrics.jsonl"), iteration, run=self.name)
