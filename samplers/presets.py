"""How well-known few-step models want to be sampled. Every row names where its convention is published.

A cfg of 1 is no guidance in ComfyUI; the sources call it guidance_scale 0 or cfg 0.
"""

from __future__ import annotations

import dataclasses

_LIGHTNING = "huggingface.co/ByteDance/SDXL-Lightning; arXiv 2402.13929"
_HYPER = "huggingface.co/ByteDance/Hyper-SD; arXiv 2404.13686"
_DMD2 = "github.com/tianweiy/DMD2; arXiv 2405.14867"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """sampler: lightning, lcm, tcd or consistency, as the nodes are called. schedule, steps, values: of Few-Step Schedule.

    prediction: when the network's output is not what the base model's is. lcm_boundary: LCM's scalings on top of it.
    """

    sampler: str
    schedule: str
    steps: int
    source: str
    values: str = ""
    eta: float = 0.3
    prediction: str | None = None
    lcm_boundary: bool = False
    unit_variance_start: bool = False
    cfg: float = 1.0


def _lightning(steps: int) -> Preset:
    prediction = "x0" if steps == 1 else None
    return Preset(sampler="lightning", schedule="trailing", steps=steps, prediction=prediction, source=_LIGHTNING)


PRESETS: dict[str, Preset] = {
    "LCM or LCM-LoRA, 4 steps": Preset(
        sampler="lcm", schedule="lcm", steps=4, lcm_boundary=True, source="arXiv 2310.04378; diffusers LCMScheduler"
    ),
    "LCM or LCM-LoRA, 8 steps": Preset(
        sampler="lcm", schedule="lcm", steps=8, lcm_boundary=True, source="arXiv 2310.04378; diffusers LCMScheduler"
    ),
    **{f"SDXL-Lightning, {n} step{'s' if n > 1 else ''}": _lightning(n) for n in (1, 2, 4, 8)},
    "SD- or SDXL-Turbo, 1 step": Preset(
        sampler="lightning", schedule="turbo", steps=1, source="huggingface.co/stabilityai/sdxl-turbo; arXiv 2311.17042"
    ),
    **{
        f"Hyper-SD LoRA, {n} steps": Preset(sampler="lightning", schedule="trailing", steps=n, source=_HYPER)
        for n in (2, 4, 8)
    },
    "Hyper-SD unified LoRA, 1 step": Preset(sampler="tcd", schedule="tcd", steps=1, eta=1.0, source=_HYPER),
    "Hyper-SD UNet, 1 step": Preset(
        sampler="consistency", schedule="timesteps", steps=1, values="800", unit_variance_start=True, source=_HYPER
    ),
    "DMD2, 4 steps": Preset(sampler="lcm", schedule="dmd2", steps=4, source=_DMD2),
    "DMD2, 1 step": Preset(sampler="consistency", schedule="dmd2", steps=1, unit_variance_start=True, source=_DMD2),
    "TCD-LoRA, 4 steps": Preset(
        sampler="tcd", schedule="tcd", steps=4, eta=0.3, source="huggingface.co/h1t/TCD-SDXL-LoRA; arXiv 2402.19159"
    ),
}
