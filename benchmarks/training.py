"""What our training step costs beside its bare parts, and what the teacher of a LoRA costs in memory.

A UNet of Stable Diffusion 1.5's kind with random weights and fewer channels. Every round trains a few iterations with the
loop and does the same forwards, backward pass and optimiser step bare, one after the other; a ratio is the median over
rounds of that round's ratio. Writes benchmarks/results/training.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..samplers.noise import NoiseFamily
from ..trainers.adapters import LoRALayers, LoRAOptions
from ..trainers.data import TensorData
from ..trainers.loop import Metrics, train, weighted_error
from ..trainers.options import TrainOptions
from ..trainers.run_folder import RunFolder
from ..trainers.student import Student, probe_writes_in_place
from ..trainers.targets.progressive import Progressive, ProgressiveOptions
from ..trainers.weighting import Weighting

RESULTS = Path(__file__).resolve().parent / "results"
FAMILY = NoiseFamily.VARIANCE_EXPLODING


def random_model(*, channels: int) -> Any:
    """A MODEL of the host's own SD1.5 classes."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    unet = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": channels,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_linear_in_transformer": False,
        "num_classes": None,
        "adm_in_channels": None,
        "legacy": False,
    }
    config = comfy.supported_models.SD15(unet)
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.diffusion_model.parameters():
            fan_in = max(weight[0].numel(), 1) if weight.ndim > 1 else 1
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * (0.5 / fan_in**0.5 if weight.ndim > 1 else 0.1)
            )
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(
        network, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


@contextmanager
def learning(kind: str, *, channels: int) -> Iterator[tuple[Student, TensorData, torch.Tensor]]:
    """A student of the kind, its data and its table of noise levels."""
    from ..commands.embedded import import_host

    import_host()
    from ..nodes import host, students

    model = random_model(channels=channels)
    options = students.FullWeights() if kind == "full" else LoRAOptions(rank=32, layers=LoRALayers.LINEAR_AND_CONV)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 77, 768, generator=generator).to(model.load_device)
    x0 = torch.randn(8, 4, 16, 16, generator=generator).to(model.load_device)
    data = TensorData(x0=x0, condition={"c_crossattn": text})
    with students.student_of(model, options, seed=0) as student:
        student.writes_in_place = probe_writes_in_place(student, data.first(1))
        yield student, data, host.noise_levels(host.model_sampling_of(model))


def loop_seconds(student: Student, data: TensorData, method: Progressive, *, batch: int) -> float:
    """Seconds of an iteration in the loop, over all but the first of a run."""
    stamps: list[float] = []

    def stamp(metrics: Metrics) -> None:
        stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder), "bench")
        train(run, method, student, data, options=TrainOptions(batch_size=batch), observers=[stamp])
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1)


def bare_seconds(student: Student, data: TensorData, method: Progressive, *, batch: int, iterations: int) -> float:
    """Seconds of two teacher forwards, one student forward and backward, and an optimiser step."""
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    one = data.batch(batch, generator=generator)
    target = method.target(one, stage=0, teacher=student.teacher, student=student.denoiser, generator=generator)
    begin = 0.0
    for i in range(iterations):
        if i == 1:
            begin = time.perf_counter()
        with torch.no_grad():
            for _ in range(2):
                student.teacher(target.x_t, target.sigma, **target.condition)
        optimiser.zero_grad(set_to_none=True)
        with student.autograd():
            weighted_error(student.denoiser, target)[0].backward()
        optimiser.step()
    return (time.perf_counter() - begin) / (iterations - 1)


def measure(kind: str, *, channels: int, batch: int, rounds: int, iterations: int) -> dict[str, Any]:
    with learning(kind, channels=channels) as (student, data, table):
        method = Progressive(
            ProgressiveOptions(
                start_steps=2,
                target_steps=1,
                iterations=iterations,
                weighting=Weighting.TRUNCATED_SNR,
                learning_rate=1e-6,
                guidance_scale=1.0,
            ),
            family=FAMILY,
            table=table,
            unconditional=None,
        )
        held = _teacher_bytes(student)
        ours: Callable[[], float] = lambda: loop_seconds(student, data, method, batch=batch)  # noqa: E731
        bare: Callable[[], float] = lambda: bare_seconds(  # noqa: E731
            student, data, method, batch=batch, iterations=iterations
        )
        bare()
        pairs = [(ours(), bare()) if turn % 2 else (bare(), ours())[::-1] for turn in range(rounds)]
        return {
            "ratios": sorted(loop / plain for loop, plain in pairs),
            "milliseconds": 1000 * statistics.median(plain for _, plain in pairs),
            "held at first": held,
            "held later": _teacher_bytes(student),
            "learning": sum(value.numel() for value in student.parameters()),
        }


def _teacher_bytes(student: Student) -> int:
    tensors = [value for name, value in student.state_dict().items() if name.startswith("teacher.")]
    return sum(value.numel() * value.element_size() for value in tensors)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch.py bench training", description=__doc__)
    parser.add_argument("--channels", type=int, default=64, help="of the UNet's first level; SD1.5 has 320")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    options = vars(parser.parse_args(arguments))
    lines = []
    for kind in ("LoRA", "full"):
        found = measure(kind, **options)
        ratios = found["ratios"]
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        lines.append(
            f"| {kind} | {found['learning'] / 1e6:.1f} M | {found['milliseconds']:.0f} ms | {statistics.median(ratios):.3f} "
            f"| {low:.3f} to {high:.3f} | {found['held at first'] / 2**20:.1f} | {found['held later'] / 2**20:.1f} |"
        )
    said = " ".join(f"--{name} {value}" for name, value in options.items())
    page = "\n".join(
        [
            "# What a training step costs beside its bare parts",
            "",
            f"`python launch.py bench training {said}`: progressive distillation, latents of 16 x 16, float32, on "
            f"{platform.platform()}, {os.cpu_count()} CPU cores"
            f"{', ' + torch.cuda.get_device_name() if torch.cuda.is_available() else ', no GPU'}.",
            "",
            "| student | learns | bare step | loop over bare | middle half | MiB for the teacher, first halving | later |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *lines,
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.md").write_text(page, encoding="utf-8")
    print(page)
