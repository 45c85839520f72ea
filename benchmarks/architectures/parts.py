"""What the benchmark of architectures looks at: for each part of the table, a figure and whether it is as it should be."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import sample_few_step
from ...samplers.noise import Denoiser
from ...trainers.data.batches import TensorData
from ...trainers.objective.loss import loss_and_error
from ...trainers.objective.method import Lesson, Method, Target
from ...trainers.storage.files import write_tensors
from ...trainers.storage.prefixes import below
from ...trainers.students.adapters import LowRank, product
from ...trainers.students.saved_tensors import copied_when_overwritten
from ...trainers.students.student import Student
from .memory import left_in_memory
from .subject import (
    BATCH,
    CLOSE,
    COSINE,
    LORA,
    METHODS,
    SAMPLERS,
    SEED,
    SHARE,
    SIGMA,
    STEPS,
    Found,
    Subject,
    answer,
    trained,
)

# --- sampling --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def ksampler(subject: Subject) -> Found:
    """How many of our samplers draw in KSampler what they draw in SamplerCustom, bit for bit."""
    import comfy.sample
    import comfy.samplers

    prompts = _prompts(subject)
    noise = subject.architecture.noise(batch=subject.architecture.at_once)
    same = 0
    for name in SAMPLERS:
        drawn = comfy.sample.sample(
            *(subject.model, noise, STEPS, 1.0, name, "simple", *prompts, noise * 0.0), disable_pbar=True, seed=SEED
        )
        custom = _custom(subject, comfy.samplers.sampler_object(name))
        same += all(
            torch.equal(a, b) and bool(torch.isfinite(a).all()) for a, b in zip(_each(drawn), custom, strict=True)
        )
    return Found(same, same == len(SAMPLERS))


def lightning(subject: Subject) -> Found:
    """Our Lightning from the host's euler."""
    return _against(subject, "euler", 0.0)


def lcm(subject: Subject) -> Found:
    """Our LCM from the host's lcm, on the same fresh noise."""
    return _against(subject, "lcm", 1.0)


