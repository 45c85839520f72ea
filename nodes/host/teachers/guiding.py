"""What a MODEL's patches make of its network's answers with a prompt and without: RescaleCFG, CFGNorm, APG, PAG, skipped layers.

A sampler calls them once a step, on samples of one noise level. Training draws a level, and a scale, for each sample: it has them
called for each alone, so that they see no other's, and one that acts in a part of the sampling acts in that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.conds
import comfy.samplers
import torch
from torch import Tensor

from ....samplers.noise import Answers, Denoiser, GuidanceRule
from ....trainers.data.conditions import Condition, of_row
from ..sampling.conditions import host_inputs
from ..sampling.models import model_sampling_of, noise_scale
from ..sampling.videos import for_each_frame, in_batch, of_batch
from . import carried, training

_BOTH_AT_1 = "disable_cfg1_optimization"
"""The option by which such functions have the host's samplers ask without the prompt at a cfg of 1, too."""


def rule_of(model: Any) -> GuidanceRule | None:
    """None where the MODEL is guided as usual."""
    return _Rule(model) if carried.guiding(model) else None


def without(model: Any) -> Any:
    """A clone that is guided as usual, and at a scale of 1 asked by its prompt alone."""
    bare, own = model.clone(), [*carried.guiding(model), _BOTH_AT_1]
    bare.model_options = {name: value for name, value in bare.model_options.items() if name not in own}
    return bare


class _Rule:
    """The functions of one MODEL, called as the host's samplers call them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def needs_both(self) -> bool:
        return bool(self._model.model_options.get(_BOTH_AT_1))

    def __str__(self) -> str:
        return carried.listed(carried.guiding(self._model))

    @torch.no_grad()
    def __call__(self, answers: Answers, *, scale: float | Tensor) -> Tensor:
        x, sigma = answers.x, answers.sigma
        prompts = [answers.condition] if answers.without is None else [answers.condition, answers.unconditional]
        seen = [answer for answer in (answers.with_prompt, answers.without) if answer is not None]
        rows = []
        for i, own in enumerate(torch.as_tensor(scale).expand(len(x)).tolist()):
            at = slice(i, i + 1)
            network = _Asked(self._model, answers.denoiser, x[at], sigma[at], [of_row(prompt, i) for prompt in prompts])
            rows.append(self._of_one(network, [answer[at] for answer in seen], scale=own))
        return torch.cat(rows).to(answers.with_prompt)

    def _of_one(self, network: _Asked, seen: list[Tensor], *, scale: float) -> Tensor:
        """Of one sample. Where nobody asked without the prompt the host's samplers have zeros and None."""
        unit = noise_scale(model_sampling_of(self._model))
        alone = len(seen) == 1
        answers = [unit * in_batch(self._model.model, answer) for answer in (*seen, torch.zeros_like(seen[0]))[:2]]
        prompts = [network.prompts[0], None if alone else network.prompts[1]]
        x, sigma, options = unit * network.x, network.sigma, self._model.model_options
        told: Mapping[str, Any] = {"input": x, "sigma": sigma, "timestep": sigma, "cond_scale": scale}
        if "sampler_calc_cond_batch_function" in options:  # which has the network answer in its own way
            asked = {"conds": prompts, "input": x, "sigma": sigma, "model": network, "model_options": options}
            answers = options["sampler_calc_cond_batch_function"](asked)
        for function in options.get("sampler_pre_cfg_function", []):
            answers = function(
                {**told, "conds": prompts, "conds_out": answers, "model": network, "model_options": options}
            )
        found: Tensor = comfy.samplers.cfg_function(
            network, *answers[:2], scale, x, sigma, model_options=options, cond=prompts[0], uncond=prompts[1]
        )
        return of_batch(self._model.model, found / unit, like=seen[0])


class _Asked:
    """The host's network for functions that read from it, or have it answer once more (PAG, skipped layers).

    It is the teacher who answers, whatever learns on the same weights. x, sigma, prompts: the sample's, as the host's samplers
    hold them.
    """

    def __init__(
        self, model: Any, denoiser: Denoiser, sample: Tensor, sigma: Tensor, conditions: list[Condition]
    ) -> None:
        self._network, self.current_patcher = model.model, model
        self._denoiser, self._conditions, self._like = denoiser, conditions, sample
        self.x, self.sigma = in_batch(model.model, sample), for_each_frame(model.model, sigma, like=sample)
        self._inputs = [host_inputs(one) for one in conditions]
        self.prompts = [[{"model_conds": _as_conds(own), "uuid": i}] for i, own in enumerate(self._inputs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def apply_model(
        self, x: Tensor, sigma: Tensor, *, transformer_options: Mapping[str, Any], control: Any = None, **given: Any
    ) -> Tensor:
        """The host's, of one sample with one of its prompts, or with several. ValueError for another prompt than the sample's."""
        found = []
        for first in range(0, len(x), len(self.x)):
            at = slice(first, first + len(self.x))
            own = {name: _rows(value, at, of=len(x)) for name, value in given.items()}
            with training.told_instead(transformer_options):
                found.append(self._answer(x[at], sigma[at], own))
        return torch.cat(found)

    def _answer(self, x: Tensor, sigma: Tensor, given: Mapping[str, Any]) -> Tensor:
        unit = noise_scale(self._network.model_sampling)
        for condition, own in zip(self._conditions, self._inputs, strict=True):
            if _equal(given, own):
                sample, level = of_batch(self._network, x / unit, like=self._like), sigma[: len(self._like)]
                return unit * in_batch(self._network, self._denoiser(sample, level, **condition))
        raise ValueError("it has the network answer to other prompts")


def _rows(value: Any, at: slice, *, of: int) -> Any:
    """What a network is given for some samples, of what it is given for so many."""
    if isinstance(value, list):
        return [_rows(each, at, of=of) for each in value]
    return value[at] if isinstance(value, Tensor) and value.ndim and len(value) == of else value


def _as_conds(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The host's conditioning objects of a network's inputs."""
    kinds = {Tensor: comfy.conds.CONDRegular, list: getattr(comfy.conds, "CONDList", None)}
    return {name: (kinds.get(type(value)) or comfy.conds.CONDConstant)(value) for name, value in inputs.items()}


def _equal(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(given, Tensor) and given.shape == wanted.shape and torch.equal(given.to(wanted), wanted)
    if isinstance(wanted, Mapping):
        return given.keys() == wanted.keys() and all(_equal(given[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(_equal, given, wanted))
    return bool(given == wanted)
