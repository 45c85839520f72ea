"""Every sampler on a device that knows no float64, where a KSampler has its schedule too: as on the CPU, bit for bit."""

from functools import partial

import pytest
import torch
from comfyui_fewstep.samplers.few_step import draw_from_noise, sample_ancestral, sample_few_step, sample_tcd
from gaussian import FAMILIES, gaussian_denoiser, table
from gpu import GPU, gpu

SAMPLERS = {
    "lightning": lambda _: partial(sample_few_step, gamma=0.0),
    "lcm": lambda _: partial(sample_few_step, gamma=1.0, s_noise=0.9, s_noise_end=1.0, noise_clip=2.5),
    "mixed": lambda _: partial(sample_few_step, gamma=[0.3, 0.7, 1.0]),
    "tcd": lambda family: partial(sample_tcd, table=table(family), eta=0.3),
    "ancestral": lambda _: sample_ancestral,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mac_draws_what_the_cpu_does(name, family):
    sample = partial(SAMPLERS[name](family), gaussian_denoiser(family), family=family, disable=True)
    noise, seed = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)), {"seed": 5}
    sigmas = torch.cat([table(family)[[999, 749, 499]], torch.zeros(1)])
    with gpu():
        drawn = sample(noise.to(GPU), sigmas.to(GPU), seed).cpu()
    assert torch.equal(drawn, sample(noise, sigmas, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_samples_of_a_training_are_drawn_on_a_mac(family):
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    sigmas = torch.cat([table(family)[[999, 499]], torch.zeros(1)])
    drawn_from = partial(draw_from_noise, gaussian_denoiser(family), sigmas=sigmas, family=family, seed=3, gamma=1.0)
    with gpu():
        drawn = drawn_from(noise.to(GPU)).cpu()
    assert torch.equal(drawn, drawn_from(noise))


@pytest.mark.parametrize(
    "work",
    [
        lambda there: there.double(),
        lambda there: torch.linspace(0.0, 1.0, 3, dtype=torch.float64, device=there.device),
        lambda there: torch.tensor([1.0], dtype=torch.float64, device=there.device),
        lambda there: torch.ones(3).double().to(there.device),
        lambda there: there + torch.ones(3),
        lambda there: there.to("cpu", non_blocking=True),
    ],
)
def test_the_stand_in_refuses_what_a_mac_does(work):
    """Or gives at another time than it seems."""
    with gpu(), pytest.raises((TypeError, RuntimeError), match=r"float64|same device|waited for"):
        work(torch.ones(3, device=GPU))