@torch.inference_mode()
def _against(subject: Subject, name: str, gamma: float) -> Found:
    import comfy.samplers

    from ...nodes.host import models

    def fresh(x: Tensor) -> Callable[..., Tensor]:
        return lambda sigma, _: torch.randn(x.shape, generator=torch.Generator().manual_seed(int(1e4 * float(sigma))))

    def theirs(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        own = getattr(comfy.k_diffusion.sampling, f"sample_{name}")
        return own(model, x, sigmas, **options, **({"noise_sampler": fresh(x)} if gamma else {}))

    def ours(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        chosen = models.sampler_function(sample_few_step, gamma=gamma, **({"noise_sampler": fresh(x)} if gamma else {}))
        return chosen(model, x, sigmas, **options)

    drawn = [
        _custom(subject, comfy.samplers.KSAMPLER(function), model=model)
        for function, model in (
            (ours, subject.model),
            (theirs, subject.architecture.for_the_hosts_samplers(subject.model)),
        )
    ]
    return _near(max(apart(a, b) for a, b in zip(*drawn, strict=True)))


def _custom(subject: Subject, sampler: Any, *, model: Any = None) -> list[Tensor]:
    """What SamplerCustom draws, stream by stream."""
    import comfy.sample
    import comfy.samplers

    noise = subject.architecture.noise(batch=subject.architecture.at_once)
    sampling = subject.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    return _each(
        comfy.sample.sample_custom(
            *(model or subject.model, noise, 1.0, sampler, sigmas, *_prompts(subject), noise * 0.0),
            disable_pbar=True,
            seed=SEED,
        )
    )


def _prompts(subject: Subject) -> list[Any]:
    return [subject.architecture.conditioning(seed=seed) for seed in (1, 2)]


def _each(drawn: Any) -> list[Tensor]:
    return list(drawn.unbind()) if getattr(drawn, "is_nested", False) else [drawn]


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def _near(difference: float) -> Found:
    return Found(difference, difference < CLOSE)


# --- training --------------------------------------------------------------------------------------------------------


def gradients(name: str, *, least: float = COSINE, **how: Any) -> Callable[[Subject], Found]:
    """A part: the cosine between a LoRA's gradients in a method and those of ordinary float32 weights. how: of student_of."""

    def part(subject: Subject) -> Found:
        data, method = subject.data(), subject.method(name)
        with subject.student(LORA, data, **how) as student:
            scatter(student)
            target = _target(method, data, teacher=student.teacher, student=student.denoiser)
            with student.autograd():
                loss_and_error(student.denoiser, target)[0].backward()
            state = below(student.state_dict(), "student.")
        paths = [name.removesuffix(".up") for name in state if name.endswith(".up")]
        pairs = {path: LowRank(state[f"{path}.down"], state[f"{path}.up"]) for path in paths}
        found = {path: (pair.down.grad, pair.up.grad) for path, pair in pairs.items()}
        cosine = _cosine(found, _plainly(subject, method, data, pairs))
        return Found(cosine, cosine > least)

    return part


def scatter(student: Student) -> None:
    """Adapters that all count: at first one of each pair is zero."""
    generator = torch.Generator().manual_seed(SEED)
    for value in student.parameters():
        value.data.copy_(0.05 * torch.randn(value.shape, generator=generator))


def _target(method: Method, data: TensorData, *, teacher: Denoiser, student: Denoiser) -> Target:
    generator = torch.Generator().manual_seed(SEED)
    batch = data.batch(BATCH, generator=generator)
    return method.target(Lesson(batch=batch, stage=0, teacher=teacher, student=student, generator=generator))


def _plainly(subject: Subject, method: Method, data: TensorData, adapters: dict[str, LowRank]) -> Any:
    """Each adapter's gradients by torch alone: it is in its layer's weight, whose own gradient is then split."""
    from ...nodes.host import backward, training

    networks = [training.trainable_copy(subject.plain) for _ in range(2)]
    scale = LORA.alpha / LORA.rank
    layers = {path: networks[1].diffusion_model.get_submodule(path) for path in adapters}
    teacher, student = (training.as_denoiser(network) for network in networks)
    with torch.inference_mode(False), backward.possible(), copied_when_overwritten():
        for path, layer in layers.items():
            layer.weight = torch.nn.Parameter(layer.weight.detach() + scale * product(adapters[path]).detach())
        with torch.no_grad():
            target = _target(method, data, teacher=teacher, student=student)
        loss_and_error(student, target)[0].backward()
    return {path: _split(layer.weight.grad, adapters[path], scale) for path, layer in layers.items()}


def _split(whole: Tensor | None, adapter: LowRank, scale: float) -> tuple[Tensor | None, Tensor | None]:
    if whole is None:
        return None, None
    whole, down, up = scale * whole.flatten(1), adapter.down.detach(), adapter.up.detach()
    return (up.flatten(1).T @ whole).view(down.shape), (whole @ down.flatten(1).T).view(up.shape)


def _cosine(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Over all adapters at once. One without a gradient counts as zero."""
    pairs = [pair for path, parts in wanted.items() for pair in zip(found[path], parts, strict=True)]
    known = [
        (torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b)
        for a, b in pairs
        if a is not b
    ]
    a, b = (torch.cat([value.double().flatten() for value in side]) for side in zip(*known, strict=True))
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def held(subject: Subject) -> Found:
    """What gradient checkpointing leaves in memory for backward, of the usual, in a network of many blocks."""
    deep = Subject(subject.architecture.deeper())
    usual, less = (_left_by(deep, gradient_checkpointing=checkpointing) for checkpointing in (False, True))
    return Found(less / usual, less <= SHARE * usual)


def _left_by(subject: Subject, **how: Any) -> int:
    """Bytes, of the second pass: in the first, blocks learn what they overwrite."""
    data = subject.data()
    batch = data.first(BATCH)
    sigma = torch.full((BATCH,), SIGMA)
    with subject.student(LORA, data, **how) as student:
        for _ in range(2):
            with student.autograd():
                left = left_in_memory(lambda: student.denoiser(batch.x0, sigma, **batch.condition))
    return left


def let_go(subject: Subject) -> Found:
    """Bytes that each training of a LoRA with gradient checkpointing leaves for ever: what two leave beyond what one does.

    Hosts fill caches in a first one, and may give a network other tensors for its weights in each.
    """
    data = subject.data()

    def life() -> Tensor:
        with (
            subject.student(LORA, data, gradient_checkpointing=True) as student,
            tempfile.TemporaryDirectory() as folder,
        ):
            trained(subject, student, data, folder)
        gc.collect()
        return torch.zeros(0)

    life()
    left = left_in_memory(lambda: (life(), life())[0]) - left_in_memory(life)
    return Found(left, left == 0)


# --- what comes back -------------------------------------------------------------------------------------------------


def lora_file(subject: Subject) -> Found:
    """A trained LoRA's file, through the host's loader, from the student. ValueError for keys that the loader left out."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    data = subject.data()
    with subject.student(LORA, data) as student, tempfile.TemporaryDirectory() as folder:
        scatter(student)
        trained(subject, student, data, folder)
        wanted, file = answer(student.denoiser, data), Path(folder) / "lora.safetensors"
        write_tensors(file, student.exported(), metadata={})
        tensors = comfy.utils.load_torch_file(str(file))
    with torch.inference_mode():
        used = comfy.lora.load_lora(dict(tensors), comfy.lora.model_lora_keys_unet(subject.model.model, {}))
        layers = sum(name.endswith(".lora_up.weight") for name in tensors)
        if len(used) != layers:
            raise ValueError(f"the host's loader used {len(used)} of the file's {layers} layers.")
        loaded, _ = comfy.sd.load_lora_for_models(subject.model, None, tensors, 1.0, 0.0)
        return _near(apart(answer(subject.denoiser(loaded), data), wanted))


def full_weights(subject: Subject) -> Found:
    """Full weights after a step, loaded as the host loads a file, from the student. ValueError for keys left out."""
    from ...nodes.distillation.learning.students import FullWeights

    data = subject.data()
    with subject.student(FullWeights(), data) as student, tempfile.TemporaryDirectory() as folder:
        before = answer(student.denoiser, data)
        trained(subject, student, data, folder)
        wanted, tensors = answer(student.denoiser, data), {k: v.clone() for k, v in student.exported().items()}
        if torch.equal(before, wanted):
            raise ValueError("the step changed nothing.")
    fresh = subject.architecture.model(seed=1)
    if tensors.keys() != fresh.model.diffusion_model.state_dict().keys():
        raise ValueError("the file's keys are not those of the host's network.")
    with torch.inference_mode():
        fresh.model.load_model_weights({f"diffusion_model.{k}": v for k, v in tensors.items()}, "diffusion_model.")
        return _near(apart(answer(subject.denoiser(fresh), data), wanted))


def base(subject: Subject) -> Found:
    """What is left on the MODEL, loaded and unloaded once more: changed tensors, strange objects in their places, hooks."""
    import comfy.model_management

    from ...nodes.host import training

    training.loaded(subject.model)
    comfy.model_management.unload_all_models()
    now = subject.model.model.state_dict()
    changed = sum(not torch.equal(value, now[name]) for name, value in subject.weights.items())
    hooked = sum(bool(part._forward_hooks) or "forward" in part.__dict__ for part in subject.model.model.modules())
    left = changed + subject.replaced + hooked
    return Found(left, left == 0 and now.keys() == subject.weights.keys())


PARTS: dict[str, Callable[[Subject], Found]] = {
    "KSampler": ksampler,
    "Lightning": lightning,
    "LCM": lcm,
    **{name: gradients(name) for name in METHODS},
    "checkpointing": gradients("progressive", gradient_checkpointing=True),
    "held": held,
    "let go": let_go,
    "LoRA file": lora_file,
    "full weights": full_weights,
    "base": base,
}
"""In this order, on one MODEL: the last looks at what the others left."""
