"""Whether what a MODEL carries acts in a training step as it does in sampling: measured on two samples before the run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ....samplers.noise import Answers, GuidanceRule
from ....trainers.data.batches import Batch
from ....trainers.data.conditions import of_row
from ..editor.signals import Cancelled
from ..memory import backward
from ..sampling.models import model_sampling_of, noise_levels
from . import carried, guiding
from .training import as_denoiser, loaded

log = logging.getLogger("comfyui_fewstep")

_PLACE = 0.02
"""Of the outputs' deviation: by what a sample may differ in another place of the batch. Rounding in few bits stays below."""
_KERNEL = 0.1
"""By what kernels of attention may: those of SageAttention's kind, in 8 bits and 4, stay below."""
_SAME = 1e-3
"""By what guidance may that is asked the same again: kernels of a GPU add up in no fixed order."""
_SCALE = 3.0
"""Of guidance that is tried."""
_LEVELS = 11
"""Of the model's, from its first to its last, at which a patch may act or not: a tenth of the sampling is not missed."""


def require_followed(model: Any, batch: Batch) -> None:
    """ValueError, naming what is wired in, where a training step could not do with it what sampling does.

    batch: one sample with its prompt. A training step draws samples of several noise levels at once, the prompt apart from
    the negative prompt, in no order: so patches must not look at the levels beside what the network is given, nor at prompt and
    negative prompt together, nor at a sample's place, nor remember. What stands aside for the run is said in the log.
    """
    for name in carried.aside(model):
        log.info("%s stands aside for the training", name)
    rule = guiding.rule_of(model)
    if rule is not None and (stray := _strays(rule, model, batch)):
        raise ValueError(f"the MODEL carries {rule}: {stray}, which training cannot follow; remove that node.")
    if carried.acting(model):
        wrong = _wrong_in_a_step(model, batch)
        if wrong:
            raise ValueError(
                f"the MODEL carries {'; '.join(carried.acting(model))}: {wrong}, which training cannot follow; remove that node."
            )
    elif backward.prefers_attention(loaded(model)):
        log.info("a kernel that the MODEL's file names for its attention stands aside for the training")
        wrong = _Probe(model, batch).replaces_attention()
        if wrong:
            raise ValueError(
                f"a file of the MODEL, its own or a LoRA's, names a kernel for its attention: {wrong}, which training cannot "
                "follow; connect one without."
            )


def _wrong_in_a_step(model: Any, batch: Batch) -> str | None:
    try:
        probe = _Probe(model, batch)
        return probe.mixes() or probe.remembers() or probe.looks_at_levels() or probe.replaces_attention()
    except (ValueError, MemoryError, torch.cuda.OutOfMemoryError, Cancelled):
        raise
    except Exception as error:  # whatever somebody's patch raises
        return f"it cannot be called there ({error})"


