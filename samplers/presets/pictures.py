"""Recipes of flow models of pictures."""

from __future__ import annotations

import dataclasses
import math

from ..schedules import flux2_mu
from .preset import TEMPLATES, Preset, flow, in_steps, listed

_FLUX = "huggingface.co/black-forest-labs/FLUX.1-schnell; github.com/black-forest-labs/flux"
_HYPER = "huggingface.co/ByteDance/Hyper-SD; arXiv 2404.13686"
_ALPHA = "huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha: 8 steps, guidance_scale 3.5, lora_scale 1"
_HYPER_SD3 = ((4, 3.0), (8, 5.0), (16, 7.0))
"""Steps and cfg."""
_SIMPLE = "ComfyUI: euler with the scheduler simple at the model's shift of 3"
_QWEN = "github.com/ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py"
_VIGGLE = (
    "huggingface.co/Viggle/Qwen-Image-2.1-viggle-turbo: its nodes behind Qwen-Image-2.1's own shift, which grows with the "
    "picture, and nothing at the end"
)
_QWEN21_LIGHTNING = (
    "huggingface.co/lightx2v/Qwen-Image-2.1-Lightning: four steps, dynamic exponential shifting, no terminal stretching"
)
_QWEN21 = "huggingface.co/Qwen/Qwen-Image-2.1-Turbo, model_index.json: sample_sigmas"
_Z = "huggingface.co/Tongyi-MAI/Z-Image-Turbo, discussion 158; diffusers ZImagePipeline"
_Z_FUN = "huggingface.co/alibaba-pai/Z-Image-Fun-Lora-Distill: scheduler simple; Tongyi-MAI/Z-Image, scheduler_config: shift 3"
_KREA = "github.com/krea-ai/krea-2, README: --steps 8 --cfg 0.0 --mu 1.15"
_KREA_4 = "huggingface.co/lvladikov/Krea2-Turbo-Distill-4step-LoRA: Euler, guidance 0, at Krea 2 Turbo's own shift"
_KLEIN = "github.com/black-forest-labs/flux2, util.py: num_steps 4, guidance 1; sampling.py: compute_empirical_mu"
_KLEIN3 = "diffusers, Flux3: a constant shift of 6.93"
_FLUX2_TURBO = "huggingface.co/fal/FLUX.2-dev-Turbo: TURBO_SIGMAS as they stand, guidance 2.5"
_FLUX2_DIFFUSERS = "diffusers Flux2Pipeline, which shifts TURBO_SIGMAS once more, here as for 1024 x 1024; guidance 2.5"
_SD35 = "huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo; github.com/Stability-AI/sd3.5, sd3_infer.py"
_ANIMA = "diffusers, Anima: even steps, Euler; ComfyUI's workflow templates"
_ERNIE = (
    "huggingface.co/baidu/ERNIE-Image, scheduler_config.json of the base model: shift 4.0; the turbo's was not seen"
)
_HIDREAM = "github.com/HiDream-ai/HiDream-I1: FlashFlowMatchEulerDiscreteScheduler, shift 6 (dev) and 3 (fast)"
_HIDREAM_O1 = "github.com/ModelTC/LightX2V: flash, noise of 7.6 clipped at 2.5 deviations; ComfyUI's workflow templates"
_MOSS = (
    "huggingface.co/akhaliq/MOSS-Image-SFT-4-steps: Euler on MOSS-Image's own scheduler, timesteps 1000, 910, 717, 24, which "
    "is diffusers' list at shift 5"
)
_HADES = "huggingface.co/DeVilDoNia/HaDeS-MOSS-Turbo: euler with the scheduler simple at the model's shift of 5"
_PID = "ComfyUI, comfy/supported_models.py: the original distill's four levels"
_QWEN_FILE = r"(qwen-image(-edit)?(-\d+)?|firered-image-edit-1-0)-lightning-"
_KLEIN_FILE = "flux-2-klein-(4b|9b)"
_FLUX2_FILE = "flux-?2-?turbo"
_MARIGOLD = "Begins from the picture without noise: connect DisableNoise and the encoded picture."
_UNMERGED = "As a LoRA its authors load it beside the weights, not merged into them: Load LoRA (Bypass)."
_LENS_MU = 1.829
_LENS = "ComfyUI, comfy/supported_models.py: mu 1.829 from 1440 x 1440 on; its workflow templates"
_QWEN21_SIGMAS = "1, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568"
_FLUX2_SIGMAS = "1, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031"


