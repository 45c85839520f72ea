"""What a run will take: forwards and memory counted in closed cases, and what fits."""

import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.options import TrainOptions
from comfyui_fewstep.trainers.training.plan import Needs, Plan, duration
from comfyui_fewstep.trainers.training.trial import Rehearsal, StageCost, most_held
from gaussian import table
from test_progressive import TinyNetwork, as_denoiser, options

CPU = torch.device("cpu")
KIND = TeacherKind(
    family=NoiseFamily.VARIANCE_EXPLODING, table=table(NoiseFamily.VARIANCE_EXPLODING), empty_prompt=True
)


def costs(root, method, *, rows=3):
    sample = Batch(torch.ones(1, 1, 2, 2), {"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    student = FullWeightsStudent(TinyNetwork(), TinyNetwork(seed=1), as_denoiser=as_denoiser)
    given = {"run": RunFolder(root, "run"), "options": TrainOptions(batch_size=64)}
    return Rehearsal(method=method, student=student, sample=sample, **given).costs(rows=rows)


def test_forwards_of_halvings(tmp_path):
    """Two steps of the teacher, at the first stage with guidance two forwards each, and one of the student."""
    found = costs(tmp_path, options(guidance_scale=2.0).on(KIND))
    assert [cost.forwards for cost in found] == [5.0, 3.0]
    assert [cost.stage.name for cost in found] == ["16 to 8 steps", "8 to 4 steps"]
    assert all(cost.seconds > 0.0 and cost.rows == 3 for cost in found)
    assert list(tmp_path.iterdir()) == [], "nothing of the trial is kept"


def test_forwards_of_consistency_distillation(tmp_path):
    chosen = ConsistencyOptions(steps=4, iterations=10, learning_rate=1e-3, guidance_scale=2.0)
    (cost,) = costs(tmp_path, chosen.on(KIND))
    assert cost.forwards == 4.0, "two of the guided teacher, the student's own word, and what learns"


def test_what_is_held_at_once_is_counted():
    """In float32: 1000 and 500 numbers together, though 1000 more came and went, and views hold nothing."""
    outside = torch.zeros(10**6)

    def work():
        kept = torch.ones(1000)
        passing = kept + 1.0
        del passing
        halves = [kept[:500] * 2.0, kept.reshape(10, 100).t(), outside[:100].view(10, 10)]
        kept += 1.0
        return halves

    assert most_held(work, CPU) == 4 * 2000
    assert most_held(lambda: (torch.ones(1000), torch.ones(500)), CPU) == 4 * 1500


def test_backward_and_its_gradients_are_counted():
    """exp keeps its result for backward: 1000 numbers, and at the end the gradient of 1000 beside its own of the result."""
    weight = torch.zeros(1000, requires_grad=True)
    held = most_held(lambda: weight.exp().sum().backward(), CPU)
    assert 4 * 2000 <= held <= 4 * 3000 + 64


def test_as_many_pictures_at_a_time_as_fit():
    needs = Needs(one=100, two=130)
    assert (needs.each, needs.at(1), needs.at(4)) == (30, 100, 190)
    assert [needs.most_rows(room, batch_size=12) for room in (99, 100, 159, 160, 280, 430)] == [0, 1, 2, 3, 6, 12]


def test_a_plan_sums_its_stages():
    stages = options(iterations=10).on(KIND).stages()
    found = [
        StageCost(stage=stage, rows=4, seconds=seconds, forwards=forwards)
        for stage, seconds, forwards in zip(stages, (2.0, 1.0), (5.0, 3.0), strict=True)
    ]
    chosen = TrainOptions(batch_size=16, accumulation=4)
    plan = Plan(costs=found, options=chosen, needs=Needs(one=10, two=12), room=16, preparing=[("drawing", 60.0)])
    assert plan.rows == 4
    assert (plan.held, plan.fits) == (16, True)
    assert plan.training == 10 * 4 * 2.0 + 10 * 4 * 1.0
    assert plan.seconds == plan.training + 60.0
    assert plan.forwards == 16 * 10 * (5 + 3)
    assert plan.told()[0] == "drawing: 60 s"
    assert "16 to 8 steps: 10 iterations of 8 s, 80 s" in plan.told()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1.4, "1 s"), (89, "89 s"), (100, "2 min"), (5399, "90 min"), (9000, "2.5 h"), (90000, "25 h")],
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
    assert math.isfinite(seconds)
