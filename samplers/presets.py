"""How well-known few-step models want to be sampled. Every row names where its convention is published.

A cfg of 1 is no guidance in ComfyUI; the sources call it guidance_scale 0 or cfg 0. PCM's and Hyper-SD's CFG LoRAs keep
ordinary guidance, two forwards a step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

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
_LTX25 = "github.com/Lightricks/LTX-2, ltx_pipelines/distilled.py: ancestral at eta 1 from version 2.5 on, then Euler"
_TURBO_CARD = "huggingface.co/stabilityai/sdxl-turbo and sd-turbo, scheduler_config.json: timestep_spacing trailing"
_H3 = "huggingface.co/lightx2v/Minimax-h3-Turbo, discussion 42 (4 steps); github.com/ModelTC/LightX2V, configs/minimax_h3/dmd"
_TEMPLATES = "ComfyUI's workflow templates"
_WAN = (
    "github.com/ModelTC/LightX2V, configs/distill/wan21 and wan22: 1000, 750, 500, 250 at sample_shift 5; "
    "github.com/Wan-Video/Wan2.2, wan/configs: boundary 0.875 from text, 0.9 from a picture"
)
_FASTWAN = "github.com/hao-ai-lab/FastVideo, DMD timesteps 1000, 757, 522"
_Z = "huggingface.co/Tongyi-MAI/Z-Image-Turbo, discussion 158; diffusers ZImagePipeline"
_KREA = "github.com/krea-ai/krea-2, README: --steps 8 --cfg 0.0 --mu 1.15"
_KLEIN = "github.com/black-forest-labs/flux2, util.py: num_steps 4, guidance 1; sampling.py: compute_empirical_mu"
_FLUX2_TURBO = "huggingface.co/fal/FLUX.2-dev-Turbo: TURBO_SIGMAS as they stand, guidance 2.5"
_QWEN21 = "huggingface.co/Qwen/Qwen-Image-2.1-Turbo, model_index.json: sample_sigmas"
_ACE = "github.com/ace-step/ACE-Step-1.5, acestep/training/trainer.py: TURBO_SHIFT3_TIMESTEPS"
_AUDIO = "huggingface.co/docs/diffusers, Stable Audio 3: ping-pong, 8 steps, log-SNR from -6.2 to 2"
_SD35 = "huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo; github.com/Stability-AI/sd3.5, sd3_infer.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """sampler: lightning, lcm, tcd, consistency or ancestral, as the nodes are called. eta: of tcd and ancestral.

    schedule, steps, values, absolute_shift: of Few-Step Schedule. prediction: when the network's output is not what the
    base model's is. lcm_boundary: LCM's scalings on top of it. cfg: of the guider; 1 is one forward a step.
    guidance_scale: for a model with a guidance input, what goes in there. audio_shift: the model is patched to it, and to
    absolute_shift for its pictures. models: the host's classes of the family, where it is told from others by them.
    lora_strength: of the speed LoRA, where its authors ask for another than 1. boundary: two experts share the steps, the one
    for high noise takes the levels from it up. then: the recipe of the second stage.
    """

    sampler: str
    schedule: str
    steps: int
    source: str
    family: NoiseFamily = NoiseFamily.VARIANCE_EXPLODING
    values: str = ""
    eta: float = 0.3
    prediction: str | None = None
    lcm_boundary: bool = False
    unit_variance_start: bool = False
    cfg: float = 1.0
    guidance_scale: float | None = None
    absolute_shift: float = 0.0
    audio_shift: float | None = None
    models: tuple[str, ...] = ()
    lora_strength: float = 1.0
    boundary: float | None = None
    then: str | None = None

    def told(self) -> list[str]:
        """What a user must know beside the levels, a sentence each."""
        said = []
        if self.lora_strength != 1.0:
            said.append(f"Load the speed LoRA at strength {self.lora_strength:g}.")
        if self.boundary is not None:
            said.append(f"Two experts: high noise from {self.boundary:g} up, low noise below; see Two Experts.")
        if self.then is not None:
            said.append(f"Then enlarge the latent and go on with {self.then!r}.")
        return said


def _n(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _lcm(steps: int) -> Preset:
    return Preset(sampler="lcm", schedule="lcm", steps=steps, lcm_boundary=True, source=_LCM)


def _lightning(steps: int) -> Preset:
    prediction = "x0" if steps == 1 else None
    return Preset(sampler="lightning", schedule="trailing", steps=steps, prediction=prediction, source=_LIGHTNING)


def _turbo(steps: int) -> Preset:
    return Preset(sampler="ancestral", eta=1.0, schedule="turbo", steps=steps, source=_TURBO)


def _hyper(steps: int, *, cfg: float = 1.0) -> Preset:
    return Preset(sampler="lightning", schedule="trailing", steps=steps, cfg=cfg, source=_HYPER)


def _pcm(steps: int, *, cfg: float = 1.0) -> Preset:
    """The authors' demo runs diffusers' TCDScheduler through a pipeline, which sets eta to 0."""
    return Preset(sampler="tcd", schedule="tcd", steps=steps, eta=0.0, cfg=cfg, source=_PCM)


def _flow(steps: int, *models: str, source: str, schedule: str = "trailing", **named: Any) -> Preset:
    """Even steps from 1 on the model's own shift, Euler, where nothing else is named."""
    named = {"sampler": "lightning", "models": models, **named}
    return Preset(schedule=schedule, steps=steps, family=NoiseFamily.FLOW, source=source, **named)


