"""What the browser is told while a run goes on: rarely enough, and the last word always."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...trainers.storage.run_folder import RunFolder
from .. import host

SECONDS_BETWEEN_MESSAGES = 0.25
MOST_IN_A_SECOND = 5
METRICS, STATE, PHASE, PLAN = "fewstep.metrics", "fewstep.state", "fewstep.phase", "fewstep.plan"
HASHING, ENCODING, PROBING, MEASURING, EXPORTING = host.signals.HASHING, "encoding", "probing", "measuring", "exporting"
"""What comes before, between and after the iterations of a run, as it is told. The training itself tells its metrics."""
_PARTS = 1000
"""Of the host's bar."""

Message = dict[str, Any]


class Messages:
    """At most MOST_IN_A_SECOND, and one in SECONDS_BETWEEN_MESSAGES unless it is important.

    The newest of each run is kept for tabs that open later, and the phase that it is in, which may last for hours without a word.
    """

    def __init__(
        self,
        send: Callable[[str, Message], None] = host.signals.send,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._send, self._clock, self._sleep = send, clock, sleep
        self._sent = collections.deque([-math.inf] * MOST_IN_A_SECOND, maxlen=MOST_IN_A_SECOND)
        self._about: Message | None = None
        self.newest: dict[str, Message] = {}
        self.phases: dict[str, Message] = {}

    def offer(self, event: str, message: Message, *, important: bool = False) -> bool:
        """Whether it was sent. What is important waits where a second is full; anything else is dropped when it comes too early.

        Training stands still while it waits, and a run's start and end have many important words in a moment.
        """
        self._keep_phase(event, message)
        now, full_until = self._clock(), self._sent[0] + 1.0
        if not important and now < max(full_until, self._sent[-1] + SECONDS_BETWEEN_MESSAGES):
            return False
        if now < full_until:
            self._sleep(full_until - now)
        self._sent.append(self._clock())
        if event == METRICS:
            # whose node its name may be hidden from, in a page that was opened since the run began
            message = self.newest[message["run"]] = {**(self._about or {}), **message}
        self._send(event, message)
        return True

    def _keep_phase(self, event: str, message: Message) -> None:
        if event == PHASE and message["phase"]:
            self.phases[message["run"]] = message
        elif event in (PHASE, METRICS, STATE):
            self.phases.pop(message["run"], None)

    @contextmanager
    def of_run(self, run: RunFolder, *, node: str | None) -> Iterator[Message]:
        """Says that a run begins, and how it ended: finished, stopped, or failed with an error. node: where it is shown.

        Gives what will be said of a finished run, to which more may be added.
        """
        self.newest.pop(run.name, None)
        about = self._about = {"run": run.name, "node": node}
        self.offer(STATE, {**about, "state": "begun"}, important=True)
        ended: Message = {"state": "finished"}
        try:
            yield ended
        except host.signals.Cancelled:
            ended = {"state": "stopped"}
            raise
        except Exception as error:
            ended = {"state": "failed", "error": str(error)}
            raise
        finally:
            self._about = None
            self.newest.pop(run.name, None)
            self.offer(STATE, {**about, **ended}, important=True)

    @contextmanager
    def before(self, run: RunFolder, *, node: str | None) -> Iterator[None]:
        """Inside, an error is told as the end of the run that it keeps from beginning."""
        try:
            yield
        except host.signals.Cancelled:
            raise
        except Exception as error:
            self.offer(STATE, {"run": run.name, "node": node, "state": "failed", "error": str(error)}, important=True)
            raise

    def plan(self, lines: list[str], *, run: RunFolder, node: str | None) -> None:
        """What a run will be and take, for its node to show before it begins: the host shows a node's text when it ends."""
        self.offer(PLAN, {"run": run.name, "node": node, "plan": lines}, important=True)

    def begin(self, phase: str) -> None:
        """Says that the run that goes on is in a phase, of which nobody knows how far it is. Nothing where none goes on."""
        if self._about:
            self.offer(PHASE, {**self._about, "phase": phase, "share": None, "seconds_left": None}, important=True)

    @contextmanager
    def phase(self, phase: str, **about: Any) -> Iterator[None]:
        """Inside, the browser and the host's bar are told how far work is, and of what, as host.signals.progressed tells it, and
        how many seconds are left by its pace. about: run and node, where no run goes on yet."""
        own, about = bool(about), about or self._about or {}
        if not about:
            yield
            return
        bar, began = host.signals.progress_bar(_PARTS), {phase: (self._clock(), 0.0)}

        def follow(share: float, of: str | None) -> None:
            now, what = self._clock(), of or phase
            start, before = began.get(what, (now, 0.0))
            start = now if share < before else start  # of the next weights
            began[what] = (start, share)
            left = (now - start) * (1.0 - share) / share if share and now > start else None
            if self.offer(PHASE, {**about, "phase": what, "share": share, "seconds_left": left}):
                bar.update_absolute(round(_PARTS * share), _PARTS)

        self.offer(PHASE, {**about, "phase": phase, "share": 0.0, "seconds_left": None}, important=True)
        try:
            with host.signals.following(follow):
                yield
        finally:
            if own:  # no end of a run will be told
                self.offer(PHASE, {**about, "phase": None, "share": None, "seconds_left": None}, important=True)


MESSAGES = Messages()
"""All of this process: the host runs one node at a time."""
