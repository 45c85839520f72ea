"""Consistency distillation against diffusers' LCM and DDIM formulas, and against students known in closed form."""

import numpy as np
import pytest
import torch
from comfyui_fewstep.samplers.boundary import lcm_scalings
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.schedules import lcm_timesteps
from comfyui_fewstep.trainers.data.batches import Batch, TensorData
from comfyui_fewstep.trainers.methods import read_method
from comfyui_fewstep.trainers.methods.consistency import Consistency, ConsistencyOptions, Solver
from comfyui_fewstep.trainers.objective.consistency_function import (
    ConsistencyFunction,
    spaced_levels,
    timestep,
    trained_levels,
)
from comfyui_fewstep.trainers.objective.distance import PSEUDO_HUBER_C, Distance
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.loss import weighted_error
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from diffusers import DDIMScheduler, LCMScheduler
from gaussian import FAMILIES, gaussian_denoiser, table
from test_consistency import LEVELS, SD, gaussian_flow_map, picture
from test_converging import FAMILY_OF, KINDS, Affine, read, spread
from test_guidance_distillation import SCALE, guided_exactly, two_prompts
from thorough import first_then_thorough

VE, FLOW = NoiseFamily
TIMES = [0, *(20 * j - 1 for j in range(1, 51))]
"""LCM's grid: each level but the first is taught by the one before."""


def options(**changed):
    chosen = {"steps": 4, "iterations": 10, "learning_rate": 1e-3, "guidance_scale": 1.0}
    return ConsistencyOptions(**{**chosen, **changed})


def method(family, **changed):
    return options(**changed).on(TeacherKind(family=family, table=table(family), empty_prompt=True))


def batch(count=256, shape=(1, 1, 1)):
    x0 = 0.7 + 0.5 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})


def target_of(made, *, teacher, student, given=None):
    generator = torch.Generator().manual_seed(3)
    lesson = Lesson(batch=given or batch(), stage=0, teacher=teacher, student=student, generator=generator)
    return made.target(lesson)


def wanted(made, target):
    """What f must be: the target of the denoiser, through the boundary again."""
    return made._function.of(lambda *_, **__: target.x0)(target.x_t, target.sigma)


# --- LCM, literally --------------------------------------------------------------------------------------------------


def test_the_levels_are_lcms():
    levels = trained_levels(Grid.TRAILING, 50, table=LEVELS)
    assert torch.equal(levels, LEVELS[TIMES].flip(0))
    for steps in range(1, 51):
        assert torch.equal(spaced_levels(levels, steps), torch.cat([LEVELS[lcm_timesteps(steps)], torch.zeros(1)]))


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_find_their_timesteps(family):
    levels = table(family)
    assert torch.equal(timestep(levels, table=levels), torch.arange(1000.0))
    between = timestep((levels[:-1] * levels[1:]).sqrt(), table=levels)
    torch.testing.assert_close(between, torch.arange(999.0) + 0.5, atol=2e-2, rtol=0)
    assert torch.equal(timestep(levels[:1] / 2, table=levels), torch.zeros(1))
    assert torch.equal(timestep(levels[-1:] * 2, table=levels), torch.full((1,), 999.0))
    long = torch.linspace(0.0001, 1.0, 10000)
    torch.testing.assert_close(timestep(long[[1000, 9000]], table=long), torch.tensor([100.0, 900.0]))
    alike = torch.cat([levels[:1].expand(2), levels])  # as Stable Cascade's, whose levels are clamped
    torch.testing.assert_close(1.002 * timestep(alike, table=alike)[2:4], torch.tensor([0.0, 3.0]))


