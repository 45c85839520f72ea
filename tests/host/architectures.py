"""The host's own model classes with few and random weights: UNets, an MMDiT, and Flux where there is one.

Everything but the size is as a checkpoint would have it: the host's configuration classes, the widths of the text
embeddings, what the prompt carries besides them, the latent format. A latent of such a model is (B, channels, H, W)
with H and W even and up to 32.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_patcher
import comfy.supported_models

CPU = torch.device("cpu")


def _since(module: str, name: str, **settings: Any) -> dict[str, Any]:
    """Those of the settings that a dataclass of the host has: hosts learn new ones. None where it lacks the module."""
    try:
        known = getattr(importlib.import_module(module), name).__dataclass_fields__
    except ModuleNotFoundError:
        return {}
    return {key: value for key, value in settings.items() if key in known}


TOKENS = 8


@dataclass(frozen=True)
class Architecture:
    """config: the host's class. network: what the host reads off a checkpoint. marks: by what it tells v-prediction."""

    config: str
    network: dict[str, Any]
    width: int
    pooled: int
    options: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, torch.Tensor] = field(default_factory=dict)


UNET = {
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
ARCHITECTURES = {
    "sd15": Architecture(
        config="SD15",
        network=UNET | {"model_channels": 32, "context_dim": 768, "use_linear_in_transformer": False},
        width=768,
        pooled=768,
    ),
    "sd2_v": Architecture(
        config="SD20",
        network=UNET | {"model_channels": 64, "context_dim": 1024},
        width=1024,
        pooled=1024,
        marks={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])},
    ),
    "sdxl": Architecture(
        config="SDXL",
        network=UNET
        | {
            "model_channels": 32,
            "context_dim": 2048,
            "transformer_depth": [0, 2],
            "transformer_depth_output": [0, 0, 2, 2],
            "transformer_depth_middle": 2,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        width=2048,
        pooled=1280,
        options={"width": 96, "height": 64, "crop_w": 8, "crop_h": 0, "target_width": 96, "target_height": 64},
    ),
    "sd3": Architecture(
        config="SD3",
        network={
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
        },
        width=4096,
        pooled=2048,
    ),
    "flux": Architecture(
        config="Flux",
        network={
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
            **_since("comfy.ldm.flux.model", "FluxParams", txt_ids_dims=[]),
        },
        width=4096,
        pooled=768,
        options={"guidance": 3.5},
    ),
}


def has(kind: str) -> bool:
    """Whether this host knows the architecture; the one of June 2024 is older than Flux."""
    return hasattr(comfy.supported_models, ARCHITECTURES[kind].config)


def kinds(*names: str, thorough: Sequence[str] = ()) -> list[Any]:
    """Parameters for pytest, all kinds or the named ones; those that this host lacks are skipped, saying so."""
    return grid(names or tuple(ARCHITECTURES), gate=lambda kind: kind not in thorough)


def grid(*axes: Iterable[Any], gate: Callable[..., bool]) -> list[Any]:
    """All combinations as parameters for pytest. Those that gate does not want are thorough; kinds as above."""
    return [pytest.param(*values, marks=_marks(values, wanted=gate(*values))) for values in itertools.product(*axes)]


def _marks(values: tuple[Any, ...], *, wanted: bool) -> list[pytest.MarkDecorator]:
    lacking = [value for value in values if isinstance(value, str) and value in ARCHITECTURES and not has(value)]
    skipped = [pytest.mark.skip(reason=f"this host has no {kind}") for kind in lacking]
    return skipped if wanted else [*skipped, pytest.mark.thorough]


def tiny(kind: str, *, seed: int = 0, computes_in: torch.dtype | None = None) -> Any:
    """A MODEL: float32, on the CPU, one to four million weights drawn from the seed; the host may compute in another type."""
    architecture = ARCHITECTURES[kind]
    with torch.inference_mode():  # as in a host, whose loaders run under it too
        config = getattr(comfy.supported_models, architecture.config)(architecture.network)
        config.set_inference_dtype(torch.float32, computes_in)
        network = config.get_model(architecture.marks).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, weight in network.diffusion_model.state_dict().items():
            weight.copy_(_drawn(name, weight.shape, generator))
    return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """No layer is left at zero, as trainers leave the last ones: a constant output would test nothing."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:  # the scale of a norm
        return 1.0 + 0.1 * noise
    if name == "pos_embed":
        return 0.5 * noise
    return noise / math.prod(shape[1:]) ** 0.5


def latent_channels(model: Any) -> int:
    return model.get_model_object("latent_format").latent_channels


def noise_for(model: Any, *, seed: int = 0, batch: int = 2, height: int = 4, width: int = 6) -> torch.Tensor:
    """Unit noise (batch, channels, height, width) in the shape of the model's latents."""
    shape = (batch, latent_channels(model), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(kind: str, *, seed: int = 0, batch: int = 1) -> list[list[Any]]:
    """CONDITIONING of one entry of the given batch, in the shapes that the architecture's text encoders give."""
    architecture = ARCHITECTURES[kind]
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, TOKENS, architecture.width, generator=generator)
    pooled = torch.randn(batch, architecture.pooled, generator=generator)
    return [[text, {"pooled_output": pooled, **architecture.options}]]


def on_levels(node: str, model: Any, *settings: Any) -> Any:
    """A MODEL behind a stock node of sampling, wherever the host keeps it."""
    for place in ("comfy_extras.nodes.nodes_model_advanced", "comfy_extras.nodes_model_advanced"):
        try:
            found = getattr(importlib.import_module(place), node)
        except ImportError:
            continue
        return found().patch(model, *settings)[0]
    raise AssertionError(f"this host has no {node}")


def model_inputs(model: Any, prompt: list[list[Any]]) -> dict[str, torch.Tensor]:
    """What the network gets besides x and t, by the names of its forward, for a prompt of one entry of x's batch."""
    ((text, options),) = prompt
    labels = model.model.encode_adm(device=CPU, **options)
    inputs = {"context": text, "y": labels, "guidance": options.get("guidance")}
    if inputs["guidance"] is not None:
        inputs["guidance"] = torch.tensor([inputs["guidance"]])
    return {name: value for name, value in inputs.items() if value is not None}
