"""Guidance distillation: what the student must say is known in closed form, and training from scratch finds it."""

import dataclasses

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch, TensorData
from comfyui_fewstep.trainers.methods import read_method
from comfyui_fewstep.trainers.methods.guidance import GuidanceDistillation, GuidanceOptions
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, Mixture, gaussian_denoiser, table
from test_converging import FAMILY_OF, KINDS, OUTPUTS, Affine, read, spread
from thorough import first_then_thorough

PROMPT, EMPTY = {"mean": 0.7, "std": 0.5}, {"mean": -0.2, "std": 0.8}
SCALE = 3.0


def two_prompts(family):
    """The exact denoisers of two distributions, told apart by y: 1 is the prompt, 0 the empty one."""
    with_prompt, without = gaussian_denoiser(family, **PROMPT), gaussian_denoiser(family, **EMPTY)

    def teacher(x, sigma, y):
        y = y.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(y > 0.5, with_prompt(x, sigma), without(x, sigma))

    return teacher


def guided_exactly(family):
    return lambda x, sigma, **_: (
        (1.0 - SCALE) * gaussian_denoiser(family, **EMPTY)(x, sigma)
        + SCALE * gaussian_denoiser(family, **PROMPT)(x, sigma)
    )


def options(**changed):
    return GuidanceOptions(**{"guidance_scale": SCALE, "iterations": 10, "learning_rate": 1e-3, **changed})


def method(family, *, levels=None, **changed):
    levels = table(family) if levels is None else levels
    return options(**changed).on(TeacherKind(family=family, table=levels, empty_prompt=True))


def batch(count=256, *, unconditional=0.0):
    x0 = 0.7 + 0.5 * torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.tensor([[unconditional]])})


