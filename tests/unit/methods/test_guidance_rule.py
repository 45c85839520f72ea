"""Teachers whose guidance is not the usual one: every method teaches what the rule makes of it, once, and nothing else."""

import dataclasses

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily, expand_like, guided
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions, Guidance
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.training.score_distillation import Kind, ScoreDistillationOptions, Views, distil_latent
from gaussian import table

FAMILY = NoiseFamily.FLOW
TRAINING = {"iterations": 10, "learning_rate": 1e-3}
HALVING = {**TRAINING, "start_steps": 4, "target_steps": 1, "weighting": Weighting.CONSTANT}
WITH, WITHOUT = 2.0, 0.5
"""What the teacher sees with its prompt and without, whatever it is shown."""


class Rule:
    """10 s + with - without: no guidance says so."""

    def __init__(self, *, needs_both=False):
        self.needs_both = needs_both

    def __str__(self):
        return "a rule of a node"

    def __call__(self, answers, *, scale):
        x, with_prompt = answers.x, answers.with_prompt
        without = torch.zeros_like(x) if answers.without is None else answers.without
        assert torch.equal(answers.denoiser(x, answers.sigma, **answers.condition), with_prompt)
        return 10.0 * (expand_like(scale, x) if isinstance(scale, torch.Tensor) else scale) + with_prompt - without


class Against(Rule):
    def __call__(self, *given, **named):
        return -super().__call__(*given, **named)


def teacher(x, sigma, y):
    return torch.zeros_like(x) + torch.where(y.reshape(-1, 1, 1, 1) > 0.5, WITH, WITHOUT)


def blank(x, sigma, **_):
    return torch.zeros_like(x)


def batch(count=8):
    x0 = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})


def on(options, *, rule=None, **changed):
    given = {"family": FAMILY, "table": table(FAMILY), "prediction_type": "flow", "empty_prompt": True}
    return options.on(TeacherKind(**{**given, **changed}, rule=rule or Rule()))


def lesson(stage=0, student=blank, **more):
    generator = torch.Generator().manual_seed(3)
    return Lesson(batch=batch(), stage=stage, teacher=teacher, student=student, generator=generator, **more)


def ruled(scale):
    """What Rule says, as the host has it at a scale of 1: nobody asks without the prompt."""
    return 10.0 * scale + WITH - (0.0 if scale == 1.0 else WITHOUT)


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_progressive_halves_what_the_rule_says_in_the_first_stage_alone(scale):
    made = on(ProgressiveOptions(**HALVING, guidance_scale=scale))
    first, later = (made.target(lesson(stage)).x0 for stage in (0, 1))
    torch.testing.assert_close(first, torch.full_like(first, ruled(scale)))
    torch.testing.assert_close(later, torch.full_like(later, WITH))


