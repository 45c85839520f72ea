"""Consistency training: the published schedules, and what the student becomes where it is known in closed form."""

import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch, TensorData
from comfyui_fewstep.trainers.methods import read_method
from comfyui_fewstep.trainers.methods.consistency_training import (
    ConsistencyTraining,
    ConsistencyTrainingOptions,
    LevelChoice,
)
from comfyui_fewstep.trainers.objective.consistency_function import trained_levels
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.average import Average
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, gaussian_denoiser, table
from test_consistency import gaussian_flow_map
from test_converging import FAMILY_OF, Affine, read, spread
from thorough import first_then_thorough

VE, FLOW = NoiseFamily


def options(**changed):
    return ConsistencyTrainingOptions(**{"steps": 2, "iterations": 80, "learning_rate": 1e-3, **changed})


def method(family, **changed):
    return options(**changed).on(TeacherKind(family=family, table=table(family)))


def batch(count=256, shape=(1, 1, 1)):
    x0 = 0.7 + 0.5 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return Batch(x0, {"y": torch.ones(count, 1)})


def no_teacher(*_, **__):
    raise AssertionError("consistency training has no teacher")


def target_of(made, *, student, count=256, iteration=0, given=None):
    generator = torch.Generator().manual_seed(3)
    networks = {"teacher": no_teacher, "student": student}
    return made.target(
        Lesson(batch=given or batch(count), stage=0, iteration=iteration, **networks, generator=generator)
    )


def zero(x, sigma, **_):
    return torch.zeros_like(x)


# --- the published schedules -----------------------------------------------------------------------------------------