@torch.no_grad()
def _strays(rule: GuidanceRule, model: Any, batch: Batch) -> str | None:
    """Why what a MODEL's functions make of its guidance is not a matter of one step's answers alone; None where it is."""
    levels = _some_levels(model, batch)
    level = levels[len(levels) // 2].expand(1)
    x = _noise(batch, 1) * torch.clamp(level, min=1.0)
    denoise = as_denoiser(loaded(model), model=model)
    condition, unconditional = of_row(batch.condition, 0), of_row(batch.unconditional or {}, 0)
    seen, without = denoise(x, level, **condition), denoise(x, level, **unconditional) if unconditional else None

    answers = Answers(x, level, seen, without, denoise, condition, unconditional)

    def said(at: Tensor) -> Tensor:
        return rule(answers._replace(sigma=at.expand(1)), scale=1.0 if without is None else _SCALE)

    try:
        first, *later = said(level), said(level), *map(said, levels), said(level)
    except Exception as error:  # whatever somebody's function raises, where it is not called by a sampler
        return f"it cannot be called there ({error})"
    far = max(float((first - again).std()) for again in (later[0], later[-1]))
    return "it remembers the step before" if far > _SAME * float(first.std()) else None


def _noise(batch: Batch, count: int) -> Tensor:
    return torch.randn((count, *batch.x0.shape[1:]), generator=torch.Generator().manual_seed(0)).to(batch.x0)


def _some_levels(model: Any, batch: Batch) -> Tensor:
    levels = noise_levels(model_sampling_of(model)).to(batch.x0)
    return levels[torch.linspace(0, len(levels) - 1, _LEVELS).long()]


class _Probe:
    """A network's answers on two samples of noise, without gradient."""

    def __init__(self, model: Any, batch: Batch) -> None:
        self._model, self._network, self._batch = model, loaded(model), batch
        levels = noise_levels(model_sampling_of(model)).to(batch.x0.device)
        self._low, self._level = levels[len(levels) // 10], levels[len(levels) // 2]
        self._levels = _some_levels(model, batch)
        self._samples = _noise(batch, 2) * torch.clamp(self._level, min=1.0)
        self._condition = {name: torch.cat([value[:1], value[:1]]) for name, value in batch.condition.items()}
        self._twice, self._again = self._answer(), self._answer()

    @torch.no_grad()
    def _answer(self, samples: Tensor | None = None, *, level: Tensor | None = None, **told: Any) -> Tensor:
        denoise = as_denoiser(self._network, model=self._model, told={"cond_or_uncond": [0, 0], **told})
        x = self._samples if samples is None else samples
        condition = {name: value[: len(x)] for name, value in self._condition.items()}
        return denoise(x, (self._level if level is None else level).expand(len(x)).to(x), **condition)

    def _is_other(self, found: Tensor, wanted: Tensor) -> bool:
        """Beyond what two equal passes differ by."""
        return bool((found - wanted).abs().max() > 10.0 * (self._twice - self._again).abs().max())

    def _far(self, found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).std() / wanted.std())

    def mixes(self) -> str | None:
        """NAG, and patches that have a way with the negative prompt (IPAdapter) where there is one."""
        apart = self._answer(cond_or_uncond=[0, 1])
        if self._is_other(apart[:1], self._twice[:1]):
            return "it acts on prompt and negative prompt together"
        if self._batch.unconditional is not None and self._is_other(apart[1:], self._twice[1:]):
            return "it acts on the negative prompt otherwise than on the prompt (a run without one could follow)"
        if self._far(self._answer(self._samples.flip(0)).flip(0), self._twice) > _PLACE or self._sees_one_of_several():
            return "it acts on a sample by its place in the batch"
        return None

    def _sees_one_of_several(self) -> bool:
        """As a training step asks: samples of one prompt's together, each of a level of its own."""
        levels = torch.stack([self._level, self._low])
        together = self._answer(level=levels, cond_or_uncond=[0])
        alone = [
            self._answer(self._samples[at], level=levels[at], cond_or_uncond=[0]) for at in (slice(1), slice(1, 2))
        ]
        return any(self._far(together[i : i + 1], one) > _PLACE for i, one in enumerate(alone))

    def remembers(self) -> str | None:
        """Caches over the steps of a sampling: an answer that depends on the one before."""
        near = self._samples * 1.0001
        fresh, after = self._after_another(near), self._after_another(self._samples, near)
        return "it remembers the step before" if self._is_other(after, fresh) else None

    def _after_another(self, *samples: Tensor) -> Tensor:
        """The last answer of a series that begins with samples that are like none of these."""
        self._answer(-self._samples, level=self._low)
        return [self._answer(each) for each in samples][-1]

    def looks_at_levels(self) -> str | None:
        """Start and end of a patch, as a share of the sampling."""
        asked = (self._answer(sigmas=level[None]) for level in self._levels)
        found = any(self._is_other(answer, self._twice) for answer in asked)
        return "it acts on a part of the noise levels" if found else None

    def replaces_attention(self) -> str | None:
        """What computes the MODEL's attention stands aside for a run, so it may be faster and no more than that."""
        own = carried.override(self._model)
        if own is None and not backward.prefers_attention(self._network):
            return None
        with backward.without_preferred_attention(self._network):
            plain = self._answer()
        far = self._far(self._answer(**{backward.ATTENTION_OVERRIDE: own}), plain)
        return f"its attention is another, by {100.0 * far:.0f} percent of the answer" if far > _KERNEL else None
