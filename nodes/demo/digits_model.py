"""The demo teacher as the host's own objects: a real ComfyUI UNet on digit latents, and a VAE that enlarges them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...samplers.noise import Denoiser
from ...trainers.measures.digits import DIGITS, to_latents, to_pictures
from ...trainers.storage.files import read_tensors
from .. import host

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TEACHER_FILE = ASSETS / "digits_teacher.safetensors"
SCALE = 8
"""Pixels of a viewed picture for one latent, as with Stable Diffusion: Empty Latent Image at 32 x 32 is one digit."""


class DigitLatents(comfy.latent_formats.LatentFormat):
    """Latents are at unit variance already; the four channels are the four sub-pixels, so the preview is their mean."""

    scale_factor = 1.0
    latent_channels = 4

    def __init__(self) -> None:
        self.latent_rgb_factors = [[0.25, 0.25, 0.25]] * 4


class DigitConfig(comfy.supported_models_base.BASE):
    """What the host needs to know of the model: a v-prediction UNet at SD's noise levels, with a class vector."""

    unet_config = {
        "image_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 0],
        "transformer_depth_output": [0, 0, 0, 0],
        "transformer_depth_middle": -1,
        "num_classes": "sequential",
        "adm_in_channels": DIGITS,
        "use_spatial_transformer": False,
        "legacy": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = DigitLatents

    def __init__(self) -> None:
        super().__init__(self.unet_config)
        self.set_inference_dtype(torch.float32, None)


class DigitModel(comfy.model_base.BaseModel):
    """The host's model around its UNet; the class vector travels as the prompt's pooled output, as SDXL's does."""

    def encode_adm(self, **inputs: Any) -> Tensor:
        pooled = inputs.get("pooled_output")
        if pooled is None or pooled.shape[-1] != DIGITS:
            raise ValueError(
                "the digits model understands digits only; connect Digit Prompt instead of a text encoder."
            )
        return pooled


def new_model() -> DigitModel:
    """The network with weights at nothing in particular; load or initialise them."""
    config = DigitConfig()
    return DigitModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION)


def initialise(network: Any, *, generator: torch.Generator) -> None:
    """torch's own default initialisation, which the host's layers skip, and a last layer at zero."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        with torch.no_grad():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    nn.init.zeros_(network.diffusion_model.out[-1].weight)


def load_teacher(path: Path = TEACHER_FILE) -> Any:
    """The shipped teacher as a MODEL."""
    tensors, _ = read_tensors(path)
    return as_model(tensors)


def as_model(tensors: Mapping[str, Tensor]) -> Any:
    """A MODEL from the diffusion model's state dict, under the host's memory management."""
    network = new_model()
    network.diffusion_model.load_state_dict({name: value.float() for name, value in tensors.items()})
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(
        network.eval(), load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


def as_denoiser(network: nn.Module, *, prediction: str | None = None) -> Denoiser:
    """D(x, sigma, y) -> x0, with a placeholder for the text that the host's apply_model wants and this network ignores.

    prediction: what the network's output is taken for; None for v.
    """
    denoiser = host.training.as_denoiser(network, prediction=prediction)
    return lambda x, sigma, **condition: denoiser(x, sigma, c_crossattn=x.new_zeros(len(x), 1, 1), **condition)


class DigitVAE:
    """What the host's VAE nodes call: pictures (B, H, W, 3) in [0, 1] to latents (B, 4, H/8, W/8) and back.

    A digit is 8 x 8 pixels; it is shown at 32 x 32. Nothing is learned and nothing is lost but the enlarging.
    """

    latent_channels = 4

    def decode(self, samples: Tensor) -> Tensor:
        small = to_pictures(samples.float())
        large = F.interpolate(small, scale_factor=SCALE / 2, mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return large.expand(-1, 3, -1, -1).movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        height, width = (side // SCALE * 2 for side in pixels.shape[1:3])
        if not height or not width:
            raise ValueError(
                f"pictures of {tuple(pixels.shape[1:3])} pixels are too small; the least is {SCALE} x {SCALE}."
            )
        grey = pixels[..., :3].float().mean(dim=-1)[:, None]
        return to_latents(F.interpolate(grey, size=(height, width), mode="area"))

    def decode_tiled(self, samples: Tensor, **_tiling: Any) -> Tensor:
        """Tiles save memory, of which this needs none."""
        return self.decode(samples)

    def encode_tiled(self, pixels: Tensor, **_tiling: Any) -> Tensor:
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return SCALE

    def spacial_compression_encode(self) -> int:
        return SCALE

    def temporal_compression_decode(self) -> None:
        return None


class DigitCLIP:
    """What the host's CLIP nodes call: a text of digits to the class vectors that the teacher takes.

    There is no network behind it: Load LoRA finds no weights of a text encoder here, and changes the MODEL alone.
    """

    usual_prompts = tuple(map(str, range(DIGITS)))
    """Where none are given: see training_data.usual_prompts."""

    def __init__(self) -> None:
        self.cond_stage_model = nn.Module()
        device = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.cond_stage_model, load_device=device, offload_device=device
        )

    def clone(self) -> DigitCLIP:
        return DigitCLIP()

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> list[str]:
        """The keys that are known here: none."""
        return []

    def tokenize(self, text: str, **_options: Any) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_pooled: bool = False, **_options: Any) -> Any:
        ((embedding, options),) = prompt(tokens)
        return (embedding, options["pooled_output"]) if return_pooled else embedding

    def encode_from_tokens_scheduled(self, tokens: str, **_options: Any) -> list[list[Any]]:
        return prompt(tokens)


def prompt(digits: str) -> list[list[Any]]:
    """CONDITIONING for a text of digits, one picture each; the empty text is the empty prompt.

    ValueError, naming what was given, for anything else than digits, spaces and commas.
    """
    kept = digits.replace(" ", "").replace(",", "")
    if kept and not (kept.isascii() and kept.isdigit()):
        raise ValueError(
            f"the digits are {digits!r}; allowed are 0 to 9, spaces and commas, or nothing for the empty prompt."
        )
    labels = torch.tensor([int(c) for c in kept], dtype=torch.long)
    return condition(labels) if kept else [[torch.zeros(1, 1, 1), {"pooled_output": torch.zeros(1, DIGITS)}]]


def condition(labels: Tensor) -> list[list[Any]]:
    """CONDITIONING for labels (N,): one entry of batch N. The text embedding is a placeholder that the host wants."""
    one_hot = F.one_hot(labels, DIGITS).float()
    return [[torch.zeros(len(labels), 1, 1), {"pooled_output": one_hot}]]
