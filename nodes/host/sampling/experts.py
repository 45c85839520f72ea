"""Two networks that share one sampling: one expert for high noise, one for low (Wan 2.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor


class TwoExperts:
    """A GUIDER: the high-noise guider takes the levels from `boundary` up, the low-noise guider those below.

    Each samples its own part through the host, so that only one of them need be on the device. What the second begins with is
    what the first left, to the bit: noise is added once, and a mask is filled from the picture and the noise of the whole.
    Samplers that learn from the steps before (res_multistep) begin anew at the boundary.
    """

    def __init__(self, high: Any, low: Any, *, boundary: float) -> None:
        self._high, self._low, self._boundary = high, low, boundary

    @property
    def model_patcher(self) -> Any:
        """Whose latents and previews the host goes by; both experts have the same."""
        return self._high.model_patcher

    def sample(
        self,
        noise: Any,
        latent_image: Any,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Any = None,
        callback: Callable[..., None] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Any:
        """As the host's guiders do. sigmas: (n + 1,)."""
        rest = {"denoise_mask": denoise_mask, "disable_pbar": disable_pbar}
        cut = steps_above(sigmas, self._boundary)
        if cut in (0, len(sigmas) - 1):
            only = self._high if cut else self._low
            return only.sample(noise, latent_image, sampler, sigmas, callback=callback, seed=seed, **rest)
        _require_function(sampler)
        left: list[Tensor] = []
        first, second = _leaving(sampler, left, of=sigmas), _resuming(sampler, left, of=sigmas)
        parts = [_counting(callback, start=start, of=len(sigmas) - 1) for start in (0, cut)]
        self._high.sample(noise, latent_image, first, sigmas[: cut + 1], callback=parts[0], seed=seed, **rest)
        seed = _seed_of_second(sampler, seed)
        return self._low.sample(noise, latent_image, second, sigmas[cut:], callback=parts[1], seed=seed, **rest)


def steps_above(sigmas: Tensor, boundary: float) -> int:
    """How many steps of the levels (n + 1,), descending, begin at the boundary, however rounded, or above it."""
    return int((sigmas[:-1] >= boundary * (1.0 - 1e-5)).sum())


def _require_function(sampler: Any) -> None:
    if not callable(getattr(sampler, "sampler_function", None)):
        raise ValueError(
            f"this sampler ({type(sampler).__name__}) cannot be handed from one expert to the other. Use one of FewStep's, or "
            "one from KSamplerSelect."
        )


def _with_function(sampler: Any, function: Callable[..., Tensor]) -> Any:
    made = copy.copy(sampler)
    made.sampler_function = function
    return made


def _leaving(sampler: Any, left: list[Tensor], *, of: Tensor) -> Any:
    """The sampler, which leaves there where it ends. of: the levels of the whole."""

    def function(model: Any, *given: Any, **named: Any) -> Tensor:
        _tell_levels(model, of)
        left.append(sampler.sampler_function(model, *given, **named))
        return left[-1]

    return _with_function(sampler, function)


def _resuming(sampler: Any, left: list[Tensor], *, of: Tensor) -> Any:
    """The sampler, which begins where the other ended. of: the levels of the whole."""

    def function(model: Any, x: Tensor, *given: Any, **named: Any) -> Tensor:
        _tell_levels(model, of)
        model.is_under_way = True  # on the host's wrapper, which it makes anew for every sampling
        return sampler.sampler_function(model, left[-1].to(x), *given, **named)

    return _with_function(sampler, function)


def _tell_levels(model: Any, levels: Tensor) -> None:
    """To masks that grow with the sampling (Differential Diffusion): from the first level of the whole to its last."""
    model.sigmas = levels.to(model.sigmas)


def _counting(callback: Callable[..., None] | None, *, start: int, of: int) -> Callable[..., None] | None:
    """What a part of the steps tells the host, as steps of the whole."""
    if callback is None:
        return None
    return lambda step, x0, x, _total: callback(start + step, x0, x, of)


def _seed_of_second(sampler: Any, seed: int | None) -> int | None:
    """Ours draw by seed and level. Others would draw once more what they drew in the first part.

    But ddim, which draws nothing else, fills what a mask keeps with noise that the host makes of the seed.
    """
    fills_by_seed = (getattr(sampler, "inpaint_options", None) or {}).get("random", False)
    if seed is None or fills_by_seed or getattr(sampler.sampler_function, "draws_by_level", False):
        return seed
    return (seed + 1) % 2**64
