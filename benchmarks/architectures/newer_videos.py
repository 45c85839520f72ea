"""Newer architectures of video and sound, tiny: what goes on from a picture, follows a video or a voice, or sings."""

from __future__ import annotations

from typing import Any

import torch

from .pictures import COSMOS, HUNYUAN, Network
from .setup import TOKENS, Architecture, Noise, Ones
from .videos import COGVIDEO, FRAMES, PICTURE_TO_VIDEO, WAN


class Seen(Noise):
    """What the host's CLIP Vision says of a picture."""

    def draw(self, batch: int, generator: torch.Generator) -> Any:
        from comfy.clip_vision import Output

        seen = Output()
        seen.penultimate_hidden_states = super().draw(batch, generator)
        return seen


# few of its 257 tokens, which are nothing beside a real video's: they would be most of what a tiny network holds
SEEN = {"clip_vision_output": Seen((3, 1280))}
REFERENCE = {"reference_latents": [Noise((16, 1, 4, 6))]}
EIGHTS = (3, 8, 8)  # of a motion's oldest frames, eight values by eight are one token
MOCHI: Network = {
    "image_model": "mochi_preview",
    "depth": 2,
    "patch_size": 2,
    "num_heads": 4,
    "hidden_size_x": 64,
    "hidden_size_y": 32,
    "mlp_ratio_x": 192.0,  # 12288 values, which the host asserts
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 32,
    "t5_token_length": TOKENS,
    "rope_theta": 10000.0,
}
COSMOS_1: Network = COSMOS | {
    "image_model": "cosmos",
    "affline_emb_norm": True,
    "block_x_format": "THWBD",
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
MINIMAX_H3: Network = {
    "image_model": "minimax_h3",
    "hidden_size": 64,
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_hidden_size": 96,
    "text_dim": 32,
    "timestep_input_dim": 32,
    "time_embed_hidden_size": 48,
    "time_embed_dim": 32,
    "rope_inv_freq_len": 4,
}
NEWER_VIDEOS = {
    "wan_vace": Architecture(
        "WAN21_Vace",
        WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        FRAMES,
        32,
        options={
            "vace_frames": [Noise((32, *FRAMES[1:]))],
            "vace_mask": [Noise((64, *FRAMES[1:]))],
            "vace_strength": [0.9],
        },
        deep={"vace_layers": 4},
    ),
    "wan_animate": Architecture(
        "WAN22_Animate",
        WAN | {"model_type": "animate", "in_dim": 36},
        FRAMES,
        32,
        options={**PICTURE_TO_VIDEO, **SEEN, "pose_video_latent": Noise((16, 2, 4, 6))},
    ),
    "wan_fun_control": Architecture(
        "WAN21_FunControl2V",
        WAN | {"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        FRAMES,
        32,
        options={"concat_latent_image": Noise((32, *FRAMES[1:])), **SEEN, **REFERENCE},
    ),
    "wan_camera": Architecture(
        "WAN21_Camera",
        WAN | {"model_type": "camera", "in_dim": 32},
        FRAMES,
        32,
        options={"concat_latent_image": Noise(FRAMES), **SEEN, "camera_conditions": Noise((24, 3, 32, 48))},
    ),
    "wan22_camera": Architecture(
        "WAN22_Camera",
        WAN | {"model_type": "camera_2.2", "in_dim": 36},
        FRAMES,
        32,
        options={**PICTURE_TO_VIDEO, "camera_conditions": Noise((24, 3, 32, 48))},
    ),
    "wan_s2v": Architecture(
        "WAN22_S2V",
        WAN | {"model_type": "s2v", "audio_dim": 32, "audio_inject_layers": [0, 1]},
        (16, *EIGHTS),
        32,
        options={
            "audio_embed": Noise((25, 32, 12)),
            "control_video": Noise((16, *EIGHTS)),
            "reference_latents": [Noise((16, 1, 8, 8))],
            "reference_motion": Noise((16, 19, 8, 8)),
        },
        deep={"audio_inject_layers": [0, 4]},
    ),
    "hunyuan_video_i2v": Architecture(
        "HunyuanVideoI2V",
        HUNYUAN | {"in_channels": 33},
        FRAMES,
        32,
        pooled=24,
        options={"guidance": 6.0, **PICTURE_TO_VIDEO},
    ),
    "mochi": Architecture("GenmoMochi", MOCHI, (12, 3, 4, 6), 32, options={"attention_mask": Ones((TOKENS,))}),
    "cosmos_predict2_i2v": Architecture(
        "CosmosI2VPredict2", COSMOS | {"image_model": "cosmos_predict2", "in_channels": 17}, FRAMES, 1024
    ),
    "wan_humo": Architecture(
        "WAN21_HuMo",
        WAN | {"model_type": "humo", "in_dim": 36},
        (16, 2, 16, 16),  # beside a picture this large what it hears, of sizes that the host fixes, is not the most
        32,
        options={"audio_embed": Noise((2, 8, 5, 1280)), "reference_latents": [Noise((16, 1, 16, 16))]},
    ),
    "cogvideox_i2v": Architecture(
        "CogVideoX_I2V",
        COGVIDEO | {"in_channels": 32},
        FRAMES,
        32,
        options={"concat_latent_image": Noise(FRAMES)},
        samplers_own={"sampling": "v_prediction", "zsnr": True},
    ),
    "hunyuan_video_skyreels": Architecture(
        "HunyuanVideoSkyreelsI2V",
        HUNYUAN | {"in_channels": 32},
        FRAMES,
        32,
        pooled=24,
        options={"guidance": 6.0, "concat_latent_image": Noise(FRAMES)},
    ),
    "wan_causal_ar": Architecture("WAN21_CausalAR_T2V", WAN | {"causal_ar": True}, FRAMES, 32),
    "wan_scail": Architecture(
        "WAN21_SCAIL",
        WAN | {"model_type": "scail", "in_dim": 20},
        FRAMES,
        32,
        options={**SEEN, **REFERENCE, "pose_video_latent": Noise((16, 3, 2, 4))},
    ),
    "cosmos_i2v": Architecture("CosmosI2V", COSMOS_1 | {"in_channels": 17}, FRAMES, 1024),
    # sizes and blocks are the host's own: all but one of 36 are left out
    "minimax_music3": Architecture(
        "MiniMaxMusic3",
        {"audio_model": "minimax_music3"},
        (128, 27),
        32768,
        encoder="diffusion_transformer.transformer.layers",
        options={"conditioning_scale": Noise((1, 1))},
    ),
    "minimax_h3": Architecture("MiniMaxH3", MINIMAX_H3, (), 32, streams=((24, 2, 4, 4), (32, 2, 8)), at_once=1),
}
