"""The host's own VAE and CLIP classes, small and with random weights, and stand-ins that count or are exact."""

import json
import zlib
from pathlib import Path
from unittest import mock

import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sd
import comfy.sd1_clip
from comfy.ldm.models.autoencoder import AutoencoderKL


def fill(module, seed):
    """A module with weights from the seed: the host's layers leave theirs uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.state_dict().items():
        if weight.is_floating_point():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * 0.02 if name.endswith("bias") or weight.ndim > 1 else 1.0 + 0.1 * noise)
    return module


@torch.inference_mode()  # as in a host, whose loaders run under it
def tiny_vae(seed=0):
    """comfy.sd.VAE: 3 x 8 x 8 pixels to 4 channels, 32 features wide."""
    shape = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    shape |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": shape, "embed_dim": 4}
    weights = fill(AutoencoderKL(**params), seed).state_dict()
    weights["quant_conv.weight"] *= 50.0
    vae = comfy.sd.VAE(
        sd=weights, device=torch.device("cpu"), config={"params": json.loads(json.dumps(params))}, dtype=torch.float32
    )
    vae.first_stage_model.float()
    return vae


def wan_vae():
    """comfy.sd.VAE of Wan and Qwen-Image, a sixteenth as wide: 4n + 1 frames of 8 x 8 pixels to 16 channels."""
    from comfy.ldm.wan.vae import WanVAE

    with torch.inference_mode():
        like_the_hosts = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
        weights = fill(like_the_hosts, seed=0).state_dict()
        vae = comfy.sd.VAE(sd=dict(weights), device=torch.device("cpu"), dtype=torch.float32)
    assert vae.first_stage_model.state_dict().keys() == weights.keys(), "what is missing would be whatever is in memory"
    return vae


def tiny_clip_vision():
    """The host's CLIP_VISION of Wan's width, with one layer and random weights: pictures of 28 pixels a side in 4 patches."""
    import comfy.clip_vision

    shape = {"hidden_size": 1280, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    shape |= {"hidden_act": "gelu", "projection_dim": 16, "image_size": 28, "patch_size": 14, "num_channels": 3}
    shape |= {"model_type": "clip_vision_model"}
    clip_vision = comfy.clip_vision.ClipVisionModel(shape)
    with torch.inference_mode():
        fill(clip_vision.model.float(), seed=0)
    return clip_vision


def ltx_audio_vae():
    """comfy.sd.VAE of LTX-2's sound, a sixteenth as wide: 16 kHz to 25 latents a second, of 8 channels and 16 bins."""
    from comfy.ldm.lightricks.vae.audio_vae import AudioVAE

    shape = {
        "double_z": True,
        "mel_bins": 64,
        "z_channels": 8,
        "resolution": 256,
        "in_channels": 2,
        "out_ch": 2,
        "ch": 8,
    }
    shape |= {"ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "mid_block_add_attention": False}
    shape |= {"norm_type": "pixel", "causality_axis": "height"}
    stft = {"stft": {"filter_length": 1024, "hop_length": 160}}
    sound = {"model": {"params": {"ddconfig": shape, "sampling_rate": 16000}}, "preprocessing": stft}
    metadata = {"config": json.dumps({"audio_vae": sound, "vocoder": {"upsample_initial_channel": 32}})}
    with torch.inference_mode():
        weights = fill(AudioVAE(metadata), seed=0).state_dict()
        vae = comfy.sd.VAE(sd=dict(weights), device=torch.device("cpu"), metadata=metadata)
    assert vae.first_stage_model.state_dict().keys() == weights.keys(), "what is missing would be whatever is in memory"
    return vae


START, END = 998, 999
SPECIAL = {"start": START, "end": END, "pad": END}
SMALL = {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 1000}


class Words:
    """A tokenizer of words for SD1's text model, without its vocabulary: chunks of 75 between start and end."""

    def __init__(self, **_):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        ids = [zlib.crc32(word.encode()) % START for word in text.split()]
        chunks = [ids[start : start + 75] for start in range(0, len(ids), 75)] or [[]]
        return {"l": [[(token, 1.0) for token in [START, *c, END, *[END] * (75 - len(c))]] for c in chunks]}


class _Target:
    tokenizer = Words
    params = {}

    @staticmethod
    def clip(device="cpu", dtype=None, **options):
        source = Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json"
        config = json.loads(source.read_text()) | SMALL
        kept = {"model_options": options["model_options"]} if "model_options" in options else {}
        kept |= {"device": device, "dtype": dtype, "special_tokens": SPECIAL, "textmodel_json_config": config}
        return comfy.sd1_clip.SD1ClipModel(clip_model=comfy.sd1_clip.SDClipModel, **kept)


@torch.inference_mode()
def tiny_clip(seed=0):
    """comfy.sd.CLIP: SD1's text model with one layer."""
    with mock.patch("comfy.model_management.text_encoder_device", lambda: torch.device("cpu")):
        clip = comfy.sd.CLIP(_Target)
    clip.cond_stage_model.float()
    fill(clip.cond_stage_model, seed)
    return clip


class RandomCLIP:
    """A stand-in with another model's widths: a text's embedding is drawn from the text. padded: to 77 tokens, or 154; else as
    long as its words, as language models' are."""

    def __init__(self, width, pooled, padded=True):
        self.width, self.pooled, self.padded = width, pooled, padded

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, text, return_pooled=False):
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        words = len(text.split())
        tokens = 77 * (1 + words // 75) if self.padded else 4 + words
        embedding = torch.randn(1, tokens, self.width, generator=generator)
        pooled = torch.randn(1, self.pooled, generator=generator)
        return (embedding, pooled) if return_pooled else embedding


class MeanVAE:
    """A stand-in that mirrors as pictures do: the mean colour of each 8 x 8 pixels, and their mean."""

    def encode(self, pixels):
        colours = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([colours, colours.mean(dim=1, keepdim=True)], dim=1)


class Counting:
    """Another object whose encoding is counted, by whatever name; what they were asked for in `seen`."""

    def __init__(self, inner):
        self._inner, self.seen = inner, []

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if name not in ("encode", "encode_from_tokens", "encode_from_tokens_scheduled"):
            return value

        def counted(what, *args, **kwargs):
            self.seen.append(what)
            return value(what, *args, **kwargs)

        return counted
