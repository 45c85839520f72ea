"""One of two experts: its student learns its own levels and is measured there, and its file says which they are."""

import types

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.recipe import Recipe
from comfyui_fewstep.samplers.schedules import shifted_sigmas
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.level_range import LevelRange
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.training.stages import compared
from gaussian import FAMILIES, gaussian_denoiser, table

FLOW, VE = NoiseFamily.FLOW, NoiseFamily.VARIANCE_EXPLODING
WAN = shifted_sigmas(torch.arange(1, 1001, dtype=torch.float64) / 1000, shift=5.0).float()
"""Wan's levels at a shift of 5."""


def kind(family, levels=None):
    return TeacherKind(family=family, table=table(family) if levels is None else levels, empty_prompt=True)


def progressive(family, *, levels=None, **changed):
    chosen = {"start_steps": 16, "target_steps": 4, "iterations": 10, "learning_rate": 1e-3, "guidance_scale": 1.0}
    return ProgressiveOptions(**{**chosen, "weighting": Weighting.TRUNCATED_SNR, **changed}).on(kind(family, levels))


def guidance(family, *, steps=4, levels=None, **changed):
    chosen = {"guidance_scale": 3.0, "iterations": 10, "learning_rate": 1e-3, "steps": steps}
    return GuidanceOptions(**chosen, **changed).on(kind(family, levels))


def levels_trained(method, *, stage=0, count=2000):
    x0 = torch.zeros(count, 1, 1, 1)
    y = {"y": torch.ones(count, 1)}
    teacher = gaussian_denoiser(method.family)
    lesson = Lesson(
        batch=Batch(x0, y, unconditional={"y": torch.zeros(1, 1)}),
        stage=stage,
        teacher=teacher,
        student=teacher,
        generator=torch.Generator().manual_seed(1),
    )
    return method.target(lesson).sigma.unique().flip(0)


def test_wans_two_experts_at_their_boundary():
    """0.875 is the noise level itself: of 1, 0.9375, 0.8333, 0.625 two each."""
    high, low = (progressive(FLOW, levels=WAN, **part) for part in ({"level_from": 0.875}, {"level_to": 0.875}))
    expected = torch.tensor([1.0, 0.9375, 0.833333, 0.625, 0.0])
    torch.testing.assert_close(high.stages()[-1].sigmas, expected)
    torch.testing.assert_close(levels_trained(high, stage=1), expected[:2])
    torch.testing.assert_close(levels_trained(low, stage=1), expected[2:4])