def test_levels_double_in_phases_of_equal_length():
    """Song and Dhariwal, table 1: N(k) = min(s0 2^floor(k / K'), s1) + 1 levels with K' = floor(K / (log2(s1 / s0) + 1))."""
    total, first, last = 400, 10, 1280
    chosen = options(iterations=total, first_levels=first, last_levels=last)
    length = total // (int(math.log2(last / first)) + 1)
    for k in range(total):
        assert chosen.levels_at(k) == min(first * 2 ** (k // length), last)
    assert [chosen.levels_at(k) for k in (0, 49, 50, 399)] == [10, 10, 20, 1280]
    assert {options(first_levels=20, last_levels=20).levels_at(k) for k in range(80)} == {20}
    assert options(iterations=2, first_levels=4, last_levels=100).levels_at(1) == 8, "fewer iterations than phases"


def test_levels_come_to_the_last_where_doubling_does_not_meet_it():
    """A phase at last_levels of the same length as the others; runs that were begun without one go on without."""
    uneven = options(iterations=84, first_levels=4, last_levels=100)
    assert [uneven.levels_at(k) for k in (0, 13, 14, 69, 70, 83)] == [4, 4, 8, 64, 100, 100]
    barely = options(iterations=10, first_levels=10, last_levels=15)
    assert [barely.levels_at(k) for k in (4, 5, 9)] == [10, 15, 15]
    old = {name: value for name, value in uneven.written().items() if name != "reaches_last"}
    begun = read_method(ConsistencyTraining.name, old)
    assert [begun.levels_at(k) for k in (0, 15, 16, 79)] == [4, 4, 8, 64], "as it was begun"
    short = options(iterations=5, first_levels=10, last_levels=30, reaches_last=False)
    assert [short.levels_at(k) for k in range(5)] == [10, 10, 20, 20, 30], (
        "the paper's formula, in what phases leave over"
    )
    kind = TeacherKind(family=VE, table=table(VE))
    assert uneven.on(kind).options_of_old()["reaches_last"] is False, "another training than the one begun"
    even = options(first_levels=4, last_levels=64)
    assert even.on(kind).options_of_old()["reaches_last"] is True
    assert read_method(ConsistencyTraining.name, even.written()) == even


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("iteration", [0, 79])
def test_levels_come_up_as_the_lognormal_says(family, iteration):
    """iCT, section 3.5, by its own erf formula in r = noise over signal, and by count."""
    made = method(family, first_levels=8, last_levels=16, level_choice=LevelChoice.LOGNORMAL)
    levels = trained_levels(Grid.TRAILING, 8 if iteration == 0 else 16, table=table(family)).double()
    ratio = levels / (1 - levels) if family is FLOW else levels
    z = (ratio.log() + 1.1) / (2.0 * 2**0.5)
    expected = torch.erf(z[:-1]) - torch.erf(z[1:])
    expected = expected / expected.sum()
    target = target_of(made, student=zero, count=40000, iteration=iteration)
    counts = torch.stack([(target.sigma - level).abs() < 1e-6 for level in levels[:-1]]).sum(dim=1) / 40000
    assert float(counts.sum()) == 1.0
    assert (counts - expected).abs().max() < 4 * (0.25 / 40000) ** 0.5
    assert 0.01 < counts[0] < 0.9, "the largest level too, from which one step begins"


def test_a_top_that_was_rounded_to_above_one_is_pure_noise():
    """Of ComfyUI's shift s t / (1 + (s - 1) t) in float32, which ends at 1.0000001 at many a shift."""
    for shift in (0.2, 1.58, 2.64):
        t = table(FLOW)
        shifted = shift * t / (1.0 + (shift - 1.0) * t)
        assert float(shifted[-1]) > 1.0
        made = options(level_choice=LevelChoice.LOGNORMAL).on(TeacherKind(family=FLOW, table=shifted))
        levels = trained_levels(Grid.TRAILING, 10, table=shifted)
        found = LevelChoice.LOGNORMAL.likelihoods(levels, family=FLOW)
        exact = LevelChoice.LOGNORMAL.likelihoods(levels.clamp(max=1.0), family=FLOW)
        torch.testing.assert_close(found, exact)
        assert float(target_of(made, student=zero).sigma.max()) == float(shifted[-1])


@pytest.mark.parametrize("distance", [0.1, 3.0])
def test_latents_learn_as_the_papers_pictures_do_at_half_of_everything(distance):
    """iCT's numbers are for deviation 0.5: at deviation 1 the same picture has twice the noise and twice the error.

    So a level's share is that of half of it, its weight half of that, and the distance twice that of half the error.
    """
    levels = torch.tensor([80.0, 20.0, 3.0, 0.7, 0.1, 0.02])
    shares = LevelChoice.LOGNORMAL.likelihoods(levels / 2, family=VE)
    torch.testing.assert_close(LevelChoice.LOGNORMAL_LATENTS.likelihoods(levels, family=VE), shares)
    eighths = LevelChoice.LOGNORMAL_LATENTS.likelihoods(levels / 8, family=VE, unit=1 / 8)
    torch.testing.assert_close(eighths, shares, msg="of data that are an eighth of latents, as HiDream-O1's are")
    weights = LevelChoice.LOGNORMAL.weight(levels[:-1] / 2, levels[1:] / 2)
    torch.testing.assert_close(LevelChoice.LOGNORMAL_LATENTS.weight(levels[:-1], levels[1:]), weights / 2)
    error = distance * 0.001 * torch.ones(1, 7, dtype=torch.float64)
    halved = 2.0 * Distance.PSEUDO_HUBER((error / 2).square())
    torch.testing.assert_close(Distance.PSEUDO_HUBER_LATENTS(error.square()), halved)
    assert float(options().distance(error.square())) == pytest.approx(float(halved)), "the default is for latents"
    assert options().level_choice is LevelChoice.LOGNORMAL_LATENTS


def test_the_average_that_teaches_grows_with_the_levels():
    """CT, appendix C: mu(k) = exp(s_0 ln mu_0 / N(k)), N counting points, of which there is one more than are taught."""
    chosen = options(iterations=400, first_levels=1 + 9, last_levels=80, target_decay=0.9, target_growth=True)
    for k in range(400):
        points = chosen.levels_at(k) + 1
        assert chosen.decay_at(k) == pytest.approx(math.exp(11 * math.log(0.9) / points), rel=1e-12)
    assert chosen.decay_at(0) == pytest.approx(0.9)
    assert chosen.decay_at(399) == pytest.approx(0.9 ** (11 / 81))
    (stage,) = chosen.on(TeacherKind(family=VE, table=table(VE))).stages()
    weight = torch.zeros(1)
    average, expected = Average([weight], decay=stage.target_decay), 0.0
    for k in range(400):
        weight.fill_(math.sin(k))
        average.update(k)
        expected = chosen.decay_at(k) * expected + (1.0 - chosen.decay_at(k)) * math.sin(k)
    assert float(average.state_dict()["average.0"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_of_the_choice(family):
    made = method(family, distance=Distance.SQUARED)
    levels = trained_levels(Grid.TRAILING, 10, table=table(family))
    target = target_of(made, student=zero)
    k = (levels - target.sigma[:, None]).abs().argmin(dim=1)
    _, c_out = made._function._scaled(target.x_t, target.sigma)
    torch.testing.assert_close(target.weight, c_out.flatten() ** 2 / (levels[k] - levels[k + 1]))
    uniform = target_of(
        method(family, level_choice=LevelChoice.UNIFORM, distance=Distance.SQUARED), student=zero, count=20000
    )
    levels, counts = uniform.sigma.unique(return_counts=True)
    assert len(levels) == 10
    assert counts.min() > 0.9 * counts.float().mean()
    assert uniform.weight.max() <= 1.0
    assert uniform.weight.min() > 0.99


# --- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_both_places_hold_the_same_picture_and_the_same_noise(family):
    """And the teacher, which would fail here, is not asked; at the smallest level f is the picture itself."""
    made, asked = method(family), []

    def student(x, sigma, y):
        assert torch.equal(y, given.condition["y"])
        asked.append((x, sigma))
        return torch.full_like(x, 42.0)

    given = batch(shape=(2, 2, 2))
    target = target_of(made, student=student, given=given)
    ((x_s, sigma_next),) = asked
    assert not target.x0.requires_grad
    assert (sigma_next < target.sigma).all()
    noises = [family.noise_in(x, given.x0, sigma=sigma) for x, sigma in ((target.x_t, target.sigma), (x_s, sigma_next))]
    torch.testing.assert_close(*noises, atol=2e-3, rtol=1e-3)
    assert float(noises[0].std()) == pytest.approx(1.0, abs=0.05)
    inner = sigma_next > table(family)[0]
    wanted = made._function.of(lambda *_, **__: target.x0)(target.x_t, target.sigma)
    assert (wanted[inner] - 42.0).abs().max() < 0.01
    in_unit_variance = x_s if family is FLOW else x_s / (1.0 + table(family)[0] ** 2) ** 0.5
    assert not inner.all()
    torch.testing.assert_close(wanted[~inner], in_unit_variance[~inner], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("distance", Distance)
def test_the_target_is_the_seeds_alone_and_without_gradient(distance):
    """Whatever else draws from torch meanwhile; with the distance of the choice, of a student that has a gradient."""
    gain = torch.ones(1, requires_grad=True)
    first, again = (target_of(method(VE, distance=distance), student=lambda x, *_, **__: gain * x) for _ in range(2))
    assert torch.equal(first.x_t, again.x_t)
    assert torch.equal(first.sigma, again.sigma)
    assert first.distance is distance
    assert not first.x0.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_the_average_target_is_the_teachers_step(family):
    """Song et al., theorem 2: over all pictures that x_t can hold, the data's step is the step of the exact denoiser.

    For one level: the regression of the next place on x_t is the DDIM step, so a student that is affine learns from it
    the same. 200000 samples, to 1 percent.
    """
    made = method(family, first_levels=6, last_levels=6, level_choice=LevelChoice.UNIFORM)
    asked = []

    def student(x, sigma, **_):
        asked.append((x, sigma))
        return x

    target = target_of(made, student=student, count=200000)
    ((x_s, sigma_next),) = asked
    for level in trained_levels(Grid.TRAILING, 6, table=table(family))[1:-1]:
        chosen = (target.sigma - level).abs() < 1e-6
        x, y, sigma = target.x_t[chosen].flatten(), x_s[chosen].flatten(), target.sigma[chosen]
        gain = float(((x - x.mean()) * (y - y.mean())).mean() / x.var())
        exact = family.jump(x, gaussian_denoiser(family)(x, sigma), sigma=sigma, sigma_next=sigma_next[chosen])
        slope = float((exact[0] - exact[1]) / (x[0] - x[1]))
        assert gain == pytest.approx(slope, abs=0.01)


# --- training --------------------------------------------------------------------------------------------------------


def backwards(made, count):
    """What an affine student converges to: at each level the regression of its own word at the next one on x.

    (gain, shift) of f at each level of `count`, descending.
    """
    levels = trained_levels(Grid.TRAILING, count, table=made._table)
    gains, shifts = [1.0 if made.family is FLOW else float(1 / (1 + levels[-1] ** 2) ** 0.5)], [0.0]
    for sigma, after in zip(levels.flip(0)[1:], levels.flip(0)[:-1], strict=True):
        x = torch.tensor([0.0, 1.0])
        x0 = gaussian_denoiser(made.family)(x, sigma.expand(2))
        low, high = made.family.jump(x, x0, sigma=sigma.expand(2), sigma_next=after.expand(2))
        shifts.append(shifts[-1] + gains[-1] * float(low))
        gains.append(gains[-1] * float(high - low))
    return levels, gains[::-1], shifts[::-1]


WAYS = first_then_thorough(
    [("v_prediction", "uniform"), ("flow", "lognormal")], [("eps", "lognormal"), ("x0", "uniform")]
)


@pytest.mark.parametrize(("kind", "choice"), WAYS)
def test_a_student_from_scratch_is_the_one_known_in_closed_form(kind, choice, tmp_path):
    """To 0.05 at each level for data of deviation 0.5, though its targets are noisy and nobody teaches it."""
    family = FAMILY_OF[kind]
    made = method(
        family,
        iterations=400,
        learning_rate=0.08,
        first_levels=4,
        last_levels=4,
        distance=Distance.SQUARED,
        level_choice=LevelChoice(choice),
    )
    levels, gains, shifts = backwards(made, 4)
    networks = [Affine(levels, family=family, seed=seed) for seed in (1, 2)]
    full = FullWeightsStudent(*networks, as_denoiser=lambda module: read(module, kind))
    full.teacher, full.promote = no_teacher, lambda: None
    data = TensorData(x0=batch(4096).x0, condition={"y": torch.ones(1, 1)})
    training = TrainOptions(batch_size=512, log_every=10**6, checkpoint_every=10**6, gradient_clip=1e6)
    train(RunFolder(tmp_path, "toy"), made, full, data, options=training)
    f = made._function.of(full.denoiser)
    for level, gain, shift in zip(levels[:-1], gains, shifts, strict=False):
        x = spread(level, family) if level < levels[0] or family is VE else spread(level, family) / 2
        learnt = f(x, level.expand(len(x))).detach()
        assert (learnt - (gain * x + shift)).abs().max() < 0.05, float(level)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_more_levels_that_student_nears_the_flow_map(family):
    """So the doubling has a purpose: what is converged to has an error in proportion to the step."""
    errors = []
    for count in (8, 32, 128):
        levels, gains, shifts = backwards(method(family, last_levels=200), count)
        x = spread(levels[0], family)
        exact = gaussian_flow_map(family)(x, levels[0].expand(len(x)))
        errors.append(float((gains[0] * x + shifts[0] - exact).abs().max()))
    assert errors[2] < errors[1] / 2 < errors[0] / 4


# --- options ---------------------------------------------------------------------------------------------------------


def test_recipe_and_stage():
    made = method(VE, grid=Grid.EDM, target_decay=0.9, learning_rate=3e-4)
    recipe = made.recipe(stage=0, prediction_type="eps")
    (stage,) = made.stages()
    assert (recipe.steps, recipe.gamma, recipe.guidance_scale, recipe.schedule) == (2, 1.0, 1.0, "edm")
    assert recipe.sigmas[0] == float(table(VE)[-1])
    assert stage.learning_rate == 3e-4
    assert (stage.teacher_sigmas, stage.target_decay, stage.gamma) == (None, 0.9, 1.0)


def test_options_come_back_as_they_were_written():
    chosen = options(level_choice=LevelChoice.UNIFORM, target_decay=0.9, last_levels=40)
    assert read_method(ConsistencyTraining.name, chosen.written()) == chosen
    required = {"steps", "iterations", "learning_rate"}
    assert method(FLOW).options_of_old().keys() == chosen.written().keys() - required


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"first_levels": 1}, "first_levels is 1"),
        ({"first_levels": 200}, "first_levels is 200, last_levels is 160"),
        ({"steps": 200}, "steps is 200"),
        ({"iterations": 0}, "iterations is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"target_growth": True}, "target_growth is on, but target_decay is 0"),
        ({"target_decay": -0.1}, r"target_decay is -0\.1"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


def test_what_a_model_does_not_take_is_named():
    with pytest.raises(ValueError, match="grid is edm, but this is a flow model"):
        method(FLOW, grid=Grid.EDM)
    with pytest.raises(ValueError, match="levels is 1280; this model has 1000"):
        method(VE, last_levels=1280)
