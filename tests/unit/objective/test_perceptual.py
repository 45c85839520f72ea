"""The loss of a distance between pictures, with a comparison of closed form in the place of LPIPS."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.objective import perceptual
from comfyui_fewstep.trainers.objective.consistency_function import ConsistencyFunction
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.loss import loss_and_error, weighted_error
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.micro_batches import split
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, gaussian_denoiser, table
from test_distance import target_of
from test_progressive import TinyNetwork, as_denoiser, batch, options
from torch.nn import Conv2d

VE = NoiseFamily.VARIANCE_EXPLODING
denoiser = gaussian_denoiser(VE)


def of_sizes(found, wanted):
    """(B,) how far apart their mean squares are: no function of the error."""
    return (found.square() - wanted.square()).flatten(1).mean(dim=1).abs()


def squares(found, wanted):
    return (found - wanted).square().flatten(1).mean(dim=1)


def test_the_loss_is_the_weighted_mean_of_what_compares():
    target = target_of(Distance.LPIPS)
    found, wanted = denoiser(target.x_t, target.sigma).float(), target.x0.float()
    distances = [float((f.square().mean() - w.square().mean()).abs()) for f, w in zip(found, wanted, strict=True)]
    loss, x0_error = weighted_error(denoiser, target, perceptual=of_sizes)
    assert float(loss) == pytest.approx(sum(float(w) * d for w, d in zip(target.weight, distances, strict=True)) / 8)
    assert float(x0_error) == pytest.approx(float((found - wanted).square().mean())), "of metrics: squared as ever"


def test_the_other_distances_ask_nothing_of_what_compares():
    def never(found, wanted):
        raise AssertionError("asked")

    for distance in (Distance.SQUARED, Distance.PSEUDO_HUBER):
        target = target_of(distance)
        pair = loss_and_error(denoiser, target), loss_and_error(denoiser, target, perceptual=never)
        assert all(torch.equal(one, two) for one, two in zip(*pair, strict=True))


def test_without_what_compares_there_is_no_loss():
    with pytest.raises(ValueError, match="distance is lpips, which compares pictures, but nothing was given"):
        weighted_error(denoiser, target_of(Distance.LPIPS))
    with pytest.raises(ValueError, match="lpips is no function of the squared error"):
        Distance.LPIPS(torch.ones(2, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_consistency_function_its_own_word_is_compared(family):
    """With a comparison that is the squared error, the loss is that of the squared distance, weights and all."""
    function = ConsistencyFunction(family=family, table=table(family))
    x_t, wanted = (torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    sigma = table(family)[[1, 2, 5, 50, 500, 999]]
    weight = 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(2))
    made = {d: function.target(x_t, wanted, sigma=sigma, condition={}, weight=weight, distance=d) for d in Distance}
    expected, _ = weighted_error(denoiser, made[Distance.SQUARED])
    loss, _ = weighted_error(denoiser, made[Distance.LPIPS], perceptual=squares)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0.0)
    f = function.of(denoiser)(x_t, sigma)
    by_hand = (weight * of_sizes(f, wanted)).mean()
    loss, _ = weighted_error(denoiser, made[Distance.LPIPS], perceptual=of_sizes)
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=0.0)
    pieces = [weighted_error(denoiser, p, perceptual=of_sizes)[0] for p in split(made[Distance.LPIPS], 3)]
    torch.testing.assert_close(torch.stack(pieces).mean(), by_hand, rtol=1e-4, atol=0.0)


@pytest.fixture
def stub(monkeypatch):
    """lpips_distance with a linear layer in LPIPS's place; its weights."""

    class Compare(torch.nn.Conv2d):
        def forward(self, found, wanted, *, normalize):
            assert normalize
            assert not wanted.requires_grad, "the target's side is without gradient"
            return squares(super().forward(found), super().forward(wanted)).reshape(-1, 1, 1, 1)

    network = Compare(3, 2, 1).requires_grad_(False)
    monkeypatch.setattr(perceptual, "_network", lambda: network)
    return network


def test_the_gradient_is_of_what_was_found_alone(stub):
    decode = Conv2d(4, 3, 1).requires_grad_(False)
    measure = perceptual.lpips_distance(decode, device=torch.device("cpu"))
    found, wanted = (torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2))
    measure(found, wanted).sum().backward()
    assert wanted.grad is None
    assert float(found.grad.abs().max()) > 0.0
    assert all(p.grad is None for p in [*stub.parameters(), *decode.parameters()])


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (224, 224)), ((64, 96), (224, 336)), ((300, 224), (300, 224))]
)
def test_small_pictures_are_enlarged_in_their_shape(size, expected):
    """By bilinear interpolation: a ramp stays one inside."""
    ramp = (torch.arange(size[1]) + 0.5).expand(2, 3, *size) / size[1]
    large = perceptual._enlarged(ramp)
    assert tuple(large.shape[-2:]) == expected
    inside = slice(8, -8)
    wanted = (torch.arange(expected[1]) + 0.5) / expected[1]
    torch.testing.assert_close(large[..., 0, inside], wanted[inside].expand(2, 3, -1))


def trained(root, *, perceptual=None, accumulation=1, iterations=40):
    network, teacher = TinyNetwork(), TinyNetwork(seed=1)
    chosen = options(iterations=iterations, learning_rate=1e-2, distance=Distance.LPIPS)
    method = chosen.on(TeacherKind(family=VE, table=table(VE)))
    run = RunFolder(root, "run")
    chosen = TrainOptions(batch_size=12, log_every=1, seed=4, accumulation=accumulation)
    student = FullWeightsStudent(network, teacher, as_denoiser=as_denoiser)
    train(run, method, student, TensorData(x0=batch(64).x0, condition={}), options=chosen, perceptual=perceptual)
    return [line["loss"] for line in run.metrics()], network.state_dict()


def test_a_student_learns_by_it_whatever_the_pieces(tmp_path):
    seen = []

    def compare(found, wanted):
        seen.append(len(found))
        return of_sizes(found, wanted)

    losses, weights = trained(tmp_path / "one", perceptual=of_sizes)
    parts, others = trained(tmp_path / "parts", perceptual=compare, accumulation=3)
    assert sum(losses[30:40]) < 0.7 * sum(losses[:10])
    assert set(seen) == {4}, "one piece at a time is decoded"
    assert losses == pytest.approx(parts, rel=1e-3)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-4)
