"""Data in another unit than noise (HiDream-O1: an eighth): weights and distances of every method are in the data's."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from gaussian import gaussian_denoiser

FLOW = NoiseFamily.FLOW
TABLE = torch.arange(1, 1001) / 1000.0
COMMON = {"guidance_scale": 2.0, "iterations": 10, "learning_rate": 1e-3, "weighting": Weighting.SNR_PLUS_ONE}
WEIGHED = {
    "progressive": ProgressiveOptions(start_steps=8, target_steps=4, **COMMON),
    "guidance": GuidanceOptions(**COMMON),
    "consistency": ConsistencyOptions(steps=4, **COMMON),
}
TRAINING = ConsistencyTrainingOptions(steps=2, iterations=10, learning_rate=1e-3, first_levels=160)


def target_of(options, *, unit, count=64):
    """Of the same batch and levels, whatever the unit."""
    x0 = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    batch = Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})
    denoiser, generator = gaussian_denoiser(FLOW), torch.Generator().manual_seed(3)
    asked = lambda x, sigma, **_: denoiser(x, sigma)  # noqa: E731
    made = options.on(TeacherKind(family=FLOW, table=TABLE, empty_prompt=True, unit=unit))
    return made.target(Lesson(batch=batch, stage=0, teacher=asked, student=asked, generator=generator))


@pytest.mark.parametrize("method", WEIGHED)
def test_a_weight_counts_the_signal_in_the_datas_unit(method):
    """An error of eps against one of x0: of data an eighth as large, 64 times less at the same level."""
    usual, eighth = (target_of(WEIGHED[method], unit=unit) for unit in (1.0, 1 / 8))
    assert torch.equal(usual.sigma, eighth.sigma)
    snr = ((1.0 - usual.sigma) / usual.sigma) ** 2
    torch.testing.assert_close(eighth.weight / usual.weight, (snr / 64 + 1) / (snr + 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [*WEIGHED, "training"])
def test_a_distances_constant_is_in_the_datas_unit(method):
    options = TRAINING if method == "training" else WEIGHED[method]
    assert [target_of(options, unit=unit).unit for unit in (1.0, 1 / 8)] == [1.0, 1 / 8]


def test_levels_come_up_as_often_where_noise_is_as_large_as_the_data():
    """Of data an eighth as large half of the levels are below an eighth of the others' middle one, noise over signal."""
    usual, eighth = (target_of(TRAINING, unit=unit, count=20000).sigma.median() for unit in (1.0, 1 / 8))
    ratio = [float(sigma / (1.0 - sigma)) for sigma in (usual, eighth)]
    assert ratio[0] / ratio[1] == pytest.approx(8.0, rel=0.15)
