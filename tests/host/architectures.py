"""The kinds of models that most tests take, from the benchmark's table: UNets, an MMDiT, and Flux where the host has it.

A latent of such a model is (B, channels, H, W) with H and W even and up to 32.
"""

import importlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.benchmarks.architectures.command import ARCHITECTURES as ALL
from comfyui_fewstep.benchmarks.architectures.setup import CPU, TOKENS

ARCHITECTURES = {kind: ALL[kind] for kind in ("sd15", "sd2_v", "sdxl", "sd3", "flux")}
__all__ = ["ARCHITECTURES", "CPU", "TOKENS"]


def has(kind: str) -> bool:
    """Whether this host knows the architecture; the one of June 2024 is older than Flux."""
    return ARCHITECTURES[kind].known()


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
    return ARCHITECTURES[kind].model(seed=seed, computes_in=computes_in)


def latent_channels(model: Any) -> int:
    return model.get_model_object("latent_format").latent_channels


def noise_for(model: Any, *, seed: int = 0, batch: int = 2, height: int = 4, width: int = 6) -> torch.Tensor:
    """Unit noise (batch, channels, height, width) in the shape of the model's latents."""
    shape = (batch, latent_channels(model), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(kind: str, *, seed: int = 0, batch: int = 1) -> list[list[Any]]:
    """CONDITIONING of one entry of the given batch, in the shapes that the architecture's text encoders give."""
    return ARCHITECTURES[kind].conditioning(seed=seed, batch=batch)


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
