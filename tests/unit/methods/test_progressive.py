import copy

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch, TensorData
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions, StudentPrediction
from comfyui_fewstep.trainers.objective.loss import weighted_error
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, gaussian_denoiser, paper_target, signal_and_noise, table
from torch import nn


def options(**changed):
    chosen = {
        "start_steps": 16,
        "target_steps": 4,
        "iterations": 10,
        "weighting": Weighting.TRUNCATED_SNR,
        "learning_rate": 1e-3,
        "guidance_scale": 1.0,
    }
    return ProgressiveOptions(**{**chosen, **changed})


def method(family, **changed):
    return options(**changed).on(TeacherKind(family=family, table=table(family), empty_prompt=True))


def batch(count=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = 0.7 + 0.5 * torch.randn(count, 1, 2, 2, generator=generator)
    return Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})


def target_of(family, *, stage=0, teacher=None, count=256, **changed):
    teacher = teacher or gaussian_denoiser(family)
    generator = torch.Generator().manual_seed(3)
    made = method(family, **changed)
    lesson = Lesson(batch=batch(count), stage=stage, teacher=teacher, student=teacher, generator=generator)
    return made.target(lesson), made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [0, 1])
def test_the_target_is_the_papers_for_a_gaussian_teacher(family, stage):
    """Exact denoiser, two DDIM steps and the paper's own inversion, in its own variance-preserving scale and float64."""
    target, made = target_of(family, stage=stage)
    fine = made._schedule(16 >> stage).double()
    worst = 0.0
    for x_t, sigma, x0 in zip(target.x_t, target.sigma, target.x0, strict=True):
        k = int((fine - sigma).abs().argmin())
        assert k % 2 == 0, "the student is trained on its own schedule, every second level of the teacher's"
        exact = paper_target(gaussian_denoiser(family), x_t[None].double(), levels=fine[k : k + 3], family=family)
        worst = max(worst, float((exact[0] - x0).abs().max()))
    assert worst < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_one_student_step_lands_where_two_teacher_steps_do(family):
    target, made = target_of(family)
    fine = made._schedule(16)
    teacher = gaussian_denoiser(family)
    for x_t, sigma, x0 in zip(target.x_t[:20], target.sigma[:20], target.x0[:20], strict=True):
        k = int((fine - sigma).abs().argmin())
        two = sample_few_step(teacher, x_t[None], fine[k : k + 3], disable=True, family=family, gamma=0.0)
        one = family.jump(x_t[None], x0[None], sigma=fine[k], sigma_next=fine[k + 2])
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_step_takes_the_teachers_second_prediction(family):
    """Salimans and Ho, algorithm 2 at i = 1: where the schedule ends at 0 there is nothing to solve back from."""
    predictions = []

    def teacher(x, sigma, **_):
        predictions.append(gaussian_denoiser(family)(x, sigma))
        return predictions[-1]

    target, made = target_of(family, teacher=teacher)
    last = target.sigma == made.stages()[0].sigmas[-2]
    assert last.any()
    torch.testing.assert_close(target.x0[last], predictions[1][last], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_of_the_students_schedule_is_trained(family):
    target, made = target_of(family, count=4096)
    levels, counts = target.sigma.unique(return_counts=True)
    torch.testing.assert_close(levels.sort(descending=True).values, made.stages()[0].sigmas[:-1])
    assert counts.min() > 0.7 * counts.float().mean()


def test_x_t_is_the_sample_with_unit_noise_at_sigma():
    target, _ = target_of(NoiseFamily.VARIANCE_EXPLODING, count=4096)
    noise = (target.x_t - batch(4096).x0) / target.sigma.reshape(-1, 1, 1, 1)
    assert noise.mean() == pytest.approx(0.0, abs=0.03)
    assert noise.std() == pytest.approx(1.0, abs=0.03)


def conditional_teacher(x, sigma, y):
    """Predicts y everywhere, so that guidance can be read off."""
    return torch.zeros_like(x) + y.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("stage", "expected"), [(0, 3.0), (1, 1.0)])
