"""Newer architectures that draw pictures, tiny: on pixels, of several texts, that edit or fill in."""

from __future__ import annotations

import torch
from torch import Tensor

from .pictures import (
    CHROMA,
    DEEP_SDXL,
    DEEP_UNET,
    FLUX,
    HUNYUAN_DIT,
    LIKE_OMNIGEN,
    PICTURE,
    SDXL,
    SIZE,
    SMALL,
    TWO_TEXTS,
    UNET,
    Z_IMAGE,
    Network,
)
from .setup import DEEP, TOKENS, Architecture, Noise, Numbers, Ones

PIXELS = (3, 16, 24)
FLUX2_PICTURE = (128, 4, 6)


class Shown(Noise):
    """A picture as the host's nodes pass it, from 0 to 1, channels last."""

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return super().draw(batch, generator).sigmoid()


class Words(Numbers):
    """Tokens that end with the one in whose place HiDream O1 is told the noise level."""

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        words = super().draw(batch, generator)
        words[:, -1] = 151673
        return words


RADIANCE: Network = CHROMA | {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "nerf_hidden_size": 8,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 2,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": True,
    "use_sequential_txt_ids": True,
}
Z_IMAGE_PIXEL: Network = Z_IMAGE | {
    "image_model": "zimage_pixel",
    "patch_size": 4,
    "in_channels": 3,
    "decoder_in_channels": 48,
    "decoder_hidden_size": 64,
    "decoder_num_res_blocks": 2,
    "decoder_max_freqs": 4,
}
LONGCAT: Network = FLUX | {"guidance_embed": False, "vec_in_dim": None, "context_in_dim": 3584, "txt_ids_dims": [1, 2]}
MAGE: Network = {
    "image_model": "mage_flow",
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
LENS: Network = {
    "image_model": "lens",
    "in_channels": 128,
    "out_channels": 32,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "enc_hidden_dim": 8,
    "axes_dims_rope": (4, 6, 6),
    "multi_layer_encoder_feature": True,
    "selected_layer_index": (0, 1, 2, 3),
}
BOOGU: Network = LIKE_OMNIGEN | {"image_model": "boogu", "num_double_stream_layers": 1, "instruction_feat_dim": 32}
JOY: Network = {
    "image_model": "joyimage",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_layers": 2,
    "text_dim": 32,
}
HIDREAM_O1_WORDS: Network = {
    "hidden_size": 64,
    "intermediate_size": 192,  # as many times as a real one's
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_dims": [4, 2, 2],
}
HIDREAM_O1: Network = {
    "image_model": "hidream_o1",
    "text_config_overrides": HIDREAM_O1_WORDS,
    "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1},
}
PIXELDIT: Network = {
    "image_model": "pixeldit_t2i",
    "hidden_size": 64,
    "num_groups": 4,
    "patch_depth": 2,
    "pixel_depth": 2,
    "patch_size": 4,
    "pixel_hidden_size": 8,
    "pixel_attn_hidden_size": 32,
    "pixel_num_groups": 2,
    "txt_embed_dim": 32,
    "txt_max_length": TOKENS,
}
NEWER_PICTURES = {
    "chroma_radiance": Architecture("ChromaRadiance", RADIANCE, PIXELS, 32, deep={"n_layers": 1}),
    "chroma_radiance_v": Architecture(
        "ChromaRadiance",
        RADIANCE
        | {
            "nerf_final_head_type": "linear",
            "nerf_tile_size": 16,  # of 24 patches
            "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        PIXELS,
        32,
        deep={"n_layers": 1},
    ),
    "z_image_pixel": Architecture("ZImagePixelSpace", Z_IMAGE_PIXEL, PIXELS, 32),
    "longcat_image": Architecture("LongCatImage", LONGCAT, PICTURE, 3584),
    "mage_flow": Architecture(
        "MageFlow", MAGE, FLUX2_PICTURE, 32, options={"reference_latents": [Noise(FLUX2_PICTURE), Noise((128, 4, 4))]}
    ),
    "lens": Architecture("Lens", LENS, FLUX2_PICTURE, 32, options={"attention_mask": Ones((TOKENS,))}),
    "ideogram4": Architecture(
        "Ideogram4",
        {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2},
        FLUX2_PICTURE,
        32,
        options={"attention_mask": Ones((TOKENS,))},
        fixed={
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "intermediate_size": 96,
            "adaln_dim": 32,
            "llm_features_dim": 32,
            "mrope_section": [4, 2, 2],
        },
    ),
    "hidream_o1": Architecture(
        "HiDreamO1",
        HIDREAM_O1,
        (3, 64, 96),
        1,
        options={"text_input_ids": Words((TOKENS,), 151643)},
        deep={"text_config_overrides": HIDREAM_O1_WORDS | {"num_hidden_layers": DEEP}},
    ),
    "hidream_o1_edit": Architecture(
        "HiDreamO1",
        HIDREAM_O1,
        (3, 64, 96),
        1,
        options={"text_input_ids": Words((TOKENS,), 151643), "reference_latents": [Shown((64, 64, 3))]},
        deep={"text_config_overrides": HIDREAM_O1_WORDS | {"num_hidden_layers": DEEP}},
    ),
    "joy_image": Architecture(
        "JoyImage",
        JOY,
        (16, 1, 4, 6),
        32,
        options={"reference_latents": [Noise((16, 1, 4, 6))]},
        fixed={"rope_dim_list": [4, 6, 6]},
    ),
    "boogu": Architecture("Boogu", BOOGU, PICTURE, 32, options={"attention_mask": Ones((TOKENS,))}),
    "flux_inpaint": Architecture(
        "FluxInpaint",
        FLUX | {"in_channels": 96},
        PICTURE,
        4096,
        pooled=768,
        options={"guidance": 30.0, "concat_latent_image": Noise(PICTURE), "concat_mask": Noise((1, 32, 48))},
    ),
    "ssd1b": Architecture(
        "SSD1B",
        SDXL | {"transformer_depth_output": [0, 0, 1, 2], "transformer_depth_middle": -1},
        SMALL,
        2048,
        pooled=1280,
        options=SIZE,
        deep=DEEP_SDXL | {"transformer_depth_middle": -1},
    ),
    "segmind_vega": Architecture(
        "Segmind_Vega",
        SDXL | {"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": -1},
        SMALL,
        2048,
        pooled=1280,
        options=SIZE,
        deep=DEEP_SDXL | {"transformer_depth_middle": -1},
    ),
    "pixeldit": Architecture("PixelDiTT2I", PIXELDIT, PIXELS, 32),
    "sdxl_edit": Architecture(
        "SDXL_instructpix2pix",
        SDXL | {"in_channels": 8},
        SMALL,
        2048,
        pooled=1280,
        options={**SIZE, "concat_latent_image": Noise(SMALL)},
        deep=DEEP_SDXL,
    ),
    "sd15_edit": Architecture(
        "SD15_instructpix2pix",
        UNET | {"model_channels": 32, "context_dim": 768, "use_linear_in_transformer": False, "in_channels": 8},
        SMALL,
        768,
        pooled=768,
        options={"concat_latent_image": Noise(SMALL)},
        deep=DEEP_UNET,
    ),
    "hunyuan_dit1": Architecture(
        "HunyuanDiT1",
        HUNYUAN_DIT | {"image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        SMALL,
        32,
        options=TWO_TEXTS,
    ),
}