@pytest.mark.parametrize("family", FAMILIES)
def test_finer_stages_learn_all_that_the_last_ones_steps_span(family):
    """No student is asked, as the teacher of the next stage, for a step that it was not taught."""
    high, low = (progressive(family, **part) for part in ({"level_from": 0.6}, {"level_to": 0.6}))
    for stage, steps in enumerate((8, 4)):
        whole = high.stages()[stage].sigmas
        assert len(whole) == steps + 1
        torch.testing.assert_close(levels_trained(high, stage=stage), whole[: steps // 2])
        torch.testing.assert_close(levels_trained(low, stage=stage), whole[steps // 2 : -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_part_of_an_expert_is_walked_from_where_to_where(family):
    high, low = (progressive(family, **part).stages() for part in ({"level_from": 0.6}, {"level_to": 0.6}))
    for above, below in zip(high, low, strict=True):
        half = above.steps // 2
        assert torch.equal(above.walked(above.sigmas), above.sigmas[: half + 1])
        assert torch.equal(below.walked(below.sigmas), below.sigmas[half:])
        assert torch.equal(above.walked(above.teacher_sigmas), above.teacher_sigmas[: 2 * half + 1])
        assert torch.equal(above.shown, torch.cat([above.sigmas[:half], torch.zeros(1)]))
        assert (above.from_noise, below.from_noise) == (True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_guided_expert_walks_its_own_part_too(family):
    """Below its top it begins with the data in noise: compared from noise it would be judged where its partner is asked."""
    ((above,), (below,)) = (guidance(family, **part).stages() for part in ({"level_from": 0.6}, {"level_to": 0.6}))
    assert torch.equal(above.walked(above.sigmas), above.sigmas[:3])
    assert torch.equal(below.walked(below.sigmas), below.sigmas[2:])
    assert (above.from_noise, below.from_noise) == (True, False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [0, 1])
def test_both_files_name_the_boundary_at_which_the_pair_splits(family, stage):
    """Of every stage: the steps from it up are those that the one student was taught, all others the other's."""
    high, low = (progressive(family, **part) for part in ({"level_from": 0.65}, {"level_to": 0.65}))
    recipes = [method.recipe(stage=stage, prediction_type="v_prediction") for method in (high, low)]
    assert recipes[0].sigmas == recipes[1].sigmas
    boundaries = {round(recipe.boundary, 6) for recipe in recipes}
    assert boundaries == {(0.625, 0.65)[stage]}, "of 8 steps the fourth begins there; of the last as was asked for"
    sigmas, part = torch.tensor(recipes[0].sigmas), LevelRange(boundaries.pop(), 1.0)
    trained = levels_trained(high, stage=stage)
    assert part.steps_in(sigmas, family=family, table=table(family)) == range(len(trained))
    torch.testing.assert_close(sigmas[: len(trained)], trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_is_compared_on_its_own_part(family):
    """Teacher and student are asked there alone; below the top they begin with the data in noise, not with noise."""
    data = Batch(torch.full((4, 1, 1, 1), 5.0), {})
    for part, own in (({"level_from": 0.6}, slice(0, 2)), ({"level_to": 0.6}, slice(2, 4))):
        method, asked = progressive(family, **part), []

        def denoiser(x, sigma, asked=asked):
            asked.append((float(sigma[0]), x))
            return gaussian_denoiser(family)(x, sigma)

        student = types.SimpleNamespace(teacher=denoiser, denoiser=denoiser)
        told = compared(method, student, data, stage=1, at_once=4)
        sigmas = method.stages()[1].sigmas
        assert [sigma for sigma, _ in asked[:2]] == sigmas[own].tolist()
        assert all(sigma in method.stages()[1].walked(method.stages()[1].teacher_sigmas) for sigma, _ in asked)
        noise = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
        first = asked[0][1]
        if own.start:
            torch.testing.assert_close(first, family.add_noise(data.x0, noise, sigma=sigmas[2]))
        else:
            torch.testing.assert_close(first, family.initial(noise, sigma=sigmas[0]))
        assert 0.0 < told["mean_squared_distance"] < told["teacher_mean_square"]


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_is_learnt_at_the_levels_of_the_range(family):
    made = guidance(family, level_from=0.9, steps=20)
    found, levels = levels_trained(made, count=20000), table(family)
    torch.testing.assert_close(found.flip(0), levels[899:])
    low = guidance(family, level_to=0.9, steps=20)
    assert float(levels_trained(low).max()) < float(levels[899])
    recipe = made.recipe(stage=0, prediction_type="v_prediction")
    assert (recipe.level_from, recipe.level_to, recipe.boundary) == (0.9, 1.0, 0.9)
    assert low.recipe(stage=0, prediction_type="v_prediction").boundary == 0.9


def test_a_whole_range_is_what_there_was():
    """The same levels from the same draws, the same recipe in the file."""
    assert torch.equal(levels_trained(progressive(VE)), progressive(VE).stages()[0].sigmas[:-1])
    recipe = progressive(VE).recipe(stage=0, prediction_type="v_prediction")
    assert recipe.boundary is None
    assert "level_from" not in recipe.to_metadata()["fewstep.recipe"]
    stage = progressive(VE).stages()[0]
    assert torch.equal(stage.walked(stage.sigmas), stage.sigmas)
    assert torch.equal(stage.shown, stage.sigmas)


def test_the_range_survives_the_file():
    recipe = progressive(FLOW, level_from=0.6).recipe(stage=1, prediction_type="flow")
    read = Recipe.from_metadata(recipe.to_metadata(), source="a file")
    assert (read, read.boundary, read.part) == (recipe, 0.6, "noise levels 0.6 to 1")


def test_an_experts_run_does_not_go_on_with_further_halvings():
    """Which steps are its own depends on the last of them."""
    earlier, later = (progressive(FLOW, level_from=0.6, target_steps=steps) for steps in (8, 4))
    assert not later.continues(earlier.options())
    assert progressive(FLOW).continues(progressive(FLOW, target_steps=8).options())


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_what_is_no_range_is_refused(low, high):
    with pytest.raises(ValueError, match=f"level_from is {low} and level_to is {high}"):
        progressive(FLOW, level_from=low, level_to=high)
    with pytest.raises(ValueError, match=f"level_from is {low} and level_to is {high}"):
        guidance(FLOW, level_from=low, level_to=high)


def test_a_range_without_a_step_of_the_student_is_refused():
    with pytest.raises(ValueError, match="none of the student's 4 steps begins there"):
        progressive(FLOW, level_from=0.3, level_to=0.4)
