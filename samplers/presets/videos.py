"""Recipes of flow models of video and sound."""

from __future__ import annotations

import dataclasses
from typing import Any

from .preset import TEMPLATES, Preset, flow, in_steps, listed, without_penultimate

_LTX = "github.com/Lightricks/LTX-2, ltx_pipelines/utils/constants.py"
_LTX25 = "github.com/Lightricks/LTX-2, ltx_pipelines/distilled.py: ancestral at eta 1 from version 2.5 on, then Euler"
_H3 = "huggingface.co/lightx2v/Minimax-h3-Turbo, discussions 42 (4 steps) and 48 (8 steps): of 768p"
_H3_544P = "github.com/ModelTC/Minimax-H3-Turbo, README, model specs: shifts 12 and 3 where not of 768p"
_H3_FILE = "minimax-h3-(fl2v|ref2v).*turbo-{0}step"
_HYPERFLOW = "github.com/Video-Rebirth/hyperflow, hyperflow_h3/schedule.py: nine levels before the shifts, 12 and 3"
_HYPERFLOW_LIST = "1, 0.931506, 0.839236, 0.703462, 0.5, 0.296538, 0.160764, 0.068494"
_HYPERFLOW_NOTE = (
    "It was trained to be told where each step ends, too, which needs its authors' code or a node of its own."
)
_PDD = (
    "github.com/Comfy-Org/ComfyUI/pull/15908 and github.com/roadmaus/ComfyUI-Continuity/issues/34, of "
    "huggingface.co/alibaba-pai/MiniMax-H3-Acc-LoRAs: Euler, even steps at shifts 12 and 3"
)
_PDD_NOTE = "Its heads, one for each part of the way, are loaded by ComfyUI of September 2026 or later alone."
_FASTH3 = "huggingface.co/FastVideo/FastVideo-FastH3-8-Step-V2: eight forwards, shifts 10 and 3"
_WAN = (
    "github.com/ModelTC/LightX2V, configs/distill/wan21 and wan22: 1000, 750, 500, 250 at sample_shift 5; "
    "github.com/Wan-Video/Wan2.2, wan/configs: boundary 0.875 from text, 0.9 from a picture"
)
_FASTWAN = "github.com/hao-ai-lab/FastVideo, DMD timesteps 1000, 757, 522"
_CAUSVID = "github.com/tianweiy/CausVid, configs: timesteps 1000, 757, 522, as they stand"
_SELF_FORCING = (
    "github.com/guandeh17/Self-Forcing and Causal-Forcing, configs: 1000, 750, 500, 250, shift 5, noised afresh"
)
_RCM = "github.com/NVlabs/rcm, wan2pt1_t2v_rcm_infer.py: sigma_max 80, then 1.5, 1.4, 1.0"
_RCM22 = "github.com/NVlabs/rcm: sigma_max 200, then 1.5, 1.4, 1.0; boundary 0.9"
_HUNYUAN15 = "github.com/Tencent-Hunyuan/HunyuanVideo-1.5, commons: shift 7, guidance 1; super-resolution at shift 2"
_HUNYUAN15_LIGHT = "github.com/ModelTC/LightX2V: HunyuanVideo 1.5, 4 steps at shift 5"
_FASTHUNYUAN = "huggingface.co/FastVideo/FastHunyuan: shift 17, guidance 6"
_ACE = "github.com/ace-step/ACE-Step-1.5, acestep/training/trainer.py: TURBO_SHIFT3_TIMESTEPS"
_AUDIO = "huggingface.co/docs/diffusers, Stable Audio 3: ping-pong, 8 steps, log-SNR from -6.2 to 2"

