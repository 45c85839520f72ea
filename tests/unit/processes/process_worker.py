"""One process of a run for test_processes.py: a small distillation, and what may happen to it on the way."""

import dataclasses
import os
import signal
import typing
from pathlib import Path

import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.consistency import Consistency, ConsistencyOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatching, DistributionMatchingOptions
from comfyui_fewstep.trainers.methods.progressive import Progressive, ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.processes.sharding import is_divided
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.students.student import FullWeightsStudent, LoRAStudent
from comfyui_fewstep.trainers.training.distillation import Distillation
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import table
from torch import nn
from torch.nn import Linear

FAMILY = NoiseFamily.VARIANCE_EXPLODING
TRAINING = {
    "batch_size": 12,
    "accumulation": 2,
    "optimiser": "adamw",
    "weight_decay": 0.1,
    "gradient_clip": 0.05,
    "ema_decay": 0.7,
    "seed": 6,
    "log_every": 3,
    "checkpoint_every": 3,
}
"""All that a state can hold, and a clip that every gradient is above."""
ITERATIONS = 8
"""In two stages."""
LORA = LoRAOptions(rank=3, alpha=3.0, layers=LoRALayers.LINEAR)


class Block(nn.Module):
    """Overwrites in place what its sigmoid saved and its input, as the hosts' blocks do, and returns a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Linear(7, 9), Linear(9, 7, bias=False)
        self.unused = Linear(3, 3)

    def forward(self, x, shift):
        hidden = torch.sigmoid(self.first(x))
        hidden += shift
        x += self.second(hidden)
        return x.view(len(x), 7)


class Network(nn.Module):
    """Like a host's: the module itself is never called, its sizes do not divide, a Sequential's layers are run one by one."""

    def __init__(self, seed=0):
        super().__init__()
        self.core = Core()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.parameters():
                value.normal_(std=0.3, generator=generator)

    def denoiser(self, x, sigma, y):
        return self.core(x, sigma, y)


class Core(nn.Module):
    seen: typing.ClassVar = set()
    """Sizes of the batches that any of these got."""
    sharing = False
    """Whether it counts on its first block's writing into what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("offset", torch.full((1,), 0.1))
        self.enter, self.leave = Linear(6, 7), Linear(7, 4)
        self.blocks = nn.ModuleList([nn.Sequential(Block()), nn.Sequential(Block(), nn.Identity())])

    def forward(self, x, sigma, y):
        self.seen.add(len(x))
        level = sigma[:, None].log() / 4
        hidden = self.enter(torch.cat([x.flatten(1) / (1 + sigma[:, None] ** 2) ** 0.5, level, y], dim=1))
        given = hidden
        for layers in self.blocks:
            for layer in layers:
                hidden = layer(hidden, y) if isinstance(layer, Block) else layer(hidden)
            hidden += 0.1
        if self.sharing:
            hidden = hidden + given
        return (self.scale * self.leave(hidden) + self.offset).reshape(x.shape)


class Faulty:
    """A method, with a fault on one process, which comes with a target."""

    def having(self, fault, processes, weights):
        self.fault, self.processes, self.weights, self.calls = fault, processes, weights, 0
        return self

    def target(self, lesson):
        self.calls += 1
        target = super().target(lesson)
        if self.fault and (self.processes.rank, self.calls) == (self.fault["rank"], self.fault["at"]):
            return getattr(self, self.fault["what"])(target)
        return target

    def kill(self, _):
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, _):
        raise ArithmeticError("this one cannot go on")

    def interrupt(self, target):
        os.kill(os.getpid(), signal.SIGINT)
        return target

    def terminate(self, target):
        os.kill(os.getpid(), signal.SIGTERM)
        return target

    def hang_up(self, target):
        for _ in range(2):  # of a closed terminal: from the system and from the shell
            os.kill(os.getpid(), signal.SIGHUP)
        return target

    def not_finite(self, target):
        return target._replace(x0=target.x0 * torch.nan)

    def drift(self, target):
        with torch.no_grad():
            self.weights()[0].mul_(1 + 1e-6)
        return target


