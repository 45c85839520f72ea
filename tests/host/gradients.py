"""Gradients of a LoRA on the host's networks beside those of an ordinary float32 network of the same weights."""

import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.trainers.data import batches
from comfyui_fewstep.trainers.students.adapters import LowRank, product
from comfyui_fewstep.trainers.students.saved_tensors import copied_when_overwritten
from comfyui_fewstep.trainers.students.student import probe_writes_in_place

SIGMA = 0.6


def loss_of(denoiser, x, inputs):
    """A scalar that depends on every output, each with a weight of its own."""
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    return (denoiser(x, torch.full((len(x),), SIGMA), **inputs) * weights).mean()


def of_lora(model, options, x, inputs, *, seed=0, passes=1, **how):
    """(adapters by path, their gradients in the same shape, loss), as a run of the node would compute them.

    passes: how often, to see that the first leaves nothing behind; the last one's are returned.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        students.student_of(model, options, seed=seed, **how) as student,
    ):
        generator = torch.Generator().manual_seed(seed + 1)
        for value in student.parameters():
            value.data.copy_(0.05 * torch.randn(value.shape, generator=generator))
        one = batches.Batch(x0=x, condition=inputs)
        student.writes_in_place = probe_writes_in_place(student, one)
        for _ in range(passes):
            for value in student.parameters():
                value.grad = None
            with student.autograd():
                loss = loss_of(student.denoiser, x, inputs)
                loss.backward()
        adapters = {path: LowRank(a.down.detach(), a.up.detach()) for path, a in student._student.items()}
        return adapters, {path: LowRank(a.down.grad, a.up.grad) for path, a in student._student.items()}, loss.item()


def of_full_weights(model, x, inputs, **how):
    """(gradients of all weights, loss), as a run of the node would compute them."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        students.student_of(model, students.FullWeights(), seed=0, **how) as student,
    ):
        student.writes_in_place = probe_writes_in_place(student, batches.Batch(x0=x, condition=inputs))
        with student.autograd():
            loss = loss_of(student.denoiser, x, inputs)
            loss.backward()
        return [value.grad for value in student.parameters()], loss.item()


def of_merged(network, adapters, options, x, inputs, *, prediction=None):
    """(gradients, loss) by torch alone: the adapters added to ordinary weights, whose own gradients are then split."""
    scale = options.alpha / options.rank
    layers = {path: network.diffusion_model.get_submodule(path) for path in adapters}
    with torch.inference_mode(False), torch.enable_grad(), host.backward.possible():
        for path, layer in layers.items():
            layer.weight = torch.nn.Parameter(layer.weight.detach() + scale * product(adapters[path]))
        with copied_when_overwritten():
            loss = loss_of(host.training.as_denoiser(network), x, inputs)
            loss.backward()
    gradients = {}
    for path, layer in layers.items():
        adapter, whole = adapters[path], layer.weight.grad
        if whole is None:
            gradients[path] = LowRank(None, None)
            continue
        whole = scale * whole.flatten(1)
        down = (adapter.up.flatten(1).T @ whole).view(adapter.down.shape)
        up = (whole @ adapter.down.flatten(1).T).view(adapter.up.shape)
        gradients[path] = LowRank(down, up)
    return gradients, loss.item()


def cosine(found, wanted):
    """Over all adapters at once. One without a gradient counts as zero."""
    pairs = [pair for path, one in wanted.items() for pair in zip(_parts(found[path]), _parts(one), strict=True)]
    known = [
        (torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b)
        for a, b in pairs
        if a is not b
    ]
    a, b = (torch.cat([value.detach().double().flatten() for value in side]) for side in zip(*known, strict=True))
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def cosine_of_all(found, wanted):
    """The same of lists of gradients."""
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a is not None or b is not None]
    a, b = (torch.cat([value.double().flatten() for value in side]) for side in zip(*pairs, strict=True))
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def _parts(adapter):
    return adapter.down, adapter.up
