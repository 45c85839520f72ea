"""Architectures that draw pictures, tiny."""

from __future__ import annotations

from typing import Any

from .setup import DEEP, TOKENS, Architecture, Noise, Ones

Network = dict[str, Any]
SIZE = {"width": 96, "height": 64, "crop_w": 8, "crop_h": 0, "target_width": 96, "target_height": 64}
SMALL, PICTURE = (4, 4, 6), (16, 4, 6)
REFERENCES = {"reference_latents": [Noise((16, 4, 6)), Noise((16, 4, 4))]}
UNET: Network = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "channel_mult": (1, 2),
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_linear_in_transformer": True,
    "num_classes": None,
    "adm_in_channels": None,
    "legacy": False,
}
SDXL: Network = UNET | {
    "model_channels": 32,
    "context_dim": 2048,
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
CASCADE: Network = {"c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_cond": 64}
DEEP_UNET: Network = {"num_res_blocks": [2, 2], "transformer_depth": [1] * 4, "transformer_depth_output": [1] * 6}
DEEP_SDXL: Network = {
    "num_res_blocks": [2, 2],
    "transformer_depth": [0, 0, DEEP, DEEP],
    "transformer_depth_output": [0, 0, 0, DEEP, DEEP, DEEP],
    "transformer_depth_middle": DEEP,
}
PIXART: Network = {
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 4,
    "caption_channels": 32,
    "input_size": 64,
    "pe_interpolation": 1.0,
    "model_max_length": TOKENS,
}
MMDIT: Network = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
}
DEEP_MMDIT: Network = {  # as wide as it is deep
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * DEEP}}
}
FLUX: Network = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX2: Network = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "context_in_dim": 32,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
}
CHROMA: Network = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "context_in_dim": 32,
    "vec_in_dim": None,
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 1,
}
QWEN: Network = {
    "image_model": "qwen_image",
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
LUMINA: Network = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "cap_feat_dim": 32,
    "axes_dims": [4, 6, 6],
    "axes_lens": [64, 64, 64],
}
Z_IMAGE: Network = LUMINA | {
    "dim": 256,
    "n_heads": 16,
    "n_kv_heads": 16,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 4,
}
HUNYUAN: Network = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_IMAGE: Network = HUNYUAN | {
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "axes_dim": [8, 8],
    "patch_size": [1, 1],
    "guidance_embed": False,
}
COSMOS: Network = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 8,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "num_blocks": 2,
    "num_heads": 4,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 1.0,
    "mlp_ratio": 2.0,
}
KANDINSKY: Network = {
    "image_model": "kandinsky5",
    "in_text_dim": 32,
    "in_text_dim2": 24,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 96,
    "visual_embed_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (16, 24, 24),
}
LIKE_OMNIGEN: Network = {
    "hidden_size": 48,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 32,
    "axes_dim_rope": (4, 4, 4),
    "axes_lens": (64, 64, 64),
}
OMNIGEN: Network = LIKE_OMNIGEN | {"image_model": "omnigen2", "text_feat_dim": 32}
HIDREAM: Network = {
    "image_model": "hidream",
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "caption_channels": [32, 32],
    "text_emb_dim": 24,
    "axes_dims_rope": (8, 4, 4),
    "max_resolution": (16, 16),
    "llama_layers": [0, 1],
}
KREA: Network = {
    "image_model": "krea2",
    "features": 64,
    "tdim": 32,
    "txtdim": 32,
    "heads": 2,
    "kvheads": 1,
    "layers": 2,
    "txtlayers": 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
ERNIE: Network = {
    "image_model": "ernie",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_layers": 2,
    "ffn_hidden_size": 96,
    "text_in_dim": 32,
    "rope_axes_dim": (4, 6, 6),
}
AURA: Network = {
    "dim": 64,
    "n_layers": 2,
    "n_double_layers": 1,
    "n_heads": 4,
    "global_conddim": 64,
    "cond_seq_dim": 32,
    "max_seq": 64,
}
HUNYUAN_DIT: Network = {
    "image_model": "hydit",
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 4,
    "text_states_dim": 32,
    "text_states_dim_t5": 24,
    "text_len": TOKENS,
    "text_len_t5": 6,
}
TWO_TEXTS = {
    "attention_mask": Ones((TOKENS,)),
    "conditioning_mt5xl": Noise((6, 24)),
    "attention_mask_mt5xl": Ones((6,)),
}
"""Of Hunyuan DiT's prompt, beside the first."""
V_OF_SD2 = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
PICTURES = {
    "sd15": Architecture(
        "SD15",
        UNET | {"model_channels": 32, "context_dim": 768, "use_linear_in_transformer": False},
        SMALL,
        768,
        pooled=768,
        deep=DEEP_UNET,
    ),
    "sd2_v": Architecture(
        "SD20",
        UNET | {"model_channels": 64, "context_dim": 1024},
        SMALL,
        1024,
        pooled=1024,
        marks={V_OF_SD2: Noise((64,))},
        deep=DEEP_UNET,
    ),
    "sdxl": Architecture("SDXL", SDXL, SMALL, 2048, pooled=1280, options=SIZE, deep=DEEP_SDXL),
    "sdxl_v": Architecture(
        "SDXL", SDXL, SMALL, 2048, pooled=1280, options=SIZE, marks={"v_pred": Noise(())}, deep=DEEP_SDXL
    ),
    "sdxl_edm": Architecture(
        "SDXL",
        SDXL,
        SMALL,
        2048,
        pooled=1280,
        options=SIZE,
        marks={"edm_mean": Noise((4,)), "edm_std": Noise((4,))},
        deep=DEEP_SDXL,
    ),
    "cascade_c": Architecture(
        "Stable_Cascade_C",
        CASCADE | {"stable_cascade_stage": "c", "c_clip_text": 32, "c_clip_text_pooled": 24},
        PICTURE,
        32,
        pooled=24,
        deep={"blocks": [[DEEP, DEEP]] * 2},
    ),
    "cascade_b": Architecture(
        "Stable_Cascade_B",
        {
            **CASCADE,
            "stable_cascade_stage": "b",
            "c_hidden": [32, 32, 64, 64],
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1] * 4] * 2,
            "block_repeat": [[1] * 4] * 2,
            "c_clip": 24,
        },
        (4, 16, 16),
        32,
        pooled=24,
        options={"stable_cascade_prior": Noise((16, 4, 4))},
        deep={"blocks": [[1, 1, DEEP, DEEP]] * 2},
    ),
    "sd3": Architecture("SD3", MMDIT, PICTURE, 4096, pooled=2048, deep=DEEP_MMDIT),
    "aura_flow": Architecture("AuraFlow", AURA, SMALL, 32),
    "pixart_alpha": Architecture(
        "PixArtAlpha",
        PIXART | {"image_model": "pixart_alpha", "micro_condition": True, "hidden_size": 96},
        (4, 32, 36),
        32,
    ),
    "pixart_sigma": Architecture(
        "PixArtSigma", PIXART | {"image_model": "pixart_sigma", "micro_condition": False}, (4, 32, 36), 32
    ),
    "hunyuan_dit": Architecture(
        "HunyuanDiT",
        HUNYUAN_DIT,
        SMALL,
        32,
        options=TWO_TEXTS,
    ),
    "flux": Architecture("Flux", FLUX, PICTURE, 4096, pooled=768, options={"guidance": 3.5}),
    "flux_kontext": Architecture("Flux", FLUX, PICTURE, 4096, pooled=768, options={"guidance": 3.5, **REFERENCES}),
    "flux_schnell": Architecture("FluxSchnell", FLUX | {"guidance_embed": False}, PICTURE, 4096, pooled=768),
    "flux2": Architecture("Flux2", FLUX2, (128, 4, 6), 32, options={"guidance": 3.5}),
    "flux2_edit": Architecture(
        "Flux2", FLUX2, (128, 4, 6), 32, options={"guidance": 3.5, "reference_latents": [Noise((128, 4, 4))]}
    ),
    "flux2_klein": Architecture("Flux2", FLUX2 | {"guidance_embed": False}, (128, 4, 6), 32),
    # not its network of modulations, 344 rows of them for any picture: they are nothing beside a real one's tokens
    "chroma": Architecture("Chroma", CHROMA, PICTURE, 32, deep={"n_layers": 1}),
    "qwen_image": Architecture("QwenImage", QWEN, (16, 1, 4, 6), 32),
    "qwen_image_edit": Architecture(
        "QwenImage",
        QWEN,
        (16, 1, 4, 6),
        32,
        options={"reference_latents": [Noise((16, 1, 4, 6)), Noise((16, 1, 4, 4))]},
    ),
    "z_image": Architecture("ZImage", Z_IMAGE, PICTURE, 32),
    "lumina2": Architecture("Lumina2", LUMINA, PICTURE, 32),
    "omnigen2": Architecture("Omnigen2", OMNIGEN, PICTURE, 32, options={"attention_mask": Ones((TOKENS,))}),
    "hidream": Architecture(
        "HiDream",
        HIDREAM,
        PICTURE,
        32,
        pooled=24,
        options={"conditioning_llama3": Noise((2, TOKENS, 32))},
        deep={"llama_layers": [0, 1] * DEEP},
    ),
    "hunyuan_image": Architecture("HunyuanImage21", HUNYUAN_IMAGE, (64, 4, 6), 32),
    "hunyuan_image_meanflow": Architecture("HunyuanImage21", HUNYUAN_IMAGE | {"meanflow": True}, (64, 4, 6), 32),
    "kandinsky5_image": Architecture("Kandinsky5Image", KANDINSKY, PICTURE, 32, pooled=24),
    "krea2": Architecture("Krea2", KREA, (16, 1, 4, 6), 64),
    "anima": Architecture("Anima", COSMOS | {"image_model": "anima"}, (16, 1, 4, 6), 1024, encoder="llm_adapter"),
    "ernie": Architecture("ErnieImage", ERNIE, (128, 4, 6), 32),
    "cosmos_predict2": Architecture(
        "CosmosT2IPredict2", COSMOS | {"image_model": "cosmos_predict2"}, (16, 1, 4, 6), 1024
    ),
}
