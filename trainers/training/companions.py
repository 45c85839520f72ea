"""Those who learn besides the student: each with its weights, its optimiser, its pace and its figures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...samplers.noise import Denoiser
from ..data.batches import Data
from ..objective.loss import loss_and_error
from ..objective.method import Companion, Lesson, Method
from ..processes.group import Processes
from ..storage.prefixes import below
from ..students.companion import CompanionNetwork
from ..students.critic import Critic
from ..students.student import Student
from .optimisation.bands import NoiseBands
from .optimisation.learner import Learner, Loss
from .optimisation.optimisers import load_optimiser_state, new_optimiser, optimiser_state
from .optimisation.options import TrainOptions
from .optimisation.tally import Tally


class Companions:
    """Of one stage, in the method's order."""

    def __init__(
        self,
        plans: Iterable[Companion],
        student: Student,
        data: Data,
        *,
        options: TrainOptions,
        processes: Processes,
        bands: NoiseBands,
    ) -> None:
        self._all = {
            plan.name: _One(plan, student, data, options=options, processes=processes, bands=bands) for plan in plans
        }

    def answers(self, shared: Callable[[Denoiser], Denoiser]) -> dict[str, Denoiser]:
        """By name, as a method is given them, see Lesson. shared: makes of a denoiser the one of this process's rows."""
        return {name: shared(one.answer) for name, one in self._all.items()}

    def learn(self, method: Method, lesson: Lesson, *, iteration: int) -> None:
        """Their updates of an iteration, counted from 1 over all stages."""
        for one in self._all.values():
            one.learn(method, lesson, iteration=iteration)

    def parameters(self) -> list[Tensor]:
        return [value for one in self._all.values() for value in one.network.parameters()]

    def settle(self, processes: Processes, *, stage: str) -> None:
        for one in self._all.values():
            one.tally.settle(processes, one.learner.bands, stage=stage)

    @property
    def measures(self) -> dict[str, float]:
        """Means since the last log: each one's loss, gradient and further measures, below its name."""
        return {f"{name}_{what}": value for name, one in self._all.items() for what, value in one.measures.items()}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors below each name, and the rest of their optimisers' state as JSON values."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, one in self._all.items():
            moments, values[name] = optimiser_state(one.learner.optimiser)
            tensors |= {f"{_PREFIX}{name}.{key}": value for key, value in (one.network.state_dict() | moments).items()}
        return tensors, {"companions": values} if values else {}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None) -> None:
        """The inverse of state_dict; other names are left alone. ValueError when names or shapes differ.

        values: None for another run's tensors. Their weights come along, since companions that begin anew beside a trained
        student would lead it astray; their optimisers begin anew, and so does one that the other run had not, a critic.
        """
        for name, one in self._all.items():
            own = below(tensors, f"{_PREFIX}{name}.")
            if values is None and not own:
                continue
            try:
                one.network.load_state_dict({key: own[key] for key in one.network.state_dict().keys() & own.keys()})
            except ValueError as error:
                raise ValueError(f"the checkpoint's {name} is another than this run's: {error}") from error
            if values is not None:
                load_optimiser_state(one.learner.optimiser, own, values["companions"][name])


_PREFIX = "companion."


class _One:
    def __init__(
        self,
        plan: Companion,
        student: Student,
        data: Data,
        *,
        options: TrainOptions,
        processes: Processes,
        bands: NoiseBands,
    ) -> None:
        self._plan, self._seed = plan, options.seed
        seed = _seed(options.seed, plan.name)
        self.network: CompanionNetwork | Critic
        self.answer: Denoiser
        loss: Loss
        if plan.is_critic:
            critic = self.network = student.critic(data.first(1), seed=seed)
            self.answer, loss = critic.gradient, critic.loss
        else:
            companion = self.network = student.companion(rank=plan.rank, seed=seed)
            self.answer, loss = companion.denoiser, functools.partial(loss_and_error, companion.denoiser)
        self.tally = Tally(f"the {plan.name}'s")
        self.learner = Learner(
            self.network,
            new_optimiser("adam", self.network.parameters(), weight_decay=0.0, betas=plan.betas),
            loss=loss,
            gradient_clip=options.gradient_clip,
            accumulation=options.accumulation,
            processes=processes,
            bands=bands,
        )

    def learn(self, method: Method, lesson: Lesson, *, iteration: int) -> None:
        """All of its updates. Their draws are its own: how many there are changes none of the student's."""
        for update in range(self._plan.updates):
            seed = _seed(self._seed, self._plan.name, iteration, update)
            own = dataclasses.replace(lesson, generator=torch.Generator().manual_seed(seed))
            target = method.companion_target(self._plan.name, own)
            figures = self.learner.update(target, rate=self._plan.learning_rate)
            self.tally.add(iteration, figures, measures=target.measures)

    @property
    def measures(self) -> dict[str, float]:
        return {"loss": self.tally.loss, "gradient_norm": self.tally.gradient_norm, **self.tally.measures}


def _seed(*facts: int | str) -> int:
    """63 bits of BLAKE2b of them all: no two of these streams are one, nor the student's, which counts up from its seed."""
    told = "/".join(map(str, facts)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little") % 2**63
