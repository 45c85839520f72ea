"""Whose fresh noise is whose, and that a seed's stays what it was."""

import pytest
import torch
from comfyui_fewstep.samplers.few_step import ancestral_gammas, fresh_noise, sample_ancestral, sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from gaussian import FAMILIES

SEEDED = [
    ((1, 2), 0, 17042944463569097307 - 2**63),
    ((1, 2), 1, 4972622741036153826),
    ((-1, 0), 0, 10261616008299029881 - 2**63),
    ((2**64 - 1, 0), 0, 10261616008299029881 - 2**63),
]
"""Seed and place, visit, and BLAKE2b of them and the level, its highest bit off."""


@pytest.mark.parametrize(("sample", "visit", "seeded"), SEEDED)
def test_a_seeds_noise_at_a_level_is_what_it_was_in_every_release(sample, visit, seeded):
    """Workflows that are passed on carry their seed: another number here is another picture for everybody."""
    given = []

    class Recording(torch.Generator):
        def manual_seed(self, seed):
            given.append(seed)
            return super().manual_seed(seed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "Generator", Recording)
        drawn = fresh_noise(torch.zeros(1, 5), samples=[sample], level=0.5, visit=visit)
    assert given == [seeded]
    assert torch.equal(drawn[0], torch.randn(5, generator=torch.Generator().manual_seed(seeded)))


def test_without_a_seed_the_noise_is_whatever_torch_draws():
    inputs = {"disable": True, "family": NoiseFamily.VARIANCE_EXPLODING, "gamma": 1.0}
    torch.manual_seed(4)
    drawn = sample_few_step(lambda x, sigma: torch.zeros_like(x), torch.ones(2, 3), torch.tensor([2.0, 1.0]), **inputs)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.randn(2, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_sampling_is_the_walk_with_its_gammas(family, eta):
    """What is kept for a gradient of the network would be all of its forwards: nothing is."""
    network = torch.nn.Linear(3, 3)
    sigmas = torch.tensor([0.9, 0.5, 0.2, 0.0])

    def sampled(function, **options):
        denoiser = lambda x, sigma, seed: network(x)  # noqa: E731
        start = torch.ones(2, 3)
        return function(denoiser, start, sigmas, {"seed": 3}, disable=True, family=family, **options)

    own = sampled(sample_ancestral, eta=eta)
    assert torch.equal(own, sampled(sample_few_step, gamma=ancestral_gammas(sigmas, family=family, eta=eta)))
    assert not own.requires_grad


def test_an_eta_beyond_all_noise_fresh_is_named():
    with pytest.raises(ValueError, match=r"eta is 1\.5; allowed is 0 \(deterministic\) to 1"):
        ancestral_gammas(torch.tensor([1.0, 0.5, 0.0]), family=NoiseFamily.FLOW, eta=1.5)