class Halving(Faulty, Progressive):
    pass


class Matching(Faulty, DistributionMatching):
    """The same faults, in a method that has a companion and a critic."""


class Agreeing(Consistency):
    """Consistency distillation, taught by a moving average of the student; no fault ever."""

    def having(self, *_):
        return self


class Cancelled(Exception):
    pass


def data():
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(40, 1, 2, 2, generator=generator)
    return TensorData(
        x0=x0, condition={"y": torch.randn(40, 1, generator=generator)}, unconditional={"y": torch.zeros(1, 1)}
    )


def student_of(kind):
    def as_denoiser(network):
        return lambda x, sigma, y: network.denoiser(x, sigma, y)

    if kind == "full":
        return FullWeightsStudent(Network(), Network(), as_denoiser=as_denoiser)
    network = Network().requires_grad_(False)
    adapters = Adapters(network.core, LORA)
    adapters.__enter__()  # for as long as this process lives
    names = {path: f"lora_unet_{path.replace('.', '_')}" for path in adapters.paths}
    return LoRAStudent(adapters, LORA, denoise=as_denoiser(network), names=names, seed=5)


def run(
    root,
    *,
    kind,
    training=None,
    fault=None,
    cancel_at=None,
    preview_at=None,
    teacher="a" * 64,
    sharing=False,
    target_steps=4,
    consistency=False,
    matching=False,
):
    """The whole run, or what is left of it, by all processes of the environment."""
    chosen, student = TrainOptions(**{**TRAINING, **(training or {})}), student_of(kind)
    options = ProgressiveOptions(
        start_steps=16,
        target_steps=target_steps,
        iterations=ITERATIONS // 2,
        weighting=Weighting.TRUNCATED_SNR,
        learning_rate=3e-3,
        guidance_scale=2.0,
    )
    if consistency:
        options = ConsistencyOptions(
            steps=4, levels=8, iterations=ITERATIONS, learning_rate=1e-3, guidance_scale=2.0, target_decay=0.7
        )
    if matching:
        options = DistributionMatchingOptions(
            steps=4,
            iterations=ITERATIONS - 2,
            companion_first=2,
            companion_updates=3,
            companion_learning_rate=3e-3,
            learning_rate=3e-3,
            guidance_scale=2.0,
            adversarial_weight=1.0,
            adversarial_from=1,
            critic_learning_rate=3e-3,
        )
    made_of = Matching if matching else Agreeing if consistency else Halving
    method = made_of(options, TeacherKind(family=FAMILY, table=table(FAMILY), empty_prompt=True))

    def observer(metrics):
        if metrics.iteration == preview_at:
            for denoiser in (student.teacher, student.denoiser, student.denoiser):
                denoiser(torch.ones(5, 1, 2, 2), torch.ones(5), y=torch.ones(5, 1))
        if metrics.iteration == cancel_at:
            raise Cancelled("enough")

    Core.seen.clear()
    Core.sharing = sharing
    with Processes.from_environment() as processes:
        made = Distillation(
            run=RunFolder(Path(root), "run"),
            method=method.having(fault, processes, student.parameters),
            data=data(),
            options=chosen,
            teacher_sha256=teacher if isinstance(teacher, str) else teacher[processes.rank],
            prediction_type="x0",
            student={
                "kind": student.kind,
                **({} if kind == "full" else {**dataclasses.asdict(LORA), "layers": "linear"}),
            },
            processes=processes,
        )
        with processes.held_by_first(made.run.locked()):
            made.execute(student, observers=[observer])
            if preview_at is None:
                assert all(is_divided(value) for value in student.parameters()) == (
                    kind == "full" and processes.count > 1
                )
                assert max(Core.seen) == chosen.batch_size // chosen.accumulation // processes.count
    return made


def process(environment, log, arguments):
    """What a process started by a test does. log: a file for what it writes to stderr."""
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    run(**arguments)
