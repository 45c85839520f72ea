"""One cell of the GPU book, alone in a process or in one of several: sampling or a training step at a model's true shapes.

Weights are random and drawn where they are used; what a step takes and holds does not depend on their values.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..samplers.schedules import trailing_sigmas
from ..trainers.data.batches import TensorData
from ..trainers.methods.progressive import ProgressiveOptions
from ..trainers.objective.weighting import Weighting
from ..trainers.processes.group import Processes
from ..trainers.storage.run_folder import RunFolder
from ..trainers.students.adapters import LoRAOptions
from ..trainers.students.student import probe_writes_in_place
from ..trainers.training.loop import train
from ..trainers.training.options import TrainOptions
from .training_setup import UNETS

STEPS, ROUNDS, ITERATIONS = 4, 8, 6
PRECISIONS = {"bf16": (torch.bfloat16, None), "fp8": (torch.float8_e4m3fn, torch.bfloat16)}
"""(what weights are held in, what is computed in where that is not the same)"""


@dataclass(frozen=True)
class Shape:
    """config: the host's class. network: what the host reads off a checkpoint. latent: one sample's. tokens, width: of a prompt.

    pooled: of the prompt's pooled embedding, 0 for none.
    """

    config: str
    network: dict[str, Any] = field(repr=False)
    latent: tuple[int, ...]
    tokens: int
    width: int
    pooled: int = 0


SHAPES = {
    "SD1.5, 512 px": Shape("SD15", {**UNETS["SD15"], "model_channels": 320}, (4, 64, 64), 77, 768),
    "SDXL, 1024 px": Shape("SDXL", {**UNETS["SDXL"], "model_channels": 320}, (4, 128, 128), 77, 2048, 1280),
    "Z-Image, 1024 px": Shape(
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 3840,
            "n_layers": 30,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "multiple_of": 256,
            "ffn_dim_multiplier": 8.0 / 3.0,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        (16, 128, 128),
        128,
        2560,
    ),
    "Wan 1.3B, 832 x 480, 81 frames": Shape(
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 1536,
            "ffn_dim": 8960,
            "freq_dim": 256,
            "text_dim": 4096,
            "num_heads": 12,
            "num_layers": 30,
            "in_dim": 16,
            "out_dim": 16,
            "text_len": 512,
        },
        (16, 21, 60, 104),
        512,
        4096,
    ),
}
"""As the host reads them off the released files."""


class Subject:
    """A MODEL of a shape on a device, with one prompt and latents of unit variance."""

    def __init__(self, shape: Shape, precision: str, device: torch.device, *, batch: int = 1) -> None:
        from ..nodes.host import inputs

        self.device, generator = device, torch.Generator(device).manual_seed(0)
        self.model = _model(shape, *PRECISIONS[precision], device=device, generator=generator)
        text = torch.randn(1, shape.tokens, shape.width, generator=generator, device=device)
        pooled = torch.randn(1, shape.pooled, generator=generator, device=device) if shape.pooled else None
        prompt = [[text, {"pooled_output": pooled} if shape.pooled else {}]]
        drawn = torch.randn(batch, *shape.latent, generator=generator, device=device)
        latents = inputs.latents_for_training(self.model, {"samples": self.model.model.process_latent_out(drawn)})
        condition = inputs.condition_for_training(self.model, prompt, latents=latents, name="positive")
        self.data = TensorData(x0=latents, condition=condition)

    def now(self) -> float:
        """When everything asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _model(
    shape: Shape, weights: torch.dtype, computes_in: torch.dtype | None, *, device: torch.device, generator: Any
) -> Any:
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, shape.config)(dict(shape.network))
    config.set_inference_dtype(weights, computes_in)
    network = config.get_model({}, "", device).to(device).eval()
    with torch.no_grad():
        for weight in network.diffusion_model.parameters():
            scale = 0.1 if weight.ndim == 1 else 0.5 / max(weight[0].numel(), 1) ** 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, device=device))
    return comfy.model_patcher.ModelPatcher(network, load_device=device, offload_device=torch.device("cpu"))


