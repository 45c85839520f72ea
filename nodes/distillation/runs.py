"""Runs that another process trains: writing their folder, watching them, loading what they became."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from ...trainers.data.cache import read_first
from ...trainers.runs.watching import newest_metrics, preview_file, previews
from ...trainers.storage.places import is_regular, last_change
from ...trainers.storage.run_folder import RunFolder
from ...trainers.training.distillation import Recorded
from .. import host
from ..host import folders, graph
from . import perceptual, running, teacher
from .data import preview_pictures
from .distillation import Distill
from .learning import students
from .observing import PREVIEW_PIXELS
from .telling import MESSAGES, METRICS
from .wired import Wired, prepared

SECONDS_BETWEEN_LOOKS = 0.5


class WriteRun(Distill):
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("run_name", "command")
    OUTPUT_TOOLTIPS = ("The run's name, for Watch Run.", "What to type into a terminal to train it.")
    FUNCTION = "write"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["train elsewhere", "multi gpu", "several gpus", "accelerate", "torchrun", "command line"]
    DESCRIPTION = (
        "Takes what Distill Model takes and trains nothing: it writes the run's folder, with the data and how the teacher "
        "is made, and shows the command that trains it, on this machine or another, on one GPU or several. Watch Run "
        "then shows how it goes and loads the student."
    )

    @staticmethod
    def result_of(run: RunFolder) -> float | None:
        """The written run; its training elsewhere makes it no other."""
        return 0.0 if is_regular(run.place("run.json")) else None

    def write(self, model: Any, run_name: str, **inputs: Any) -> dict[str, Any]:
        vae = inputs.pop("vae", None)  # whose making is kept
        perceptual.require_vae(inputs["method"].written(), vae=vae)
        if graph.upstream(inputs["prompt"], str(inputs["unique_id"]), running.ORIGIN) is None:
            raise ValueError(
                "the nodes before this one cannot be kept in the run's folder, so no other process could make the "
                "teacher; connect a loader and plain nodes, or use Distill Model."
            )
        wired = Wired.of(model=model, run_name=run_name, **inputs)
        with prepared(wired, vae=vae, elsewhere=True) as distillation:
            command = folders.command_for(distillation.run.path)
        return {"ui": {"text": [command]}, "result": (run_name, command)}


@host.signals.asked_whether_changed
class WatchRun:
    RETURN_TYPES = Distill.RETURN_TYPES
    RETURN_NAMES = Distill.RETURN_NAMES
    OUTPUT_TOOLTIPS = Distill.OUTPUT_TOOLTIPS
    FUNCTION = "watch"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["training progress", "multi gpu", "monitor", "resume"]
    DESCRIPTION = (
        "Waits for a run that another process trains, shows its progress and previews, and loads the student when it is "
        "finished. ComfyUI's own cancel stops the watching, not the training; Cancel on the panel stops the training."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The teacher that the run was written with."}),
                "run_name": ("STRING", {"default": "my student", "tooltip": "As on Write Run or Distill Model."}),
                "patience": (
                    "INT",
                    {
                        "default": 3600,
                        "min": 1,
                        "max": 1000000,
                        "display_name": "give up after (seconds)",
                        "tooltip": "Seconds without a sign of life from the training process after which this gives up.",
                    },
                ),
            },
            "optional": {
                "written": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "From Write Run, which then comes first; in place of run_name.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, run_name: Any = None) -> bool | str:
        return folders.error_of_name(run_name, what="run name")

    @classmethod
    def IS_CHANGED(cls, run_name: str | None = None, written: str | None = None, **_: Any) -> float:
        return Distill.IS_CHANGED(run_name=written or run_name)

    def watch(
        self, model: Any, run_name: str, patience: int, written: str | None = None, unique_id: str | None = None
    ) -> tuple[Any, dict[str, list[float]], str, dict[str, Tensor]]:
        run = folders.run_named(written or run_name)
        recorded, student = students.recorded_of(run)
        first = read_first(run.data_folder, device=model.load_device)
        teacher.require(recorded, model, run=run, first=first)
        with MESSAGES.of_run(run, node=unique_id) as told:
            _wait(run, patience=patience)
            _require_same(run, recorded)
            return running.finished(run, student, model=model, told=told)


def _require_same(run: RunFolder, watched: Recorded) -> None:
    """ValueError where another run has this name by now, of another teacher or student: hours may have gone."""
    now = Recorded.of(run)
    if (now.teacher_sha256, now.student) != (watched.teacher_sha256, watched.student):
        raise ValueError(
            f"the run {run.name!r} was begun anew while it was watched, with another teacher or another kind of student; queue "
            "again, with the teacher that it has now."
        )


def _wait(run: RunFolder, *, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Until another process has finished the run. It lives as long as it holds the lock, which is not seen from every machine, or
    changes something, at whatever time by its disk's clock.

    ValueError when its training ends otherwise, and when for so many seconds none trains it.
    """
    look, end = _Look(run), _End(run)
    alive, before = clock(), 0.0
    while not run.finished:
        host.signals.check_cancelled()
        if not run.path.is_dir():
            raise ValueError(f"the run {run.name!r} was renamed or deleted while it was watched.")
        changed = look()  # which shows what there is
        busy = run.busy
        alive, before = (clock() if busy or changed != before else alive), changed
        silent = clock() - alive
        said = end.otherwise(busy=busy) or (f"{_silence(run, silent)} Start one:" if silent > patience else "")
        if said:
            raise ValueError(f"{said} {folders.command_for(run.path)}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    look()


def _silence(run: RunFolder, seconds: float) -> str:
    failure = run.error()
    if failure:
        return f"the run {run.name!r} ended with an error, and nobody has started it again: {failure}"
    begun = newest_metrics(run) or run.checkpoints()
    past = f"no process has trained the run {run.name!r} for {seconds:.0f} seconds."
    return past if begun else f"the run {run.name!r} was never started: no process has trained it since it was written."


class _End:
    """How a training ends while it is watched, of the process that trains it now or of one that comes."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._seen = run, run.busy
        self._before = self._failed_at()

    def otherwise(self, *, busy: bool) -> str:
        """In words, where it ended and is not finished; nothing as long as it may be. busy: whether it is trained now."""
        if busy:
            self._seen = True
            return ""
        if self._failed_at() not in (None, self._before):
            said = (self._run.error() or "it is not known which").rstrip(".")
            return f"the training of {self._run.name!r} ended with an error: {said}. To go on, when that is mended:"
        asked = self._run.cancel_asked or self._run.stop_asked
        if not (self._seen and asked) or self._run.finished:
            return ""
        return f"the training of {self._run.name!r} was stopped at iteration {self._run.saved or 0}. To go on with it:"

    def _failed_at(self) -> int | None:
        try:
            return self._run.place("error.txt").lstat().st_mtime_ns
        except FileNotFoundError:  # also where a start removes it just now
            return None


class _Look:
    """Shows what a run has logged since the last look, and says when its folder last changed, in seconds of the clock."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._shown = run, -1
        self._bar: Any = None
        self._pictured: int | None = None

    def __call__(self) -> float:
        changed = last_change(self._run.path)
        newest = newest_metrics(self._run)
        if newest and newest["iteration"] != self._shown:
            self._bar = self._bar or host.signals.progress_bar(newest["iterations"])
            self._bar.update_absolute(newest["iteration"], newest["iterations"], self._picture())
            MESSAGES.offer(METRICS, {"run": self._run.name, **newest}, important=True)
            self._shown = newest["iteration"]
        return changed

    def _picture(self) -> tuple[str, Image.Image, int] | None:
        """The newest, where it was not shown yet: to decode it takes longer than all else here. A damaged one is none."""
        newest = max(previews(self._run), default=None)
        if newest is None or newest == self._pictured:
            return None
        self._pictured = newest
        try:
            return ("JPEG", preview_pictures.opened(preview_file(self._run, newest)).convert("RGB"), PREVIEW_PIXELS)
        except (OSError, SyntaxError):  # of which the panel says why
            return None
