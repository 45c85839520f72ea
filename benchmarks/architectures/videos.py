"""Architectures of video and sound, tiny."""

from __future__ import annotations

from .pictures import COSMOS, DEEP_UNET, HUNYUAN, KANDINSKY, UNET, Network
from .setup import TOKENS, Architecture, Noise, Numbers, Ones

FRAMES = (16, 3, 4, 6)
SVD: Network = UNET | {
    "in_channels": 8,
    "model_channels": 64,
    "context_dim": 1024,
    "num_classes": "sequential",
    "adm_in_channels": 768,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "video_kernel_size": [3, 1, 1],
    "extra_ff_mix_layer": True,
    "merge_strategy": "learned_with_images",
    "use_linear_in_transformer": True,
}
WAN: Network = {
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
PICTURE_TO_VIDEO = {"concat_latent_image": Noise(FRAMES), "concat_mask": Noise((1, *FRAMES[1:]))}
LTXV: Network = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 64,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "caption_channels": 32,
    "num_layers": 2,
}
LTXAV: Network = LTXV | {
    "image_model": "ltxav",
    "audio_cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "caption_channels": 16,  # half of a text that is ready for both streams
    "connector_num_layers": 0,
}
COGVIDEO: Network = {
    "image_model": "cogvideox",
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "time_embed_dim": 32,
    "text_embed_dim": 32,
    "max_text_seq_length": TOKENS,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "use_rotary_positional_embeddings": True,
}
ACE: Network = {
    "audio_model": "ace",
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "inner_dim": 64,
    "mlp_ratio": 2.0,
    "max_position": 64,
    "text_embedding_dim": 32,
    "lyric_encoder_vocab_size": 20,
    "lyric_hidden_size": 1024,
}
ACE15: Network = {
    "audio_model": "ace1.5",
    "hidden_size": 64,
    "text_hidden_dim": 32,
    "num_dit_layers": 2,
    "num_lyric_layers": 1,
    "num_timbre_layers": 1,
    "num_tokenizer_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "fsq_dim": 64,
    "encoder_hidden_size": 64,
    "encoder_intermediate_size": 96,
    "encoder_num_heads": 4,
}
STABLE_AUDIO: Network = {
    "audio_model": "dit1.0",
    "io_channels": 64,
    "embed_dim": 64,
    "cond_token_dim": 768,
    "project_cond_tokens": True,
    "global_cond_dim": 1536,
    "depth": 2,
    "num_heads": 2,
}


def seconds(*names: str) -> dict[str, Noise]:
    """The weights by which the host embeds a sound's start and length."""
    shapes = {"0.weights": (128,), "1.weight": (768, 257), "1.bias": (768,)}
    return {
        f"conditioner.conditioners.{name}.embedder.embedding.{part}": Noise(shape)
        for name in names
        for part, shape in shapes.items()
    }


VIDEOS = {
    "svd": Architecture(
        "SVD_img2vid",
        SVD,
        (4, 4, 6),
        1024,
        options={"concat_latent_image": Noise((4, 4, 6))},
        deep=DEEP_UNET,
        at_once=1,
        frames=3,
    ),
    "wan": Architecture("WAN21_T2V", WAN, FRAMES, 32),
    "wan_i2v": Architecture(
        "WAN21_I2V", WAN | {"model_type": "i2v", "in_dim": 36}, FRAMES, 32, options=PICTURE_TO_VIDEO
    ),
    "wan22_5b": Architecture("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (48, 3, 4, 6), 32),
    "hunyuan_video": Architecture("HunyuanVideo", HUNYUAN, FRAMES, 32, pooled=24, options={"guidance": 6.0}),
    "hunyuan_video15": Architecture(
        "HunyuanVideo15",
        HUNYUAN
        | {
            "in_channels": 65,
            "out_channels": 32,
            "vec_in_dim": None,
            "patch_size": [1, 1, 1],
            "guidance_embed": False,
            "byt5": True,
            "use_cond_type_embedding": True,
            "vision_in_dim": 1152,
            "meanflow_sum": True,
        },
        (32, 3, 4, 6),
        32,
        pooled=24,
        options={"conditioning_byt5small": Noise((4, 1472))},
    ),
    "ltxv": Architecture(
        "LTXV", LTXV, (128, 3, 4, 6), 32, options={"frame_rate": 25, "attention_mask": Ones((TOKENS,))}
    ),
    "ltxav": Architecture("LTXAV", LTXAV, (), 32, options={"frame_rate": 25}, streams=((128, 2, 4, 4), (8, 6, 16))),
    "kandinsky5": Architecture("Kandinsky5", KANDINSKY | {"visual_embed_dim": 132}, FRAMES, 32, pooled=24),
    "cosmos": Architecture(
        "CosmosT2V",
        COSMOS
        | {
            "image_model": "cosmos",
            "affline_emb_norm": True,
            "block_x_format": "THWBD",
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        FRAMES,
        1024,
    ),
    "cogvideox": Architecture(
        "CogVideoX_T2V", COGVIDEO, FRAMES, 32, samplers_own={"sampling": "v_prediction", "zsnr": True}
    ),
    "ace_step": Architecture(
        "ACEStep",
        ACE,
        (8, 16, 12),
        32,
        encoder="lyric_encoder.encoders",
        options={"conditioning_lyrics": Numbers((5,), 20), "lyrics_strength": 0.9},
    ),
    "ace_step15": Architecture("ACEStep15", ACE15, (64, 10), 32, options={"conditioning_lyrics": Noise((5, 32))}),
    "stable_audio": Architecture(
        "StableAudio", STABLE_AUDIO, (64, 16), 768, marks=seconds("seconds_start", "seconds_total")
    ),
    "stable_audio3": Architecture(
        "StableAudio3",
        STABLE_AUDIO
        | {
            "io_channels": 256,
            "global_cond_dim": 768,
            "global_cond_shared_embed": True,
            "global_cond_type": "adaLN",
            "timestep_features_type": "learned",
        },
        (256, 16),
        768,
        marks=seconds("seconds_total"),
    ),
}
