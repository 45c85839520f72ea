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
import comfy.supported_models_base
from comfyui_fewstep.benchmarks.architectures.command import ARCHITECTURES
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData

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
        if "reference_latents_method" in kwargs:
            out["ref_latents_method"] = comfy.conds.CONDConstant(kwargs["reference_latents_method"])
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


def text(tokens, *, seed=0, batch=1, width=WIDTH, **options):
    """CONDITIONING of one entry."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, tokens, width, generator=generator), options]]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def hosts_x0(model, x, sigma, prompt, negative=None, *, cfg=1.0):
    """What the host's own samplers see in x (B, ...) at one noise level, of the model as wired, in the model's scale."""

    streams = x.unbind() if getattr(x, "is_nested", False) else [x]
    given = torch.cat([stream.reshape(len(stream), 1, -1) for stream in streams], dim=-1) if len(streams) > 1 else x

    def once(inner, _, sigmas, extra_args=None, callback=None, disable=None):
        return inner(given.clone(), sigmas[0].expand(len(given)), **extra_args)

    sampler, sigmas, zero = comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0]), x * 0.0
    latents = comfy.sample.sample_custom(
        model, x, cfg, sampler, sigmas, prompt, negative or prompt, zero, disable_pbar=True, seed=0
    )
    return model.model.process_latent_in(latents)


def perturbed(args):
    """As PAG, and skipped layers: of what the network answers with its attention left out."""
    options = comfy.model_patcher.set_model_options_patch_replace(
        args["model_options"].copy(), lambda q, k, v, extra: v, "attn1", "middle", 0
    )
    (other,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
    return args["denoised"] + 2.0 * (args["cond_denoised"] - other)


def assert_seen_as_by_the_host(one, model, x, prompt, *, sigma=0.6):
    """The training's denoiser sees in x what the host's samplers do. one: of the benchmark's table."""
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    batch = TensorData(x0=x, condition=condition).first(len(x))
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        found = denoise(x, torch.full((len(x),), sigma), **batch.condition)
    scale = host.models.noise_scale(model.get_model_object("model_sampling"))
    wanted = hosts_x0(one.for_the_hosts_samplers(model), scale * x, sigma, prompt)
    torch.testing.assert_close(scale * found, wanted, atol=1e-4, rtol=1e-4)


# --- a current host's own --------------------------------------------------------------------------------------------


def known(kind):
    """Whether this host has the model at all."""
    return ARCHITECTURES[kind].known()


def current(kind, *, seed=0, **changed):
    """A MODEL of the host's own class. changed: in its network."""
    return ARCHITECTURES[kind].model(seed=seed, **changed)


def prompt_of(kind, **options):
    """CONDITIONING of five tokens in the width of its text encoder."""
    return text(5, width=ARCHITECTURES[kind].width, **options)