def _qwen(steps: int, *, shift: float, source: str) -> Preset:
    return flow(steps, "QwenImage", source=source, absolute_shift=shift, files=f"{_QWEN_FILE}{steps}steps")


def _viggle(values: str) -> Preset:
    steps = len(values.split(","))
    files = f"qwen-image-2-1-viggle-turbo.*{steps}step"
    return flow(steps, source=_VIGGLE, schedule="qwen_image_21", values=values, files=files, note=_UNMERGED)


def _krea(steps: int, *, source: str, files: str) -> Preset:
    return flow(steps, "Krea2", source=source, absolute_shift=math.exp(1.15), files=files)


def _z_fun(steps: int) -> Preset:
    files = f"z-image-fun-lora-distill-{steps}-steps"
    return flow(steps, "Lumina2", source=_Z_FUN, absolute_shift=3.0, files=files)


def _hyper_flux(steps: int) -> Preset:
    files = f"hyper-flux-1-dev-{steps}steps"
    return flow(steps, "Flux", source=_HYPER, guidance_scale=3.5, lora_strength=0.125, files=files)


def _hyper_sd3(steps: int, *, cfg: float, even: bool = False) -> Preset:
    """The authors' code is diffusers' pipeline with its own scheduler, which shifts twice; even is what SD3's shift means."""
    return flow(
        steps,
        "SD3",
        source=_SIMPLE if even else f"{_HYPER}; diffusers StableDiffusion3Pipeline",
        schedule="trailing" if even else "twice_shifted",
        absolute_shift=3.0,
        cfg=cfg,
        lora_strength=0.125,
        files=f"hyper-sd3-{steps}steps",
    )


def _hades(steps: int, *, files: str) -> Preset:
    return flow(steps, source=_HADES, absolute_shift=5.0, files=files)


def _hidream(steps: int, kind: str, *, shift: float) -> Preset:
    return flow(
        steps,
        "HiDream",
        source=_HIDREAM,
        schedule="twice_shifted",
        sampler="lcm",
        absolute_shift=shift,
        files=f"hidream-i1-{kind}",
    )


def _ernie(shift: float, *, source: str) -> Preset:
    return flow(8, "ErnieImage", source=source, absolute_shift=shift, files="ernie-image-turbo")


_Z_IMAGE = flow(8, "Lumina2", source=_Z, absolute_shift=3.0, files="z-image-turbo")
_FLUX2 = listed(_FLUX2_SIGMAS, "Flux2", source=_FLUX2_TURBO, guidance_scale=2.5, files=_FLUX2_FILE)

