"""What a method is told and given: the iteration, and the moving average of the student where a stage wants one."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.samplers.few_step import draw_from_noise, fresh_noise, in_order, sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.progressive import Progressive
from comfyui_fewstep.trainers.objective.method import Stage, TeacherKind
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.optimisation.average import Average
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.stages import compared, sampled
from gaussian import FAMILIES, gaussian_denoiser, table
from test_progressive import TinyNetwork, as_denoiser, batch, options
from test_run import Stopped, distillation, stop_at
from thorough import first_then_thorough

FAMILY = NoiseFamily.VARIANCE_EXPLODING
DECAY = 0.7


class Watching(Progressive):
    """Learns half from what it is given as student, and notes when."""

    decay, gamma = DECAY, 0.0

    def stages(self):
        return [dataclasses.replace(s, target_decay=self.decay, gamma=self.gamma) for s in super().stages()]

    @torch.no_grad()
    def target(self, lesson):
        found = super().target(lesson)
        self.seen.append((lesson.stage, lesson.iteration))
        said = lesson.student(found.x_t, found.sigma, **found.condition)
        return found._replace(x0=0.5 * (said + found.x0))


def watching(root, **training):
    method = Watching(options(iterations=12), TeacherKind(family=FAMILY, table=table(FAMILY)))
    training = {"batch_size": 8, "log_every": 5, "checkpoint_every": 7, "seed": 4, **training}
    return dataclasses.replace(distillation(root), method=method, options=TrainOptions(**training))


def execute(made, observers=()):
    """(the network, its weights when a method asked for the student, its weights when it learnt)."""
    network, given, own = TinyNetwork(), [], []
    made.method.seen = []

    def denoise(x, sigma, **_):
        (own if torch.is_grad_enabled() else given).append(network.hidden.detach().clone())
        return network(x, sigma)

    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    student.denoiser, student.require_gradients = denoise, lambda _: None
    with made.run.locked(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("comfyui_fewstep.trainers.training.distillation.probe_writes_in_place", lambda *_: False)
        patch.setattr("comfyui_fewstep.trainers.training.stages.KeptStages._compare_on_first", lambda *_: None)
        made.execute(student, observers=observers)
    return network, given, own


def test_a_method_knows_how_far_its_stage_is(tmp_path):
    made = watching(tmp_path)
    execute(made)
    assert made.method.seen == [(stage, i) for stage in (0, 1) for i in range(12)]


def test_the_average_is_the_recursion_over_the_steps_of_the_stage(tmp_path):
    """a = decay a + (1 - decay) w after each step, from w at the stage's start; learning itself sees the weights."""
    _, given, own = execute(watching(tmp_path))
    assert len(given) == len(own) == 24
    for stage in (0, 12):
        expected = own[stage]
        for i in range(stage, stage + 12):
            expected = DECAY * expected + (1.0 - DECAY) * own[i]
            torch.testing.assert_close(given[i], expected, atol=1e-6, rtol=1e-5)
    assert (own[11] - given[11]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "options", [functools.partial(ConsistencyOptions, guidance_scale=1.0), ConsistencyTrainingOptions]
)
def test_consistency_is_taught_by_the_average_that_it_asks_for(options, tmp_path):
    chosen = options(steps=2, iterations=12, learning_rate=1e-2, target_decay=DECAY)
    made = watching(tmp_path)
    _, given, own = execute(
        dataclasses.replace(made, method=chosen.on(TeacherKind(family=FAMILY, table=table(FAMILY))))
    )
    expected = own[0]
    for taught, weights in zip(given, own, strict=True):
        expected = DECAY * expected + (1.0 - DECAY) * weights
        torch.testing.assert_close(taught, expected, atol=1e-6, rtol=1e-5)
    assert (own[11] - given[11]).abs().max() > 1e-4


def test_the_average_is_put_in_place_once_for_all_pieces_of_a_batch(tmp_path, monkeypatch):
    put, own = [], Average.to_weights
    monkeypatch.setattr(Average, "to_weights", lambda average: put.append(1) or own(average))
    _, given, _ = execute(watching(tmp_path, accumulation=4))
    assert len(given) == 4 * 24, "in pieces"
    assert len(put) == 24


def test_without_a_decay_the_method_is_given_the_student_itself(tmp_path):
    made = watching(tmp_path)
    made.method.decay = 0.0
    _, given, own = execute(made)
    assert all(torch.equal(one, other) for one, other in zip(given, own, strict=True))


