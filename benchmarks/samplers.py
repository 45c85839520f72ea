"""What our samplers cost beside the model: over bare model calls, the host's samplers and a diffusers loop, as ratios.

Every round runs all contenders once, one after the other, and a ratio is the median over rounds of that round's ratio, so
that a machine that slows down slows all of them. Writes benchmarks/results/samplers.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..samplers.noise import NoiseFamily
from ..samplers.schedules import trailing_sigmas
from .scenes.engine.machine import RESULTS

FAMILY = NoiseFamily.VARIANCE_EXPLODING


def contenders(*, steps: int, batch: int) -> dict[str, Callable[[], Tensor]]:
    """Name to a function that samples once with the digits network, all on the same schedule from the same noise."""
    from diffusers import EulerDiscreteScheduler

    from ..commands.embedded import import_host

    import_host()
    import comfy.k_diffusion.sampling as theirs

    from ..nodes import host
    from ..nodes.demo import digits_model

    network = digits_model.load_teacher().model
    table = host.models.noise_levels(network.model_sampling)
    sigmas = trailing_sigmas(steps, table=table)
    noise = torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    start = noise * (1.0 + sigmas[0] ** 2) ** 0.5
    condition = {"c_crossattn": torch.zeros(batch, 1, 1), "y": torch.eye(10)[torch.arange(batch) % 10]}
    denoiser = host.training.as_denoiser(network)
    # the host's lcm asks its model for its noise scaling, two objects down
    inner = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=network.model_sampling))

    class Model:
        inner_model = inner

        def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return denoiser(x, sigma, **condition)

    model = Model()
    fresh = {"noise_sampler": lambda *_: noise}

    def bare() -> Tensor:
        x = start
        for sigma in sigmas[:-1]:
            x = model(start, sigma.expand(batch))
        return x

    def diffusers_loop() -> Tensor:
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        )
        scheduler.set_timesteps(steps)
        x = start
        for i, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)
            x0 = model(x, sigmas[i].expand(batch))
            x = scheduler.step((x - x0) / sigmas[i], t, x).prev_sample
        return x

    def ours(gamma: float) -> Callable[[], Tensor]:
        options: dict[str, Any] = dict(fresh) if gamma else {}
        return lambda: sample_few_step(model, start, sigmas, disable=True, family=FAMILY, gamma=gamma, **options)

    return {
        "bare model calls": bare,
        "our Lightning": ours(0.0),
        "the host's euler": lambda: theirs.sample_euler(model, start, sigmas, disable=True),
        "our LCM": ours(1.0),
        "the host's lcm": lambda: theirs.sample_lcm(model, start, sigmas, disable=True, **fresh),
        "diffusers' Euler loop": diffusers_loop,
    }


def measure(functions: dict[str, Callable[[], Tensor]], *, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with torch.inference_mode():
        for function in functions.values():
            function()
        for turn in range(rounds):
            # the order turns round, so that none is always the one after a slow one
            names = list(functions)[turn % len(functions) :] + list(functions)[: turn % len(functions)]
            for name in names:
                begin = time.perf_counter()
                functions[name]()
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch.py bench samplers", description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    seconds = measure(contenders(steps=options.steps, batch=options.batch), rounds=options.rounds)

    def ratio(over: str, under: str) -> str:
        ratios = sorted(a / b for a, b in zip(seconds[over], seconds[under], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        return f"| {over} over {under} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |"

    page = "\n".join(
        [
            "# What sampling costs beside the model",
            "",
            f"`python launch.py bench samplers --steps {options.steps} --batch {options.batch} --rounds {options.rounds}`: "
            f"the digits network, {1000 * statistics.median(seconds['bare model calls']) / options.steps:.1f} ms a call, on "
            f"{platform.platform()}, {os.cpu_count()} CPU cores.",
            "",
            "| ratio of times | median | middle half of the rounds |",
            "|---|--:|--:|",
            ratio("our Lightning", "bare model calls"),
            ratio("our LCM", "bare model calls"),
            ratio("our Lightning", "the host's euler"),
            ratio("our LCM", "the host's lcm"),
            ratio("our Lightning", "diffusers' Euler loop"),
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "samplers.md").write_text(page, encoding="utf-8")
    print(page)