_LTX_STAGE_2 = "0.909375, 0.725, 0.421875"
_LTX_TEMPLATES = "0.85, 0.725, 0.4219"
_LTX_STAGE_1 = f"1, 0.99375, 0.9875, 0.98125, 0.975, {_LTX_STAGE_2}"
_LTX_THEN = "LTX-2 or 2.3 distilled, stage 2, 3 steps"
_LTX25_THEN = "LTX-2.5 distilled, stage 2, 3 steps"
_LTX_FILE = r"ltx-2-(3-)?\d+b-distilled"
_LTX23_FILE = r"ltx-2-3-\d+b-distilled"
_LTX2_FILE = r"ltx-2-\d\db-distilled"
_LTX25_FILE = r"ltx-2-5-\d+b-distilled"
_ANCESTRAL: dict[str, Any] = {"sampler": "ancestral", "eta": 1.0}
_RCM_LIST = (0.933781, 0.852895, 0.608979)
_BERNINI = "The speed LoRA at 3 for high noise, at 1.5 for low."
_WAN22_FILE = "wan-?2-?2.*({0}.*(lightx2v|lightning)|lightning.*{0})"
_LIGHTX2V_FILE = "lightx2v-(t2v|i2v)-14b.*distill"


def _h3(steps: int, *, shift: float, source: str, files: str, **named: Any) -> Preset:
    return flow(steps, "MiniMaxH3", source=source, absolute_shift=shift, audio_shift=3.0, files=files, **named)


def _fasth3(steps: int, *, shift: float, source: str, files: str, **named: Any) -> Preset:
    return _h3(steps, shift=shift, source=source, files=files, **named)


def _ltx(values: str, *, source: str = _LTX, files: str = _LTX_FILE, **named: Any) -> Preset:
    return listed(values, "LTXAV", source=source, files=files, **named)


def _wan(steps: int, *, source: str, files: str, shift: float = 5.0, **named: Any) -> Preset:
    return flow(steps, "WAN21", source=source, absolute_shift=shift, files=files, **named)


def _uni_pc(steps: int, *, shift: float, files: str, **named: Any) -> Preset:
    return without_penultimate(steps, "WAN21", source=TEMPLATES, absolute_shift=shift, files=files, **named)


def _rcm(steps: int) -> Preset:
    values = ", ".join(str(level) for level in (0.987654, *_RCM_LIST)[:steps])
    return listed(values, "WAN21", source=_RCM, sampler="lcm", files="rcm.*wan-?2-1|wan-?2-1.*rcm")


def _hunyuan15(steps: int, *, shift: float, files: str, source: str = _HUNYUAN15, model: str = "") -> Preset:
    return flow(steps, model or "HunyuanVideo15", source=source, absolute_shift=shift, files=files)


_STABLE_AUDIO = flow(8, "StableAudio3", source=_AUDIO, schedule="log_snr", sampler="lcm", files="stable-audio-3")
_FROM_TEMPLATES = "ComfyUI's templates"

