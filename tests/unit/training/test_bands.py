"""Errors by band of the noise level, and what a run says about them."""

import math

import pytest
import torch
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.training.optimisation.bands import BANDS, NoiseBands, band_means
from comfyui_fewstep.trainers.training.optimisation.tally import NonFiniteLoss, Tally
from test_training import ITERATIONS, Stopped, Trained, stop_at


def bands(sigmas):
    return NoiseBands(torch.tensor(sigmas), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("sigmas", "sigma", "expected"),
    [
        (
            [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            [0, 0, 1, 1, 2, 2, 3, 3],
        ),
        ([4.0, 3.0, 2.0, 1.0, 0.0], [0.5, 1.0, 1.5, 2.5, 3.5, 4.0, 9.0], [0, 0, 1, 2, 3, 3, 3]),
        ([2.0, 1.0, 0.0], [1.0, 2.0], [0, 2]),
        ([1.0, 0.0], [1.0], [0]),
    ],
)
def test_bands_hold_as_many_levels_each(sigmas, sigma, expected):
    assert bands(sigmas).of(torch.tensor(sigma)).tolist() == expected


def test_a_bands_mean_is_over_its_samples_and_none_without_any():
    made = bands([4.0, 3.0, 2.0, 1.0, 0.0])
    first = made.sums(torch.tensor([1.0, 2.0, 6.0]), sigma=torch.tensor([1.0, 1.0, 4.0]))
    second = made.sums(torch.tensor([6.0, math.nan, 1.0]), sigma=torch.tensor([1.0, 3.0, 4.0]))
    means = band_means(torch.stack([first, second]))
    assert (means[0], means[1], means[3]) == (3.0, None, 3.5)
    assert math.isnan(means[2]), "one band's NaN stays in it"


def test_what_is_told_is_the_mean_since_it_was_told_last():
    """Of all updates: gradient norm, loss, error, and what the method measures, by name."""
    tally, some = Tally(), torch.zeros(2 * BANDS)
    for told in ([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 6.0, 9.0, 12.0, 15.0]), ([7.0] * 5,):
        for iteration, row in enumerate(torch.tensor(told), 1):
            tally.add(iteration, torch.cat([row[:3], some, row[3:]]), measures=("gap", "cosine"))
        tally.settle(Processes(), bands([1.0, 0.0]), stage="s")
        means = torch.tensor(told).mean(dim=0).tolist()
        assert [tally.gradient_norm, tally.loss, tally.x0_error] == means[:3]
        assert tally.measures == {"gap": means[3], "cosine": means[4]}


class Recorder:
    """Keeps each sample's level and squared error, from outside the loop."""

    def __init__(self):
        self.targets, self.errors = [], []

    def __call__(self, trained):
        made, denoiser = trained.method.target, trained.student.denoiser

        def target(*args, **kwargs):
            self.targets.append(made(*args, **kwargs))
            return self.targets[-1]

        def student(x, sigma, **condition):
            x0 = denoiser(x, sigma, **condition)
            want = self.targets[-1]
            rows = [int((want.x_t == sample).flatten(1).all(dim=1).nonzero()[0]) for sample in x]
            self.errors.append((sigma, (x0.detach() - want.x0[rows]).square().mean(dim=(1, 2, 3))))
            return x0

        trained.method.target, trained.student.denoiser = target, student


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_logged_band_errors_are_the_samples_own(pieces, tmp_path):
    """Every sample since the last line once, by the place of its level in the stage's own schedule."""
    recorder = Recorder()
    trained = Trained(tmp_path, hook=recorder, batch_size=6, log_every=4, accumulation=pieces)
    for line in trained.run.metrics():
        stage = trained.method.stages()[line["stage"]]
        levels = stage.sigmas[:-1].flip(0).tolist()
        found = [[] for _ in range(BANDS)]
        for sigma, errors in recorder.errors[(line["iteration"] - 4) * pieces : line["iteration"] * pieces]:
            for level, error in zip(sigma.tolist(), errors.tolist(), strict=True):
                found[levels.index(level) * BANDS // len(levels)].append(error)
        assert sum(map(len, found)) == 4 * 6
        expected = [sum(errors) / len(errors) if errors else None for errors in found]
        assert line["band_errors"] == pytest.approx(expected, rel=1e-5)
        every = [error for errors in found for error in errors]
        assert line["x0_error"] == pytest.approx(sum(every) / len(every), rel=1e-5)


def test_a_band_without_samples_is_null(tmp_path):
    lines = Trained(tmp_path, batch_size=1).run.metrics()
    assert [sum(error is not None for error in line["band_errors"]) for line in lines] == [1] * 2 * ITERATIONS


def test_observers_are_told_time_and_memory_and_the_log_is_not(tmp_path):
    seen = []
    trained = Trained(tmp_path, observers=[seen.append])
    seconds = [metrics.seconds for metrics in seen]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0.0
    assert all(metrics.memory is None for metrics in seen), "a CPU run takes no memory of a GPU"
    assert not {"seconds", "seconds_left", "memory"} & set(trained.run.metrics()[0])


def nan_in_the_highest_band(stage, *, levels, after=0):
    """A hook: the student's predictions at the highest quarter of the stage's levels are NaN after so many passes."""

    def hook(trained):
        denoiser, sigmas = trained.student.denoiser, trained.method.stages()[stage].sigmas
        levels[:] = sigmas[: (len(sigmas) - 1) // BANDS].tolist()
        passes = []

        def student(x, sigma, **condition):
            passes.append(len(x))
            bad = (sigma >= levels[-1]).reshape(-1, 1, 1, 1) & (len(passes) > after)
            return denoiser(x, sigma, **condition) + torch.where(bad, math.nan, 0.0)

        trained.student.denoiser = student

    return hook


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("stage", "name"), [(0, "16 to 8 steps"), (1, "8 to 4 steps")])
def test_a_loss_that_is_not_finite_names_its_noise_levels(stage, name, resumed, tmp_path):
    """NaN in the highest band of the stage alone: the message must name it, although soon all samples are NaN."""
    before, levels = stage * ITERATIONS, []
    if resumed:
        before += 1
        with pytest.raises(Stopped):
            Trained(tmp_path, observers=[stop_at(before)])
    hook = nan_in_the_highest_band(stage, levels=levels, after=0 if resumed else before)
    with pytest.raises(NonFiniteLoss) as stopped:
        Trained(tmp_path, hook=hook, log_every=4)
    told = str(stopped.value)
    assert told.startswith(f"the loss became nan at iteration {before + 1} (stage {name}), from samples at sigma ")
    kept = "the last good" if before else "nothing is saved yet"
    assert f"sigma {levels[-1]:.4g} to {levels[0]:.4g} (band 4 of 4); {kept}" in told
    assert told.count("band ") == 1


def test_a_gradient_that_is_not_finite_is_called_so(tmp_path):
    def hook(trained):
        trained.network.out.register_hook(lambda gradient: gradient * math.inf)

    with pytest.raises(
        NonFiniteLoss, match=r"the gradient norm became (nan|inf) at iteration 1 \(stage 16 to 8 steps\);"
    ):
        Trained(tmp_path, hook=hook)
