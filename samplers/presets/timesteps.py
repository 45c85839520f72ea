"""Recipes of Stable Diffusion 1.5, 2 and XL: models of training timesteps."""

from __future__ import annotations

import dataclasses

from .preset import Preset, in_steps

_LCM = "arXiv 2310.04378; diffusers LCMScheduler"
_LIGHTNING = "huggingface.co/ByteDance/SDXL-Lightning; arXiv 2402.13929"
_TURBO = "huggingface.co/stabilityai/sdxl-turbo; arXiv 2311.17042; ComfyUI's SDTurboScheduler with euler_ancestral"
_HYPER = "huggingface.co/ByteDance/Hyper-SD; arXiv 2404.13686"
_DMD2 = "github.com/tianweiy/DMD2; arXiv 2405.14867"
_TCD = "huggingface.co/h1t/TCD-SDXL-LoRA; arXiv 2402.19159"
_PCM = "github.com/G-U-N/Phased-Consistency-Model, demo/app.py; arXiv 2405.18407"
_TURBO_CARD = "huggingface.co/stabilityai/sdxl-turbo and sd-turbo, scheduler_config.json: timestep_spacing trailing"
_HYPER_FILE = "hyper-sd(xl|15)"
_TURBO_FILE = "sd-?xl-turbo"


def _lcm(steps: int, *, files: str = "lcm-(lora|dreamshaper|sdxl|ssd-1b)", source: str = _LCM) -> Preset:
    return Preset(sampler="lcm", schedule="lcm", steps=steps, lcm_boundary=True, source=source, files=files)


def _lightning(steps: int) -> Preset:
    prediction = "x0" if steps == 1 else None
    files = f"sdxl-lightning-{steps}step"
    return Preset(
        sampler="lightning", schedule="trailing", steps=steps, prediction=prediction, source=_LIGHTNING, files=files
    )


def _turbo(steps: int) -> Preset:
    files = f"{_TURBO_FILE}|sd-turbo"
    return Preset(sampler="ancestral", eta=1.0, schedule="turbo", steps=steps, source=_TURBO, files=files)


def _hyper(steps: int, *, cfg: float = 1.0) -> Preset:
    files = f"{_HYPER_FILE}-{steps}steps-{'lora' if cfg == 1.0 else 'cfg-lora'}"
    return Preset(sampler="lightning", schedule="trailing", steps=steps, cfg=cfg, source=_HYPER, files=files)


def _pcm(steps: int, *, cfg: float = 1.0) -> Preset:
    """The authors' demo runs diffusers' TCDScheduler through a pipeline, which sets eta to 0."""
    files = f"pcm-sd(xl|15)-{'small' if cfg == 1.0 else 'normal'}cfg-{steps}step"
    return Preset(sampler="tcd", schedule="tcd", steps=steps, eta=0.0, cfg=cfg, source=_PCM, files=files)


def _sd_turbo(steps: int) -> Preset:
    return dataclasses.replace(_hyper(steps), source=_TURBO_CARD, files="sd-turbo")


TIMESTEPS: dict[str, Preset] = {
    "LCM or LCM-LoRA, 4 steps": _lcm(4),
    "LCM or LCM-LoRA, 8 steps": _lcm(8),
    **{f"SDXL-Lightning, {in_steps(n)}": _lightning(n) for n in (1, 2, 4, 8)},
    **{f"SD- or SDXL-Turbo, {in_steps(n)}": _turbo(n) for n in (1, 2, 4)},
    **{
        f"SDXL-Turbo, {in_steps(n)} (model card's list)": dataclasses.replace(
            _turbo(n), schedule="trailing", source=_TURBO_CARD, files=_TURBO_FILE
        )
        for n in (2, 4)
    },
    **{f"SD-Turbo, {in_steps(n)} (model card's list)": _sd_turbo(n) for n in (2, 4)},
    **{f"Hyper-SD LoRA, {in_steps(n)}": _hyper(n) for n in (2, 4, 8)},
    **{f"Hyper-SD CFG LoRA, {in_steps(n)}": _hyper(n, cfg=5.0) for n in (8, 12)},
    "Hyper-SD unified LoRA, 1 step": Preset(
        sampler="tcd", schedule="tcd", steps=1, eta=1.0, source=_HYPER, files=f"{_HYPER_FILE}-1step-lora"
    ),
    "Hyper-SD UNet, 1 step": Preset(
        sampler="consistency",
        schedule="timesteps",
        steps=1,
        values="800",
        unit_variance_start=True,
        source=_HYPER,
        files=f"{_HYPER_FILE}-1step-unet",
    ),
    "DMD2, 4 steps": Preset(sampler="lcm", schedule="dmd2", steps=4, source=_DMD2, files="dmd2-sdxl-4step"),
    "DMD2, 1 step": Preset(
        sampler="consistency",
        schedule="dmd2",
        steps=1,
        unit_variance_start=True,
        source=_DMD2,
        files="dmd2-sdxl-1step",
    ),
    "TCD-LoRA, 4 steps": Preset(sampler="tcd", schedule="tcd", steps=4, eta=0.3, source=_TCD, files="tcd-(sd|lora)"),
    **{f"PCM small-CFG LoRA, {in_steps(n)}": _pcm(n) for n in (2, 4, 8, 16)},
    **{f"PCM normal-CFG LoRA, {in_steps(n)}": _pcm(n, cfg=7.5) for n in (4, 8, 16)},
    "PCM LCM-like LoRA, 4 steps": _lcm(4, source=_PCM, files="pcm-.*lcmlike"),
}
