"""Models whose inputs are of today's kinds: a stand-in for every host, and a current host's own classes with few weights.

The stand-in mixes all that it is given into its answer, row by row: constants, a list of latents, streams packed into one.
"""

import math
from typing import Any

import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.supported_models_base

CPU = torch.device("cpu")
CHANNELS, WIDTH = 4, 6


class Frames(comfy.latent_formats.LatentFormat):
    """Of video, in which a still picture is one frame."""

    latent_channels = CHANNELS
    latent_dimensions = 3
    scale_factor = 0.5


class Stills(comfy.latent_formats.LatentFormat):
    latent_channels = CHANNELS
    latent_dimensions = 2
    scale_factor = 0.5


class ListOfTensors(comfy.conds.CONDRegular):
    """As current hosts have it; those of mid-2024 have none."""

    def process_cond(self, batch_size, device=None, **_):
        return type(self)([value.expand(batch_size, *value.shape[1:]).to(device) for value in self.cond])

    def concat(self, others):
        return [torch.cat([self.cond[i], *(other.cond[i] for other in others)]) for i in range(len(self.cond))]

    def can_concat(self, other):
        return [value.shape for value in self.cond] == [value.shape for value in other.cond]

    def size(self):
        return [1]


List = getattr(comfy.conds, "CONDList", ListOfTensors)


class Network(torch.nn.Module):
    """v (B, ...) of x (B, ...): a linear layer over the channels, moved by the text's first tokens, a list and a strength."""

    def __init__(self, channels):
        super().__init__()
        self.mix = torch.nn.Linear(channels, channels)
        self.text = torch.nn.Linear(WIDTH, channels)
        self.dtype = torch.float32

    def forward(self, x, t, context=None, control=None, transformer_options=None, **given):
        if isinstance(x, list):  # a current host takes packed streams apart itself
            shapes = [stream.shape for stream in x]
            packed = torch.cat([stream.reshape(len(stream), 1, -1) for stream in x], dim=-1)
            out = self(packed, t, context, latent_shapes=shapes, **given)
            parts = out.split([math.prod(shape[1:]) for shape in shapes], dim=-1)
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        if "latent_shapes" in given:
            sizes = [math.prod(shape[1:]) for shape in given["latent_shapes"]]
            x = x * torch.cat([torch.full((size,), 1.0 + i) for i, size in enumerate(sizes)])
        moved = self.text(context[:, : given.get("num_tokens")].mean(dim=1))
        moved = moved * given.get("strength", 1.0)
        for place, latent in enumerate(given.get("ref_latents", [])):
            moved = moved + (place + 1) * latent.flatten(2).mean(dim=(1, 2))[:, None]
        out = self.mix(x.movedim(1, -1)).movedim(-1, 1)
        return out + moved.reshape(*moved.shape, *[1] * (x.ndim - 2)) * t.reshape(-1, *[1] * (x.ndim - 1))


class Model(comfy.model_base.BaseModel):
    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            out["num_tokens"] = comfy.conds.CONDConstant(int(mask.sum()))
        if "strength" in kwargs:
            out["strength"] = comfy.conds.CONDConstant(kwargs["strength"])
        if kwargs.get("reference_latents") is not None:
            out["ref_latents"] = List([self.process_latent_in(latent) for latent in kwargs["reference_latents"]])
        if "features" in kwargs:
            out["features"] = comfy.conds.CONDRegular(kwargs["features"].states)
        if kwargs.get("latent_shapes") is not None and len(kwargs["latent_shapes"]) > 1:
            out["latent_shapes"] = comfy.conds.CONDConstant(kwargs["latent_shapes"])
        if "cross_attn" in kwargs:
            out["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
        return out


@torch.inference_mode()  # as in a host, whose loaders run under it too
def stand_in(latent_format=Stills, *, channels=CHANNELS, seed=0):
    """A MODEL of flow, on the CPU."""

    class Config(comfy.supported_models_base.BASE):
        unet_config: dict[str, Any] = {"disable_unet_model_creation": True}

    Config.latent_format = latent_format
    config = Config(Config.unet_config)
    config.set_inference_dtype(torch.float32, None)
    network = Model(config, model_type=comfy.model_base.ModelType.FLOW)
    network.diffusion_model = Network(channels).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in network.diffusion_model.parameters():
        weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)


