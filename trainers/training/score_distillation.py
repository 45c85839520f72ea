"""Score distillation: a latent, not a network, is moved to where a teacher with its prompt sees it (DreamFusion: Poole et al.
2022, arXiv 2209.14988; here the latent itself is what is optimised). It shares the pull of distribution matching."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from ...samplers.noise import Denoiser, GuidanceRule, NoiseFamily, expand_like, guided, needs_both, unconditioned
from ..data.conditions import Condition
from ..data.streams import stream
from ..objective import choices
from ..objective.loss import loss_and_error
from ..objective.method import Target
from ..objective.score import Strength, weight_of_seen
from ..processes.group import Processes
from ..students.companion import CompanionNetwork
from .optimisation.bands import NoiseBands
from .optimisation.learner import Learner
from .optimisation.optimisers import new_optimiser


class Kind(Enum):
    """SDS: towards what the guided teacher sees in the noised latent: to a mode, smooth and saturated, with a large scale.

    NFSD: without the noise that SDS' difference holds (Katzir et al. 2023, arXiv 2310.17590): at an ordinary scale, less smooth.
    VSD: against a companion that learns the latents as they are (ProlificDreamer: Wang et al. 2023, arXiv 2305.16213): several
    latents then spread as the teacher's pictures do.
    """

    SDS = "sds"
    NFSD = "nfsd"
    VSD = "vsd"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreDistillationOptions:
    """What a user chooses. ValueError, naming the input, for values that no run could use.

    learning_rate: of Adam on the latent, in its own units, falling linearly to 0. level_from, level_to: of the noise, as shares
    of the model's time; the second goes evenly to last_level_to. companion_learning_rate, companion_rank: VSD's.
    """

    kind: Kind = Kind.SDS
    guidance_scale: float = 7.5
    iterations: int = 300
    learning_rate: float = 0.02
    level_from: float = 0.02
    level_to: float = 0.98
    last_level_to: float = 0.5
    companion_learning_rate: float = 1e-4
    companion_rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        choices.require_finite(self)
        choices.require_at_least_one(self, "iterations", "companion_rank")
        for name in ("learning_rate", "companion_learning_rate"):
            choices.require_learning_rate(getattr(self, name), name=name)
        if not 1.0 <= self.guidance_scale <= 1000.0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; allowed is 1 (no guidance) to 1000.")
        tops = (self.level_to, self.last_level_to)
        if not 0.0 <= self.level_from < min(tops) <= max(tops) <= 1.0:
            raise ValueError(
                f"level_from is {self.level_from}, level_to is {self.level_to} and last_level_to is {self.last_level_to}; "
                "allowed are 0 to 1, and the last two above the first."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """A teacher and its prompts: the model's inputs, (B, ...) each, or (1, ...) for those that guidance leads away from.

    negative: of guidance. empty: the empty prompt, which NFSD tells from the negative one. source: what the start shows, whose
    pull is subtracted. rule: of the teacher's guidance, where that is not the usual one.
    """

    denoiser: Denoiser
    family: NoiseFamily
    table: Tensor
    condition: Condition
    negative: Condition | None = None
    empty: Condition | None = None
    source: Condition | None = None
    rule: GuidanceRule | None = None

    def require_for(self, options: ScoreDistillationOptions) -> None:
        """ValueError, naming the input, for a prompt that the kind needs and that is not there."""
        if self.rule is not None and options.kind is Kind.NFSD:
            raise ValueError(
                f"kind is nfsd, which takes guidance apart, but the MODEL carries {self.rule}, which makes another thing of it; "
                "remove that node, or choose another kind."
            )
        if self.negative is None and (needs_both(options.guidance_scale, self.rule) or options.kind is Kind.NFSD):
            raise ValueError(
                f"guidance_scale is {options.guidance_scale} and kind is {options.kind.value}, which need the negative prompt: "
                "connect negative."
            )
        if options.kind is Kind.NFSD and self.empty is None:
            raise ValueError("kind is nfsd, which needs the empty prompt beside the negative one: connect empty.")
        if options.kind is Kind.VSD and self.source is not None:
            raise ValueError(
                "kind is vsd, whose companion learns the latents as they become, so that nothing of it can be subtracted for the "
                "picture that source describes: disconnect source, or choose sds."
            )

    def guided(self, scale: float) -> Denoiser:
        return guided(self.denoiser, guidance_scale=scale, unconditional=self.negative or {}, rule=self.rule)


class Fake(Protocol):
    """Who knows the latents as they are."""

    def denoiser(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor: ...

    def learn(self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> None: ...


class LearningFake:
    """VSD's: a companion that takes a step towards denoising the latents with each of theirs."""

    def __init__(self, network: CompanionNetwork, *, learning_rate: float, views: Views, start: Tensor) -> None:
        self._network, self._rate, self._family = network, learning_rate, views.family
        optimiser = new_optimiser("adam", network.parameters(), weight_decay=0.0)
        bands = NoiseBands(views.table, device=start.device)
        loss = functools.partial(loss_and_error, network.denoiser)
        self._learner = Learner(
            network, optimiser, loss=loss, gradient_clip=1.0, accumulation=1, processes=Processes(), bands=bands
        )

    def denoiser(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        return self._network.denoiser(x, sigma, **condition)

    def learn(self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> None:
        x_t = self._family.add_noise(x0, noise, sigma=sigma)
        weight = weight_of_seen(torch.zeros_like(sigma), sigma, family=self._family)
        self._learner.update(Target(x_t, sigma, condition, x0, weight), rate=self._rate)


def distil_latent(
    start: Tensor,
    options: ScoreDistillationOptions,
    views: Views,
    *,
    fake: Fake | None = None,
    mask: Tensor | None = None,
    observe: Callable[[int, Tensor], None] = lambda done, x: None,
) -> Tensor:
    """The latents (B, ...) that the start (B, ...) is moved to. Every draw comes from the options' seed and the iteration.

    mask: broadcasts to start; the share of each step that is gone: 0 leaves it as it is, to the bit. observe: told after every
    iteration how many are done and the latents; what it raises ends this. fake: VSD's.
    """
    views.require_for(options)
    if options.kind is Kind.VSD and fake is None:
        raise ValueError("kind is vsd, which needs a companion.")
    x = start.clone()
    optimiser = torch.optim.Adam([x], betas=(0.9, 0.99))
    for done in range(options.iterations):
        sigma, noise = _drawn(start, options, views, done)
        pull = _pull(x, sigma, noise, options, views, fake)
        if views.source is not None:
            own = dataclasses.replace(views, condition=views.source)
            pull = pull - _pull(start, sigma, noise, options, own, fake)
        before, x.grad = x.clone(), pull
        optimiser.param_groups[0]["lr"] = options.learning_rate * (1.0 - done / options.iterations)
        optimiser.step()
        if mask is not None:  # of the step: Adam's is as long for a small gradient
            x.copy_(before + mask * (x - before))
        if fake is not None:
            sigma, noise = _drawn(start, options, views, done, of_companion=True)
            fake.learn(x.detach(), noise, sigma, views.condition)
        observe(done + 1, x)
    return x


@torch.no_grad()
def _pull(
    x0: Tensor, sigma: Tensor, noise: Tensor, options: ScoreDistillationOptions, views: Views, fake: Fake | None
) -> Tensor:
    """(B, ...) what the latents go against, as a difference of x0 times score distillation's weight."""
    x = views.family.add_noise(x0, noise, sigma=sigma)
    if options.kind is Kind.NFSD:
        difference = _noise_free(x, x0, sigma, noise, options, views)
    else:
        real = views.guided(options.guidance_scale)(x, sigma, **views.condition).float()
        known = x0 if fake is None else fake.denoiser(x, sigma, **views.condition).float()
        difference = known - real
    return difference * Strength.SCORE.of(x0, x0, sigma=sigma, family=views.family)


_DOMAIN_BELOW = 0.2
"""Share of the model's time under which NFSD takes the unguided eps for what leads to pictures (its section 4)."""


def _noise_free(
    x: Tensor, x0: Tensor, sigma: Tensor, noise: Tensor, options: ScoreDistillationOptions, views: Views
) -> Tensor:
    """NFSD's delta_D + s delta_C, in differences of x0: eps times the noise over the signal is x0 + that noise - D."""
    without = unconditioned(views.denoiser, views.empty or {})(x, sigma).float()
    negative = unconditioned(views.denoiser, views.negative or {})(x, sigma).float()
    with_prompt = views.denoiser(x, sigma, **views.condition).float()
    ratio = sigma / views.family.signal(sigma).clamp(min=1e-6)
    in_noise = x0 + expand_like(ratio, x0) * noise - without
    low = sigma < views.table[round(_DOMAIN_BELOW * len(views.table))].to(sigma)
    domain = torch.where(expand_like(low, x0), in_noise, negative - without)
    return domain - options.guidance_scale * (with_prompt - without)


def _drawn(
    like: Tensor, options: ScoreDistillationOptions, views: Views, done: int, *, of_companion: bool = False
) -> tuple[Tensor, Tensor]:
    """(sigma (B,), unit noise) of an iteration, for the latents or for their companion."""
    generator = torch.Generator().manual_seed(stream(options.seed, 2 * done + of_companion))
    progress = done / max(options.iterations - 1, 1)
    highest = options.level_to + (options.last_level_to - options.level_to) * progress
    count = len(views.table)
    first = math.floor(options.level_from * count)
    index = first + torch.randint(max(math.floor(highest * count) - first, 1), (len(like),), generator=generator)
    noise = torch.randn(like.shape, generator=generator).to(like)
    return views.table[index].to(like), noise
