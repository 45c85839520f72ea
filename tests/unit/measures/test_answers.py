"""What is kept of a denoiser's answers: distances of whole tensors, in few numbers, whatever the denoiser predicts."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.measures.answers import NUMBERS, answers, sketch
from gpu import GPU, gpu


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 3, 17, 5), (1, 1, 5000), (1, 3)])
def test_a_sketch_keeps_distances_on_average_and_is_linear(shape):
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 200, *shape, generator=generator, dtype=torch.float64)
    found = torch.stack([sketch(a) - sketch(b) for a, b in zip(one, other, strict=True)]).square().sum(dim=1)
    wanted = (one - other).flatten(1).square().sum(dim=1)
    assert found.shape == (200,)
    assert (found / wanted).mean() == pytest.approx(1.0, abs=0.06)
    assert ((found / wanted).sqrt() - 1.0).abs().max() < 0.4
    torch.testing.assert_close(sketch(2.0 * one[0] + other[0]), 2.0 * sketch(one[0]) + sketch(other[0]))
    assert sketch(one[0]).shape == (NUMBERS,)


@pytest.mark.parametrize("family", NoiseFamily)
def test_an_answer_is_what_the_network_adds(family):
    """A network that finds all of the noise answers it, at every level: the sketch of the noise alone."""
    x0 = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    asked = []

    def denoiser(x, sigma, **condition):
        asked.append((float(sigma), condition["y"].shape, len(x)))
        return x - sigma * torch.ones_like(x)

    first, second = answers(denoiser, Batch(x0, {"y": torch.ones(2, 3)}), sigmas=[0.25, 0.75], family=family)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-4) == sketch(torch.ones(1, 4, 6)).tolist()
    assert asked == [(0.25, (1, 3), 1), (0.75, (1, 3), 1)]


def test_a_sketch_of_what_lies_on_a_mac_is_that_on_the_cpu():
    values = torch.randn(1, 4, 8, 8)
    with gpu():
        found = sketch(values.to(GPU)).tolist()
    assert found == sketch(values).tolist()
