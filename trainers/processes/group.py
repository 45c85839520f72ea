"""The processes that train one run together, on several GPUs or machines.

`accelerate launch` and `torchrun` start them and tell each of the others by the same variables of the environment, which
torch.distributed reads itself. So that is all this needs: accelerate stays a launcher, and no dependency. Its Accelerator
would wrap the model, the optimiser and the data, which here belong to the student, the loop and the seed.

Only the first process writes to the run folder and calls observers. What concerns all is told on the CPU (gloo), so that
no process waits for its GPU to learn whether to go on; gradients and losses go between the GPUs (nccl).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .sharding import is_divided
from .terminal import closing_signals

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""For the others to wait while the first writes a large checkpoint. A process that dies is noticed at once, by its sockets."""
_ASKING = (signal.SIGINT, signal.SIGTERM)
_REASON = "reason"


class StoppedElsewhere(RuntimeError):
    """Another process asked all to stop, and the state was saved as if this one had."""


class ProcessLost(RuntimeError):
    """Another process ended without a word, or failed; the run goes on from its newest checkpoint when started again."""


class Processes:
    """rank: of this process, 0 is the first. count: of all. local_rank: among those of its machine, and its GPU there.

    Used as a context, in which every process must make the same calls in the same order, and a signal to stop waits for
    the end of the iteration. A single process does nothing else in any of them.
    """

    def __init__(self, *, rank: int = 0, count: int = 1, local_rank: int = 0) -> None:
        self.rank, self.count, self._local_rank = rank, count, local_rank
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._store: Any = None

    @classmethod
    def from_environment(cls) -> Processes:
        """As accelerate launch and torchrun describe them; without either, this process alone.

        ValueError, naming the variable, when the description is incomplete or asks for a GPU that is not there.
        """
        count = _number("WORLD_SIZE", default=1)
        if count == 1:
            return cls()
        if not dist.is_available():
            raise ValueError(
                f"WORLD_SIZE is {count}, but this torch is built without torch.distributed; use one process."
            )
        rank, local_rank = _number("RANK"), _number("LOCAL_RANK", default=0)
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {count}, but {missing[0]} is not set; start with accelerate launch or torchrun."
            )
        if not 0 <= rank < count:
            raise ValueError(f"RANK is {rank} and WORLD_SIZE is {count}; RANK must be 0 to {count - 1}.")
        gpus = torch.cuda.device_count()
        if gpus and local_rank >= gpus:
            raise ValueError(
                f"LOCAL_RANK is {local_rank}, but this machine has {gpus} GPUs; start one process for each GPU."
            )
        return cls(rank=rank, count=count, local_rank=local_rank)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Processes:
        if threading.current_thread() is threading.main_thread():
            heard = [*_ASKING, *closing_signals()]
            self._before = {number: signal.signal(number, self._on_signal) or signal.SIG_DFL for number in heard}
        if self.count == 1:
            return self
        import torch.distributed.nn  # before there is a group: its defaults hold whatever is there, and its threads, for ever
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        if torch.cuda.is_available():
            torch.cuda.set_device(self._local_rank)
        store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
        self._store = PrefixStore("fewstep", store)
        dist.init_process_group(store=store, rank=self.rank, world_size=self.count, timeout=TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.count == 1:
            return
        if error is None:
            dist.all_reduce(torch.zeros(1))  # none leaves before all are done
            dist.destroy_process_group()
        elif _is_of_a_connection(error):
            raise ProcessLost(
                f"{self._reason() or 'another process of this run ended without a word'}. This one stops too; start the "
                "run again to go on from its newest checkpoint."
            ) from error
        else:
            # the group is left to the end of the process: with others amid a collective, destroying it could wait for ever
            self._tell_reason(error)

    def leave(self) -> None:
        """Ends this process, of several, at once and well, when all is done; a single one goes on.

        Threads of torch.distributed that outlive the group sometimes abort Python while it takes itself down, about once in ten
        times on a busy machine, and a launcher would take the finished run for a failed one.
        """
        if self.count > 1:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(0)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Kept for the next agreement: a process that left amid an iteration could not save. Asked again it acts at once."""
        self._signal = number
        if number in _ASKING:
            signal.signal(number, self._before[number])

    def _tell_reason(self, error: BaseException) -> None:
        text = f"process {self.rank} failed: {type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the store ends with the process that keeps it
            self._store.compare_set(_REASON, "", text)

    def _reason(self) -> str:
        """What the first of the processes that failed said, if it could."""
        with contextlib.suppress(RuntimeError):  # as above
            if self._store.check([_REASON]):
                return str(self._store.get(_REASON).decode())
        return ""

    # --- agreement ---------------------------------------------------------------------------------------------------

    def agree(self, error: BaseException | None = None, *, signals: bool = True) -> BaseException | None:
        """What stops all processes now, or None: an error that any of them brings here, or a signal that any has got.

        signals: whether those count here; else they are kept for the next agreement, where the state can be saved.

        The process that brings an error gets it back. The others get a ValueError as it is, and StoppedElsewhere for
        all else.
        """
        if error is None and signals and self._signal is not None:
            error = KeyboardInterrupt(f"stopped by {signal.Signals(self._signal).name}")
        if self.count == 1:
            return error
        told = b"" if error is None else json.dumps([type(error).__name__, str(error)]).encode()
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(told)
        dist.all_reduce(lengths)
        stopping = lengths.nonzero().flatten().tolist()
        if not stopping:
            return None
        kind, text = json.loads(_broadcast(told, length=int(lengths[stopping[0]]), source=stopping[0]))
        if error is not None:
            return error
        if kind == "ValueError":
            return ValueError(text)
        return StoppedElsewhere(f"process {stopping[0]} of this run stopped: {kind}: {text}")

    def on_first(self, action: Callable[[], T]) -> T:
        """action's result, a JSON value, on all processes; it is called on the first, and the others wait for it.

        Its error stops all; see agree.
        """
        if self.count == 1:
            return action()
        value, error = None, None
        if self.is_first:
            try:
                value = action()
            except BaseException as raised:
                error = raised
        stop = self.agree(error, signals=False)
        if stop is not None:
            raise stop
        return self._from_first(value)

    @contextlib.contextmanager
    def held_by_first(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """Enters context, a lock say, on the first process only. Its refusal stops all."""
        with contextlib.ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(context)

            self.on_first(enter)
            yield

    def require_same(self, value: Mapping[str, Any], *, what: str) -> None:
        """ValueError on all processes, naming the entries, unless all have these JSON values."""
        if self.count == 1:
            return
        own = json.loads(json.dumps(value))
        firsts = self._from_first(own)
        differing = [
            f"{key} is {own.get(key)} in process {self.rank} and {firsts.get(key)} in the first"
            for key in sorted(own.keys() | firsts.keys())
            if own.get(key) != firsts.get(key)
        ]
        error = ValueError(f"{what} must be the same in all processes: {'; '.join(differing)}.") if differing else None
        stop = self.agree(error)
        if stop is not None:
            raise stop

    def require_equal(self, weights: Sequence[Tensor], *, what: str) -> None:
        """ValueError on all processes unless all have the same weights, by sums over their bytes; divided ones have one owner."""
        if self.count == 1 or is_divided(weights[0]):
            return
        sums = [value.detach().contiguous().view(torch.uint8).sum(dtype=torch.int64) for value in weights]
        high, low = (torch.stack(sums).cpu() for _ in range(2))
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        differing = int((high != low).sum())
        if differing:
            raise ValueError(
                f"{what} differ between the processes, in {differing} of {len(weights)} tensors; give all processes one "
                "kind of GPU and one version of torch. The newest checkpoint is kept."
            )

    def _from_first(self, value: Any) -> Any:
        told = json.dumps(value).encode() if self.is_first else b""
        length = torch.tensor([len(told)])
        dist.broadcast(length, src=0)
        return json.loads(_broadcast(told, length=int(length), source=0))

    def tell(self, number: int) -> None:
        """From the first process to all that hear()."""
        dist.broadcast(torch.tensor([number]), src=0)

    def hear(self) -> int:
        heard = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(heard, src=0)
        return int(heard)

    # --- means -------------------------------------------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """Over the processes; values, itself, is overwritten. Nothing is read from the device."""
        if self.count == 1:
            return values
        dist.all_reduce(values)
        return values.div_(self.count)

    def mean_gradients(self, weights: Sequence[Tensor]) -> None:
        """Puts the mean over the processes in place of each weight's gradient, in one message.

        A gradient that only some have counts 0 for the others; one that nobody has stays missing, so that the optimiser
        leaves its weight alone as it would with one process. Divided weights' gradients are means already.
        """
        if self.count == 1 or is_divided(weights[0]):
            return
        present = torch.tensor([value.grad is not None for value in weights], dtype=torch.uint8)
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        having = [value for value, has in zip(weights, present.tolist(), strict=True) if has]
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in having]
        flat = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for value, mean in zip(having, flat.split([value.numel() for value in having]), strict=True):
            value.grad = mean.view_as(value)


def _broadcast(content: bytes, *, length: int, source: int) -> bytes:
    """content of the process `source`; no pickle, which torch's own broadcast of objects uses."""
    buffer = torch.frombuffer(bytearray(content.ljust(length)[:length]), dtype=torch.uint8)
    dist.broadcast(buffer, src=source)
    return bytes(buffer.tolist())


def _is_of_a_connection(error: BaseException) -> bool:
    """Whether torch says that it lost another process. gloo's own errors are plain RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _number(name: str, *, default: int | None = None) -> int:
    given = os.environ.get(name)
    if given is None and default is not None:
        return default
    if given is None or not given.isdecimal():
        raise ValueError(f"{name} is {given!r}; it must be a whole number, as accelerate launch and torchrun set it.")
    return int(given)
