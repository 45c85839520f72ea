"""A model of the GPU book as its host would have loaded it, with random weights."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ...trainers.data.batches import TensorData
from ..architectures import quantised
from .shapes import Shape

SCALED = "fp8 scaled"
PRECISIONS = {
    "bf16": (torch.bfloat16, None),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
    SCALED: (torch.bfloat16, torch.bfloat16),
}
"""(what weights are held in, what is computed in where that is not the same); scaled: linear layers of the host's own class."""


class Subject:
    """A MODEL of a shape as the host would have loaded it, its weights beside the device, with one prompt and latents."""

    def __init__(self, shape: Shape, precision: str, device: torch.device, *, batch: int = 1) -> None:
        import comfy.model_patcher

        from ...nodes.host import inputs

        self.device, generator = device, torch.Generator(device).manual_seed(0)
        self.network = _network(shape, precision, device=device, generator=generator)
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.model = patcher(self.network, load_device=device, offload_device=torch.device("cpu"))
        self.size = self.model.model_size()
        text = torch.randn(1, shape.tokens, shape.width, generator=generator, device=device)
        pooled = torch.randn(1, shape.pooled, generator=generator, device=device) if shape.pooled else None
        prompt = [[text, {"pooled_output": pooled} if shape.pooled else {}]]
        drawn = torch.randn(batch, *shape.latent, generator=generator, device=device)
        latents = inputs.latents_for_training(self.model, {"samples": self.model.model.process_latent_out(drawn)})
        condition = inputs.condition_for_training(self.model, prompt, latents=latents, name="positive")
        self.data = TensorData(x0=latents, condition=condition, unconditional=condition)

    def now(self) -> float:
        """When everything asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_device(self) -> int:
        """Bytes of weights that the host has on the device; hosts of old put them there whole, and do not say."""
        return int(getattr(self.model, "loaded_size", self.model.model_size)())


def _network(shape: Shape, precision: str, *, device: torch.device, generator: torch.Generator) -> Any:
    """Drawn on the device, and loaded beside it as from a file; under inference mode, as a host's loaders run."""
    with torch.inference_mode():
        with _weights_at_once():
            drawn = _config(shape, precision).get_model({}, "", torch.device("cpu")).diffusion_model
        for weight in drawn.parameters():
            scale = 0.1 if weight.ndim == 1 else 0.5 / max(weight[0].numel(), 1) ** 0.5
            weight.copy_((scale * torch.randn(weight.shape, generator=generator, device=device)).to(weight.dtype))
        state, how = drawn.state_dict(), {}
        if precision == SCALED:
            state, how = state | _scaled(drawn, device=device), {"quant_config": {"mixed_ops": True}}
        made = _config(shape, precision, **how).get_model({}, "", torch.device("cpu")).eval()
        made.diffusion_model.load_state_dict(state, assign=True)
    return made


def _weights_at_once() -> AbstractContextManager[object]:
    """Inside, layers have weights when they are made; where the host pages them, it waits for the file's."""
    memory = sys.modules.get("comfy.memory_management")
    return mock.patch.object(memory, "aimdo_enabled", False) if hasattr(memory, "aimdo_enabled") else nullcontext()


def _config(shape: Shape, precision: str, **how: Any) -> Any:
    import comfy.supported_models

    config = getattr(comfy.supported_models, shape.config)(dict(shape.network))
    for name, value in how.items():
        setattr(config, name, value)
    config.set_inference_dtype(*PRECISIONS[precision])
    return config


def _scaled(network: torch.nn.Module, *, device: torch.device) -> dict[str, Tensor]:
    """Its linear layers as files of today have them in float8, with a scale for each."""
    form, state = "float8_e4m3fn", {}
    for name, layer in quantised.linear_layers(network):
        weight = quantised.as_quantised(layer.weight.to(device), form)
        state |= {key: value.cpu() for key, value in weight.state_dict(f"{name}.weight").items()}
        state[f"{name}.comfy_quant"] = quantised.mark(form)
    return state
