import contextlib

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting


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


@pytest.mark.parametrize("weighting", Weighting)
def test_data_an_eighth_as_large_are_weighed_alike_at_an_eighth_of_the_level(weighting):
    """The same problem in another unit: where noise is as large as the data, an error of x0 counts as one of eps."""
    sigma = torch.tensor([0.3, 1.0, 4.0])
    family = NoiseFamily.VARIANCE_EXPLODING
    torch.testing.assert_close(weighting(sigma / 8, family=family, unit=1 / 8), weighting(sigma, family=family))
    where_alike = torch.tensor([1 / 9])  # of a flow model, (1 - sigma) / 8 = sigma
    assert float(Weighting.SNR(where_alike, family=NoiseFamily.FLOW, unit=1 / 8)) == pytest.approx(1.0)


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


LEVELS = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.999])


@pytest.mark.parametrize("family", NoiseFamily)
def test_the_weights_are_the_papers_errors(family):
    """Salimans and Ho, section 4: an error in x0 makes an error in eps (equation 9) and in v (equation 10).

    In the scale where z = alpha * x0 + s * eps; of a flow model that is alpha = 1 - sigma and s = sigma, and v is read
    after scaling to alpha^2 + s^2 = 1.
    """
    alpha, s = (
        (1.0 - LEVELS, LEVELS)
        if family is NoiseFamily.FLOW
        else (1.0 / (1.0 + LEVELS**2).sqrt(), LEVELS / (1.0 + LEVELS**2).sqrt())
    )
    x0, eps, error = 0.4, -1.2, 0.01
    z = alpha * x0 + s * eps
    of_eps = ((z - alpha * (x0 + error)) / s - eps) ** 2 / error**2
    unit = (alpha**2 + s**2).sqrt()
    turned = [(alpha / unit * (z - alpha * clean) / s - s / unit * clean) for clean in (x0, x0 + error)]
    of_v = (turned[1] - turned[0]) ** 2 / error**2
    expected = {
        Weighting.CONSTANT: torch.ones_like(LEVELS),
        Weighting.SNR: of_eps,
        Weighting.TRUNCATED_SNR: torch.maximum(torch.ones_like(LEVELS), of_eps),
        Weighting.SNR_PLUS_ONE: of_v,
    }
    for weighting, weight in expected.items():
        torch.testing.assert_close(weighting(LEVELS, family=family), weight, rtol=1e-3, atol=1e-5, msg=weighting.value)


def test_a_flow_models_velocity_is_weighed_between_once_and_twice_snr_plus_one():
    """An error e in x0 is one of e / sigma in the velocity."""
    share = LEVELS**-2 / Weighting.SNR_PLUS_ONE(LEVELS, family=NoiseFamily.FLOW)
    assert share.min() >= 1.0
    assert share.max() <= 2.0
    assert float(share[2]) == pytest.approx(2.0), "at sigma 1/2"


@pytest.mark.parametrize(
    ("family", "top"), [(NoiseFamily.FLOW, 1.0), (NoiseFamily.VARIANCE_EXPLODING, 4518.8)], ids=["flow", "zero snr"]
)
def test_a_model_is_not_weighted_by_its_signal_which_it_has_none_of_at_the_start(family, top):
    """4518.8 is the host's for models whose levels were rescaled to zero terminal SNR."""
    table = torch.tensor([0.1, top])
    with pytest.raises(ValueError, match=r"weighting is snr, .* allowed are truncated_snr, snr_plus_one, constant\."):
        Weighting.SNR.require_for(family, table=table)
    for other in set(Weighting) - {Weighting.SNR}:
        other.require_for(family, table=table)


@pytest.mark.parametrize("top", [14.61, 80.0], ids=["stable diffusion", "edm"])
def test_models_that_begin_with_some_signal_may_be_weighted_by_it(top):
    Weighting.SNR.require_for(NoiseFamily.VARIANCE_EXPLODING, table=torch.tensor([0.1, top]))


@pytest.mark.parametrize(("top", "refused"), [(90.0, False), (110.0, True)])
def test_how_much_signal_a_model_begins_with_is_in_its_datas_own_unit(top, refused):
    """SNR is 1e-4 at a level of 100 times what the data are, whatever these are."""
    for unit in (1.0, 1 / 8):
        table = unit * torch.tensor([0.1, top])
        with pytest.raises(ValueError, match="weighting is snr") if refused else contextlib.nullcontext():
            Weighting.SNR.require_for(NoiseFamily.VARIANCE_EXPLODING, table=table, unit=unit)


USUAL = {"iterations": 1, "learning_rate": 1e-3, "guidance_scale": 2.0}
METHODS = {
    "progressive": (ProgressiveOptions, {"start_steps": 4, "target_steps": 2}),
    "guidance": (GuidanceOptions, {}),
    "consistency": (ConsistencyOptions, {"steps": 2}),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_a_weighting_that_its_model_does_not_take(name):
    options, given = METHODS[name]
    table = torch.linspace(0.01, 1.0, 100)
    chosen = options(weighting=Weighting.SNR, **USUAL, **given)
    with pytest.raises(ValueError, match="weighting is snr"):
        chosen.on(TeacherKind(family=NoiseFamily.FLOW, table=table, prediction_type="flow", empty_prompt=True))
    exploding = {"family": NoiseFamily.VARIANCE_EXPLODING, "prediction_type": "eps", "empty_prompt": True}
    chosen.on(TeacherKind(table=20 * table, **exploding))
    with pytest.raises(ValueError, match="weighting is snr"):
        chosen.on(TeacherKind(table=20 * table, unit=1 / 8, **exploding))
