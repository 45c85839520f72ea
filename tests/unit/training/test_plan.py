"""What a run will take: forwards and memory counted in closed cases, and what fits."""

import dataclasses
import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions, Guidance
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training import accelerator
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.plan import Needs, Plan, duration, size
from comfyui_fewstep.trainers.training.trial import Iteration, Rehearsal, StageCost, most_held, seconds_of
from gaussian import table
from test_progressive import TinyNetwork, as_denoiser, options

CPU = torch.device("cpu")
KIND = TeacherKind(
    family=NoiseFamily.VARIANCE_EXPLODING, table=table(NoiseFamily.VARIANCE_EXPLODING), empty_prompt=True
)


def linear_student(calls=None):
    """calls: gets an entry whenever one of its networks is asked, forwards alone."""

    def as_denoiser(network):
        def denoise(x, sigma, y):
            if calls is not None:
                calls.append(len(x))
            return network(x.flatten(1)).reshape(x.shape)

        return denoise

    modules = (torch.nn.Linear(4, 4) for _ in range(2))
    return FullWeightsStudent(*modules, as_denoiser=as_denoiser, adapted=torch.nn.Sequential)


def costs(root, method, *, rows=3, student=None, **given):
    sample = Batch(torch.ones(1, 1, 2, 2), {"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    student = student or FullWeightsStudent(TinyNetwork(), TinyNetwork(seed=1), as_denoiser=as_denoiser)
    given |= {"run": RunFolder(root, "run"), "options": TrainOptions(batch_size=64)}
    return Rehearsal(method=method, student=student, sample=sample, rows=rows, **given).costs()


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_work_is_timed_until_the_device_has_done_it(kind, monkeypatch):
    """Which a GPU does after the call that asked for it has come back."""
    queue, now = [5.0], [0.0]

    def synchronise(*_):
        now[0] += sum(queue)
        queue.clear()

    monkeypatch.setattr(getattr(torch, kind), "synchronize", synchronise)
    assert seconds_of(lambda: queue.append(3.0), torch.device(kind), clock=lambda: now[0]) == 3.0


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_what_is_held_is_what_the_devices_allocator_counted(kind, monkeypatch):
    """What was held before, and forgotten since, is not of the work."""
    now, most = [100], [900]
    for name, counted in {
        "memory_allocated": lambda _: now[0],
        "max_memory_allocated": lambda _: most[0],
        "reset_peak_memory_stats": lambda _: most.__setitem__(0, now[0]),
    }.items():
        monkeypatch.setattr(getattr(torch, kind), name, counted)
    device = torch.device(kind)
    assert accelerator.most_held(device) == 900
    assert most_held(lambda: most.__setitem__(0, 140), device) == 40
    assert accelerator.most_held(torch.device("mps")) is accelerator.most_held(torch.device("cpu")) is None


def test_forwards_of_halvings(tmp_path):
    """Two steps of the teacher, at the first stage with guidance two forwards each, and one of the student."""
    found = costs(tmp_path, options(guidance_scale=2.0).on(KIND))
    assert [cost.iteration.forwards for cost in found] == [5.0, 3.0]
    assert [cost.stage.name for cost in found] == ["16 to 8 steps", "8 to 4 steps"]
    assert all(cost.iteration.seconds > 0.0 and cost.measuring > 0.0 and cost.leading is None for cost in found)
    assert list(tmp_path.iterdir()) == [], "nothing of the trial is kept"


def test_forwards_of_consistency_distillation(tmp_path):
    chosen = ConsistencyOptions(steps=4, iterations=10, learning_rate=1e-3, guidance_scale=2.0)
    (cost,) = costs(tmp_path, chosen.on(KIND))
    assert cost.iteration.forwards == 4.0, "two of the guided teacher, the student's own word, and what learns"


def test_what_a_method_draws_counts_in_the_mean_of_many_iterations(tmp_path):
    """In at most 4 steps the student walks 0 to 3 of them before its own, 1.5 in the mean, and says one word; the companion says
    one, and the teacher two with guidance. The companion learns in four passes, alone at first, and the student in one.

    By a clock that goes on with each pass forwards of the rows."""
    chosen = DistributionMatchingOptions(
        steps=4, iterations=10, learning_rate=1e-3, guidance_scale=2.0, guidance=Guidance.TEACHER, companion_first=5
    )
    calls = []
    student, clock = linear_student(calls), lambda: sum(calls) / 3
    (cost,) = costs(tmp_path, chosen.on(KIND), rows=3, student=student, clock=clock)
    assert cost.leading.forwards == pytest.approx(1.5 + 1 + 4, abs=0.2)
    assert cost.iteration.forwards == pytest.approx(1.5 + 1 + 4 + 1 + 2 + 1, abs=0.2)
    assert cost.leading.seconds == pytest.approx(cost.leading.forwards)
    assert cost.iteration.seconds == pytest.approx(cost.iteration.forwards)
    assert cost.forwards == 5 * cost.leading.forwards + 10 * cost.iteration.forwards


class Whole(torch.nn.Module):
    """A network that is one block."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x)


def test_a_critics_looks_are_counted(tmp_path):
    """It sees samples and pictures twice to learn, and the samples once more, with a gradient, to pull."""
    chosen = DistributionMatchingOptions(
        steps=1,
        iterations=10,
        learning_rate=1e-3,
        guidance_scale=1.0,
        companion_updates=1,
        adversarial_weight=1.0,
        adversarial_from=4,
    )
    calls = []

    def as_denoiser(network):
        def denoise(x, sigma, y):
            calls.append(len(x))
            return network(x.flatten(1)).reshape(x.shape)

        return denoise

    student = FullWeightsStudent(Whole(), Whole(), as_denoiser=as_denoiser, adapted=torch.nn.Sequential)
    (cost,) = costs(tmp_path, chosen.on(KIND), rows=3, student=student, clock=lambda: sum(calls) / 3)
    assert cost.leading.forwards == 1 + 1 + 3
    assert cost.iteration.forwards == 1 + 1 + 3 + 1 + 1 + 1 + 1, "from where it pulls"
    assert cost.leading.seconds == pytest.approx(cost.leading.forwards)
    assert cost.iteration.seconds == pytest.approx(cost.iteration.forwards)


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


def test_another_tensor_on_memory_that_was_there_holds_nothing():
    """As the MODEL's weights, made under inference mode, get tensors beside them that autograd may save."""
    with torch.inference_mode():
        weight = torch.ones(1000)

    def work():
        alias = torch.empty(0)
        alias.set_(weight.untyped_storage(), 0, weight.size(), weight.stride())
        return alias + torch.ones(10)[0]

    assert most_held(work, CPU) == 4 * (10 + 1000)


def waves(network):
    """Keeps eight activations for the way back, each as large as the 100 x 100 weights with a batch of 100."""

    def denoise(x, sigma, **_):
        y = network(x)
        for _ in range(8):
            y = y.sin()
        return y

    return denoise


def test_the_second_iteration_holds_the_moments_of_the_first(tmp_path):
    """Of n numbers Adam keeps 2 n, which a single iteration makes only when what it held for the passes is gone."""

    def new():
        modules = (torch.nn.Linear(100, 100, bias=False) for _ in range(2))
        return Rehearsal(
            method=options(guidance_scale=1.0).on(KIND),
            student=FullWeightsStudent(*modules, as_denoiser=waves),
            sample=Batch(torch.ones(1, 100), {}),
            run=RunFolder(tmp_path, "run"),
            options=TrainOptions(),
            rows=100,
        )

    one, both = new(), new()
    first = most_held(lambda: next(one._stages(one.student))[1](0), CPU)
    assert most_held(both.through, CPU) == pytest.approx(first + 2 * 4 * 100 * 100, rel=0.02)


def test_as_many_pictures_at_a_time_as_fit():
    needs = Needs({1: 100, 2: 130})
    assert [needs.at(rows) for rows in (1, 2, 4)] == [100, 130, 190]
    assert [needs.most_rows(room, batch_size=12) for room in (99, 100, 159, 160, 280, 430)] == [0, 1, 2, 3, 6, 12]


def test_what_was_tried_counts_and_lies_on_lines_between():
    """An optimiser that holds more than the passes of two samples hides what more samples take."""
    needs = Needs({1: 100, 2: 100}).with_tried(8, 160)
    assert [needs.at(rows) for rows in (2, 4, 8, 16)] == [100, 120, 160, 240]
    assert needs.most_rows(130, batch_size=16) == 4
    none = Needs({1: 50, 2: math.inf})
    assert [none.most_rows(room, batch_size=4) for room in (49, 60, 1e30)] == [0, 1, 1]
    assert Needs({1: math.inf, 2: math.inf}).most_rows(1e30, batch_size=4) == 0


def test_pieces_add_what_the_second_adds():
    """What an optimiser takes is once in each batch: 10 s of passes and 2 s beside them."""
    one, two = Iteration(seconds=12.0, forwards=3.0), Iteration(seconds=22.0, forwards=3.0)
    assert one.with_pieces(5, two=two) == Iteration(seconds=52.0, forwards=3.0)
    chance = Iteration(seconds=11.0, forwards=3.0)
    assert one.with_pieces(5, two=chance).seconds == 12.0


def test_measuring_takes_what_its_own_few_samples_take(tmp_path):
    """A call takes a second for each of 20 samples or fewer. The comparison draws 8: the student in 8 calls, its teacher, which
    is guided by two, in 16 pairs."""
    ticks = 0.0

    def slow_beginning(network):
        def denoise(x, sigma, **condition):
            nonlocal ticks
            ticks += max(1.0, len(x) / 20)
            return as_denoiser(network)(x, sigma, **condition)

        return denoise

    sample = Batch(torch.ones(1, 1, 2, 2), {"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    for rows, calls in ((64, 1), (4, 2), (3, 3)):
        trial = Rehearsal(
            method=options(guidance_scale=2.0).on(KIND),
            student=FullWeightsStudent(TinyNetwork(), TinyNetwork(seed=1), as_denoiser=slow_beginning),
            sample=sample,
            run=RunFolder(tmp_path, "run"),
            options=TrainOptions(batch_size=64),
            rows=rows,
            clock=lambda: ticks,
        )
        assert trial.costs()[0].measuring == calls * (8 + 2 * 16)


def test_a_plan_sums_its_stages():
    stages = options(iterations=10).on(KIND).stages()
    found = [
        StageCost(stage=stage, iteration=Iteration(seconds=seconds, forwards=forwards), measuring=3.0)
        for stage, seconds, forwards in zip(stages, (8.0, 4.0), (5.0, 3.0), strict=True)
    ]
    chosen = TrainOptions(batch_size=32, accumulation=8)
    plan = Plan(costs=found, options=chosen, needs=Needs({1: 10, 2: 12}), room=16, preparing=[("drawing", 60.0)])
    assert plan.rows == 4
    assert (plan.held, plan.fits) == (16, True)
    assert plan.training == 10 * 8.0 + 10 * 4.0 + 2 * 3.0
    assert plan.seconds == plan.training + 60.0
    assert plan.forwards == 32 * 10 * (5 + 3)
    assert plan.told()[0] == "drawing: 60 s"
    assert plan.left == plan.seconds
    assert dataclasses.replace(plan, done=4, preparing=[]).left == 6 * 8.0 + 10 * 4.0 + 2 * 3.0
    assert dataclasses.replace(plan, done=10, preparing=[]).left == 10 * 4.0 + 3.0
    assert "of these 13 iterations are done: 31 s are left" in dataclasses.replace(plan, done=13, preparing=[]).told()
    assert not any("are left" in line for line in plan.told())
    assert "16 to 8 steps: 10 iterations of 8 s, 83 s" in plan.told()
    millions = dataclasses.replace(plan, needs=Needs({1: 10e6, 2: 12e6}), room=16e9)
    assert (
        millions.told()[-1]
        == "memory beside the model: 16.0 MB of 16.00 GB that are free, with 4 of 32 pictures at a time"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1.4, "1 s"), (89, "89 s"), (100, "2 min"), (5399, "90 min"), (9000, "2.5 h"), (90000, "25 h")],
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("held", "said"),
    [(-3.0, "0.0 MB"), (2.34e6, "2.3 MB"), (9.9e7, "99.0 MB"), (1e8, "0.10 GB"), (6.543e9, "6.54 GB")],
)
def test_memory_is_said_as_people_do(held, said):
    assert size(held) == said