def test_guidance_distillation_takes_the_rule_at_each_samples_scale():
    made = on(GuidanceOptions(**TRAINING, guidance_scale=2.0, guidance_scale_max=6.0))
    target = made.target(lesson())
    scales = target.condition["guidance_scale"].reshape(-1, 1, 1, 1)
    assert len(set(scales.flatten().tolist())) > 1
    torch.testing.assert_close(target.x0, (10.0 * scales + WITH - WITHOUT).to(target.x0))


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_consistency_steps_to_where_the_rule_leads(scale):
    """The step down the flow is x + (x - D) / sigma * (sigma' - sigma)."""
    seen = []

    def student(x, sigma, **_):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    target = on(ConsistencyOptions(**TRAINING, steps=4, guidance_scale=scale)).target(lesson(student=student))
    ((x_s, sigma_next),) = seen
    sigma, after = (s.reshape(-1, 1, 1, 1) for s in (target.sigma, sigma_next))
    told = target.x_t - (x_s - target.x_t) / (after - sigma) * sigma
    torch.testing.assert_close(told, torch.full_like(told, ruled(scale)), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_distribution_matching_pulls_to_what_the_rule_says(scale):
    made = on(DistributionMatchingOptions(**TRAINING, steps=1, guidance_scale=scale))
    one = lesson(companions={"fake": blank}, examples={})
    examples = made.examples(one)
    target = made.target(lesson(companions={"fake": blank}, examples=examples))
    torch.testing.assert_close(target.measures["real_mean"], torch.full((8,), ruled(scale)).to(target.x0))
    assert (target.pull < 0).all(), "fake - real"


def test_score_distillation_goes_where_the_rule_leads():
    start = torch.zeros(2, 1, 1, 1)
    views = Views(
        denoiser=teacher,
        family=FAMILY,
        table=table(FAMILY),
        condition={"y": torch.ones(2, 1)},
        negative={"y": torch.zeros(1, 1)},
    )
    options = ScoreDistillationOptions(kind=Kind.SDS, guidance_scale=3.0, iterations=20, learning_rate=0.01)
    plain, by_rule = (
        distil_latent(start, options, dataclasses.replace(views, rule=rule)) for rule in (None, Against())
    )
    assert (plain > 0).all()
    assert (by_rule < 0).all()


def test_methods_say_whose_rule_their_students_learn():
    halving = ProgressiveOptions(**HALVING, guidance_scale=2.0)
    for options in (halving, ConsistencyOptions(**TRAINING, steps=4, guidance_scale=2.0)):
        assert on(options).guided_by == "a rule of a node"
        assert options.on(TeacherKind(family=FAMILY, table=table(FAMILY), empty_prompt=True)).guided_by == ""
    assert on(ConsistencyTrainingOptions(**TRAINING, steps=4)).guided_by == "", (
        "which learns from pictures, of no guidance"
    )


def test_a_scale_of_1_asks_without_the_prompt_for_rules_that_want_it():
    asked = []

    def counted(x, sigma, y):
        asked.append(float(y[0]))
        return teacher(x, sigma, y)

    def once(rule):
        asked.clear()
        x = torch.zeros(1, 1, 1, 1)
        guided(counted, guidance_scale=1.0, unconditional={"y": torch.zeros(1, 1)}, rule=rule)(
            x, torch.ones(1), y=torch.ones(1, 1)
        )
        return asked[:-1]  # the rule of these tests asks once more

    assert once(Rule()) == [1.0]
    assert once(Rule(needs_both=True)) == [0.0, 1.0]


def test_the_empty_prompt_is_wanted_by_rules_that_ask_for_it_alone():
    options = ProgressiveOptions(**HALVING, guidance_scale=1.0)
    wanting = on(options, rule=Rule(needs_both=True)).target(lesson()).x0
    torch.testing.assert_close(wanting, torch.full_like(wanting, 10.0 + WITH - WITHOUT))
    alone = on(options, empty_prompt=False).target(lesson()).x0
    torch.testing.assert_close(alone, torch.full_like(alone, 10.0 + WITH))


@pytest.mark.parametrize(
    ("options", "changed", "named"),
    [
        (
            DistributionMatchingOptions(**TRAINING, steps=1, guidance_scale=3.0, guidance=Guidance.DECOUPLED),
            {},
            "guidance is decoupled, which takes guidance apart, but the MODEL carries a rule of a node",
        ),
        (
            ConsistencyOptions(**TRAINING, steps=4, guidance_scale=3.0, guidance_scale_max=5.0, scale_input=True),
            {"takes_scale": True},
            "takes its guidance scale as an input, but it also carries a rule of a node",
        ),
        (
            ProgressiveOptions(**HALVING, guidance_scale=1.0),
            {"rule": Rule(needs_both=True), "empty_prompt": False},
            "the MODEL carries a rule of a node, which wants the empty prompt at every guidance_scale: connect the negative",
        ),
    ],
)
def test_what_a_rule_does_not_go_with_is_named(options, changed, named):
    with pytest.raises(ValueError, match=named):
        on(options, **changed)


def test_score_distillation_without_noise_takes_guidance_apart_too():
    views = Views(
        denoiser=teacher, family=FAMILY, table=table(FAMILY), condition={}, negative={}, empty={}, rule=Rule()
    )
    with pytest.raises(ValueError, match="kind is nfsd, which takes guidance apart, but the MODEL carries a rule"):
        views.require_for(ScoreDistillationOptions(kind=Kind.NFSD))