# --- what is measured ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def sampling(subject: Subject, _processes: Processes, _folder: Path) -> dict[str, float]:
    """Seconds of a bare call; ours and the host's euler over as many bare calls, medians over rounds of each round's ratio."""
    import comfy.k_diffusion.sampling as theirs

    from ..nodes import host

    denoiser = host.training.as_denoiser(host.training.loaded(subject.model), model=subject.model)
    sampled = host.models.model_sampling_of(subject.model)
    sigmas = trailing_sigmas(STEPS, table=host.models.noise_levels(sampled)).to(subject.device)
    one = subject.data.first(1)
    start, family = one.x0, host.models.noise_family(sampled)

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return denoiser(x, sigma, **one.condition)

    def ours(gamma: float) -> Callable[[], object]:
        return lambda: sample_few_step(model, start, sigmas, {"seed": 0}, disable=True, family=family, gamma=gamma)

    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: [model(start, sigma.expand(1)) for sigma in sigmas[:-1]],
        "lightning": ours(0.0),
        "lcm": ours(1.0),
        "euler": lambda: theirs.sample_euler(model, start, sigmas, disable=True),
    }
    rounds = [_timed(subject, contenders, turn) for turn in range(ROUNDS + 1)][1:]
    found = {
        name: statistics.median(one[name] / one["bare"] for one in rounds) for name in contenders if name != "bare"
    }
    return {"call": statistics.median(one["bare"] for one in rounds) / STEPS, **found}


def _timed(subject: Subject, contenders: dict[str, Callable[[], object]], turn: int) -> dict[str, float]:
    """The order turns round, so that none is always the one after a slow one."""
    names, seconds = list(contenders), {}
    first = turn % len(names)
    for name in names[first:] + names[:first]:
        begin = subject.now()
        contenders[name]()
        seconds[name] = subject.now() - begin
    return seconds


def training(subject: Subject, processes: Processes, folder: Path) -> dict[str, float]:
    """Seconds of a LoRA's optimiser step with gradient checkpointing, and the most bytes held: weights and all.

    folder: of the run, the same for all processes.
    """
    from ..nodes.distillation import running, students

    options = ProgressiveOptions(
        start_steps=2,
        target_steps=1,
        iterations=ITERATIONS,
        weighting=Weighting.TRUNCATED_SNR,
        learning_rate=1e-5,
        guidance_scale=1.0,
    )
    method = running.method_on(subject.model, options, empty_prompt=False)
    stamps: list[float] = []
    lora = LoRAOptions(rank=16, alpha=16.0)
    with (
        torch.inference_mode(False),
        students.student_of(subject.model, lora, seed=0, gradient_checkpointing=True) as student,
    ):
        student.writes_in_place = probe_writes_in_place(student, subject.data.first(1))
        train(
            RunFolder(folder, "bench"),
            method,
            student,
            subject.data,
            options=TrainOptions(batch_size=processes.count, checkpoint_every=10**6),
            observers=[lambda _: stamps.append(subject.now())],
            processes=processes,
        )
    if not processes.is_first:
        return {}
    return {"step": statistics.median(b - a for a, b in itertools.pairwise(stamps)), "bytes": _peak(subject)}


def _peak(subject: Subject) -> float:
    if subject.device.type != "cuda":
        return float("nan")  # of a process's own memory the training benchmark tells
    return float(torch.cuda.max_memory_allocated(subject.device))


PARTS = {"sampling": sampling, "training": training}


def main() -> None:
    name, precision, part, folder = json.loads(sys.argv[1])
    from ..commands.embedded import import_host

    import_host("--use-pytorch-cross-attention")
    from .. import nodes  # noqa: F401  # sets up the host's own backward

    with Processes.from_environment() as processes:
        device = torch.device("cuda", torch.cuda.current_device())
        subject = Subject(SHAPES[name], precision, device, batch=processes.count)
        found = PARTS[part](subject, processes, Path(folder))
        if processes.is_first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