def text(tokens, *, seed=0, batch=1, **options):
    """CONDITIONING of one entry."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, tokens, WIDTH, generator=generator), options]]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def hosts_x0(model, x, sigma, prompt):
    """What the host's own samplers see in x (B, ...) at one noise level, of the model as wired, in the model's scale."""

    streams = x.unbind() if getattr(x, "is_nested", False) else [x]
    given = torch.cat([stream.reshape(len(stream), 1, -1) for stream in streams], dim=-1) if len(streams) > 1 else x

    def once(inner, _, sigmas, extra_args=None, callback=None, disable=None):
        return inner(given.clone(), sigmas[0].expand(len(given)), **extra_args)

    sampler, sigmas, zero = comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0]), x * 0.0
    latents = comfy.sample.sample_custom(
        model, x, 1.0, sampler, sigmas, prompt, prompt, zero, disable_pbar=True, seed=0
    )
    return model.model.process_latent_in(latents)


# --- a current host's own --------------------------------------------------------------------------------------------

HEAD = {"num_attention_heads": 2, "attention_head_dim": 16}
CURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "z_image": (
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 256,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "multiple_of": 8,
            "qk_norm": True,
            "cap_feat_dim": WIDTH,
            "axes_dims": [32, 48, 48],
            "axes_lens": [64, 64, 64],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 2.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 4,
        },
    ),
    "qwen_image": (
        "QwenImage",
        HEAD
        | {"image_model": "qwen_image", "num_layers": 1, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6)},
    ),
    "wan_i2v": (
        "WAN21_I2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "in_dim": 36,
            "dim": 24,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": WIDTH,
            "num_heads": 2,
            "num_layers": 1,
            "text_len": 8,
        },
    ),
    "ltxv": (
        "LTXV",
        HEAD | {"image_model": "ltxv", "cross_attention_dim": 32, "caption_channels": WIDTH, "num_layers": 1},
    ),
    "ltxav": (
        "LTXAV",
        HEAD
        | {
            "image_model": "ltxav",
            "cross_attention_dim": 32,
            "audio_cross_attention_dim": 32,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 16,
            "caption_channels": WIDTH // 2,  # of a text that is ready for both streams
            "num_layers": 1,
            "connector_num_layers": 0,
        },
    ),
    "cosmos_predict2": (
        "CosmosT2IPredict2",
        {
            "image_model": "cosmos_predict2",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "concat_padding_mask": True,
            "model_channels": 32,
            "num_blocks": 1,
            "num_heads": 2,
            "crossattn_emb_channels": WIDTH,
            "pos_emb_cls": "rope3d",
            "use_adaln_lora": True,
            "adaln_lora_dim": 8,
        },
    ),
    "hunyuan_image": (
        "HunyuanImage21",
        {
            "image_model": "hunyuan_video",
            "in_channels": 64,
            "out_channels": 64,
            "vec_in_dim": None,
            "context_in_dim": WIDTH,
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [8, 8],
            "theta": 256,
            "patch_size": [1, 1],
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        },
    ),
}


def known(kind):
    """Whether this host has the model at all."""
    return hasattr(comfy.supported_models, CURRENT[kind][0])


@torch.inference_mode()
def current(kind, *, seed=0, **changed):
    """A MODEL of the host's own class: float32, on the CPU, with weights drawn from the seed. changed: in its network."""
    name, network = CURRENT[kind]
    config = getattr(comfy.supported_models, name)(network | changed)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.diffusion_model.state_dict().values():
        noise_ = torch.randn(weight.shape, generator=generator)
        weight.copy_(1.0 + 0.1 * noise_ if weight.ndim == 1 else noise_ / max(math.prod(weight.shape[1:]), 1) ** 0.5)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
