"""Files are known by their names, as authors and ComfyUI's templates call them, and no file of a base model is."""

import re

import pytest
from comfyui_fewstep.samplers.presets import PRESETS, PUBLISHED, named_by
from comfyui_fewstep.samplers.presets.preset import plain

FIRST = {
    "sdxl_lightning_4step_lora.safetensors": "SDXL-Lightning, 4 steps",
    "sdxl_lightning_1step_x0.safetensors": "SDXL-Lightning, 1 step",
    "sd_xl_turbo_1.0_fp16.safetensors": "SD- or SDXL-Turbo, 1 step",
    "sd_turbo.safetensors": "SD- or SDXL-Turbo, 1 step",
    "lcm-lora-sdxl.safetensors": "LCM or LCM-LoRA, 4 steps",
    "lcm_sdxl_unet.safetensors": "LCM or LCM-LoRA, 4 steps",
    "lcm-ssd-1b.safetensors": "LCM or LCM-LoRA, 4 steps",
    "Hyper-SDXL-8steps-lora.safetensors": "Hyper-SD LoRA, 8 steps",
    "Hyper-SDXL-12steps-CFG-lora.safetensors": "Hyper-SD CFG LoRA, 12 steps",
    "Hyper-SDXL-1step-lora.safetensors": "Hyper-SD unified LoRA, 1 step",
    "Hyper-SDXL-1step-Unet.safetensors": "Hyper-SD UNet, 1 step",
    "dmd2_sdxl_4step_lora_fp16.safetensors": "DMD2, 4 steps",
    "pcm_sdxl_smallcfg_4step_converted.safetensors": "PCM small-CFG LoRA, 4 steps",
    "pcm_sd15_normalcfg_8step_converted.safetensors": "PCM normal-CFG LoRA, 8 steps",
    "pcm_sd15_lcmlike_lora_converted.safetensors": "PCM LCM-like LoRA, 4 steps",
    "flux1-schnell-fp8.safetensors": "FLUX.1 schnell, 4 steps",
    "Hyper-FLUX.1-dev-8steps-lora.safetensors": "Hyper-FLUX LoRA, 8 steps",
    "FLUX.1-Turbo-Alpha.safetensors": "FLUX.1 Turbo Alpha LoRA, 8 steps",
    "flux-turbo-alpha.safetensors": "FLUX.1 Turbo Alpha LoRA, 8 steps",
    "Hyper-SD3-16steps-CFG-lora.safetensors": "Hyper-SD3 LoRA, 16 steps",
    "sd3.5_large_turbo.safetensors": "SD3.5-Large-Turbo, 4 steps",
    "z_image_turbo_bf16.safetensors": "Z-Image-Turbo, 8 steps",
    "z-image-turbo-Q4_K_M.gguf": "Z-Image-Turbo, 8 steps",
    "Z-Image-Fun-Lora-Distill-2-Steps-2603-ComfyUI.safetensors": "Z-Image Fun distill LoRA, 2 steps",
    "Z-Image-Fun-Lora-Distill-4-Steps-2602-ComfyUI.safetensors": "Z-Image Fun distill LoRA, 4 steps",
    "Z-Image-Fun-Lora-Distill-8-Steps-2602_UDCAI_ComfyUI.safetensors": "Z-Image Fun distill LoRA, 8 steps",
    "krea2_turbo_fp8_scaled.safetensors": "Krea 2 Turbo, 8 steps",
    "krea2_turbo_distill_8step_r128.safetensors": "Krea 2 Turbo, 8 steps",
    "krea2_turbo_4step_rank_64_lora_latest_comfyui.safetensors": "Krea 2 Turbo distill LoRA, 4 steps",
    "Qwen-Image-2.1-viggle-turbo-v0.3-6step-lora-r256.safetensors": ("Qwen-Image 2.1 Viggle turbo, 6 steps"),
    "Qwen-Image-2.1-viggle-turbo-4step-lora-r64.safetensors": "Qwen-Image 2.1 Viggle turbo, 4 steps",
    "Qwen-Image-2.1-Lightning.safetensors": "Qwen-Image 2.1 Lightning, 4 steps",
    "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors": "Qwen-Image-Lightning, 4 steps",
    "Qwen-Image-Lightning-8steps-V1.0.safetensors": "Qwen-Image-Lightning, 8 steps",
    "FireRed-Image-Edit-1.0-Lightning-8steps-v1.0.safetensors": "Qwen-Image-Lightning, 8 steps",
    "Wuli-Qwen-Image-2512-Turbo-LoRA-2steps-V1.0-bf16.safetensors": "Qwen-Image 2512 Turbo LoRA, 2 steps",
    "qwen_image_2.1_turbo_int8_convrot.safetensors": "Qwen-Image 2.1 Turbo, 8 steps",
    "flux-2-klein-9b-kv-fp8.safetensors": "FLUX.2 klein, 4 steps",
    "Flux_2-Turbo-LoRA_comfyui.safetensors": "FLUX.2 dev Turbo LoRA, 8 steps",
    "Flux2TurboComfyv2.safetensors": "FLUX.2 dev Turbo LoRA, 8 steps",
    "flux3-image-klein-int8-convrot.safetensors": "FLUX.3 klein, 16 steps",
    "anima-turbo-lora-v0.2.safetensors": "Anima turbo LoRA, 8 steps",
    "ernie-image-turbo.safetensors": "ERNIE-Image turbo, 8 steps (shift 4, base model's scheduler)",
    "hidream_i1_dev_fp8.safetensors": "HiDream-I1 dev, 28 steps",
    "hidream_i1_fast_fp8.safetensors": "HiDream-I1 fast, 16 steps",
    "hidream_o1_image_dev_fp8_scaled.safetensors": "HiDream-O1 dev, 28 steps",
    "mage_flow_edit_turbo_int8_convrot.safetensors": "Mage-Flow turbo, 4 steps",
    "lens_turbo_bf16.safetensors": "Lens turbo, 4 steps",
    "moss_image_sft_4_steps_lora_v2_600_avg_rank_72_bf16.safetensors": "MOSS-Image 4-step LoRA, 4 steps",
    "HaDeS-MOSS-Turbo-Diverse-v0.6.safetensors": "HaDeS MOSS Turbo LoRA, 4 steps",
    "HaDeS-MOSS-Turbo-8steps-v0.7.safetensors": "HaDeS MOSS Turbo, 8 steps",
    "HaDeS_MOSS_v1.0_Turbo.safetensors": "HaDeS MOSS Turbo, 8 steps",
    "pid_flux1_1024_to_4096_4step_bf16.safetensors": "PiD, 4 steps",
    "marigold_v2_normals.safetensors": "Marigold v2, 1 step",
    "ltxv-13b-0.9.8-distilled.safetensors": "LTX-Video distilled, 8 steps",
    "ltx-2-19b-distilled-lora-384.safetensors": "LTX-2 or 2.3 distilled, stage 1, 8 steps",
    "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors": "LTX-2 or 2.3 distilled, stage 1, 8 steps",
    "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot.safetensors": "LTX-2.5 distilled, stage 1, 8 steps",
    "minimax_h3_fl2v_turbo_4step_v1.1_768p_comfyui_bf16.safetensors": "MiniMax H3 Turbo LoRA, 4 steps",
    "minimax_h3_ref2v_turbo_8step_v1.0_768p_bf16.safetensors": "MiniMax H3 Turbo LoRA, 8 steps",
    "minimax_h3_fl2v_turbo_8step_v1.0_comfyui_bf16.safetensors": "MiniMax H3 Turbo LoRA of 544p, 8 steps",
    "minimax_h3_ref2v_turbo_4step_v0.1_comfyui_bf16.safetensors": "MiniMax H3 Turbo LoRA of 544p, 4 steps",
    "minimax_h3_fl2v_lightx2v_turbo_4step_v0.1_comfy.safetensors": "MiniMax H3 Turbo LoRA of 544p, 4 steps",
    "MiniMax-H3-Ref2VA-Acc-8Step_pruned_comfy.safetensors": "MiniMax H3 PDD LoRA, 8 steps",
    "minimax_h3_hyperflow_8step_v1.0.safetensors": "MiniMax H3 HyperFlow LoRA, 8 steps",
    "fastvideo_fasth3_8step_v2_pruned_int8_convrot.safetensors": "FastH3, 8 steps",
    "fasth3_omniref_8step_pruned_int8_convrot.safetensors": "FastH3 OmniRef, 8 steps (ComfyUI's templates)",
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": "Wan 2.1 or 2.2 lightx2v, 4 steps",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors": "Wan 2.2 lightx2v, image to video, 4 steps",
    "Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_250928_rank128_fp16.safetensors": "Wan 2.1 or 2.2 lightx2v, 4 steps",
    "Wan2.2-Lightning_I2V-A14B-4steps-lora_LOW_fp16.safetensors": "Wan 2.2 lightx2v, image to video, 4 steps",
    "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors": "Wan 2.1 or 2.2 lightx2v, 4 steps",
    "wan2.2_bernini_r_high_noise_fp8_scaled.safetensors": (
        "Wan 2.2 Bernini-R, 6 steps (res_multistep at shift 8, ComfyUI's templates)"
    ),
    "wan_animate_2_distill_int8_convrot.safetensors": "Wan-Animate 2 distilled, 10 steps (LCM, ComfyUI's templates)",
    "chronoedit_distill_lora.safetensors": "ChronoEdit distilled, 4 steps (uni_pc, ComfyUI's templates)",
    "Wan21_CausVid_14B_T2V_lora_rank32.safetensors": "CausVid, 3 steps",
    "Wan2_1_self_forcing_dmd.safetensors": "Self-Forcing or Causal-Forcing, whole clips, 4 steps",
    "rCM_Wan2.1_T2V_1.3B_480p.safetensors": "rCM on Wan 2.1, 4 steps",
    "rCM_Wan2.2_I2V_A14B_720p_high.safetensors": "rCM on Wan 2.2, 4 steps",
    "FastWan2.1_T2V_14B_480p_lora.safetensors": "FastWan, 3 steps",
    "hunyuanvideo1.5_480p_i2v_step_distilled_bf16.safetensors": "HunyuanVideo 1.5 step-distilled, 8 steps",
    "fast-hunyuan-video-t2v-720p.safetensors": "FastHunyuan, 6 steps",
    "seedvr2_3b_int8_convrot.safetensors": "SeedVR2, 1 step",
    "acestep_v1.5_xl_turbo_bf16.safetensors": "ACE-Step 1.5 turbo, 8 steps",
    "ace_step_1.5_turbo_aio.safetensors": "ACE-Step 1.5 turbo, 8 steps",
    "stable_audio_3_medium.safetensors": "Stable Audio 3, 8 steps",
}
BASE = [
    "sd_xl_base_1.0.safetensors",
    "v1-5-pruned-emaonly.safetensors",
    "flux1-dev-fp8.safetensors",
    "flux1-fill-dev.safetensors",
    "flux-2-klein-base-9b-fp8.safetensors",
    "flux3-image-klein-base-int8-convrot.safetensors",
    "flux2_dev_fp8mixed.safetensors",
    "z_image_bf16.safetensors",
    "qwen_image_2512_fp8_e4m3fn.safetensors",
    "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
    "FireRed-Image-Edit-1.1-transformer.safetensors",
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    "wan2.1_vace_14B_fp16.safetensors",
    "wan_animate_2_int8_convrot.safetensors",
    "ltx-2.3-22b-dev-fp8.safetensors",
    "ltx-2-19b-dev.safetensors",
    "minimax_h3_fl2va_pruned_int8_convrot.safetensors",
    "hidream_i1_full_fp8.safetensors",
    "hidream_o1_image_fp8_scaled.safetensors",
    "anima-base-v1.0.safetensors",
    "ernie-image.safetensors",
    "krea2_darkbrush.safetensors",
    "krea2_turbo_3step_rank_64_lora_comfyui.safetensors",  # no base model, but of levels that nobody has published
    "mage_flow_edit_int8_convrot.safetensors",
    "hunyuanvideo1.5_720p_t2v_fp16.safetensors",
]


