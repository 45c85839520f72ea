"""The teacher's solvers at a number of network calls, which is what a user pays: a guided step costs two for each evaluation.

DDIM is `sample_few_step`; Heun, DPM++ 2M and UniPC are the host's own functions, on the host's convention x = x0 + sigma noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ....samplers.few_step import sample_few_step
from ....samplers.noise import Denoiser, NoiseFamily, guided
from ....trainers.objective.grid import Grid
from ..engine.machine import device
from .network import noise_levels

FAMILY = NoiseFamily.VARIANCE_EXPLODING
CHUNK = 256
"""Pictures that are drawn at once."""
CALLS = (1, 2, 4, 8, 16, 32)


class Solver(NamedTuple):
    """walk: of the k-diffusion shape. evaluations: of the denoiser in n steps. least: steps that it can do with."""

    walk: Callable[..., Tensor]
    evaluations: Callable[[int], int]
    least: int = 1


class Setting(NamedTuple):
    """How the teacher is sampled. grid: a value of Grid."""

    solver: str
    steps: int
    guidance_scale: float
    grid: str

    @property
    def calls(self) -> int:
        """Of the network for one picture."""
        return solvers()[self.solver].evaluations(self.steps) * (1 if self.guidance_scale == 1.0 else 2)

    def __str__(self) -> str:
        return f"{self.solver}, {self.steps} steps, guidance {self.guidance_scale:g}, {self.grid}"


@functools.cache
def solvers() -> dict[str, Solver]:
    """By name. ComfyUI is imported on the first call."""
    from ....commands.embedded import import_host

    import_host()
    import comfy.extra_samplers.uni_pc as uni_pc
    import comfy.k_diffusion.sampling as host

    return {
        "DDIM": Solver(functools.partial(sample_few_step, family=FAMILY, gamma=0.0), lambda n: n),
        "Heun": Solver(host.sample_heun, lambda n: 2 * n - 1),
        "DPM++ 2M": Solver(host.sample_dpmpp_2m, lambda n: n),
        "UniPC": Solver(uni_pc.sample_unipc, lambda n: n, 2),
    }


def setting(solver: str, calls: int, *, guidance_scale: float, grid: str) -> Setting | None:
    """With as many steps as the calls allow; None where they allow none."""
    each = 1 if guidance_scale == 1.0 else 2
    evaluations, least = solvers()[solver].evaluations, solvers()[solver].least
    steps = max((n for n in range(1, calls + 1) if each * evaluations(n) <= calls), default=0)
    return Setting(solver, steps, guidance_scale, grid) if steps >= least else None


class Counted:
    """A denoiser that counts the rows that its network sees."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self.rows = denoiser, 0

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        self.rows += len(x)
        return self._denoiser(x, sigma, **condition)


@torch.no_grad()
def draw(denoiser: Denoiser, chosen: Setting, *, noise: Tensor, captions: Tensor) -> Tensor:
    """Latents (N, 12, 8, 8) of noise and captions (N, 30). ValueError if it took other calls than it says."""
    counted = Counted(denoiser)
    empty = {"y": torch.zeros(1, captions.shape[1], device=device())}
    model = guided(counted, guidance_scale=chosen.guidance_scale, unconditional=empty)
    sigmas = Grid(chosen.grid).sigmas(chosen.steps, table=noise_levels()).to(device())
    walk, found = solvers()[chosen.solver].walk, []
    for part, y in zip(noise.split(CHUNK), captions.split(CHUNK), strict=True):
        start, condition = FAMILY.initial(part.to(device()), sigma=sigmas[0]), {"y": y.to(device())}
        found.append(walk(model, start, sigmas.clone(), condition, disable=True))  # UniPC writes into the levels
    if counted.rows != chosen.calls * len(noise):
        raise ValueError(f"{chosen} took {counted.rows / len(noise)} network calls for a picture, not {chosen.calls}.")
    return torch.cat(found).cpu()


def noise(count: int, *, seed: int) -> Tensor:
    """Unit noise (count, 12, 8, 8). Tuning and test use other seeds."""
    return torch.randn(count, 12, 8, 8, generator=torch.Generator().manual_seed(seed))