PICTURES: dict[str, Preset] = {
    **{f"FLUX.1 schnell, {in_steps(n)}": flow(n, "Flux", source=_FLUX, files="flux1-schnell") for n in (4, 1)},
    **{f"Hyper-FLUX LoRA, {in_steps(n)}": _hyper_flux(n) for n in (8, 16)},
    "FLUX.1 Turbo Alpha LoRA, 8 steps": flow(
        8, "Flux", source=_ALPHA, guidance_scale=3.5, files="flux(-?1)?-turbo-alpha"
    ),
    **{f"Hyper-SD3 LoRA, {in_steps(n)}": _hyper_sd3(n, cfg=cfg) for n, cfg in _HYPER_SD3},
    **{f"Hyper-SD3 LoRA, {in_steps(n)} (even)": _hyper_sd3(n, cfg=cfg, even=True) for n, cfg in _HYPER_SD3},
    "SD3.5-Large-Turbo, 4 steps": flow(
        4, "SD3", source=_SD35, schedule="twice_shifted", absolute_shift=3.0, files="sd3-5-large-turbo"
    ),
    "Z-Image-Turbo, 8 steps": _Z_IMAGE,
    "Z-Image-Turbo, 8 steps (res_multistep, ComfyUI's templates)": dataclasses.replace(
        _Z_IMAGE, sampler="res_multistep", source=TEMPLATES
    ),
    **{f"Z-Image Fun distill LoRA, {in_steps(n)}": _z_fun(n) for n in (2, 4, 8)},
    "Krea 2 Turbo, 8 steps": _krea(8, source=_KREA, files=r"krea-?2-turbo(?!-\dstep)"),
    "Krea 2 Turbo distill LoRA, 4 steps": _krea(4, source=_KREA_4, files="krea-?2-turbo-4step"),
    **{f"Qwen-Image-Lightning, {in_steps(n)}": _qwen(n, shift=3.0, source=_QWEN) for n in (4, 8)},
    **{
        f"Qwen-Image-Lightning, {in_steps(n)} (shift 3.1, ComfyUI's templates)": _qwen(n, shift=3.1, source=TEMPLATES)
        for n in (4, 8)
    },
    "Qwen-Image 2512 Turbo LoRA, 2 steps": flow(
        2, "QwenImage", source=TEMPLATES, absolute_shift=3.0, files="qwen-image-2512-turbo-lora-2steps"
    ),
    "Qwen-Image 2.1 Viggle turbo, 6 steps": _viggle("1, 0.9375, 0.875, 0.75, 0.5, 0.25"),
    "Qwen-Image 2.1 Viggle turbo, 4 steps": _viggle("1, 0.75, 0.5, 0.25"),
    "Qwen-Image 2.1 Lightning, 4 steps": flow(
        4, source=_QWEN21_LIGHTNING, schedule="qwen_image_21", files="qwen-image-2-1-lightning"
    ),
    "Qwen-Image 2.1 Turbo, 8 steps": listed(_QWEN21_SIGMAS, source=_QWEN21, files="qwen-image-2-1-turbo"),
    "FLUX.2 klein, 4 steps": flow(4, "Flux2", source=_KLEIN, schedule="flux2", files=_KLEIN_FILE),
    "FLUX.2 dev Turbo LoRA, 8 steps": _FLUX2,
    "FLUX.2 dev Turbo LoRA, 8 steps (shifted once more, diffusers)": dataclasses.replace(
        _FLUX2, source=_FLUX2_DIFFUSERS, absolute_shift=math.exp(flux2_mu(8, tokens=4096))
    ),
    "FLUX.2 dev Turbo LoRA, 8 steps (even, guidance 4, ComfyUI's templates)": flow(
        8, "Flux2", source=TEMPLATES, schedule="flux2", guidance_scale=4.0, files=_FLUX2_FILE
    ),
    "FLUX.3 klein, 16 steps": flow(16, source=_KLEIN3, absolute_shift=6.93, files="flux-?3-image-klein(?!-base)"),
    "Anima turbo LoRA, 8 steps": flow(8, "Anima", source=_ANIMA, absolute_shift=3.0, files="anima-turbo"),
    "ERNIE-Image turbo, 8 steps (shift 4, base model's scheduler)": _ernie(4.0, source=_ERNIE),
    "ERNIE-Image turbo, 8 steps (shift 3, ComfyUI's templates)": _ernie(3.0, source=TEMPLATES),
    "HiDream-I1 dev, 28 steps": _hidream(28, "dev", shift=6.0),
    "HiDream-I1 fast, 16 steps": _hidream(16, "fast", shift=3.0),
    "HiDream-O1 dev, 28 steps": flow(
        28,
        "HiDreamO1",
        source=_HIDREAM_O1,
        schedule="twice_shifted",
        sampler="lcm",
        absolute_shift=3.0,
        noise_clip=2.5,
        noise_scale=7.6,
        files="hidream-o1-(image-)?dev",
    ),
    "Mage-Flow turbo, 4 steps": flow(4, "MageFlow", source=TEMPLATES, absolute_shift=6.0, files="mage-flow.*turbo"),
    "Lens turbo, 4 steps": flow(4, "Lens", source=_LENS, absolute_shift=math.exp(_LENS_MU), files="lens-turbo"),
    "MOSS-Image 4-step LoRA, 4 steps": flow(
        4, source=_MOSS, schedule="twice_shifted", absolute_shift=5.0, files="moss-image-sft-4-?steps?"
    ),
    "HaDeS MOSS Turbo LoRA, 4 steps": _hades(4, files="hades-moss-turbo(?!-8steps)"),
    "HaDeS MOSS Turbo, 8 steps": _hades(8, files=r"hades-moss-(turbo-8steps|v\d-\d-turbo)"),
    "PiD, 4 steps": listed("0.999, 0.866, 0.634, 0.342", "PiD", source=_PID, sampler="lcm", files="^pid-.*4step"),
    "PiD, 4 steps (shift 1.5, ComfyUI's templates)": flow(
        4, "PiD", source=TEMPLATES, sampler="lcm", absolute_shift=1.5, files="^pid-.*4step"
    ),
    "Marigold v2, 1 step": listed("0.5", "QwenImage", source=TEMPLATES, files="marigold-v2", note=_MARIGOLD),
}