def test_guidance_is_baked_in_by_the_first_halving_only(stage, expected):
    """Empty prompt 0, prompt 1, scale 3: 0 + 3 (1 - 0). Later teachers are guided already, and must not be again."""
    target, _ = target_of(NoiseFamily.FLOW, stage=stage, teacher=conditional_teacher, guidance_scale=3.0)
    torch.testing.assert_close(target.x0, torch.full_like(target.x0, expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prediction", [StudentPrediction.AS_TEACHER, StudentPrediction.X0])
def test_the_weights_are_those_of_the_weighting(prediction, family):
    """Of halvings and of a conversion: the signal over the noise, squared, at least 1."""
    kind = TeacherKind(family=family, table=table(family), prediction_type="eps")
    teacher, generator = gaussian_denoiser(family), torch.Generator().manual_seed(3)
    made = options(student_prediction=prediction).on(kind)
    target = made.target(Lesson(batch=batch(), stage=0, teacher=teacher, student=teacher, generator=generator))
    signal, noise = signal_and_noise(target.sigma, family)
    torch.testing.assert_close(target.weight, (signal / noise).square().clamp(min=1.0))


def test_stages_halve_down_to_the_target():
    made = method(NoiseFamily.VARIANCE_EXPLODING, start_steps=64, target_steps=4)
    assert [stage.steps for stage in made.stages()] == [32, 16, 8, 4]
    recipe = made.recipe(stage=3, prediction_type="v_prediction")
    assert recipe.steps == 4
    assert recipe.sigmas == tuple(made.stages()[-1].sigmas.tolist())


def test_odd_step_counts_keep_the_levels_they_were_trained_on():
    """At 96 steps the trailing lists of 96 and 48 round one level differently; the students' schedules must not."""
    made = method(NoiseFamily.VARIANCE_EXPLODING, start_steps=96, target_steps=6)
    for stage, finer in zip(made.stages()[1:], made.stages(), strict=False):
        assert torch.equal(stage.sigmas, finer.sigmas[::2])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"start_steps": 12, "target_steps": 5}, "start_steps is 12 and target_steps is 5"),
        ({"start_steps": 12, "target_steps": 4}, "power of two"),
        ({"start_steps": 4, "target_steps": 4}, "at least twice"),
        ({"target_steps": 0}, "target_steps is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


def test_guidance_needs_the_empty_prompt():
    with pytest.raises(ValueError, match="connect the negative"):
        options(guidance_scale=2.0).on(TeacherKind(family=NoiseFamily.FLOW, table=table(NoiseFamily.FLOW)))


class TinyNetwork(nn.Module):
    """Sees x and log sigma; predicts x0. Starts as a poor copy of the exact denoiser."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden = nn.Parameter(torch.randn(32, 3, generator=generator) * 0.5)
        self.out = nn.Parameter(torch.randn(1, 32, generator=generator) * 0.1)

    def forward(self, x, sigma, **_):
        flat = x.reshape(len(x), -1, 1)
        level = sigma.reshape(-1, 1, 1).expand_as(flat)
        inputs = torch.cat([flat / (1 + level**2) ** 0.5, level.log(), torch.ones_like(flat)], dim=-1)
        return (torch.tanh(inputs @ self.hidden.T) @ self.out.T).reshape(x.shape)


def as_denoiser(module):
    return lambda x, sigma, **condition: module(x, sigma, **condition)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_held_out_error_and_touches_the_student_only(family, tmp_path):
    data = TensorData(x0=batch(2048, seed=5).x0, condition={"y": torch.ones(1, 1)})
    made = method(family, start_steps=8, target_steps=4, iterations=400, learning_rate=2e-2)
    exact = nn.Module()
    student = FullWeightsStudent(TinyNetwork(), exact, as_denoiser=as_denoiser)
    student.teacher = gaussian_denoiser(family)
    student.promote = lambda: None
    networks = {"teacher": student.teacher, "student": student.denoiser}
    held_out = made.target(Lesson(batch=batch(4096, seed=9), stage=0, **networks, generator=torch.Generator()))
    assert not held_out.x0.requires_grad
    with torch.no_grad():
        before = float(weighted_error(student.denoiser, held_out)[1])
    train(
        RunFolder(tmp_path, "toy"),
        made,
        student,
        data,
        options=TrainOptions(batch_size=256, log_every=50, checkpoint_every=10**6),
    )
    with torch.no_grad():
        after = float(weighted_error(student.denoiser, held_out)[1])
    assert after < 0.05 * before


def test_gradients_reach_the_student_only():
    network, teacher_network = TinyNetwork(), TinyNetwork(seed=1)
    student = FullWeightsStudent(network, copy.deepcopy(teacher_network), as_denoiser=as_denoiser)
    target, _ = target_of(NoiseFamily.VARIANCE_EXPLODING, teacher=student.teacher)
    loss, _ = weighted_error(student.denoiser, target)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in student._teacher_module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_carries_no_gradient_even_from_a_teacher_that_could_learn(family):
    target, _ = target_of(family, teacher=as_denoiser(TinyNetwork()))
    assert not any(tensor.requires_grad for tensor in (target.x_t, target.x0, target.weight))


def test_a_target_with_a_gradient_is_refused():
    target, _ = target_of(NoiseFamily.VARIANCE_EXPLODING)
    with pytest.raises(RuntimeError, match="no_grad"):
        weighted_error(gaussian_denoiser(NoiseFamily.FLOW), target._replace(x0=target.x0.clone().requires_grad_()))


def test_an_optimal_student_has_no_loss():
    """The minimiser of the loss is the target itself."""
    target, _ = target_of(NoiseFamily.VARIANCE_EXPLODING)
    weighted, plain = weighted_error(lambda x, sigma, **_: target.x0, target)
    assert weighted == 0.0
    assert plain == 0.0
    off, off_plain = weighted_error(lambda x, sigma, **_: target.x0 + 0.1, target)
    assert float(off) == pytest.approx(0.01 * float(target.weight.mean()), rel=1e-4)
    assert float(off_plain) == pytest.approx(0.01, rel=1e-4)