def target_of(family, *, teacher=None, student=None, count=256, unconditional=0.0, **changed):
    made = method(family, **changed)
    return made.target(
        Lesson(
            batch=batch(count, unconditional=unconditional),
            stage=0,
            teacher=teacher or two_prompts(family),
            student=student,
            generator=torch.Generator().manual_seed(3),
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_guided_denoiser_in_closed_form(family):
    """Without a look at the student: guidance distillation has nothing to do with what that says already."""
    taught, gain = two_prompts(family), torch.ones(1, requires_grad=True)
    target = target_of(family, teacher=lambda *given, **named: gain * taught(*given, **named))
    exact = guided_exactly(family)(target.x_t.double(), target.sigma.double())
    assert (target.x0 - exact).abs().max() < 1e-5
    assert not target.x0.requires_grad
    torch.testing.assert_close(target.weight, Weighting.TRUNCATED_SNR(target.sigma, family=family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixtures_target_takes_two_forwards_at_the_same_place(family):
    """Of any denoiser, not of affine ones alone; and two forwards are what the teacher costs."""
    prompt = Mixture(weights=[0.3, 0.7], means=[-1.0, 0.5], stds=[0.2, 0.3]).denoiser(family)
    empty = Mixture(weights=[0.5, 0.5], means=[-1.0, 1.5], stds=[0.4, 0.3]).denoiser(family)
    calls = []

    def teacher(x, sigma, y):
        calls.append((x.clone(), float(y[0])))
        return (prompt if y[0] > 0.5 else empty)(x, sigma)

    target = target_of(family, teacher=teacher)
    assert sorted(y for _, y in calls) == [0.0, 1.0]
    assert all(torch.equal(x, target.x_t) for x, _ in calls)
    with_prompt, without = (denoiser(target.x_t, target.sigma) for denoiser in (prompt, empty))
    exact = without + SCALE * (with_prompt - without)
    torch.testing.assert_close(target.x0.double(), exact, atol=1e-5, rtol=1e-5)


def test_the_negative_prompt_is_in_the_target():
    """Another negative prompt, another student."""
    flow = NoiseFamily.FLOW
    teacher = lambda x, sigma, y: torch.zeros_like(x) + y.reshape(-1, 1, 1, 1)  # noqa: E731
    for negative in (0.0, -1.0):
        target = target_of(flow, teacher=teacher, unconditional=negative)
        expected = negative + SCALE * (1.0 - negative)
        torch.testing.assert_close(target.x0, torch.full_like(target.x0, expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_models_levels_are_trained_alike(family):
    target = target_of(family, count=20000, levels=table(family)[::100], steps=5)
    levels, counts = target.sigma.unique(return_counts=True)
    torch.testing.assert_close(levels, table(family)[::100])
    assert counts.min() > 0.9 * counts.float().mean()
    x0 = batch(20000).x0.flatten()
    signal = 1.0 - target.sigma if family is NoiseFamily.FLOW else 1.0
    noise = (target.x_t.flatten() - signal * x0) / target.sigma
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "distance", "iterations", "rate"),
    first_then_thorough(
        [("v_prediction", "squared", 300, 0.1), ("flow", "pseudo_huber", 300, 0.1)],
        [(kind, distance, 600, 0.05) for kind, _ in KINDS for distance in ("squared", "pseudo_huber")],
    ),
)
def test_a_student_from_scratch_says_in_one_forward_what_two_said(kind, distance, iterations, rate, tmp_path):
    """On noise that it never saw, to 0.01, at each level, whatever its network predicts; and it samples to the same places."""
    family = FAMILY_OF[kind]
    levels = table(family)[[59, 219, 379, 539, 699, 859, 999]]
    made = method(
        family, levels=levels, iterations=iterations, learning_rate=rate, distance=Distance(distance), steps=7
    )
    networks = [Affine(levels, family=family, seed=seed) for seed in (1, 2)]
    networks[1].fit(guided_exactly(family), OUTPUTS[kind])  # stands in for the shapes; the teacher is the exact one
    calls = []

    def as_denoiser(module):
        def denoise(x, sigma, **condition):
            calls.append(module)
            return read(module, kind)(x, sigma)

        return denoise

    full = FullWeightsStudent(*networks, as_denoiser=as_denoiser)
    full.teacher, full.promote = two_prompts(family), lambda: None
    data = TensorData(x0=batch(4096).x0, condition={"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    training = TrainOptions(batch_size=256, log_every=10**6, checkpoint_every=10**6, gradient_clip=1e6)
    train(RunFolder(tmp_path, "toy"), made, full, data, options=training)
    calls.clear()
    for level in levels:
        x = spread(level, family)
        learnt = full.denoiser(x, level.expand(len(x)), y=torch.ones(len(x), 1)).detach()
        assert (learnt - guided_exactly(family)(x, level.expand(len(x)))).abs().max() < 0.01, float(level)
    assert calls == [full.module] * len(levels), "one forward each"
    start = spread(levels[-1], family)
    schedule = torch.cat([levels.flip(0), torch.zeros(1)])
    two = made.teaching(full.teacher, stage=0, batch=batch(1))
    walk = {"disable": True, "family": family, "gamma": 0.0}
    wanted = sample_few_step(two, start, schedule, {"y": torch.ones(len(start), 1)}, **walk)
    drawn = sample_few_step(full.denoiser, start, schedule, {"y": torch.ones(len(start), 1)}, **walk)
    assert (drawn - wanted).abs().max() < 0.02


def test_the_recipe_says_how_to_sample_and_what_is_baked_in():
    made = method(NoiseFamily.VARIANCE_EXPLODING, steps=12, gamma=0.3, grid=Grid.EDM)
    recipe = made.recipe(stage=0, prediction_type="v_prediction")
    (stage,) = made.stages()
    assert (recipe.steps, recipe.gamma, recipe.schedule, recipe.guidance_scale) == (12, 0.3, "edm", SCALE)
    assert (recipe.method, recipe.prediction_type) == ("guidance_distillation", "v_prediction")
    assert recipe.sigmas == tuple(stage.sigmas.tolist()) == tuple(stage.teacher_sigmas.tolist())
    assert stage.gamma == 0.3
    assert torch.equal(stage.walked(stage.sigmas), stage.sigmas)
    assert not made.continues(made.options())


def test_options_come_back_as_they_were_written():
    chosen = options(weighting=Weighting.SNR, distance=Distance.PSEUDO_HUBER, gamma=1.0, steps=8)
    assert read_method(GuidanceDistillation.name, chosen.written()) == chosen
    made = method(NoiseFamily.FLOW)
    assert made.options_of_old().keys() == made.options().keys() - {"guidance_scale", "iterations", "learning_rate"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"guidance_scale": 1.0}, r"guidance_scale is 1\.0, which is no guidance"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0\.5; allowed is 1"),
        ({"iterations": 0}, "iterations is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"gamma": 1.5}, r"gamma is 1\.5"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


def test_what_a_model_does_not_take_is_named():
    without = TeacherKind(family=NoiseFamily.FLOW, table=table(NoiseFamily.FLOW))
    flow = dataclasses.replace(without, empty_prompt=True)
    with pytest.raises(ValueError, match="connect the negative conditioning"):
        options().on(without)
    with pytest.raises(ValueError, match="connect the negative conditioning"):
        options(guidance_scale=1.0, guidance_scale_max=5.0).on(without)
    with pytest.raises(ValueError, match="grid is edm, but this is a flow model"):
        options(grid=Grid.EDM).on(flow)
    with pytest.raises(ValueError, match="steps is 1001; this model has 1000"):
        options(steps=1001).on(flow)
    with pytest.raises(ValueError, match=r"'gradient'; known are progressive_distillation, guidance_distillation"):
        read_method("gradient", {})
