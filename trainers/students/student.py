"""The student: which weights learn, and what it learns from. Methods and the loop see denoisers only."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ...samplers.noise import Denoiser
from ..data.batches import Batch
from ..processes.sharding import Channel, Joined, divide, part
from ..storage.export import FULL_WEIGHTS, LORA
from ..storage.prefixes import below
from .adapters import (
    Adapters,
    AdapterSet,
    LoRALayers,
    LoRAOptions,
    begin_as,
    copied,
    flattened,
    from_lora_file,
    load_into,
    lora_file,
    require_same_shapes,
)
from .companion import CompanionNetwork
from .critic import Critic
from .features import Features
from .probing import require_gradients, require_gradients_of_weights
from .saved_tensors import copied_when_overwritten

EVERY_LAYER = LoRAOptions(layers=LoRALayers.LINEAR_AND_CONV)
_PROMOTED = "teacher_was_student"
"""In the state of full weights whose teacher is read by another prediction before it was a student."""


class Student(Protocol):
    """teacher and denoiser are plain denoisers; only parameters() learn.

    writes_in_place: whether the network's forward overwrites tensors that autograd saved (ComfyUI's UNets of 2024 and its
    Flux add in place); each pass then keeps copies of what is overwritten, at some cost in time.
    result: entered to look at what the stage would result in now, such as an average of the weights; the loop sets it, and
    on leaving it the weights are the training's own again.
    """

    kind: str
    writes_in_place: bool
    result: Callable[[], AbstractContextManager[object]]

    @property
    def teacher(self) -> Denoiser: ...

    @property
    def denoiser(self) -> Denoiser: ...

    def parameters(self) -> list[Tensor]:
        """The weights that the optimiser steps, in a fixed order."""

    def promote(self) -> None:
        """The student of the finished stage becomes the teacher of the next."""

    def state_dict(self) -> dict[str, Tensor]:
        """Teacher and student weights: all that a later process needs to go on."""

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of state_dict. ValueError when names or shapes differ."""

    def exported(self, *, teacher: bool = False) -> dict[str, Tensor]:
        """What the file of the student holds, or of its teacher once a stage is over, under the names that loaders know."""

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        """The student's weights from its file; the inverse of exported. ValueError when names or shapes differ."""

    def autograd(self) -> AbstractContextManager[object]:
        """Entered around each forward and backward pass of the student: backward may call the network again."""

    def require_gradients(self, batch: Batch) -> None:
        """By a trial pass on one sample, before the run and after writes_in_place is known. ValueError for what cannot learn."""

    def companion(self, *, rank: int, seed: int) -> CompanionNetwork:
        """A new companion on the teacher's network, which says what the teacher says until it learns.

        rank: of its adapters; 0 is the student's own, or 32. ValueError where that network carries none.
        """

    def critic(self, sample: Batch, *, seed: int) -> Critic:
        """A new critic on the teacher's network as it is. sample: of Features. ValueError where it sees through no block."""

    def divide_over(self, processes: Channel, batch: Batch) -> None:
        """Divides over the processes what is too large for each to have whole; before anything asks for parameters().

        batch: one sample, for a trial pass. Tensors of this object are then parts, see sharding.gathered.
        """

    def first_alone(self) -> AbstractContextManager[object]:
        """Entered by all processes around what the first does alone with these denoisers."""


