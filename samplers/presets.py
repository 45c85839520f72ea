"""How well-known few-step models want to be sampled. Every row names where its convention is published.

A cfg of 1 is no guidance in ComfyUI; the sources call it guidance_scale 0 or cfg 0. PCM's and Hyper-SD's CFG LoRAs keep
ordinary guidance, two forwards a step.
"""

from __future__ import annotations

import dataclasses

from .noise import NoiseFamily

_LCM = "arXiv 2310.04378; diffusers LCMScheduler"
_LIGHTNING = "huggingface.co/ByteDance/SDXL-Lightning; arXiv 2402.13929"
_TURBO = "huggingface.co/stabilityai/sdxl-turbo; arXiv 2311.17042; ComfyUI's SDTurboScheduler with euler_ancestral"
_HYPER = "huggingface.co/ByteDance/Hyper-SD; arXiv 2404.13686"
_DMD2 = "github.com/tianweiy/DMD2; arXiv 2405.14867"
_PCM = "github.com/G-U-N/Phased-Consistency-Model, demo/app.py; arXiv 2405.18407"
_FLUX = "huggingface.co/black-forest-labs/FLUX.1-schnell; github.com/black-forest-labs/flux"
_QWEN = "github.com/ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py"
_LTX = "github.com/Lightricks/LTX-2, ltx_pipelines/utils/constants.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """sampler: lightning, lcm, tcd or consistency, as the nodes are called, or ancestral (ComfyUI's euler_ancestral).

    schedule, steps, values, shift: of Few-Step Schedule. prediction: when the network's output is not what the base
    model's is. lcm_boundary: LCM's scalings on top of it. cfg: of the guider; 1 is one forward a step.
    guidance_scale: for a model with a guidance input, what goes in there.
    """

    sampler: str
    schedule: str
    steps: int
    source: str
    family: NoiseFamily = NoiseFamily.VARIANCE_EXPLODING
    values: str = ""
    shift: float = 1.0
    eta: float = 0.3
    prediction: str | None = None
    lcm_boundary: bool = False
    unit_variance_start: bool = False
    cfg: float = 1.0
    guidance_scale: float | None = None


def _n(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _lcm(steps: int) -> Preset:
    return Preset(sampler="lcm", schedule="lcm", steps=steps, lcm_boundary=True, source=_LCM)


def _lightning(steps: int) -> Preset:
    prediction = "x0" if steps == 1 else None
    return Preset(sampler="lightning", schedule="trailing", steps=steps, prediction=prediction, source=_LIGHTNING)


def _turbo(steps: int) -> Preset:
    return Preset(sampler="ancestral", schedule="turbo", steps=steps, source=_TURBO)


def _hyper(steps: int, *, cfg: float = 1.0) -> Preset:
    return Preset(sampler="lightning", schedule="trailing", steps=steps, cfg=cfg, source=_HYPER)


def _pcm(steps: int, *, cfg: float = 1.0) -> Preset:
    """The authors' demo runs diffusers' TCDScheduler through a pipeline, which sets eta to 0."""
    return Preset(sampler="tcd", schedule="tcd", steps=steps, eta=0.0, cfg=cfg, source=_PCM)


def _flow(steps: int, *, source: str, guidance_scale: float | None = None) -> Preset:
    """Even steps from 1 on the model's own shift."""
    return Preset(
        sampler="lightning",
        schedule="trailing",
        steps=steps,
        family=NoiseFamily.FLOW,
        source=source,
        guidance_scale=guidance_scale,
    )


def _qwen(steps: int) -> Preset:
    """Even steps from 1 on the shift that the distillation fixed, whatever the model's own is."""
    even = ", ".join(str(k / steps) for k in range(steps, 0, -1))
    return dataclasses.replace(_flow(steps, source=_QWEN), schedule="sigmas", values=even, shift=3.0)


PRESETS: dict[str, Preset] = {
    "LCM or LCM-LoRA, 4 steps": _lcm(4),
    "LCM or LCM-LoRA, 8 steps": _lcm(8),
    **{f"SDXL-Lightning, {_n(n)}": _lightning(n) for n in (1, 2, 4, 8)},
    **{f"SD- or SDXL-Turbo, {_n(n)}": _turbo(n) for n in (1, 2, 4)},
    **{f"Hyper-SD LoRA, {_n(n)}": _hyper(n) for n in (2, 4, 8)},
    **{f"Hyper-SD CFG LoRA, {_n(n)}": _hyper(n, cfg=5.0) for n in (8, 12)},
    "Hyper-SD unified LoRA, 1 step": Preset(sampler="tcd", schedule="tcd", steps=1, eta=1.0, source=_HYPER),
    "Hyper-SD UNet, 1 step": Preset(
        sampler="consistency", schedule="timesteps", steps=1, values="800", unit_variance_start=True, source=_HYPER
    ),
    "DMD2, 4 steps": Preset(sampler="lcm", schedule="dmd2", steps=4, source=_DMD2),
    "DMD2, 1 step": Preset(sampler="consistency", schedule="dmd2", steps=1, unit_variance_start=True, source=_DMD2),
    "TCD-LoRA, 4 steps": Preset(
        sampler="tcd", schedule="tcd", steps=4, eta=0.3, source="huggingface.co/h1t/TCD-SDXL-LoRA; arXiv 2402.19159"
    ),
    **{f"PCM small-CFG LoRA, {_n(n)}": _pcm(n) for n in (2, 4, 8, 16)},
    **{f"PCM normal-CFG LoRA, {_n(n)}": _pcm(n, cfg=7.5) for n in (4, 8, 16)},
    "PCM LCM-like LoRA, 4 steps": dataclasses.replace(_lcm(4), source=_PCM),
    **{f"FLUX.1 schnell, {_n(n)}": _flow(n, source=_FLUX) for n in (1, 4)},
    **{f"Hyper-FLUX LoRA, {_n(n)}": _flow(n, source=_HYPER, guidance_scale=3.5) for n in (8, 16)},
    **{f"Qwen-Image-Lightning, {_n(n)}": _qwen(n) for n in (4, 8)},
    "LTX-Video distilled, 8 steps": dataclasses.replace(
        _flow(8, source=_LTX),
        schedule="sigmas",
        values="1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875",
    ),
}