@pytest.mark.parametrize("file", FIRST)
def test_a_file_of_a_known_family_is_known_by_its_name(file):
    assert named_by(file)[0] == FIRST[file]
    assert named_by(f"sub/{file.upper()}") == named_by(f"sub\\{file}") == named_by(file)


@pytest.mark.parametrize("file", BASE)
def test_a_file_of_a_base_model_is_not(file):
    assert named_by(file) == []


def test_every_family_has_a_file_that_is_tested():
    """A recipe that is never the first is another way to sample the same file, and so it is named beside the first."""
    assert {recipe for file in FIRST for recipe in named_by(file)} >= set(PRESETS) - TOO_RARE


TOO_RARE = {
    "SDXL-Lightning, 2 steps",
    "SDXL-Lightning, 8 steps",
    "Hyper-SD LoRA, 2 steps",
    "Hyper-SD LoRA, 4 steps",
    "Hyper-SD CFG LoRA, 8 steps",
    "DMD2, 1 step",
    "TCD-LoRA, 4 steps",
    *(f"PCM small-CFG LoRA, {n} steps" for n in (2, 8, 16)),
    *(f"PCM normal-CFG LoRA, {n} steps" for n in (4, 16)),
    "Hyper-FLUX LoRA, 16 steps",
    *(f"Hyper-SD3 LoRA, {n} steps{way}" for n in (4, 8) for way in ("", " (even)")),
    *(f"HunyuanVideo 1.5 super-resolution, {n} steps" for n in (6, 8)),
    "HunyuanVideo 1.5 lightx2v, 4 steps",
}
"""Named like one that is tested, but for a number."""


def test_plain_names():
    assert plain(r"loras\SDXL_Lightning 4step.LoRA.safetensors") == "sdxl-lightning-4step-lora"


def test_every_published_hash_has_its_recipe():
    """The hash of a file proposes what the name proposes that its authors gave it."""
    assert all(len(digest) == 64 and int(digest, 16) for digest in PUBLISHED)
    assert len(set(PUBLISHED.values())) == len(PUBLISHED)
    steps = {name: {PRESETS[recipe].steps for recipe in named_by(name)} for name in PUBLISHED.values()}
    for name, found in steps.items():
        told = re.search(r"(\d+)step", name)
        assert found == ({int(told[1])} if told else {4} if "TCD" in name else {4, 8}), name
