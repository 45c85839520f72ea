"""Tiny networks of the host's own classes that only a current host has, with random weights: what most people run today.

`tiny(name)` gives a MODEL on the CPU in float32, unit noise in the shape of its latents, and what its network takes besides
x and t, by the names of the host's apply_model.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_patcher
import comfy.supported_models
from architectures import CPU, TOKENS, _drawn


@dataclass(frozen=True)
class Current:
    """config: the host's class. network: what it reads off a checkpoint. latent: (channels, ...) of one sample.

    inputs: shapes beyond the batch, filled with noise, or constants that go in as they are. encoder: a large part of the
    network that works on prompts alone, and is left out.
    """

    config: str
    network: dict[str, Any]
    latent: tuple[int, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None


FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
WAN = {
    "image_model": "wan2.1",
    "dim": 64,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": 32,
    "num_heads": 4,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
    "model_type": "t2v",
    "text_len": TOKENS,
}
LUMINA = {
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
HUNYUAN = {
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
COSMOS = {
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
TEXT = (TOKENS, 32)
PICTURE, FRAMES = (16, 4, 6), (16, 3, 4, 6)
ARCHITECTURES = {
    "flux": Current(
        "Flux", {"image_model": "flux", **FLUX}, PICTURE, {"c_crossattn": TEXT, "y": (24,), "guidance": ()}
    ),
    "flux2": Current(
        "Flux2",
        {
            **FLUX,
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "vec_in_dim": None,
            "axes_dim": [4, 4, 4, 4],
            "theta": 2000,
            "qkv_bias": False,
            "ops_bias": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "txt_ids_dims": [3],
        },
        (128, 4, 6),
        {"c_crossattn": TEXT, "guidance": ()},
    ),
    "chroma": Current(
        "Chroma",
        {
            **{key: value for key, value in FLUX.items() if key != "guidance_embed"},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 32,
            "n_layers": 1,
        },
        PICTURE,
        {"c_crossattn": TEXT, "guidance": ()},
    ),
    "qwen_image": Current(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        },
        (16, 1, 4, 6),
        {"c_crossattn": TEXT},
    ),
    "wan": Current("WAN21_T2V", WAN, FRAMES, {"c_crossattn": TEXT}),
    "lumina2": Current("Lumina2", LUMINA, PICTURE, {"c_crossattn": TEXT, "num_tokens": TOKENS}),
    "z_image": Current(
        "ZImage",
        {
            **LUMINA,
            "dim": 256,
            "n_heads": 16,
            "n_kv_heads": 16,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 4,
        },
        PICTURE,
        {"c_crossattn": TEXT, "num_tokens": TOKENS},
    ),
    "ltxv": Current(
        "LTXV",
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 64,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "caption_channels": 32,
            "num_layers": 2,
        },
        (128, 3, 4, 6),
        {"c_crossattn": TEXT, "attention_mask": None, "frame_rate": 25},
    ),
    "hunyuan_video": Current(
        "HunyuanVideo", HUNYUAN, FRAMES, {"c_crossattn": TEXT, "y": (24,), "guidance": (), "attention_mask": None}
    ),
    "anima": Current(
        "Anima",
        {**COSMOS, "image_model": "anima"},
        (16, 1, 4, 6),
        {"c_crossattn": (TOKENS, 1024)},
        encoder="llm_adapter",
    ),
    "ernie": Current(
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "text_in_dim": 32,
            "rope_axes_dim": (4, 6, 6),
        },
        (128, 4, 6),
        {"c_crossattn": TEXT},
    ),
    "krea2": Current(
        "Krea2",
        {
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
        },
        (16, 1, 4, 6),
        {"c_crossattn": (TOKENS, 64)},
    ),
    "kandinsky5": Current(
        "Kandinsky5",
        {
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
        },
        FRAMES,
        {"c_crossattn": TEXT, "y": (24,)},
    ),
    "omnigen2": Current(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "hidden_size": 48,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 32,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (64, 64, 64),
            "text_feat_dim": 32,
        },
        PICTURE,
        {"c_crossattn": TEXT, "num_tokens": TOKENS},
    ),
    "hidream": Current(
        "HiDream",
        {
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
        },
        PICTURE,
        {"c_crossattn": TEXT, "y": (24,), "encoder_hidden_states_llama3": (2, TOKENS, 32)},
    ),
}


def kinds(*names: str) -> list[Any]:
    """Parameters for pytest, all or the named ones; those that this host lacks are skipped, saying so."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not hasattr(comfy.supported_models, ARCHITECTURES[name].config), reason=f"this host has no {name}"
            ),
        )
        for name in names or ARCHITECTURES
    ]


def tiny(name: str, *, seed: int = 0, batch: int = 2) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """(MODEL, noise, inputs of apply_model besides x and sigma); all drawn from the seed."""
    architecture = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():  # as in a host, whose loaders run under it too
        config = getattr(comfy.supported_models, architecture.config)(dict(architecture.network))
        config.set_inference_dtype(torch.float32, None)
        network = config.get_model({}, "model.diffusion_model.").eval()
        if architecture.encoder:
            delattr(network.diffusion_model, architecture.encoder)
        for key, weight in network.diffusion_model.state_dict().items():
            weight.copy_(_drawn(key, weight.shape, generator))
    model = comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)
    inputs = {
        key: torch.randn(batch, *value, generator=generator) if isinstance(value, tuple) else value
        for key, value in architecture.inputs.items()
    }
    return model, torch.randn(batch, *architecture.latent, generator=generator), inputs
