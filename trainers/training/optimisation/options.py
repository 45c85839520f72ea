"""What a user chooses about the optimisation, refused early when no run could use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...objective.choices import require_at_least_one, require_finite
from ...objective.method import Stage
from .learning_rates import SCHEDULES, require_room_for_warmup
from .optimisers import OPTIMISERS, SCHEDULE_FREE, require_optimiser

AS_LOADED = "as_loaded"
PRECISIONS = (AS_LOADED, "float32", "bfloat16", "float16")
"""What the networks compute in. as_loaded: a LoRA in what the host uses for the model, full weights in float32."""
_CHOICES: dict[str, Collection[str]] = {
    "optimiser": OPTIMISERS,
    "learning_rate_schedule": SCHEDULES,
    "precision": PRECISIONS,
}


OF_NEW_RUNS: Mapping[str, Any] = {"ema_warms_up": True, "mixed_prompts": True}
"""Of TrainOptions: what nobody chooses. A run goes on as the version of this pack trains that began it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a user chooses about the optimisation. ValueError, naming the input, for values that no run could use.

    batch_size: pictures in one optimiser step. accumulation: pieces that they pass the networks in, one after another:
    more need less memory, and the gradient stays the mean over the whole batch. learning_rate_schedule: of each stage,
    one of SCHEDULES, after `warmup` iterations of rising. ema_decay: of the moving average of the weights, which then is
    what a stage results in; 0 is none. ema_warms_up: see warmed_up. caption_dropout: share of the samples that see
    the empty prompt, not their own. mixed_prompts: a batch may have prompts of several lengths, see Data.batch.
    precision: of the networks, one of PRECISIONS; what learns, targets and losses are float32 whatever it is.
    gradient_checkpointing: less memory, more time, the same result.
    """

    batch_size: int = 64
    optimiser: str = "adam"
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 200
    accumulation: int = 1
    learning_rate_schedule: str = "linear"
    warmup: int = 0
    ema_decay: float = 0.0
    caption_dropout: float = 0.0
    precision: str = AS_LOADED
    gradient_checkpointing: bool = False
    ema_warms_up: bool = False
    mixed_prompts: bool = False

    @property
    def of_a_batch(self) -> dict[str, Any]:
        """How one is drawn, see Data.batch."""
        return {"size": self.batch_size, "caption_dropout": self.caption_dropout, "mixed": self.mixed_prompts}

    def require_suit(self, stages: Sequence[Stage], *, libraries: bool = True) -> None:
        """ValueError, naming the input, where no run of these stages could use them. libraries: these are asked for too."""
        for stage in stages:
            require_room_for_warmup(stage, warmup=self.warmup)
            require_optimiser(self.optimiser, betas=stage.betas, library=libraries)

    def __post_init__(self) -> None:
        require_finite(self)
        require_at_least_one(self, "batch_size", "log_every", "checkpoint_every", "accumulation")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size is {self.batch_size} and accumulation is {self.accumulation}; batch_size must be a multiple "
                "of accumulation, so that all pieces of a batch count alike."
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}.")
        if self.optimiser == SCHEDULE_FREE and (self.learning_rate_schedule != "constant" or self.ema_decay):
            raise ValueError(
                f"optimiser is {SCHEDULE_FREE!r}, learning_rate_schedule is {self.learning_rate_schedule!r} and ema_decay "
                f"is {self.ema_decay}; {SCHEDULE_FREE} averages the weights itself in place of both: set "
                "learning_rate_schedule to constant and ema_decay to 0."
            )
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}; it must not be negative, and 0 is none.")
        _require_share("ema_decay", self.ema_decay, example=0.999)
        _require_share("caption_dropout", self.caption_dropout, example=0.1)
        if self.weight_decay < 0.0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative, and 0 is none.")
        if self.gradient_clip <= 0.0:
            raise ValueError(
                f"gradient_clip is {self.gradient_clip}; it must be above 0: 1 is usual, 1000 clips nothing."
            )


def _require_share(name: str, value: float, *, example: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}; allowed is 0 (off) to below 1: {example}, for example.")