VIDEOS: dict[str, Preset] = {
    "LTX-Video distilled, 8 steps": listed(_LTX_STAGE_1, "LTXV", "LTXAV", source=_LTX, files="ltxv.*distilled"),
    "LTX-2 or 2.3 distilled, stage 1, 8 steps": _ltx(_LTX_STAGE_1, then=_LTX_THEN),
    _LTX_THEN: _ltx(_LTX_STAGE_2),
    f"LTX-2.3 distilled, stage 2, 3 steps (from 0.85, {_FROM_TEMPLATES})": _ltx(
        _LTX_TEMPLATES, source=TEMPLATES, files=_LTX23_FILE
    ),
    f"LTX-2 distilled, stage 1, 8 steps (ancestral, {_FROM_TEMPLATES})": _ltx(
        _LTX_STAGE_1, source=TEMPLATES, files=_LTX2_FILE, **_ANCESTRAL
    ),
    f"LTX-2 distilled, stage 2, 3 steps (gradient_estimation, {_FROM_TEMPLATES})": _ltx(
        _LTX_STAGE_2, source=TEMPLATES, files=_LTX2_FILE, sampler="gradient_estimation"
    ),
    f"LTX-2 distilled, stage 2, 3 steps (ancestral, {_FROM_TEMPLATES})": _ltx(
        _LTX_STAGE_2, source=TEMPLATES, files=_LTX2_FILE, **_ANCESTRAL
    ),
    "LTX-2.5 distilled, stage 1, 8 steps": _ltx(
        _LTX_STAGE_1, source=_LTX25, files=_LTX25_FILE, then=_LTX25_THEN, **_ANCESTRAL
    ),
    _LTX25_THEN: _ltx(_LTX_STAGE_2, source=_LTX25, files=_LTX25_FILE),
    f"LTX-2.5 distilled, stage 1, 8 steps (first and last frame: Euler, {_FROM_TEMPLATES})": _ltx(
        _LTX_STAGE_1, source=TEMPLATES, files=_LTX25_FILE
    ),
    f"LTX-2.5 distilled, stage 2, 3 steps (ancestral from 0.85, {_FROM_TEMPLATES})": _ltx(
        _LTX_TEMPLATES, source=TEMPLATES, files=_LTX25_FILE, **_ANCESTRAL
    ),
    **{
        f"MiniMax H3 Turbo LoRA, {in_steps(n)}": _h3(n, shift=6.0, source=_H3, files=f"{_H3_FILE.format(n)}.*768p")
        for n in (4, 8)
    },
    **{
        f"MiniMax H3 Turbo LoRA of 544p, {in_steps(n)}": _h3(
            n, shift=12.0, source=_H3_544P, files=f"^(?!.*768p).*{_H3_FILE.format(n)}"
        )
        for n in (4, 8)
    },
    "MiniMax H3 HyperFlow LoRA, 8 steps": listed(
        _HYPERFLOW_LIST,
        "MiniMaxH3",
        source=_HYPERFLOW,
        absolute_shift=12.0,
        audio_shift=3.0,
        files="hyperflow.*8step",
        note=_HYPERFLOW_NOTE,
    ),
    "MiniMax H3 PDD LoRA, 8 steps": _h3(
        8, shift=12.0, source=_PDD, files="minimax-h3-(fl2v|ref2v)a?-acc-8step", note=_PDD_NOTE
    ),
    **{
        f"MiniMax H3 Turbo LoRA, {in_steps(n)} (res_multistep at shift 12, {_FROM_TEMPLATES})": _h3(
            n, shift=12.0, source=TEMPLATES, sampler="res_multistep", files=_H3_FILE.format(of)
        )
        for n, of in ((4, 4), (6, 8), (8, 8))
    },
    "FastH3, 8 steps": _fasth3(8, shift=10.0, source=_FASTH3, files="fasth3-8step"),
    f"FastH3, 8 steps (res_multistep, {_FROM_TEMPLATES})": _fasth3(
        8, shift=10.0, source=TEMPLATES, files="fasth3-8step", sampler="res_multistep"
    ),
    f"FastH3 OmniRef, 8 steps ({_FROM_TEMPLATES})": _fasth3(8, shift=12.0, source=TEMPLATES, files="fasth3-omniref"),
    "Wan 2.1 or 2.2 lightx2v, 4 steps": _wan(
        4, source=_WAN, boundary=0.875, files=f"{_WAN22_FILE.format('t2v')}|{_LIGHTX2V_FILE}"
    ),
    "Wan 2.2 lightx2v, image to video, 4 steps": _wan(4, source=_WAN, boundary=0.9, files=_WAN22_FILE.format("i2v")),
    f"Wan 2.1 lightx2v, 6 steps ({_FROM_TEMPLATES})": _wan(6, source=TEMPLATES, files=_LIGHTX2V_FILE),
    f"Wan 2.1 lightx2v, 6 steps (LCM, {_FROM_TEMPLATES})": _wan(
        6, source=TEMPLATES, files=_LIGHTX2V_FILE, sampler="lcm"
    ),
    f"Wan 2.1 lightx2v, 6 steps (uni_pc at shift 8, {_FROM_TEMPLATES})": _uni_pc(6, shift=8.0, files=_LIGHTX2V_FILE),
    f"Wan 2.2 lightx2v, sound to video, 4 steps (uni_pc at shift 8, {_FROM_TEMPLATES})": _uni_pc(
        4, shift=8.0, files="wan2-2-t2v.*lightx2v"
    ),
    f"Wan 2.2 Bernini-R, 6 steps (res_multistep at shift 8, {_FROM_TEMPLATES})": _wan(
        6, source=TEMPLATES, files="bernini-r", shift=8.0, sampler="res_multistep", boundary=0.9, note=_BERNINI
    ),
    f"Wan-Animate 2 distilled, 10 steps (LCM, {_FROM_TEMPLATES})": _wan(
        10, source=TEMPLATES, files="wan-animate-2-distill", sampler="lcm"
    ),
    f"ChronoEdit distilled, 4 steps (uni_pc, {_FROM_TEMPLATES})": _uni_pc(4, shift=5.0, files="chrono-?edit-distill"),
    "CausVid, 3 steps": listed("1, 0.757, 0.522", "WAN21", source=_CAUSVID, sampler="lcm", files="causvid"),
    **{
        f"CausVid LoRA, {in_steps(n)} (uni_pc at shift {shift:g}, {_FROM_TEMPLATES})": _uni_pc(
            n, shift=shift, files="causvid", lora_strength=strength
        )
        for n, shift, strength in ((3, 8.0, 0.4), (4, 8.0, 0.3), (6, 5.0, 0.3))
    },
    "FastWan, 3 steps": listed("1, 0.757, 0.522", "WAN21", source=_FASTWAN, sampler="lcm", files="fast-?wan"),
    "Self-Forcing or Causal-Forcing, whole clips, 4 steps": _wan(
        4, source=_SELF_FORCING, files="(self|causal)-?forcing", sampler="lcm"
    ),
    **{f"rCM on Wan 2.1, {in_steps(n)}": _rcm(n) for n in (4, 3, 2, 1)},
    "rCM on Wan 2.2, 4 steps": listed(
        ", ".join(map(str, (0.995025, *_RCM_LIST))),
        "WAN21",
        source=_RCM22,
        sampler="lcm",
        boundary=0.9,
        files="rcm.*wan-?2-2|wan-?2-2.*rcm",
    ),
    **{
        f"HunyuanVideo 1.5 step-distilled, {in_steps(n)}": _hunyuan15(
            n, shift=7.0, files="hunyuanvideo-?1-5.*480p-i2v.*step-distill"
        )
        for n in (8, 12)
    },
    **{
        f"HunyuanVideo 1.5 super-resolution, {in_steps(n)}": _hunyuan15(
            n, shift=2.0, files="hunyuanvideo-?1-5.*sr-distill", model="HunyuanVideo15_SR_Distilled"
        )
        for n in (6, 8)
    },
    "HunyuanVideo 1.5 lightx2v, 4 steps": _hunyuan15(
        4, shift=5.0, files="hunyuanvideo-?1-5.*lightx2v|hy1-5.*lightx2v", source=_HUNYUAN15_LIGHT
    ),
    "FastHunyuan, 6 steps": flow(
        6, "HunyuanVideo", source=_FASTHUNYUAN, absolute_shift=17.0, guidance_scale=6.0, files="fast-?hunyuan"
    ),
    "SeedVR2, 1 step": flow(1, "SeedVR2", source=TEMPLATES, files="seedvr2"),
    "ACE-Step 1.5 turbo, 8 steps": flow(
        8, "ACEStep15", source=_ACE, absolute_shift=3.0, files="ace-?step-(v?1-5).*turbo"
    ),
    "Stable Audio 3, 8 steps": _STABLE_AUDIO,
    f"Stable Audio 3, 8 steps (even at shift 2, {_FROM_TEMPLATES})": dataclasses.replace(
        _STABLE_AUDIO, source=TEMPLATES, schedule="trailing", absolute_shift=2.0
    ),
}
