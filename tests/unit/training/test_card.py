"""What training and sampling wait for on a graphics card: nothing that they could know without."""

import contextlib
import functools

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_ancestral, sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Buckets, TensorData
from comfyui_fewstep.trainers.data.conditions import by_shape, is_mixed
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.students.companion import CompanionNetwork
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import rehearsal
from comfyui_fewstep.trainers.training.optimisation.micro_batches import in_pieces, on_share
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.score_distillation import (
    Kind,
    LearningFake,
    ScoreDistillationOptions,
    Views,
    distil_latent,
)
from gaussian import table
from gpu import GPU, gpu
from torch import nn

FAMILY = NoiseFamily.VARIANCE_EXPLODING
GUIDED = {"iterations": 4, "learning_rate": 1e-3, "guidance_scale": 2.0}
MATCHING = {**GUIDED, "steps": 2, "companion_first": 1, "companion_updates": 2}
METHODS = {
    "progressive": ProgressiveOptions(start_steps=8, target_steps=4, weighting=Weighting.TRUNCATED_SNR, **GUIDED),
    "guidance": GuidanceOptions(**GUIDED),
    "a range of guidance": GuidanceOptions(**GUIDED, guidance_scale_max=4.0),
    "consistency": ConsistencyOptions(**GUIDED, steps=2, levels=8, target_decay=0.9),
    "consistency from data": ConsistencyTrainingOptions(iterations=4, learning_rate=1e-3, steps=2),
    "matching": DistributionMatchingOptions(**MATCHING),
    "matching in segments": DistributionMatchingOptions.read({**MATCHING, "rollout": "segments"}),
    "guidance apart": DistributionMatchingOptions.read({**MATCHING, "guidance": "decoupled"}),
    "all that matching can": DistributionMatchingOptions(
        **MATCHING, adversarial_weight=1.0, consistency_levels=8, anchor_steps=2
    ),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Network(nn.Module):
    """Told of a text by its mean; with blocks, which a critic sees through."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, x, sigma, text, guidance_scale=None):
        level = sigma[:, None].log() / 4
        told = torch.cat([x.flatten(1) / (1.0 + sigma[:, None] ** 2) ** 0.5, level, text.mean(dim=1)], dim=1)
        hidden = self.enter(told)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(hidden).reshape(x.shape)


def as_denoiser(network):
    return lambda x, sigma, **condition: by_shape(network, x, sigma, condition=condition)


def of_length(length, *, empty=1):
    """Four samples with prompts of so many tokens, and an empty prompt of one."""
    return TensorData(
        x0=torch.randn(4, 4, 1, 1),
        condition={"text": torch.randn(4, length, 2)},
        unconditional={"text": torch.zeros(1, empty, 2)},
        batch_device=GPU,
    )


DATA = {"one length": of_length(3, empty=3), "several lengths": Buckets([of_length(3), of_length(5)])}


def waits(root, method, data, *, pieces):
    """(reads, sendings) of an iteration."""
    options = TrainOptions(batch_size=8, accumulation=pieces, caption_dropout=0.3, mixed_prompts=True)
    with gpu() as counted:
        student = FullWeightsStudent(Network().to(GPU), Network().to(GPU), as_denoiser=as_denoiser)
        made = method.on(TeacherKind(family=FAMILY, table=table(FAMILY), empty_prompt=True))
        _, iterate = next(rehearsal(RunFolder(root, "run"), made, student, data, options=options))
        read, sent = counted.read, counted.sent
        iterate(3)
    return counted.read - read, counted.sent - sent


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing_and_its_pieces_send_nothing(name, data, tmp_path):
    """What is sent is the batch and what is drawn on the CPU, however many passes there are."""
    read, sent = waits(tmp_path, METHODS[name], DATA[data], pieces=1)
    assert read == 0
    assert waits(tmp_path, METHODS[name], DATA[data], pieces=4) == (0, sent)


def test_shares_of_processes_read_and_send_nothing():
    with gpu() as counted, torch.no_grad():
        batch = DATA["several lengths"].batch(8, generator=torch.Generator(), mixed=True)
        assert is_mixed(batch.condition)
        shared = on_share(in_pieces(as_denoiser(Network().to(GPU)), 2), 1, of=2)
        sigma = torch.ones(8, device=GPU)
        read, sent = counted.read, counted.sent
        shared(batch.x0, sigma, **batch.condition)
        assert (counted.read, counted.sent) == (read, sent)


@pytest.mark.parametrize("kind", Kind)
def test_score_distillation_reads_nothing_between_its_steps(kind):
    with gpu() as counted:
        start, reads, network = torch.randn(2, 4, 1, 1).to(GPU), [], Network().to(GPU).requires_grad_(False)
        text, options = torch.zeros(2, 3, 2, device=GPU), ScoreDistillationOptions(kind=kind, iterations=3)
        prompts = {name: {"text": text} for name in ("condition", "negative", "empty")}
        views = Views(denoiser=network, family=FAMILY, table=table(FAMILY), **prompts)
        adapters = Adapters(network, LoRAOptions(rank=2, alpha=2.0, layers=LoRALayers.LINEAR))
        companion = CompanionNetwork(adapters, network, rank=2, seed=0, around=contextlib.nullcontext)
        fake = LearningFake(companion, learning_rate=1e-3, views=views, start=start) if kind is Kind.VSD else None
        with adapters:
            distil_latent(start, options, views, fake=fake, observe=lambda *_: reads.append(counted.read))
    assert reads == [0, 0, 0]


@pytest.mark.parametrize("family", NoiseFamily)
def test_samplers_read_their_schedule_alone(family):
    """Once, for all of their steps; and where gammas are made of it, for those."""
    for sampler, read in ((functools.partial(sample_few_step, gamma=0.5), 1), (sample_ancestral, 2)):
        with gpu() as counted:
            sigmas = table(family).flip(0)[::250].to(GPU)
            x = torch.randn(2, 4, 1, 1).to(GPU)
            sampler(lambda x, sigma: 0.5 * x, x, sigmas, disable=True, family=family)
            assert counted.read == read


def test_what_all_samples_share_is_sent_once():
    data = TensorData(x0=torch.ones(4, 2), condition={"text": torch.randn(1, 3, 2)}, batch_device=GPU)
    with gpu():
        text = data.batch(8, generator=torch.Generator()).condition["text"]
        assert text.stride(0) == 0, "not a copy for each"
        assert torch.equal(text.cpu(), data.condition["text"].expand(8, 3, 2))


def test_the_card_counts_and_refuses():
    """As a real one does, or what is found with it means nothing."""
    with gpu() as counted:
        x, rows = torch.arange(6.0).reshape(2, 3).to(GPU), torch.tensor([1, 0])
        assert (counted.read, counted.sent) == (0, 1)
        reads = [
            x.sum().item,
            x.tolist,
            x.cpu,
            x.nonzero,
            lambda: bool(x.any()),
            lambda: x[x > 1],
            lambda: torch.equal(x, x),
        ]
        for count, read in enumerate(reads, 1):
            read()
            assert (counted.read, counted.sent) == (count, 1)
        assert x[rows].sum(dim=1).tolist() == [12.0, 3.0]
        assert counted.sent == 2
        for refused in (lambda: x + torch.ones(3), lambda: torch.ones(2)[rows.to(GPU)]):
            with pytest.raises(RuntimeError, match="same device"):
                refused()
        assert (x * torch.tensor(2.0)).sum().item() == 30.0, "a single number of the CPU's goes along"
        assert counted.sent == 3
