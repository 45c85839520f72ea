"""What distribution matching costs, by its options, and which options there are not."""

import dataclasses

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from gaussian import FAMILIES, table
from test_distribution_matching import lesson_of, method, options
from torch import Tensor

VE, FLOW = NoiseFamily

COSTS = {
    "dmd2": ({}, {"teacher": 2, "fake": 1}),
    "without guidance": ({"guidance_scale": 1.0}, {"teacher": 1, "fake": 1}),
    "decoupled": ({"guidance": "decoupled"}, {"teacher": 3, "fake": 1}),
    "tdm": ({"rollout": "segments"}, {"teacher": 2, "fake": 1}),
    "anchor": ({"anchor_steps": 6}, {"teacher": 2 + 12, "fake": 1}),
    "rcm": ({"consistency_levels": 20}, {"teacher": 2 + 2, "fake": 1, "student": 1}),
}


@pytest.mark.parametrize("name", COSTS)
def test_passes_of_a_target_are_those_of_the_table(name):
    """Without gradient. The student's own are 1 + the steps before, 1.5 on average of four; with an anchor one step more."""
    changed, expected = COSTS[name]
    made = method(VE, **({"steps": 4, "guidance_scale": 3.0} | changed))
    calls: dict[str, int] = {}

    def counting(role):
        def denoise(x: Tensor, sigma: Tensor, **_: Tensor) -> Tensor:
            calls[role] = calls.get(role, 0) + 1
            return 0.5 * x

        return denoise

    networks = {role: counting(role) for role in ("teacher", "student", "fake")}
    walks = set()
    for seed in range(40):
        calls.clear()
        examples = made.examples(lesson_of(VE, count=1, seed=seed, **networks))
        walks.add(calls.pop("student"))
        assert calls == {}
        made.companion_target("fake", lesson_of(VE, count=1, seed=seed, examples=examples, **networks))
        assert calls == {}, "samples are shared"
        made.target(lesson_of(VE, count=1, seed=seed, examples=examples, **networks))
        assert calls == expected
    assert walks == ({2, 3, 4} if "anchor_steps" in changed else {1, 2, 3, 4})


