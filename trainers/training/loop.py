"""The training loop: one loop for every method, over a state that is whole between any two iterations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...samplers.noise import Denoiser
from ..data.batches import Data
from ..data.streams import stream
from ..objective.loss import loss_and_error
from ..objective.method import Lesson, Method, Stage
from ..objective.perceptual import Perceptual
from ..processes.group import Processes
from ..processes.sharding import gathered, is_divided
from ..storage.run_folder import RunFolder
from ..students.student import Student
from . import accelerator
from .companions import Companions
from .optimisation import optimisers
from .optimisation.average import Averages
from .optimisation.bands import NoiseBands
from .optimisation.learner import Learner
from .optimisation.learning_rates import learning_rate
from .optimisation.micro_batches import in_pieces, on_share, require_equal_parts
from .optimisation.options import TrainOptions
from .optimisation.tally import NonFiniteLoss, Tally
from .stages import KeptStages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """Told to every observer after every iteration. iteration counts over all stages, stage_iteration in its own.

    loss, x0_error (mean squared, unweighted), band_errors (x0_error by band of the noise level, low noise first; None
    for a band without a sample), gradient_norm (before clipping) and measures (what else the method tells, and its
    companions' losses, by name) are means since the last log or checkpoint. seconds: since this process began or
    resumed the run. memory: its peak on the GPU in bytes, None on a CPU.
    """

    stage: int
    stages: int
    stage_name: str
    stage_iteration: int
    stage_iterations: int
    iteration: int
    iterations: int
    loss: float
    x0_error: float
    band_errors: list[float | None]
    gradient_norm: float
    learning_rate: float
    seconds: float
    seconds_left: float
    memory: int | None
    logged: bool
    measures: dict[str, float] = dataclasses.field(default_factory=dict)


MACHINES_OWN = ("seconds", "seconds_left", "memory", "logged")
"""Metrics that differ between two equal runs: told to the observers, and kept out of metrics.jsonl."""

Observer = Callable[[Metrics], None]
"""Called after every iteration; an observer stops the run by raising, and the run is then saved."""


def train(
    run: RunFolder,
    method: Method,
    student: Student,
    data: Data,
    *,
    options: TrainOptions,
    observers: Sequence[Observer] = (),
    processes: Processes | None = None,
    kept: KeptStages | None = None,
    perceptual: Perceptual | None = None,
) -> None:
    """Trains all stages of method, going on from run's newest checkpoint if there is one.

    The randomness of an iteration depends on the seed and its number alone, so that a resumed run repeats the
    unbroken one. When an observer raises, the state is saved first. NonFiniteLoss leaves the last checkpoint as it is.

    processes: all of them call this with equal arguments, and read run's folder; the first alone writes there and calls
    its observers. The batch is shared out among them, and their number changes the result by rounding alone.
    kept: keeps the student of every stage, which a run without checkpoints goes on from. perceptual: what targets whose
    distance is LPIPS are measured by.
    """
    _Training(run, method, student, data, options, list(observers), processes or Processes(), kept, perceptual).run()


def rehearsal(
    run: RunFolder,
    method: Method,
    student: Student,
    data: Data,
    *,
    options: TrainOptions,
    perceptual: Perceptual | None = None,
) -> Iterator[tuple[Stage, Callable[[int], None]]]:
    """Each stage, and what does its iteration of a number: nothing is logged or kept. The student is of no use afterwards."""
    training = _Training(run, method, student, data, options, [], Processes(), None, perceptual)
    for stage in method.stages():
        yield stage, functools.partial(training.try_iteration, stage)
        training._promote()


class _Training:
    def __init__(
        self,
        run: RunFolder,
        method: Method,
        student: Student,
        data: Data,
        options: TrainOptions,
        observers: list[Observer],
        processes: Processes,
        kept: KeptStages | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        self._run, self._method, self._student, self._data = run, method, student, data
        self._options, self._observers, self._processes, self._kept = options, observers, processes, kept
        self._perceptual = perceptual
        if options.caption_dropout:
            data.require_droppable()
        self._stages = method.stages()
        require_equal_parts(options.batch_size, accumulation=options.accumulation, processes=processes.count)
        options.require_suit(self._stages, libraries=False)  # new_optimiser asks for its own
        self._stage, self._stage_iteration = 0, 0
        if processes.count > 1:
            processes.require_equal(student.parameters(), what="the student's first weights")
            student.divide_over(processes, data.first(1))
        self._begin_stage()
        self._tally = Tally()
        self._started, self._done_before = time.monotonic(), 0

    def run(self) -> None:
        self._student.result = self._result_in_place
        try:
            self._run_stages()
        finally:
            self._student.result = contextlib.nullcontext

    def _run_stages(self) -> None:
        self._restore()
        accelerator.forget_most_held(self._data.device)
        while self._stage < len(self._stages):
            stage = self._stages[self._stage]
            while self._stage_iteration < stage.iterations:
                self._step(stage)
                self._account(stage)
            self._finish_stage()

    def try_iteration(self, stage: Stage, number: int) -> None:
        """One of the stage, whatever was done of it."""
        self._stage_iteration = number
        self._step(stage)

    def _step(self, stage: Stage) -> None:
        """The companions' updates and then the student's, on one batch: target, loss, gradient, update."""
        lesson = self._lesson()
        self._companions.learn(self._method, lesson, iteration=self._iteration + 1)
        if self._stage_iteration >= stage.lead:
            target = self._method.target(lesson)
            figures = self._learner.update(target, rate=self._learning_rate(stage))
            self._tally.add(self._iteration + 1, figures, measures=target.measures)
            self._averages.update(self._stage_iteration - stage.lead)
        self._stage_iteration += 1

    def _lesson(self) -> Lesson:
        """On the whole batch: how it is split must not change what is drawn. Only this process's rows of an x0 are true."""
        generator = torch.Generator().manual_seed(stream(self._options.seed, self._iteration))
        batch = self._data.batch(**self._options.of_a_batch, generator=generator)
        lesson = Lesson(
            batch=batch,
            stage=self._stage,
            iteration=self._stage_iteration,
            teacher=self._shared(self._student.teacher),
            student=self._averages.given(self._shared(self._student.denoiser)),
            generator=generator,
            companions=self._companions.answers(self._shared),
        )
        return dataclasses.replace(lesson, examples=self._method.examples(lesson))

    def _shared(self, denoiser: Denoiser) -> Denoiser:
        """In the pieces, and of the rows, that are this process's."""
        pieces = in_pieces(denoiser, self._options.accumulation)
        return on_share(pieces, self._processes.rank, of=self._processes.count)

    def _learning_rate(self, stage: Stage) -> float:
        schedule, warmup = self._options.learning_rate_schedule, self._options.warmup
        return learning_rate(stage, self._stage_iteration, schedule=schedule, warmup=warmup)

    def _account(self, stage: Stage) -> None:
        """Logs, checkpoints and tells the observers, in that order."""
        logged = self._iteration % self._options.log_every == 0 or self._stage_iteration == stage.iterations
        if logged:
            self._settle()
        metrics = self._metrics(stage, logged=logged)
        if logged and self._processes.is_first:
            self._run.log(_loggable(metrics))
        stop = self._processes.agree(self._observe(metrics))
        if stop is not None:
            try:
                raise stop
            finally:
                self._settle()
                self._save()
        if self._iteration % self._options.checkpoint_every == 0:
            self._settle()
            self._save()

    def _observe(self, metrics: Metrics) -> BaseException | None:
        """What an observer raised, on the first process; the others have none."""
        try:
            with self._student.first_alone():
                for observer in self._observers if self._processes.is_first else ():
                    observer(metrics)
        except BaseException as stop:
            return stop
        return None

    def _begin_stage(self) -> None:
        """What lives for one stage; after the last one there is nothing to begin."""
        number = min(self._stage, len(self._stages) - 1)
        stage = self._stages[number]
        bands = NoiseBands(stage.shown, device=self._data.device)
        weights, decay = self._student.parameters(), self._options.weight_decay
        optimiser = optimisers.new_optimiser(self._options.optimiser, weights, weight_decay=decay, betas=stage.betas)
        self._learner = Learner(
            self._student,
            optimiser,
            loss=functools.partial(loss_and_error, self._student.denoiser, perceptual=self._perceptual),
            gradient_clip=self._options.gradient_clip,
            accumulation=self._options.accumulation,
            processes=self._processes,
            bands=bands,
        )
        self._companions = Companions(
            self._method.companions(stage=number),
            self._student,
            self._data,
            options=self._options,
            processes=self._processes,
            bands=bands,
        )
        self._averages = Averages(
            weights, decay=self._options.ema_decay, target_decay=stage.target_decay, warms_up=self._options.ema_warms_up
        )

    def _finish_stage(self) -> None:
        """The stage's result becomes the student: kept, promoted and gone on from."""
        if self._kept and self._iteration % self._options.checkpoint_every:
            self._save()  # what stops the comparison finds all iterations done
        self._result_to_weights()
        self._learner.optimiser.zero_grad(set_to_none=True)
        if self._kept:
            self._kept.ended(self._stage)
        self._promote()
        self._save()

    def _promote(self) -> None:
        """The student becomes the teacher, and the next stage begins."""
        # before a teacher is made: its copy then fits into what they held
        del self._learner, self._companions, self._averages
        self._student.promote()
        self._stage, self._stage_iteration = self._stage + 1, 0
        self._begin_stage()

    def _result_to_weights(self) -> None:
        optimisers.result_to_weights(self._learner.optimiser)
        if self._averages.result:
            self._averages.result.to_weights()

    @contextlib.contextmanager
    def _result_in_place(self) -> Iterator[None]:
        """Inside, the weights are what the stage would result in now. They come back as copies: arithmetic would round.

        Divided weights stay what they are: the first process, which draws previews, could exchange its own part only.
        """
        weights, groups = self._student.parameters(), self._learner.optimiser.param_groups
        apart = self._averages.result or optimisers.keeps_its_result_apart(self._learner.optimiser)
        if not apart or is_divided(weights[0]):
            yield
            return
        held = [weight.detach().clone() for weight in weights], [dict(group) for group in groups]
        self._result_to_weights()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, held[0])
            for group, before in zip(groups, held[1], strict=True):
                group.update(before)

    def _settle(self) -> None:
        """Reads the pending figures from the device, once for many iterations, and stops if one is not finite."""
        stage = self._stages[self._stage].name
        try:
            self._tally.settle(self._processes, self._learner.bands, stage=stage)
            self._companions.settle(self._processes, stage=stage)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error}; {self._going_on()}") from None

    def _going_on(self) -> str:
        """With other settings, after a loss that is not finite."""
        if not self._run.checkpoints():
            return "nothing is saved yet. Check the data and the teacher, or lower the learning rate, and queue again."
        return (
            "the last good checkpoint is kept. Check the data and the teacher, or lower the learning rate: a new run with other "
            f"settings goes on from there, with another run name and start_from at {self._run.name!r}."
        )

    def _metrics(self, stage: Stage, *, logged: bool) -> Metrics:
        total = sum(s.iterations for s in self._stages)
        seconds = time.monotonic() - self._started
        pace = seconds / max(self._iteration - self._done_before, 1)
        device = self._data.device
        return Metrics(
            stage=self._stage,
            stages=len(self._stages),
            stage_name=stage.name,
            stage_iteration=self._stage_iteration,
            stage_iterations=stage.iterations,
            iteration=self._iteration,
            iterations=total,
            loss=self._tally.loss,
            x0_error=self._tally.x0_error,
            band_errors=self._tally.band_errors,
            gradient_norm=self._tally.gradient_norm,
            measures={**self._tally.measures, **self._companions.measures},
            learning_rate=float(self._learner.optimiser.param_groups[0]["lr"]),
            seconds=seconds,
            seconds_left=pace * (total - self._iteration),
            memory=accelerator.most_held(device),
            logged=logged,
        )

    @property
    def _iteration(self) -> int:
        return sum(s.iterations for s in self._stages[: self._stage]) + self._stage_iteration

    def _save(self) -> None:
        """The state between two iterations: weights, their average, the optimisers' moments and the position.

        The first process writes it, and the others wait: one that ended meanwhile would make a launcher end the first.
        """
        self._processes.require_equal(self._student.parameters(), what="the student's weights")
        if learning := self._companions.parameters():
            self._processes.require_equal(learning, what="the companions' weights")
        companions, their_values = self._companions.state_dict()
        moments, values = optimisers.optimiser_state(self._learner.optimiser)
        place = {"stage": self._stage, "stage_iteration": self._stage_iteration, **self._averages.position}
        position = {**place, **values, **their_values}
        tensors = self._student.state_dict() | self._averages.state_dict() | moments | companions
        state = gathered(tensors, keep=self._processes.is_first)
        self._processes.on_first(lambda: self._run.save_checkpoint(self._iteration, state, position))

    def _restore(self) -> None:
        newest = {"the newest": [path.name for path in self._run.checkpoints()][-1:]}
        self._processes.require_same(newest, what="the checkpoints, in a folder that all machines share,")
        loaded = self._run.load_checkpoint()
        if loaded is not None:
            with self._run.going_on():
                self._go_on_from(*loaded)
        elif self._kept:
            self._stage = self._kept.load_newest()
            self._begin_stage()
        self._done_before = self._iteration
        if self._kept:
            self._kept.resumed(self._stage)
        self._processes.on_first(lambda: self._run.forget_metrics_after(self._iteration))

    def _go_on_from(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        self._student.load_state_dict(tensors)
        if started := position.get("started", False):  # by another run, whose optimiser may have been another
            optimisers.state_to_result(self._student.parameters(), tensors, position)
        self._stage, self._stage_iteration = position["stage"], position["stage_iteration"]
        self._begin_stage()
        if not started:
            optimisers.load_optimiser_state(self._learner.optimiser, tensors, position)
        self._companions.load_state_dict(tensors, None if started else position)
        self._averages.load_state_dict(tensors, position, all_there=not started)


def _loggable(metrics: Metrics) -> dict[str, Any]:
    """A line of the log: what depends on the run alone, so that a resumed run logs the same, and measures where there are any."""
    kept = dataclasses.asdict(metrics)
    own = MACHINES_OWN if metrics.measures else (*MACHINES_OWN, "measures")
    return {name: value for name, value in kept.items() if name not in own}
