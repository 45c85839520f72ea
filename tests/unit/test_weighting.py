import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.weighting import Weighting


@pytest.mark.parametrize(
    ("weighting", "at_half", "at_two"),
    [
        (Weighting.CONSTANT, 1.0, 1.0),
        (Weighting.SNR, 4.0, 0.25),
        (Weighting.TRUNCATED_SNR, 4.0, 1.0),
        (Weighting.SNR_PLUS_ONE, 5.0, 1.25),
    ],
)
def test_variance_exploding_weights(weighting, at_half, at_two):
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(weighting(sigma, family=NoiseFamily.VARIANCE_EXPLODING), torch.tensor([at_half, at_two]))


def test_flow_snr_is_one_in_the_middle():
    sigma = torch.tensor([0.2, 0.5, 1.0])
    torch.testing.assert_close(Weighting.SNR(sigma, family=NoiseFamily.FLOW), torch.tensor([16.0, 1.0, 0.0]))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.0])
def test_snr_plus_one_is_the_v_error(sigma):
    """v = alpha * eps - s * x0, so an error e in x0 is an error e / s in v (in the variance-preserving scale)."""
    x_vp, x0, error = 0.3, 0.2, 0.01
    alpha, s = 1.0 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5

    def v_of(clean):
        return (alpha * x_vp - clean) / s

    weight = float(Weighting.SNR_PLUS_ONE(torch.tensor([sigma]), family=NoiseFamily.VARIANCE_EXPLODING))
    assert weight * error**2 == pytest.approx((v_of(x0 + error) - v_of(x0)) ** 2, rel=1e-5)
