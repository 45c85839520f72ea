"""Schedules: lists of timesteps, and the noise levels that a model's table gives them.

A schedule is a 1-D tensor of noise levels, descending, ending in 0. Timesteps are indices into the model's table of
levels (for ComfyUI's discrete models `model_sampling.sigmas`, ascending, 1000 of them). A share is a part of the model's
whole range of levels: 1 is its largest level, 0 is no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What a model can be sampled at.

    table: its noise levels (T,), ascending. flow: the level of a share, for flow models, whose formula is exact between the
    levels of the table too. has_timesteps: whether the table is that of training timesteps.
    """

    table: Tensor
    flow: Callable[[Tensor], Tensor] | None = None
    has_timesteps: bool = True

    def at(self, shares: Tensor) -> Tensor:
        """The noise levels (n,) of shares (n,): by the formula, or from the table, log-linear between two of its levels.

        Share (t + 1) / T is timestep t. A share of 0 is level 0; shares below the smallest level's are that level.
        """
        shares = shares.double()
        if self.flow is not None:
            return self.flow(shares).float()
        table = self.table.cpu().float()
        position = (shares * len(table) - 1.0).clamp(min=0.0)
        whole = position.round()
        position = torch.where((position - whole).abs() < 1e-6, whole, position)
        low, high = table[position.floor().long()], table[position.ceil().long()]
        between = torch.lerp(low.double().log(), high.double().log(), position.frac()).exp().float()
        return torch.where(low == high, low, between) * (shares > 0.0)


def even_shares(steps: int) -> Tensor:
    """(steps + 1,) from 1 to 0: linspace, as flow models are sampled, before any shift."""
    _require_steps(steps, most=10**6, what="a schedule")
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def timestep_shares(timesteps: list[int]) -> Tensor:
    """(n + 1,) of a published list and a final 0: thousandths, whatever the length of a model's table.

    A list that begins with 1000 counts from 1 to 1000 (1000, 750, 500, 250), every other from 0 to 999 (999, 749, 499, 249);
    both of these are 1, 0.75, 0.5, 0.25.
    """
    if timesteps and max(timesteps) > 1000:
        raise ValueError(
            f"timestep {max(timesteps)} is above 1000, the largest; timesteps are thousandths of a model's range."
        )
    first = 0 if timesteps[:1] == [1000] else 1
    thousandths = [t + first for t in timesteps]
    return torch.tensor(thousandths if thousandths[-1:] == [0] else [*thousandths, 0], dtype=torch.float64) / 1000.0


def _require_steps(steps: int, *, most: int, what: str) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; {what} allows 1 to {most}.")


def _require_range(sigma_min: float, sigma_max: float) -> None:
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; needed is 0 < sigma_min < sigma_max.")


def trailing_timesteps(steps: int, *, train_timesteps: int = 1000) -> list[int]:
    """Evenly spaced, from the last training timestep down: SDXL-Lightning, Hyper-SD's N-step files, progressive students.

    t = round(T, T - T/n, ...) - 1 (Lin et al. 2023, "Common Diffusion Noise Schedules", table 2), as in diffusers'
    `timestep_spacing="trailing"`. 4 steps: [999, 749, 499, 249].
    """
    _require_steps(steps, most=train_timesteps, what=f"a trailing schedule of {train_timesteps} training timesteps")
    # numpy's arange, whose own rounding decides the ties (937.5 at 48 steps) as it did when the models were sampled
    spaced = np.arange(train_timesteps, 0, -train_timesteps / steps)[:steps]
    return [int(t) - 1 for t in spaced.round()]