class FullWeightsStudent:
    """All weights learn: two modules of one architecture, which this object owns and changes.

    module, teacher_module: the student and the teacher. as_denoiser: reads a module as D(x, sigma, **condition).
    first_teacher: reads the first stage's teacher instead, where its network predicts something else than the student's.
    named_weights: the diffusion model's weights in a module, under its own names. adapted: the network in a module that adapters
    of companions go on. between: of probing.
    """

    kind = FULL_WEIGHTS

    def __init__(
        self,
        module: nn.Module,
        teacher_module: nn.Module,
        *,
        as_denoiser: Callable[[nn.Module], Denoiser],
        named_weights: Callable[[nn.Module], dict[str, Tensor]] = lambda module: dict(module.state_dict()),
        first_teacher: Callable[[nn.Module], Denoiser] | None = None,
        adapted: Callable[[nn.Module], nn.Module] = lambda module: module,
        between: Sequence[str] = (),
    ) -> None:
        self._between = between
        self.module = module.eval().requires_grad_(True)  # dropout is no part of what is distilled
        self._teacher_module = teacher_module.eval().requires_grad_(False)
        self.denoiser = as_denoiser(self.module)
        later = as_denoiser(self._teacher_module)
        self._first = first_teacher(self._teacher_module) if first_teacher else None
        self.teacher = self._read_teacher if self._first else later
        self._later, self._promoted = later, False
        self._as_denoiser, self._named_weights, self._adapted = as_denoiser, named_weights, adapted
        self._adapters: Adapters | None = None
        self._joined: Joined | None = None
        self.writes_in_place = False
        self.result: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    def parameters(self) -> list[Tensor]:
        return list(self.module.parameters())

    def promote(self) -> None:
        copy_weights(self.module.state_dict(), into=self._teacher_module)
        self._promoted = True

    def state_dict(self) -> dict[str, Tensor]:
        modules = {"student": self.module, "teacher": self._teacher_module}
        tensors = {f"{role}.{k}": v for role, module in modules.items() for k, v in module.state_dict().items()}
        return tensors | ({_PROMOTED: torch.tensor(self._promoted)} if self._first else {})

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        for role, module in (("student.", self.module), ("teacher.", self._teacher_module)):
            copy_weights(below(tensors, role), into=module)
        if self._first:
            self._promoted = bool(tensors[_PROMOTED])

    def _read_teacher(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        read = self._first if self._first and not self._promoted else self._later
        return read(x, sigma, **condition)

    def exported(self, *, teacher: bool = False) -> dict[str, Tensor]:
        return self._named_weights(self._teacher_module if teacher else self.module)

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        _copy(tensors, into=self._named_weights(self.module))  # on the module's own memory

    def autograd(self) -> AbstractContextManager[object]:
        return _autograd(self.writes_in_place)

    def require_gradients(self, batch: Batch) -> None:
        """ValueError when a weight would never learn, see probing."""

        def output() -> Tensor:
            return self.denoiser(batch.x0, batch.x0.new_ones(len(batch.x0)), **batch.condition)

        with _autograd(self.writes_in_place):
            require_gradients_of_weights(dict(self.module.named_parameters()), output, between=self._between)

    def companion(self, *, rank: int, seed: int) -> CompanionNetwork:
        """On every layer of the teacher's copy: what the student may change, it must be able to know.

        ValueError where that copy is divided over processes.
        """
        self._require_whole()
        if self._adapters is None:  # they stay on this object's own copy, which ends with it
            self._adapters = Adapters(self._adapted(self._teacher_module), EVERY_LAYER).__enter__()
        return CompanionNetwork(self._adapters, self._later, rank=rank, seed=seed, around=self.autograd)

    def critic(self, sample: Batch, *, seed: int) -> Critic:
        """On the teacher's copy. ValueError where that is divided over processes."""
        self._require_whole()
        network = self._adapted(self._teacher_module)
        features = Features(network, self._later, bare=contextlib.nullcontext, sample=sample)
        return Critic(features, device=sample.x0.device, seed=seed, around=self.autograd)

    def _require_whole(self) -> None:
        if self._joined:
            raise ValueError(
                "full weights are divided over several processes, and this method's companion wants its network whole; train a "
                "LoRA, or use one process."
            )

    def divide_over(self, processes: Channel, batch: Batch) -> None:
        def trial(module: nn.Module) -> Tensor:
            return self._as_denoiser(module)(batch.x0, batch.x0.new_ones(len(batch.x0)), **batch.condition)

        modules = (self.module, self._teacher_module)
        divide(modules, forward=trial, count=processes.count, writes_in_place=self.writes_in_place)
        self._joined = Joined(processes, [functools.partial(trial, module) for module in modules])
        self.denoiser = self._joined.announced(self.denoiser, 0)
        self.teacher = self._joined.announced(self.teacher, 1)

    def first_alone(self) -> AbstractContextManager[object]:
        return self._joined.following_the_first() if self._joined else contextlib.nullcontext()


class LoRAStudent:
    """Adapters learn, on weights that nobody changes: the teacher is the same network with the adapters off.

    It costs no second copy. After a stage, a copy of the adapters is the next stage's teacher. adapters: on the network,
    entered for as long as this object is used. denoise: the network as D(x, sigma, **condition). first_teacher: the bare
    network as the first stage's teacher, where it predicts something else than the student. names: what the LoRA file
    calls each layer, by its path. seed: of the adapters' initial values. between: of probing.
    """

    kind = LORA

    def __init__(
        self,
        adapters: Adapters,
        options: LoRAOptions,
        *,
        denoise: Denoiser,
        names: Mapping[str, str],
        seed: int,
        first_teacher: Denoiser | None = None,
        between: Sequence[str] = (),
    ) -> None:
        self._between = between
        self._adapters, self._options, self._denoise, self._names = adapters, options, denoise, names
        self._student = adapters.new_set(generator=torch.Generator().manual_seed(seed % 2**63))
        self._teacher: AdapterSet = {}
        self._first_teacher = first_teacher or denoise
        self.writes_in_place = False
        self.result: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    def begin_as(self, changes: Iterable[tuple[str, Tensor]]) -> float:
        """Before it learns: as what changes its layers' weights so, by path. See adapters.begin_as."""
        return begin_as(self._student, changes, scale=self._options.alpha / self._options.rank)

    def denoiser(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        with self._adapters.active(self._student):
            return self._denoise(x, sigma, **condition)

    def teacher(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        denoise = self._denoise if self._teacher else self._first_teacher
        with torch.no_grad(), self._adapters.active(self._teacher):
            return denoise(x, sigma, **condition)

    def parameters(self) -> list[Tensor]:
        return list(flattened(self._student).values())

    def promote(self) -> None:
        self._teacher = copied(self._student)

    def state_dict(self) -> dict[str, Tensor]:
        sets = {"student": self._student, "teacher": self._teacher}
        return {f"{role}.{name}": value for role, of in sets.items() for name, value in flattened(of).items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Without a teacher of adapters, as in the first stage, the bare network is the teacher."""
        own, teacher = (below(tensors, role) for role in ("student.", "teacher."))
        load_into(self._student, own)
        self._teacher = copied(self._student) if teacher else {}
        load_into(self._teacher, teacher)

    def exported(self, *, teacher: bool = False) -> dict[str, Tensor]:
        adapters = self._teacher if teacher else self._student
        return lora_file(adapters, alpha=self._options.alpha, names=self._names)

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        load_into(self._student, from_lora_file(tensors, names=self._names))

    def require_gradients(self, batch: Batch) -> None:
        """ValueError when a layer would never learn, see probing."""

        def output() -> Tensor:
            return self._denoise(batch.x0, batch.x0.new_ones(len(batch.x0)), **batch.condition)

        with _autograd(self.writes_in_place):
            require_gradients(self._adapters, self._student, output, between=self._between)

    @contextlib.contextmanager
    def autograd(self) -> Iterator[None]:
        with self._adapters.active(self._student), _autograd(self.writes_in_place):
            yield

    def companion(self, *, rank: int, seed: int) -> CompanionNetwork:
        """On the network that all share, beside the same layers as the student's own adapters."""
        return CompanionNetwork(
            self._adapters, self._denoise, rank=rank, seed=seed, around=lambda: _autograd(self.writes_in_place)
        )

    def critic(self, sample: Batch, *, seed: int) -> Critic:
        """On the network that all share, with all adapters off."""
        features = Features(
            self._adapters.network, self._denoise, bare=lambda: self._adapters.active({}), sample=sample
        )
        return Critic(features, device=sample.x0.device, seed=seed, around=lambda: _autograd(self.writes_in_place))

    def divide_over(self, processes: Channel, batch: Batch) -> None:
        """Nothing: adapters are small, and each process has the network that they are on."""

    def first_alone(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


def copy_weights(tensors: Mapping[str, Tensor], *, into: nn.Module) -> None:
    """By value: layers of hosts take what load_state_dict gives them in the place of their own, which then learn no more.

    ValueError as of _copy.
    """
    _copy(tensors, into=into.state_dict())


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], *, into: Mapping[str, Tensor]) -> None:
    """Into a module's own memory. ValueError when names or shapes differ, before anything is written."""
    require_same_shapes(into, tensors, what="weights")
    for name, value in into.items():
        value.copy_(part(tensors[name], like=value))


def probe_writes_in_place(student: Student, batch: Batch) -> bool:
    """Whether a forward pass of the student's network overwrites what autograd saved in it.

    Without a backward pass, which would fail then and leave the graph behind: what is overwritten where it was saved owns
    the graph that owns it. The tensors that hooks see own it too, so they are let go of here.
    """
    saved: list[tuple[Tensor, int]] = []

    def pack(tensor: Tensor) -> None:
        saved.append((tensor, tensor._version))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing), student.autograd():
        student.denoiser(batch.x0, batch.x0.new_ones(len(batch.x0)), **batch.condition)
    overwritten = any(tensor._version != version for tensor, version in saved)
    saved.clear()
    return overwritten


def _autograd(writes_in_place: bool) -> AbstractContextManager[object]:
    return copied_when_overwritten() if writes_in_place else contextlib.nullcontext()