def lcm_step(output, x_vp, kind, t):
    """LCM's x at max(t - 20, 0) by diffusers' DDIM, in the variance-preserving scale; output: of the network."""
    scheduler = DDIMScheduler(**SD, prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    return scheduler.step(output, t, x_vp).prev_sample


@pytest.mark.parametrize(
    ("kind", "guidance"),
    first_then_thorough(
        [("epsilon", 8.5), ("sample", 1.0)],
        [(kind, scale) for kind in ("epsilon", "v_prediction", "sample") for scale in (1.0, 8.5)],
    ),
)
def test_step_and_target_are_lcms(kind, guidance):
    """Luo et al., Algorithm 1, with the formulas of diffusers' schedulers on random tensors, at every level of the grid.

    The teacher predicts eps, v or x0, guided on that output as pipelines guide it; the student is another network.
    """
    made = method(VE, guidance_scale=guidance, distance=Distance.SQUARED)
    given = batch(400, shape=(2, 3, 3))

    def teacher(x, sigma, y):
        t = [int((LEVELS - s).abs().argmin()) for s in sigma]
        x_vp = x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2) ** 0.5
        return torch.stack([(0.4 + 0.6 * y[i]) * picture(x_vp[i], t[i]) for i in range(len(x))])

    def student(x, sigma, y):
        return torch.tanh(0.3 * x + sigma.log().reshape(-1, 1, 1, 1)) + y.reshape(-1, 1, 1, 1)

    target = target_of(made, teacher=teacher, student=student, given=given)
    assert set(target.sigma.tolist()) == set(LEVELS[TIMES[1:]].tolist())
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(50)
    worst = 0.0
    for i in range(len(given.x0)):
        t = int((LEVELS - target.sigma[i]).abs().argmin())
        a, s = 1.0 / (1.0 + LEVELS[t] ** 2) ** 0.5, LEVELS[t] / (1.0 + LEVELS[t] ** 2) ** 0.5
        x_vp = a * target.x_t[i]

        with_prompt, without = (
            {"sample": x0, "epsilon": (x_vp - a * x0) / s, "v_prediction": (a * x_vp - x0) / s}[kind]
            for x0 in (y * picture(x_vp, t) for y in (1.0, 0.4))
        )
        w = guidance - 1.0  # as Luo et al. and diffusers' training count
        solved = lcm_step(with_prompt + w * (with_prompt - without), x_vp, kind, t)
        earlier = max(t - 20, 0)
        sigma = LEVELS[earlier]
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(earlier)
        said = student((1 + sigma**2) ** 0.5 * solved[None], sigma.reshape(1), torch.ones(1, 1))[0]
        expected = c_skip * solved + c_out * said
        worst = max(worst, float((wanted(made, target)[i] - expected).abs().max()))
    assert worst < 2e-6 * max(1.0, guidance)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_boundary_is_lcms_and_the_identity_at_the_smallest_level(family):
    levels, x = table(family), torch.randn(1000, 5, generator=torch.Generator().manual_seed(1))
    f = ConsistencyFunction(family=family, table=levels).of(lambda x, sigma: torch.full_like(x, 3.0))(x, levels)
    scaled = x if family is FLOW else x / (1 + levels[:, None] ** 2) ** 0.5
    assert torch.equal(f[0], scaled[0])
    c_skip, c_out = (c[:, None] for c in lcm_scalings(torch.arange(1000)))
    torch.testing.assert_close(f, c_skip * scaled + c_out * 3.0)
    assert (f[19:] - 3.0).abs().max() < 1e-4, "where few-step samplers are, it is the denoiser itself"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("distance", [Distance.SQUARED, Distance.PSEUDO_HUBER])