@pytest.mark.parametrize("iteration", first_then_thorough([12, 20], [1, 7]))
def test_a_broken_run_goes_on_with_its_average(iteration, tmp_path):
    whole, *_ = execute(watching(tmp_path / "a"))
    broken = watching(tmp_path / "b")
    with pytest.raises(Stopped):
        execute(broken, [stop_at(iteration)])
    resumed, *_ = execute(broken)
    assert torch.equal(resumed.hidden, whole.hidden)
    assert torch.equal(resumed.out, whole.out)


def test_both_averages_live_side_by_side(tmp_path):
    """The stage's result is the one of ema_decay; the target's own changes nothing of that but by what it taught."""
    made = watching(tmp_path, ema_decay=0.5)
    made.method.decay = 0.0
    with pytest.raises(Stopped):
        execute(made, [stop_at(3)])
    held = {name.split(".")[0] for name in made.run.load_checkpoint()[0]}
    made = watching(tmp_path / "both", ema_decay=0.5)
    with pytest.raises(Stopped):
        execute(made, [stop_at(3)])
    assert {name.split(".")[0] for name in made.run.load_checkpoint()[0]} - held == {"target"}


class Stages:
    """As much of a method as a comparison asks for: one stage, and a teacher without guidance."""

    def __init__(self, stage, family):
        self.stages, self.family = lambda: [stage], family

    def teaching(self, teacher, **_):
        return teacher


def distance(stage, student, *, family, teacher, at_once=4):
    answers = SimpleNamespace(denoiser=student, teacher=teacher)
    found = compared(Stages(stage, family), answers, batch(4), stage=0, at_once=at_once)
    return found["mean_squared_distance"] / found["teacher_mean_square"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_adds_noise_is_compared_with_a_teacher_that_adds_the_same(family):
    """On the same schedule, as of guidance distillation: one that answers as its teacher is 0 away, and one that does not is."""
    levels = table(family).flip(0)[::250]
    stage = Stage(name="", iterations=1, learning_rate=1e-3, sigmas=levels, teacher_sigmas=levels, gamma=1.0)
    teacher = gaussian_denoiser(family)
    assert distance(stage, teacher, family=family, teacher=teacher) == 0.0
    half = [
        distance(stage, lambda x, s, **_: 0.5 * teacher(x, s), family=family, teacher=teacher, at_once=n)
        for n in (4, 2)
    ]
    assert half[0] == pytest.approx(half[1]) and half[0] > 0.05


def test_a_consistency_student_is_compared_by_its_first_jump():
    """To where the teacher's whole walk leads: nothing else of one that adds noise is its teacher's. Gaussian data, by hand."""
    deviation, fine = 0.5, torch.cat([torch.linspace(math.log(10.0), math.log(1e-3), 400).exp(), torch.zeros(1)])
    own = torch.cat([fine[:400:100], fine[-1:]])
    stage = Stage(name="", iterations=1, learning_rate=1e-3, sigmas=own, teacher_sigmas=fine, gamma=1.0)

    def teacher(x, sigma, **_):
        return x * deviation**2 / (deviation**2 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)

    def exact(x, sigma, **_):
        return x * deviation / (deviation**2 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2).sqrt()

    assert distance(stage, exact, family=FAMILY, teacher=teacher) < 1e-3
    assert distance(stage, teacher, family=FAMILY, teacher=teacher) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_drawing_with_fresh_noise_is_the_sampler_at_its_seed(family):
    sigmas, noise = table(family)[[999, 499, 99]], torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    drawn = draw_from_noise(gaussian_denoiser(family), noise, sigmas, family=family, seed=7, gamma=0.6)
    start = family.initial(noise, sigma=sigmas[0])
    sample = functools.partial(sample_few_step, gaussian_denoiser(family), start, sigmas, disable=True, family=family)

    def fresh(sigma, sigma_next):
        return fresh_noise(noise, samples=in_order(3, seed=7), level=float(sigma_next))

    assert torch.equal(drawn, sample(gamma=0.6, noise_sampler=fresh))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("expert", [False, True])
def test_what_is_compared_is_sampled_as_the_stage_says(family, gamma, expert):
    """With its own fresh noise, and of an expert from the data in noise."""
    own = table(family).flip(0)[250::250]
    stage = Stage(name="", iterations=1, learning_rate=1e-3, sigmas=own, top=float(own[int(expert)]))
    walk = {"family": family, "gamma": gamma}
    denoise, given = gaussian_denoiser(family), batch(4)
    found = sampled(denoise, given, stage.walked(own), stage=stage, **walk)
    noise = torch.randn(given.x0.shape, generator=torch.Generator().manual_seed(0))
    begun = {"x0": given.x0} if expert else {}
    assert torch.equal(found, draw_from_noise(denoise, noise, own[int(expert) :], {}, seed=0, **begun, **walk))