def lcm_timesteps(
    steps: int, *, original_steps: int = 50, train_timesteps: int = 1000, strength: float = 1.0
) -> list[int]:
    """LCM's skipping-step list (Luo et al. 2023, section 4.3): `steps` of the grid that the student was distilled on.

    The grid is k*j - 1 with k = T // original_steps, j = 1 .. floor(original_steps * strength); from it, reversed,
    evenly spaced indices are taken, the last grid point excluded, as in diffusers' LCMScheduler.
    4 steps: [999, 759, 499, 259].

    strength: share of the grid that is used, for image-to-image; 1 starts from pure noise.
    """
    if not 1 <= original_steps <= train_timesteps:
        raise ValueError(f"original_steps is {original_steps}; allowed is 1 to {train_timesteps}.")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength is {strength}; allowed is above 0 up to 1.")
    grid = math.floor(original_steps * strength)
    if grid < 1:
        raise ValueError(f"strength {strength} of {original_steps} original steps leaves no step; raise the strength.")
    _require_steps(steps, most=grid, what=f"an LCM schedule of {original_steps} original steps at strength {strength}")
    stride = train_timesteps // original_steps
    skipped = np.floor(np.linspace(0, grid, num=steps, endpoint=False)).astype(int)
    return [int(stride * (grid - k) - 1) for k in skipped]


def timesteps_to_sigmas(timesteps: list[int], *, table: Tensor) -> Tensor:
    """The noise levels (n + 1,) of the timesteps, looked up in the model's ascending table (T,), and a final 0."""
    if timesteps and max(timesteps) >= len(table):
        raise ValueError(f"timestep {max(timesteps)} is outside this model's {len(table)} noise levels.")
    levels = table.cpu().float()[timesteps]
    return torch.cat([levels, levels.new_zeros(1)])


def trailing_sigmas(steps: int, *, table: Tensor) -> Tensor:
    """The trailing schedule (steps + 1,) on a model's ascending table of noise levels (T,)."""
    return timesteps_to_sigmas(trailing_timesteps(steps, train_timesteps=len(table)), table=table)


def even_sigmas(steps: int, *, levels: Levels) -> Tensor:
    """(steps + 1,) even in the model's range: by the formula of a flow model, else the trailing timesteps of its table.

    Of a table that holds a part of the training timesteps (ModelSamplingDiscrete with lcm: 50) between its levels, where the
    authors' lists are.
    """
    if (
        levels.flow is None
        and levels.has_timesteps
        and steps <= TRAIN_TIMESTEPS
        and len(levels.table) < TRAIN_TIMESTEPS
    ):
        return levels.at(timestep_shares(trailing_timesteps(steps)))
    if levels.flow is None and steps <= len(levels.table):
        return trailing_sigmas(steps, table=levels.table)
    return levels.at(even_shares(steps))


def twice_shifted_sigmas(steps: int, *, levels: Levels) -> Tensor:
    """(steps + 1,) of a flow model: even from its largest to its smallest level, shifted once more, and a final 0.

    The smallest is the first of its table and is itself shifted already: diffusers' FlowMatchEulerDiscreteScheduler without
    sigmas of the caller's, and ComfyUI's normal scheduler. So SD3.5-Large-Turbo (stability-ai/sd3.5, sd3_infer.py) and
    HiDream-I1. 4 steps at shift 3: 1, 0.8577, 0.6022, 0.0089.
    """
    lowest = float(levels.at(torch.tensor([1.0 / len(levels.table)])))
    return torch.cat([levels.at(torch.linspace(1.0, lowest, steps, dtype=torch.float64)), torch.zeros(1)])


