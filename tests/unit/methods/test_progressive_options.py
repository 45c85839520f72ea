"""What the later options of progressive distillation change: targets, guidance, stages, levels, and old run.json files."""

import math

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily, solved_x0
from comfyui_fewstep.samplers.schedules import cosine_sigmas, karras_sigmas, trailing_sigmas
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.progressive import Grid, ProgressiveOptions
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.distillation import Distillation
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, ddim, gaussian_denoiser, signal_and_noise, table
from test_progressive import batch, conditional_teacher

VE, FLOW = NoiseFamily
OLD = {
    "start_steps": 16,
    "target_steps": 4,
    "iterations": 10,
    "weighting": "truncated_snr",
    "learning_rate": 1e-3,
    "guidance_scale": 1.0,
}
TO_V = {"student_prediction": "v_prediction"}


def method(family=VE, *, teacher="eps", **changed):
    options = ProgressiveOptions.read({**OLD, **changed})
    return options.on(TeacherKind(family=family, table=table(family), prediction_type=teacher, empty_prompt=True))


def target_of(made, *, stage, teacher=None, count=256):
    teacher = teacher or gaussian_denoiser(made.family)
    generator = torch.Generator().manual_seed(3)
    lesson = Lesson(batch=batch(count), stage=stage, teacher=teacher, student=teacher, generator=generator)
    return made.target(lesson)


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [False, True])
def test_the_secant_is_algorithm_2_on_random_tensors(family, last):
    """Whatever the teacher says: in z = alpha x0 + s eps, (z'' - (s''/s) z) / (alpha'' - (s''/s) alpha), to 1e-6."""
    generator = torch.Generator().manual_seed(0)
    x_t, first, second = (torch.randn(64, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    drawn = torch.rand(3, 64, generator=generator, dtype=torch.float64)
    t, mid, s = (0.02 + 0.97 * drawn).sort(dim=0, descending=True).values * (1.0 if family is FLOW else 80.0)
    s = torch.zeros_like(s) if last else s
    x_mid = family.jump(x_t, first, sigma=t, sigma_next=mid)
    x_s = family.jump(x_mid, second, sigma=mid, sigma_next=s)
    ours = solved_x0(x_t, x_s, sigma_t=t, sigma_s=s)

    (a_t, s_t), (a_m, s_m), (a_s, s_s) = (
        [value.reshape(-1, 1, 1, 1) for value in signal_and_noise(level, family)] for level in (t, mid, s)
    )
    z_t = x_t if family is FLOW else a_t * x_t
    z_m = ddim(z_t, first, alpha_t=a_t, s_t=s_t, alpha_s=a_m, s_s=s_m)
    z_s = ddim(z_m, second, alpha_t=a_m, s_t=s_m, alpha_s=a_s, s_s=s_s)
    papers = (z_s - s_s / s_t * z_t) / (a_s - s_s / s_t * a_t)
    torch.testing.assert_close(ours, papers, atol=1e-6, rtol=1e-6)
    if last:
        assert torch.equal(ours, x_s)
        torch.testing.assert_close(ours, second, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("changed", "stage"), [({}, 0), (TO_V, 0), (TO_V, 1)])
def test_of_a_teacher_in_half_precision_only_its_own_answers_are_rounded(changed, stage):
    """Two close numbers over a small difference: the secant is float32 whatever the teacher computes in."""
    made, exact = method(**changed), gaussian_denoiser(VE)
    rough = target_of(made, stage=stage, teacher=lambda x, sigma, **_: exact(x, sigma).bfloat16())
    rounded = target_of(made, stage=stage, teacher=lambda x, sigma, **_: exact(x, sigma).bfloat16().float())
    assert rough.x0.dtype == torch.float32
    assert torch.equal(rough.x0, rounded.x0)


# --- conversion ------------------------------------------------------------------------------------------------------


def test_the_conversion_teaches_what_the_teacher_sees_at_every_level_that_it_is_sampled_at():
    made = method(**TO_V)
    target = target_of(made, stage=0, count=4096)
    assert torch.equal(target.x0, gaussian_denoiser(VE)(target.x_t, target.sigma))
    levels, counts = target.sigma.unique(return_counts=True)
    finest = trailing_sigmas(16, table=table(VE))
    assert torch.equal(levels.flip(0), finest[:-1])
    assert counts.min() > 0.7 * counts.float().mean()
    noise = (target.x_t - batch(4096).x0) / target.sigma.reshape(-1, 1, 1, 1)
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(target.weight, (1.0 / target.sigma**2).clamp(min=1.0))
    assert torch.equal(made.stages()[0].sigmas, finest)
    assert torch.equal(made.stages()[0].teacher_sigmas, finest)


def test_after_the_conversion_the_halvings_are_those_of_any_run():
    plain, converting = method(), method(**TO_V)
    for stage in range(2):
        one, other = target_of(plain, stage=stage), target_of(converting, stage=stage + 1)
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("x_t", "sigma", "x0", "weight"))


@pytest.mark.parametrize(("stage", "expected"), [(0, 3.0), (1, 1.0), (2, 1.0)])
def test_guidance_is_baked_in_by_the_conversion_only(stage, expected):
    """Empty prompt 0, prompt 1, scale 3: 0 + 3 (1 - 0). Guided in a second stage too it would be 9 in the end."""
    target = target_of(method(**TO_V, guidance_scale=3.0), stage=stage, teacher=conditional_teacher)
    torch.testing.assert_close(target.x0, torch.full_like(target.x0, expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("teacher", ["eps", "v_prediction", "x0"])
@pytest.mark.parametrize("student", ["as_teacher", "eps", "v_prediction", "x0", "x0_and_eps"])
def test_there_is_a_conversion_where_there_is_something_to_convert(teacher, student):
    made = method(teacher=teacher, student_prediction=student)
    converts = student not in ("as_teacher", teacher)
    halvings = ["16 to 8 steps", "8 to 4 steps"]
    assert [stage.name for stage in made.stages()] == [f"conversion to {student}"] * converts + halvings
    expected = teacher if student == "as_teacher" else student
    assert {made.recipe(stage=i, prediction_type=teacher).prediction_type for i in range(2)} == {expected}


@pytest.mark.parametrize(("family", "teacher"), [(FLOW, "flow"), (VE, "edm"), (VE, None)])
def test_a_teacher_that_cannot_be_converted_is_named(family, teacher):
    assert len(method(family, teacher=teacher).stages()) == 2
    with pytest.raises(ValueError, match=f"student_prediction is v_prediction, .* kind {teacher}; .*choose as_teacher"):
        method(family, teacher=teacher, **TO_V)


# --- more than two steps at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("merged", "stage"), [(4, 0), (4, 1), (16, 0)])
def test_one_step_of_the_student_lands_where_all_merged_steps_of_the_teacher_do(family, merged, stage):
    """At every level of the student's schedule, the last step to 0 included."""
    kind = "flow" if family is FLOW else "eps"
    made = method(family, teacher=kind, start_steps=64, target_steps=4, merged_steps=merged)
    target = target_of(made, stage=stage)
    fine, own = made.stages()[stage].teacher_sigmas, made.stages()[stage].sigmas
    assert torch.equal(own, fine[::merged])
    assert torch.equal(target.sigma.unique().flip(0), own[:-1])
    for k in range(len(own) - 1):
        x_t, x0 = (value[target.sigma == own[k]] for value in (target.x_t, target.x0))
        way = fine[merged * k : merged * (k + 1) + 1]
        far = sample_few_step(gaussian_denoiser(family), x_t, way, disable=True, family=family, gamma=0.0)
        near = family.jump(x_t, x0, sigma=own[k], sigma_next=own[k + 1])
        torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "merged", "counts"),
    [(64, 4, 2, [32, 16, 8, 4]), (64, 4, 4, [16, 4]), (64, 2, 4, [16, 4, 2]), (96, 6, 16, [6]), (8, 4, 8, [4])],
)
def test_what_is_left_over_of_the_merging_comes_last(start, end, merged, counts):
    """Where steps are fewest, and a student of them hardest to teach."""
    stages = method(start_steps=start, target_steps=end, merged_steps=merged).stages()
    assert [stage.steps for stage in stages] == counts
    assert [len(stage.teacher_sigmas) - 1 for stage in stages] == [start, *counts[:-1]]
    assert [stage.name for stage in stages][-1].endswith(f" to {end} steps")


@pytest.mark.parametrize(("recorded", "goes_on"), [(4, True), (8, False), (16, True)])
def test_a_merging_run_is_extended_where_its_stages_are_those_of_the_longer_one(recorded, goes_on):
    """64, 16, 4, 1: of these a run to 8 steps has a last stage that the longer one has not."""
    longer = method(start_steps=64, target_steps=1, merged_steps=4)
    shorter = method(start_steps=64, target_steps=recorded, merged_steps=4)
    assert longer.continues(shorter.options()) is goes_on


# --- iterations ------------------------------------------------------------------------------------------------------


def test_the_last_halvings_and_the_conversion_may_be_trained_longer():
    chosen = {"start_steps": 8, "target_steps": 1, **TO_V}
    assert [s.iterations for s in method(**chosen).stages()] == [10, 10, 10, 10]
    longer = method(**chosen, conversion_iterations=7, last_stages_iterations=20)
    assert [(s.steps, s.iterations) for s in longer.stages()] == [(8, 7), (4, 10), (2, 20), (1, 20)]
    flow = method(FLOW, teacher="flow", start_steps=6, target_steps=3, last_stages_iterations=20)
    assert [s.iterations for s in flow.stages()] == [10]


# --- levels ----------------------------------------------------------------------------------------------------------


def test_the_cosine_grid_is_even_in_the_papers_angle():
    """alpha = cos(phi) and s = sin(phi) of the variance-preserving scale, with phi even between the model's ends."""
    low, high = 0.03, 14.6
    sigmas = cosine_sigmas(16, sigma_min=low, sigma_max=high).double()
    alpha, s = signal_and_noise(sigmas[:-1], VE)
    phi = torch.atan2(s, alpha)
    step = (math.atan(high) - math.atan(low)) / 16
    torch.testing.assert_close(phi[:-1] - phi[1:], torch.full((15,), step, dtype=torch.float64), atol=1e-6, rtol=0.0)
    assert float(phi[-1]) == pytest.approx(math.atan(low) + step, abs=1e-6), "the final 0 stands where sigma_min would"
    assert (float(sigmas[0]), float(sigmas[-1])) == (pytest.approx(high, rel=1e-6), 0.0)
    wide = cosine_sigmas(4, sigma_min=1e-9, sigma_max=1e9).double()
    expected = torch.tensor([math.tan(math.pi / 2 * t) for t in (0.75, 0.5, 0.25)], dtype=torch.float64)
    torch.testing.assert_close(wide[1:-1], expected, atol=1e-6, rtol=1e-6)


def test_the_edm_grid_is_karras():
    """Karras et al. 2022, table 1 and equation 5."""
    sigmas = karras_sigmas(18, sigma_min=0.002, sigma_max=80.0)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    torch.testing.assert_close(sigmas[:-1], torch.tensor(expected), atol=1e-7, rtol=1e-5)
    assert sigmas[-1] == 0.0


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("start_steps", [2, 64, 96, 1000])
def test_every_grid_stays_inside_the_model_and_is_halved_by_every_second_level(grid, start_steps):
    made = method(start_steps=start_steps, target_steps=start_steps // 2, grid=grid.value)
    options, levels = made._options, table(VE)
    finest = options.schedule(start_steps, table=levels)
    assert (finest[:-1] > finest[1:]).all()
    assert finest[:-1].min() >= levels[0]
    assert finest[0] == levels[-1]
    assert torch.equal(made.stages()[0].sigmas, finest[::2])
    assert torch.equal(options.schedule(start_steps // 2, table=levels), finest[::2])
    recipe = made.recipe(stage=0, prediction_type="eps")
    assert (recipe.schedule, recipe.sigmas) == (grid.value, tuple(finest[::2].tolist()))


@pytest.mark.parametrize("grid", ["cosine", "edm"])
def test_a_target_is_at_the_levels_of_its_grid(grid):
    made = method(grid=grid)
    target = target_of(made, stage=0, count=4096)
    sigmas = Grid(grid).sigmas(16, table=table(VE))
    assert torch.equal(target.sigma.unique().flip(0), sigmas[:-1:2])
    with pytest.raises(ValueError, match=f"grid is {grid}, but this is a flow model; allowed is trailing"):
        method(FLOW, teacher="flow", grid=grid)


def test_a_flow_models_grid_follows_its_shift():
    t = torch.arange(1, 1001) / 1000
    shifted = 3.0 * t / (1.0 + 2.0 * t)
    made = ProgressiveOptions.read(OLD).on(TeacherKind(family=FLOW, table=shifted))
    expected = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    torch.testing.assert_close(made.stages()[-1].sigmas, expected, atol=1e-6, rtol=0.0)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"student_prediction": "velocity"},
            "student_prediction is 'velocity'; allowed are as_teacher, x0, eps, v_pred",
        ),
        ({"distance": "huber"}, "distance is 'huber'; allowed are squared, pseudo_huber, lpips"),
        ({"grid": "linear"}, "grid is 'linear'; allowed are trailing, cosine, edm"),
        ({"weighting": "p2"}, "weighting is 'p2'; allowed are truncated_snr"),
        ({"conversion_iterations": -1}, "conversion_iterations is -1"),
        ({"last_stages_iterations": -2}, "last_stages_iterations is -2"),
        ({"merged_steps": 1}, "merged_steps is 1; allowed are 2, 4, 8"),
        ({"merged_steps": 6}, "merged_steps is 6; allowed are 2, 4, 8"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        ProgressiveOptions.read({**OLD, **changed})


def test_options_survive_run_json():
    chosen = {**OLD, **TO_V, "distance": "pseudo_huber", "grid": "edm", "last_stages_iterations": 3, "merged_steps": 4}
    options = ProgressiveOptions.read(chosen)
    assert ProgressiveOptions.read(options.written()) == options
    assert options.written() == {
        **chosen,
        "conversion_iterations": 0,
        "guidance_scale_max": 0.0,
        "level_from": 0.0,
        "level_to": 1.0,
    }
    assert target_of(method(distance="pseudo_huber"), stage=0).distance is Distance.PSEUDO_HUBER
    assert target_of(method(), stage=0).distance is Distance.SQUARED


def distillation(folder, **changed):
    return Distillation(
        run=RunFolder(folder, "a run"),
        method=method(**changed),
        data=TensorData(x0=batch(8).x0, condition={}),
        options=TrainOptions(),
        teacher_sha256="0",
        prediction_type="eps",
    )


def test_a_run_that_is_older_than_the_options_goes_on(tmp_path):
    """As it was: squared, trailing, as the teacher. With one of them changed it is another run."""
    made = distillation(tmp_path)
    written = made.description()
    for name in ProgressiveOptions.read(OLD).written().keys() - OLD.keys():
        del written["run"][f"method.{name}"]
    made.run.claim(written)
    made.run.save_checkpoint(1, {"a": torch.ones(1)}, {"stage": 0, "stage_iteration": 1})
    assert not made.finished()
    with pytest.raises(ValueError, match=r"holds another run.*method\.grid: there trailing, here cosine"):
        distillation(tmp_path, grid="cosine").finished()
    with pytest.raises(ValueError, match=r"method\.student_prediction: there as_teacher, here v_prediction"):
        distillation(tmp_path, **TO_V).finished()


@pytest.mark.parametrize(("changed", "expected"), [({}, "eps"), (TO_V, "v_prediction")])
def test_a_distillation_knows_what_its_student_predicts(changed, expected, tmp_path):
    assert distillation(tmp_path, **changed).student_prediction == expected


def test_iterations_of_last_halvings_may_be_chosen_when_a_run_gets_to_them():
    """Of a run that had none of them; the others were trained as they were."""
    longer = method(start_steps=16, target_steps=1, last_stages_iterations=7)
    assert longer.continues(method(start_steps=16, target_steps=4).options())
    assert not longer.continues(method(start_steps=16, target_steps=2).options())
    assert longer.continues(method(start_steps=16, target_steps=2, last_stages_iterations=7).options())
    assert not longer.continues(method(start_steps=16, target_steps=4, learning_rate=0.5).options())


def test_a_count_of_steps_that_no_halving_leads_to_has_the_grid_of_its_own():
    """All others have every second level of the finest, and so on."""
    options = ProgressiveOptions.read({**OLD, "start_steps": 16, "target_steps": 4, "grid": "cosine"})
    finest = options.grid.sigmas(16, table=table(VE))
    assert torch.equal(options.schedule(8, table=table(VE)), finest[::2])
    assert torch.equal(options.schedule(1, table=table(VE)), finest[::16])
    assert torch.equal(options.schedule(3, table=table(VE)), options.grid.sigmas(3, table=table(VE)))