def _listed(values: str, *models: str, source: str, **named: Any) -> Preset:
    """The authors' own noise levels."""
    return _flow(len(values.split(",")), *models, source=source, schedule="sigmas", values=values, **named)


def _h3(steps: int, *, shift: float, source: str) -> Preset:
    return _flow(steps, "MiniMaxH3", source=source, absolute_shift=shift, audio_shift=3.0)


_LTX_STAGE_2 = "0.909375, 0.725, 0.421875"
_LTX_THEN = "LTX-2 or 2.3 distilled, stage 2, 3 steps"
_LTX25_THEN = "LTX-2.5 distilled, stage 2, 3 steps"
_LTX_STAGE_1 = f"1, 0.99375, 0.9875, 0.98125, 0.975, {_LTX_STAGE_2}"
_FLUX2_SIGMAS = "1, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031"
_QWEN21_SIGMAS = "1, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568"

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
    **{f"FLUX.1 schnell, {_n(n)}": _flow(n, "Flux", source=_FLUX) for n in (1, 4)},
    **{
        f"Hyper-FLUX LoRA, {_n(n)}": _flow(n, "Flux", source=_HYPER, guidance_scale=3.5, lora_strength=0.125)
        for n in (8, 16)
    },
    **{f"Qwen-Image-Lightning, {_n(n)}": _flow(n, "QwenImage", source=_QWEN, absolute_shift=3.0) for n in (4, 8)},
    "LTX-Video distilled, 8 steps": _listed(_LTX_STAGE_1, "LTXV", "LTXAV", source=_LTX),
    **{
        f"SDXL-Turbo, {_n(n)} (model card's list)": dataclasses.replace(
            _turbo(n), schedule="trailing", source=_TURBO_CARD
        )
        for n in (2, 4)
    },
    **{f"SD-Turbo, {_n(n)} (model card's list)": dataclasses.replace(_hyper(n), source=_TURBO_CARD) for n in (2, 4)},
    **{f"MiniMax H3 Turbo LoRA, {_n(n)}": _h3(n, shift=6.0, source=_H3) for n in (4, 8)},
    "MiniMax H3 Turbo LoRA, 8 steps (shift 12, ComfyUI's templates)": _h3(8, shift=12.0, source=_TEMPLATES),
    "LTX-2 or 2.3 distilled, stage 1, 8 steps": _listed(_LTX_STAGE_1, "LTXAV", source=_LTX, then=_LTX_THEN),
    _LTX_THEN: _listed(_LTX_STAGE_2, "LTXAV", source=_LTX),
    "LTX-2.5 distilled, stage 1, 8 steps": _listed(
        _LTX_STAGE_1, "LTXAV", source=_LTX25, sampler="ancestral", eta=1.0, then=_LTX25_THEN
    ),
    _LTX25_THEN: _listed(_LTX_STAGE_2, "LTXAV", source=_LTX25),
    "Z-Image-Turbo, 8 steps": _flow(8, "Lumina2", source=_Z, absolute_shift=3.0),
    "Wan 2.1 or 2.2 lightx2v, 4 steps": _flow(4, "WAN21", source=_WAN, absolute_shift=5.0, boundary=0.875),
    "Wan 2.2 lightx2v, image to video, 4 steps": _flow(4, "WAN21", source=_WAN, absolute_shift=5.0, boundary=0.9),
    "FastWan, 3 steps": _listed("1, 0.757, 0.522", "WAN21", source=_FASTWAN, sampler="lcm"),
    "Krea 2 Turbo, 8 steps": _flow(8, "Krea2", source=_KREA, absolute_shift=math.exp(1.15)),
    **{
        f"Qwen-Image-Lightning, {_n(n)} (shift 3.1, ComfyUI's templates)": _flow(
            n, "QwenImage", source=_TEMPLATES, absolute_shift=3.1
        )
        for n in (4, 8)
    },
    "Qwen-Image 2.1 Turbo, 8 steps": _listed(_QWEN21_SIGMAS, source=_QWEN21),
    "FLUX.2 klein, 4 steps": _flow(4, "Flux2", source=_KLEIN, schedule="flux2"),
    "FLUX.2 dev Turbo LoRA, 8 steps": _listed(_FLUX2_SIGMAS, "Flux2", source=_FLUX2_TURBO, guidance_scale=2.5),
    "ACE-Step 1.5 turbo, 8 steps": _flow(8, "ACEStep15", source=_ACE, absolute_shift=3.0),
    "Stable Audio 3, 8 steps": _flow(8, "StableAudio3", source=_AUDIO, schedule="log_snr", sampler="lcm"),
    "SD3.5-Large-Turbo, 4 steps": _flow(4, "SD3", source=_SD35, schedule="twice_shifted", absolute_shift=3.0),
}


def family_named_by(classes: Iterable[str]) -> str | None:
    """Of a model's classes, the most derived first, the one that a recipe is told by; None where no recipe knows it."""
    known = {name for preset in PRESETS.values() for name in preset.models}
    return next((name for name in classes if name in known), None)
