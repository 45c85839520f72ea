"""The networks of the benchmark's table that mid-2024's host lacks or no other test takes, as a training step calls them."""

from typing import Any

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from architectures import ARCHITECTURES as OLD
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import TensorData

REFUSED = ("hunyuan_image_meanflow", "wan_causal_ar")
"""Of training, by name."""
ARCHITECTURES = {kind: one for kind, one in ALL.items() if kind not in REFUSED and (kind not in OLD or kind == "flux")}


def kinds(*names: str) -> list[Any]:
    """Parameters for pytest, all or the named ones; those that this host lacks are skipped, saying so."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not ALL[name].known(), reason=f"this host has no {name}"))
        for name in names or ARCHITECTURES
    ]


def tiny(name: str, *, seed: int = 0, batch: int = 2) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    """(MODEL, noise, the denoiser's inputs besides x and sigma); all drawn from the seed."""
    one = ALL[name]
    model, noise = one.model(seed=seed), {"samples": one.noise(seed=seed, batch=batch)}
    x, shapes = one.samples(model, noise["samples"]), host.inputs.stream_shapes(noise)
    prompt = one.conditioning(seed=seed, batch=batch)
    inputs = host.inputs.condition_for_training(model, prompt, latents=x, name="positive", shapes=shapes)
    # the host's attention on CPUs takes no mask of several rows; Mochi asks torch's own, and for one always
    if name != "mochi" and inputs.pop("attention_mask", None) is not None:
        inputs["attention_mask=null"] = torch.empty(1, 0)
    return model, x, TensorData(x0=x, condition=inputs).first(batch).condition
