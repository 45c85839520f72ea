"""Where methods teach that learn from pictures: at the data with noise, as the model's family mixes the two."""

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
from gaussian import FAMILIES, gaussian_denoiser, table

TRAINING = {"iterations": 10, "learning_rate": 1e-3}
HALVING = {**TRAINING, "start_steps": 8, "target_steps": 4, "weighting": Weighting.CONSTANT, "guidance_scale": 1.0}
METHODS = {
    "progressive": ProgressiveOptions(**HALVING),
    "conversion": ProgressiveOptions.read({**ProgressiveOptions(**HALVING).written(), "student_prediction": "x0"}),
    "guidance": GuidanceOptions(**TRAINING, guidance_scale=2.0),
    "consistency": ConsistencyOptions(**TRAINING, steps=4, guidance_scale=1.0),
    "training": ConsistencyTrainingOptions(**TRAINING, steps=4),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_data_with_unit_noise_of_the_level(family, name):
    """Data that are larger by 1 are so by their share of the signal, with the same draws; the rest is the noise."""
    kind = TeacherKind(family=family, table=table(family), prediction_type="eps", empty_prompt=True)
    denoiser = gaussian_denoiser(family)

    def target(mean):
        data = Batch(torch.full((4096, 1, 1, 2), mean), {}, unconditional={})
        generator = torch.Generator().manual_seed(3)
        lesson = Lesson(batch=data, stage=0, teacher=denoiser, student=denoiser, generator=generator)
        return METHODS[name].on(kind).target(lesson)

    zero, one = target(0.0), target(1.0)
    assert torch.equal(zero.sigma, one.sigma)
    assert len(zero.sigma.unique()) > 3
    sigma = zero.sigma[:, None, None, None]
    signal = 1.0 - sigma if family is NoiseFamily.FLOW else torch.ones_like(sigma)
    torch.testing.assert_close(one.x_t - zero.x_t, signal.expand_as(zero.x_t), atol=1e-5, rtol=1e-5)
    noise = zero.x_t / sigma
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.04)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
