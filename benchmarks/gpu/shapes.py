"""The networks of the GPU book, at the shapes of the released files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..training.setup import UNETS


@dataclass(frozen=True)
class Shape:
    """config: the host's class. network: what the host reads off a checkpoint. latent: one sample's. tokens, width: of a prompt.

    pooled: of the prompt's pooled embedding, 0 for none.
    """

    config: str
    network: dict[str, Any] = field(repr=False)
    latent: tuple[int, ...]
    tokens: int
    width: int
    pooled: int = 0


SHAPES = {
    "SD1.5, 512 px": Shape("SD15", {**UNETS["SD15"], "model_channels": 320}, (4, 64, 64), 77, 768),
    "SDXL, 1024 px": Shape("SDXL", {**UNETS["SDXL"], "model_channels": 320}, (4, 128, 128), 77, 2048, 1280),
    "Z-Image, 1024 px": Shape(
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 3840,
            "n_layers": 30,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "multiple_of": 256,
            "ffn_dim_multiplier": 8.0 / 3.0,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        (16, 128, 128),
        128,
        2560,
    ),
    "Wan 1.3B, 832 x 480, 81 frames": Shape(
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 1536,
            "ffn_dim": 8960,
            "freq_dim": 256,
            "text_dim": 4096,
            "num_heads": 12,
            "num_layers": 30,
            "in_dim": 16,
            "out_dim": 16,
            "text_len": 512,
        },
        (16, 21, 60, 104),
        512,
        4096,
    ),
    "Flux, 1024 px": Shape(
        "Flux",
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "vec_in_dim": 768,
            "context_in_dim": 4096,
            "hidden_size": 3072,
            "mlp_ratio": 4.0,
            "num_heads": 24,
            "depth": 19,
            "depth_single_blocks": 38,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
        (16, 128, 128),
        512,
        4096,
        768,
    ),
}
"""As the host reads them off the released files."""
