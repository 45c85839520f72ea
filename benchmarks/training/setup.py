"""What the training benchmarks train: the host's own UNets with random weights, a student, data and a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ...samplers.noise import NoiseFamily
from ...trainers.data.batches import TensorData
from ...trainers.methods.distribution_matching import DistributionMatchingOptions
from ...trainers.methods.progressive import ProgressiveOptions
from ...trainers.objective.method import Method, TeacherKind
from ...trainers.objective.weighting import Weighting
from ...trainers.students.adapters import LoRALayers, LoRAOptions
from ...trainers.students.student import Student, probe_writes_in_place
from ...trainers.training.optimisation.options import AS_LOADED

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "num_classes": None,
    "adm_in_channels": None,
}
UNETS: dict[str, dict[str, Any]] = {
    "SD15": {
        **_UNET,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "use_linear_in_transformer": False,
    },
    "SDXL": {
        **_UNET,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}
"""By the name of the host's class; both have 320 channels at the first level in truth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """student: LoRA or full. method: of METHODS. pixels: of the pictures, 8 to a latent.

    Weights are in the precision that is computed in.
    """

    student: str
    method: str
    architecture: str
    channels: int
    pixels: int
    batch: int
    precision: str
    gradient_checkpointing: bool = False


def random_model(setup: Setup) -> Any:
    """A MODEL of the host's own classes."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    unet = {**UNETS[setup.architecture], "model_channels": setup.channels}
    config = getattr(comfy.supported_models, setup.architecture)(unet)
    dtype = torch.float32 if setup.precision == AS_LOADED else getattr(torch, setup.precision)
    config.set_inference_dtype(dtype, None)
    network = config.get_model({}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.diffusion_model.parameters():
            scale = 0.1 if weight.ndim == 1 else 0.5 / max(weight[0].numel(), 1) ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return comfy.model_patcher.ModelPatcher(
        network.to(dtype),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


@contextmanager
def learning(setup: Setup) -> Iterator[tuple[Student, TensorData, torch.Tensor]]:
    """A student of the kind, its data and its table of noise levels."""
    from ...commands.embedded import import_host

    import_host()
    from ...nodes import host
    from ...nodes.distillation.learning import students

    model = random_model(setup)
    options = (
        students.FullWeights() if setup.student == "full" else LoRAOptions(rank=32, layers=LoRALayers.LINEAR_AND_CONV)
    )
    chosen = {"precision": setup.precision, "gradient_checkpointing": setup.gradient_checkpointing}
    with students.student_of(model, options, seed=0, **chosen) as student:  # type: ignore[arg-type]
        data = _data(setup, device=model.load_device)
        student.writes_in_place = probe_writes_in_place(student, data.first(1))
        yield student, data, host.models.noise_levels(host.models.model_sampling_of(model))


def _data(setup: Setup, *, device: torch.device) -> TensorData:
    generator = torch.Generator().manual_seed(1)
    unet, side = UNETS[setup.architecture], setup.pixels // 8
    condition = {"c_crossattn": torch.randn(1, 77, unet["context_dim"], generator=generator).to(device)}
    if unet["adm_in_channels"]:
        condition["y"] = torch.randn(1, unet["adm_in_channels"], generator=generator).to(device)
    return TensorData(x0=torch.randn(8, 4, side, side, generator=generator).to(device), condition=condition)


class Work(NamedTuple):
    """Of one iteration: forwards of the teacher, and without gradient of the student and the companion; the latter's updates."""

    teacher: int
    student: int = 0
    companion: int = 0
    updates: int = 0


METHODS = {"progressive": Work(teacher=2), "matching": Work(teacher=1, student=1, companion=1, updates=2)}


def in_one_step(name: str, table: torch.Tensor, *, iterations: int) -> Method:
    """Of METHODS, without guidance: from two steps to one, or matching the samples of one step."""
    teacher = TeacherKind(family=NoiseFamily.VARIANCE_EXPLODING, table=table)
    if name == "matching":
        return DistributionMatchingOptions(
            steps=1,
            iterations=iterations,
            learning_rate=1e-6,
            guidance_scale=1.0,
            companion_learning_rate=1e-6,
            companion_updates=METHODS[name].updates,
            companion_first=0,
        ).on(teacher)
    return halving(iterations=iterations).on(teacher)


def halving(*, iterations: int) -> ProgressiveOptions:
    """From two steps to one, without guidance."""
    return ProgressiveOptions(
        start_steps=2,
        target_steps=1,
        iterations=iterations,
        weighting=Weighting.TRUNCATED_SNR,
        learning_rate=1e-6,
        guidance_scale=1.0,
    )