def test_the_loss_is_the_distance_of_consistency_functions(family, distance):
    """As Song et al. write it, though the loop knows denoisers only; for pseudo-Huber to a thousandth."""
    made = method(family, distance=distance, grid=Grid.TRAILING, levels=500)
    denoiser = lambda x, sigma, **_: torch.tanh(x)  # noqa: E731
    given = batch(500, shape=(2, 2, 2))
    target = target_of(made, teacher=gaussian_denoiser(family), student=denoiser, given=given)
    loss, _ = weighted_error(lambda x, sigma, **_: 0.3 * x, target)
    f = made._function.of(lambda x, sigma, **_: 0.3 * x)(target.x_t, target.sigma)
    error = (f - wanted(made, target)).square().flatten(1).mean(dim=1)
    if distance is Distance.PSEUDO_HUBER:
        error = (error + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C
    assert float(loss) == pytest.approx(float(error.mean()), rel=1e-5 if distance is Distance.SQUARED else 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("distance", "power"), [(Distance.SQUARED, 2), (Distance.PSEUDO_HUBER, 1), (Distance.LPIPS, 0)]
)
def test_the_weights_are_those_of_the_weighting(family, distance, power):
    """Of the distance in f, and so times what an error of the denoiser is in f."""
    made = method(family, distance=distance, weighting=Weighting.SNR_PLUS_ONE)
    zero = lambda x, sigma, **_: torch.zeros_like(x)  # noqa: E731
    target = target_of(made, teacher=zero, student=zero)
    _, c_out = lcm_scalings(timestep(target.sigma, table=table(family)))
    signal = 1.0 - target.sigma if family is FLOW else 1.0
    torch.testing.assert_close(target.weight, ((signal / target.sigma) ** 2 + 1.0) * c_out**power)


# --- what teaches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_comes_from_the_student_and_not_from_the_teacher(family):
    """The student's word reaches the target unchanged, where the teacher's only moves the place at which it is asked."""
    made, asked = method(family), []

    def student(x, sigma, **_):
        asked.append((x.clone(), sigma.clone(), torch.is_grad_enabled()))
        return torch.full_like(x, 42.0)

    target = target_of(made, teacher=gaussian_denoiser(family), student=student)
    ((x_s, sigma_next, with_gradient),) = asked
    assert not with_gradient
    assert not target.x0.requires_grad
    inner = sigma_next > table(family)[0]
    assert inner.any()
    assert (wanted(made, target)[inner] - 42.0).abs().max() < 0.01
    expected = made.family.jump(
        target.x_t, gaussian_denoiser(family)(target.x_t, target.sigma), sigma=target.sigma, sigma_next=sigma_next
    )
    torch.testing.assert_close(x_s, expected)
    last = ~inner
    assert last.any()
    scaled = x_s if family is FLOW else x_s / (1 + table(family)[0] ** 2) ** 0.5
    torch.testing.assert_close(wanted(made, target)[last], scaled[last], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", Solver)
def test_a_perfect_student_of_many_levels_has_next_to_no_loss(family, solver):
    """The exact flow map is the fixed point. The error of a step is of order h^2 for DDIM, smaller for Heun."""
    errors = []
    exact = gaussian_flow_map(family)
    for levels in (25, 100):
        made = method(family, levels=levels, solver=solver, distance=Distance.SQUARED)
        target = target_of(made, teacher=gaussian_denoiser(family), student=exact, given=batch(2000))
        inner = target.sigma > made._levels[-3]
        errors.append(float((wanted(made, target) - exact(target.x_t, target.sigma))[inner].abs().mean()))
    assert errors[0] < (0.03 if solver is Solver.DDIM else 0.01)
    assert errors[1] < errors[0] / (4 if solver is Solver.DDIM else 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_heuns_step_is_of_second_order(family):
    """On the exact denoiser, against the exact path: half the step, an eighth of the error; DDIM a quarter."""
    std, mean = 0.5, 0.7
    x = spread(torch.tensor(0.6), family).double()
    orders = {}
    for solver in Solver:
        errors = []
        for h in (0.02, 0.01):
            sigma, after = (torch.full((len(x),), s, dtype=torch.float64) for s in (0.6, 0.6 - h))
            alpha = [1.0 - s if family is FLOW else 1.0 for s in (0.6, 0.6 - h)]
            wide = [(a**2 * std**2 + s**2) ** 0.5 for a, s in zip(alpha, (0.6, 0.6 - h), strict=True)]
            exact = alpha[1] * mean + (x - alpha[0] * mean) / wide[0] * wide[1]
            teacher = lambda x, s: gaussian_denoiser(family)(x, s)  # noqa: E731
            step = _in_double(solver, teacher, x, sigma, after, family)
            errors.append(float((step - exact).abs().max()))
        orders[solver] = np.log2(errors[0] / errors[1])
    assert orders[Solver.DDIM] == pytest.approx(2.0, abs=0.1)
    assert orders[Solver.HEUN] == pytest.approx(3.0, abs=0.2)


def _in_double(solver, teacher, x, sigma, after, family):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda self: self)  # the solver computes in float32 otherwise
        return solver.step(teacher, x, sigma=sigma, sigma_next=after, condition={}, family=family)


# --- guidance --------------------------------------------------------------------------------------------------------


def test_scales_are_drawn_from_their_range_for_each_sample():
    """A teacher that sees its prompt tells the scale: the step down the flow is x + (x - s) / sigma * (sigma' - sigma)."""
    made = method(FLOW, guidance_scale=3.0, guidance_scale_max=15.0)
    seen = []

    def student(x, sigma, **_):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    teacher = lambda x, sigma, y: torch.zeros_like(x) + y.reshape(-1, 1, 1, 1)  # noqa: E731
    target = target_of(made, teacher=teacher, student=student, given=batch(4000))
    ((x_s, sigma_next),) = seen
    sigma, after = (s.reshape(-1, 1, 1, 1) for s in (target.sigma, sigma_next))
    scales = (target.x_t - (x_s - target.x_t) / (after - sigma) * sigma).flatten()
    assert 3.0 - 1e-3 <= scales.min() < 3.1
    assert 14.9 < scales.max() <= 15.0 + 1e-3
    assert float(scales.mean()) == pytest.approx(9.0, abs=0.25)
    assert made.recipe(stage=0, prediction_type="flow").guidance_scale == 9.0
    taught = made.teaching(teacher, stage=0, batch=batch(1))(torch.zeros(1, 1, 1, 1), torch.ones(1), y=torch.ones(1, 1))
    assert float(taught) == 9.0


@pytest.mark.parametrize(("changed", "calls"), [({}, 1), ({"solver": Solver.HEUN}, 2), ({"guidance_scale": 2.0}, 2)])
def test_what_a_target_costs(changed, calls):
    counted = []

    def teacher(x, sigma, y):
        counted.append(1)
        return torch.zeros_like(x)

    target_of(method(FLOW, **changed), teacher=teacher, student=lambda x, sigma, y: torch.zeros_like(x))
    assert len(counted) == calls


# --- training --------------------------------------------------------------------------------------------------------


def backwards(made, exact):
    """The student that agrees with itself along the teacher's steps, level by level from the smallest: affine like them.

    (gain, shift) of f at each level, descending: f = x scaled at the last, and f(x, k) = f(step(x), k + 1).
    """
    levels = made._levels
    gains, shifts = [1.0 if made.family is FLOW else float(1 / (1 + levels[-1] ** 2) ** 0.5)], [0.0]
    for sigma, after in zip(levels.flip(0)[1:], levels.flip(0)[:-1], strict=True):
        x = torch.tensor([0.0, 1.0]).reshape(2, 1)
        s, e = sigma.expand(2), after.expand(2)
        low, high = made._options.solver.step(exact, x, sigma=s, sigma_next=e, condition={}, family=made.family)
        shifts.append(shifts[-1] + gains[-1] * float(low))
        gains.append(gains[-1] * float(high - low))
    return gains[:0:-1], shifts[:0:-1]


WAYS = first_then_thorough(
    [("eps", "ddim", 0.0), ("flow", "heun", 0.9)],
    [*((kind, "ddim", 0.0) for kind, _ in KINDS), ("eps", "ddim", 0.9), ("eps", "heun", 0.0)],
)


@pytest.mark.parametrize(("kind", "solver", "decay"), WAYS)
def test_a_student_from_scratch_agrees_with_itself_along_the_teachers_path(kind, solver, decay, tmp_path):
    """To 0.02 at every level, for data of deviation 0.5, guided, whatever it predicts and whoever's average teaches it."""
    family = FAMILY_OF[kind]
    chosen = {
        "iterations": 300,
        "learning_rate": 0.12,
        "levels": 4,
        "solver": Solver(solver),
        "target_decay": decay,
        "distance": Distance.SQUARED,
        "guidance_scale": SCALE,
    }
    made = method(family, **chosen)
    networks = [Affine(made._levels, family=family, seed=seed) for seed in (1, 2)]
    full = FullWeightsStudent(*networks, as_denoiser=lambda module: read(module, kind))
    full.teacher, full.promote = two_prompts(family), lambda: None
    data = TensorData(x0=batch(4096).x0, condition={"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    training = TrainOptions(batch_size=128, log_every=10**6, checkpoint_every=10**6, gradient_clip=1e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comfyui_fewstep.trainers.training.stages.KeptStages.ended", lambda *_: None)
        train(RunFolder(tmp_path, "toy"), made, full, data, options=training)
    f = made._function.of(full.denoiser)
    for level, gain, shift in zip(made._levels, *backwards(made, guided_exactly(family)), strict=False):
        x = spread(level, family)
        learnt = f(x, level.expand(len(x))).detach()
        assert (learnt - (gain * x + shift)).abs().max() < 0.02, float(level)


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_recipe_is_lcms():
    made = method(VE, guidance_scale=7.5)
    recipe = made.recipe(stage=0, prediction_type="eps")
    (stage,) = made.stages()
    assert recipe.sigmas == (*LEVELS[[999, 759, 499, 259]].tolist(), 0.0)
    assert (recipe.schedule, recipe.gamma, recipe.steps, recipe.guidance_scale) == ("lcm", 1.0, 4, 7.5)
    assert (stage.gamma, stage.steps, len(stage.teacher_sigmas)) == (1.0, 4, 51)
    assert stage.teacher_sigmas[-1] == 0.0
    assert method(VE, grid=Grid.EDM, levels=40).recipe(stage=0, prediction_type="eps").schedule == "edm"


def test_options_come_back_as_they_were_written():
    chosen = options(solver=Solver.HEUN, grid=Grid.EDM, target_decay=0.95, guidance_scale_max=3.0)
    assert read_method(Consistency.name, chosen.written()) == chosen
    required = {"steps", "iterations", "learning_rate", "guidance_scale"}
    assert method(FLOW).options_of_old().keys() == chosen.written().keys() - required


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"levels": 1, "steps": 1}, "levels is 1"),
        ({"levels": 3}, "levels is 3 and steps is 4"),
        ({"steps": 0}, "steps is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"learning_rate": 1.0}, r"learning_rate is 1\.0"),
        ({"guidance_scale": 0.0}, r"guidance_scale is 0\.0"),
        ({"guidance_scale_max": 200.0}, r"guidance_scale_max is 200\.0"),
        ({"guidance_scale": 4.0, "guidance_scale_max": 3.0}, r"guidance_scale is 4\.0 and guidance_scale_max is 3\.0"),
        ({"target_decay": 1.0}, r"target_decay is 1\.0"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


def test_what_a_model_does_not_take_is_named():
    flow = TeacherKind(family=FLOW, table=table(FLOW))
    with pytest.raises(ValueError, match="connect the negative conditioning"):
        options(guidance_scale=2.0).on(flow)
    with pytest.raises(ValueError, match="connect the negative conditioning"):
        options(guidance_scale_max=2.0).on(flow)
    with pytest.raises(ValueError, match="grid is edm, but this is a flow model"):
        options(grid=Grid.EDM).on(flow)
    with pytest.raises(ValueError, match="levels is 1001; this model has 1000"):
        options(levels=1001).on(flow)
    with pytest.raises(
        ValueError, match=r"guidance_scale is 2\.0, but the connected model takes its scale as an input"
    ):
        options(guidance_scale_max=2.0).on(TeacherKind(family=VE, table=table(VE), takes_scale=True))
    assert options().on(flow).options()["guidance_scale"] == 1.0
