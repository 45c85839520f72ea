"""Plain diffusion training: what the demo teacher is taught."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.denoising import Denoising
from comfyui_fewstep.trainers.objective.method import Lesson
from gaussian import FAMILIES, table

COUNT = 20000


def target_of(family, *, dropout):
    made = Denoising(
        table=table(family)[::100], iterations=1, learning_rate=1e-3, condition_dropout=dropout, family=family
    )
    numbers = torch.arange(1.0, COUNT + 1)
    batch = Batch(
        x0=torch.randn(COUNT, 1, 1, 1, generator=torch.Generator().manual_seed(0)),
        condition={"y": numbers[:, None], "text": numbers[:, None, None].expand(COUNT, 3, 2)},
        unconditional=None,
    )
    generator = torch.Generator().manual_seed(3)
    return made.target(Lesson(batch=batch, stage=0, teacher=None, student=None, generator=generator)), batch


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_as_many_conditions_are_zeroed_as_asked_for(dropout):
    """Of a dropped sample every condition; the others keep their own. Within four deviations of a count of 20000."""
    target, batch = target_of(NoiseFamily.FLOW, dropout=dropout)
    dropped = (target.condition["y"] == 0.0).flatten()
    assert float(dropped.float().mean()) == pytest.approx(dropout, abs=4 * (dropout * (1 - dropout) / COUNT) ** 0.5)
    for name, value in target.condition.items():
        assert not value[dropped].any()
        assert torch.equal(value[~dropped], batch.condition[name][~dropped])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_clean_sample_at_every_level(family):
    """With unit noise at sigma, and weighted by SNR + 1, the v-error."""
    target, batch = target_of(family, dropout=0.1)
    assert torch.equal(target.x0, batch.x0)
    levels, counts = target.sigma.unique(return_counts=True)
    torch.testing.assert_close(levels, table(family)[::100])
    assert counts.min() > 0.9 * counts.float().mean()
    signal = 1.0 - target.sigma if family is NoiseFamily.FLOW else torch.ones(COUNT)
    noise = (target.x_t.flatten() - signal * batch.x0.flatten()) / target.sigma
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(target.weight, (signal / target.sigma) ** 2 + 1.0)