def flux2_mu(steps: int, *, tokens: int) -> float:
    """FLUX.2's mu, the log of its shift, for a picture of so many tokens (black-forest-labs/flux2, compute_empirical_mu).

    Two lines in the tokens, fitted at 10 and at 200 steps, and between them a line in the steps; above 4300 tokens the second.
    tokens: of 16 x 16 pixels.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190.0 * (steps - 200.0)


def qwen_image_21_mu(*, tokens: int) -> float:
    """Qwen-Image 2.1's mu, the log of its shift, for a picture of so many tokens: 0.5 at 256, 0.9 at 8192, and on that line.

    Qwen/Qwen-Image-2.1, scheduler_config.json, and calculate_shift of diffusers' QwenImage21Pipeline. tokens: of 16 x 16 pixels.
    """
    return 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)


def log_snr_shares(steps: int, *, first: float = -6.2, last: float = 2.0) -> Tensor:
    """(steps + 1,) levels of a flow model even in log((1 - sigma) / sigma), the ends then set to 1 and 0.

    As Stable Audio 3 is sampled (diffusers' StableAudio3 pipeline); stable-audio-tools begins at -6 instead of -6.2.
    """
    _require_steps(steps, most=10**6, what="a log-SNR schedule")
    levels = torch.sigmoid(-torch.linspace(first, last, steps + 1, dtype=torch.float64))
    levels[0], levels[-1] = 1.0, 0.0
    return levels


def turbo_timesteps(steps: int) -> list[int]:
    """SDXL-Turbo's and SD-Turbo's list: the first `steps` of 999, 899, .., 99 (Sauer et al. 2023; ComfyUI's SDTurboScheduler)."""
    _require_steps(steps, most=10, what="a Turbo schedule")
    return [999 - 100 * k for k in range(steps)]


def dmd2_timesteps(steps: int) -> list[int]:
    """DMD2's lists (Yin et al. 2024, released SDXL models): 4 steps 999, 749, 499, 249; 1 step 399, at unit variance."""
    lists = {1: [399], 4: [999, 749, 499, 249]}
    if steps not in lists:
        raise ValueError(f"steps is {steps}; DMD2 models were made for 1 or 4 steps.")
    return lists[steps]


def consistency_sigmas(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, train_levels: int = 40, rho: float = 7.0
) -> Tensor:
    """(steps + 1,) for consistency models: every (train_levels // steps)th of the levels they were distilled on, and a 0.

    The levels are even in sigma^(1/rho) (Karras et al. 2022, equation 5; Song et al. 2023, section 3), as in diffusers'
    CMStochasticIterativeScheduler.
    """
    _require_steps(steps, most=train_levels, what=f"a consistency schedule of {train_levels} trained levels")
    _require_range(sigma_min, sigma_max)
    ramp = torch.arange(steps, dtype=torch.float64) * (train_levels // steps) / max(train_levels - 1, 1)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)]).float()


def cosine_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """(steps + 1,) levels even in the angle of alpha = cos(pi/2 t), where sigma = tan(pi/2 t) (Salimans and Ho 2022, section 2).

    t is confined to the model's levels as in the authors' code, which maps [0, 1] linearly between the angles of its two
    ends: sigma(i) = tan(a + (b - a) i / steps), a = atan(sigma_min), b = atan(sigma_max), for i = steps .. 1, and a final 0
    in place of sigma_min. So no level is outside of the model's, none is doubled, and every second level of 2 * steps is
    the schedule of steps.
    """
    _require_range(sigma_min, sigma_max)
    low, high = math.atan(sigma_min), math.atan(sigma_max)
    parts = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    levels = torch.tan(low + (high - low) * parts).float().clamp(sigma_min, sigma_max)
    return torch.cat([levels, levels.new_zeros(1)])


def karras_sigmas(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """(steps + 1,) levels even in sigma^(1/rho), from sigma_max to sigma_min, and a final 0 (Karras et al. 2022, equation 5)."""
    _require_range(sigma_min, sigma_max)
    levels = consistency_sigmas(steps, sigma_min=sigma_min, sigma_max=sigma_max, train_levels=steps, rho=rho)
    levels[:-1].clamp_(sigma_min, sigma_max)
    return levels


def shifted_sigmas(sigmas: Tensor, *, shift: float) -> Tensor:
    """A flow schedule bent towards noise: shift s / (1 + (shift - 1) s) (Esser et al. 2024, section 5.3.2); 1 leaves it."""
    if shift <= 0.0:
        raise ValueError(f"shift is {shift}; it must be above 0.")
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def parse_numbers(text: str, *, name: str) -> list[float]:
    """A typed list, commas or spaces between. ValueError naming the input when it is empty, no numbers or not falling."""
    parts = text.replace(",", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise ValueError(
            f"{name} is {text!r}; give numbers with commas between, 999, 749, 499, 249 for example."
        ) from error
    if not numbers or not all(map(math.isfinite, numbers)) or min(numbers) < 0.0:
        raise ValueError(f"{name} is {text!r}; give at least one number, none of them negative.")
    if any(later >= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(f"{name} is {text!r}; the numbers must fall from each to the next.")
    return numbers