def test_samples_of_its_own_are_drawn_for_each_update_where_they_are_not_shared():
    made, asked = method(VE, steps=1, share_samples=False), []

    def student(x, sigma, y):
        asked.append(x)
        return 0.5 * x

    for seed in range(3):
        made.companion_target("fake", lesson_of(VE, count=2, student=student, seed=seed))
    assert len(asked) == 3
    assert not torch.equal(asked[0], asked[1])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"fewest_steps": 5, "steps": 4}, "fewest_steps is 5 and steps is 4; samples are drawn in no more steps"),
        ({"companion_updates": 0}, "companion_updates is 0; it must be at least 1"),
        ({"companion_first": -1}, "companion_first is -1; it must not be negative"),
        ({"companion_learning_rate": 0.0}, "companion_learning_rate is 0.0; allowed is above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"renoise_from": 0.5, "renoise_to": 0.5}, "renoise_from is 0.5 and renoise_to is 0.5"),
        ({"guidance": "decoupled"}, "guidance is decoupled, but guidance_scale is 1"),
        ({"guidance": "both"}, "guidance is 'both'; allowed are teacher, decoupled"),
        ({"anchor_weight": 0.0}, "anchor_weight is 0.0 and matching_weight is 1.0; both must be above 0"),
        ({"matching_weight": 0.0}, "anchor_weight is 0.05 and matching_weight is 0.0; both must be above 0"),
        ({"consistency_levels": 3, "steps": 4}, "consistency_levels is 3 and steps is 4; allowed is 0 for none"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5; allowed is 1"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        options(**changed)


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({"rollout": "segments", "renoise_from": 0.3}, "step 4 of 4"),
        ({"rollout": "landings", "renoise_to": 0.7}, "step 1 of 4"),
        ({"rollout": "segments", "renoise_to": 0.6, "fewest_steps": 2}, "step 1 of 3"),
        ({"rollout": "segments", "renoise_from": 0.3, "anchor_steps": 2}, "step 4 of 4"),
        (
            {"rollout": "fresh_noise", "renoise_from": 0.3, "guidance": "decoupled", "guidance_scale": 3.0},
            "step 4 of 4",
        ),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_a_level_to_be_noised_to_is_named(family, changed, step):
    """Levels beside those that are asked for would be taken without a word."""
    with pytest.raises(ValueError, match=rf"which leave {step} no noise level of its own .*; allowed are a lower"):
        method(family, steps=4, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"renoise_to": 0.7},
        {"renoise_from": 0.3},
        {"rollout": "landings", "renoise_to": 0.7, "anchor_steps": 2},
        {"fewest_steps": 4},
        {"consistency_levels": 4},
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_else_is_refused(family, changed):
    assert method(family, steps=4, **changed).stages()


@pytest.mark.parametrize("fewest_steps", [0, 1])
def test_an_anchored_student_of_one_step_is_matched_there(fewest_steps):
    made = method(VE, steps=2 if fewest_steps else 1, fewest_steps=fewest_steps, anchor_steps=2)
    begun = {float(made.examples(lesson_of(VE, count=2, seed=seed))["sigma"][0]) for seed in range(12)}
    assert begun == {float(sigma) for sigma in made.stages()[0].sigmas[:-1]}


@pytest.mark.parametrize("rollout", ["fresh_noise", "deterministic", "landings", "segments"])
@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_the_steps_own_and_within_what_is_asked_for(family, rollout):
    """The first step's of an anchor are the anchor's: where it alone has none, nothing is refused."""
    made = method(family, steps=4, rollout=rollout, renoise_from=0.1, renoise_to=0.76, anchor_steps=1)
    levels, own = table(family), made.stages()[0].sigmas
    seen = {float(sigma) for seed in range(40) for sigma in noised_to(made, seed=seed)}
    asked = set(levels[round(0.1 * len(levels)) : round(0.76 * len(levels))].tolist())
    assert seen <= asked
    if rollout == "segments":
        assert max(seen) < float(own[1])
    assert len(seen) > 20


def noised_to(made, *, seed):
    lesson = lesson_of(made.family, count=4, seed=seed, student=lambda x, sigma, y: 0.5 * x)
    return made.companion_target("fake", dataclasses.replace(lesson, examples=made.examples(lesson))).sigma


def test_guidance_without_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale is 3.0, which needs the empty prompt: connect the negative"):
        options(guidance_scale=3.0).on(TeacherKind(family=VE, table=table(VE)))


def test_a_teacher_that_has_its_guidance_inside_is_not_guided_again():
    inside = TeacherKind(family=VE, table=table(VE), takes_scale=True, empty_prompt=True)
    assert options(guidance_scale=1.0).on(inside).stages()
    with pytest.raises(ValueError, match=r"guidance_scale is 3.0, but the connected model takes its scale as an input"):
        options(guidance_scale=3.0).on(inside)


def test_options_come_back_from_json():
    chosen = options(steps=4, guidance_scale=3.0, guidance="decoupled", rollout="segments", strength="score")
    assert DistributionMatchingOptions.read(chosen.written()) == chosen


@pytest.mark.parametrize(
    ("rollout", "gamma"), [("fresh_noise", 1.0), ("deterministic", 0.0), ("landings", 0.0), ("segments", 0.0)]
)
def test_the_recipe_samples_as_the_student_was_drawn(rollout, gamma):
    made = method(FLOW, steps=4, rollout=rollout, companion_first=7, guidance_scale=3.0)
    recipe = made.recipe(stage=0, prediction_type="flow")
    (stage,) = made.stages()
    assert (recipe.steps, recipe.gamma, stage.gamma, recipe.schedule) == (4, gamma, gamma, "trailing")
    assert recipe.guidance_scale == 3.0, "which is baked in"
    assert recipe.sigmas == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert (stage.iterations, stage.lead, stage.updates, stage.betas) == (17, 7, 10, (0.0, 0.99))


def test_an_anchor_of_more_steps_than_the_model_has_levels_is_refused_before_work():
    """As of one that ModelSamplingDiscrete gives 50 levels."""
    coarse = TeacherKind(family=VE, table=table(VE)[19::20])
    assert options(anchor_steps=25).on(coarse).stages()
    with pytest.raises(ValueError, match="twice anchor_steps is 52; this model has 50 noise levels"):
        options(anchor_steps=26).on(coarse)
