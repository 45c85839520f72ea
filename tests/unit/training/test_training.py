"""The optimisation itself: what one optimiser step does, against the same mathematics written out."""

import itertools
import math
import types

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.objective.distance import Distance
from comfyui_fewstep.trainers.objective.method import Lesson, Target, TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training import loop
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.average import Average, start_left
from comfyui_fewstep.trainers.training.optimisation.micro_batches import in_pieces, split
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import table
from test_progressive import TinyNetwork, as_denoiser, batch, options
from thorough import first_then_thorough
from torch.optim import lr_scheduler

FAMILY = NoiseFamily.VARIANCE_EXPLODING
ITERATIONS = 12
KIND = TeacherKind(family=FAMILY, table=table(FAMILY), empty_prompt=True)


class Trained:
    """A short run of two stages on the closed-form data, and what it left."""

    def __init__(
        self, root, *, observers=(), hook=lambda _: None, learning_rate=1e-3, method=None, run=None, **training
    ):
        self.method = method or options(iterations=ITERATIONS, learning_rate=learning_rate).on(KIND)
        self.network, self.teacher = TinyNetwork(), TinyNetwork(seed=1)
        self.data = TensorData(
            x0=batch(64).x0,
            condition={"y": torch.arange(64.0).reshape(64, 1)},
            unconditional={"y": torch.zeros(1, 1)},
        )
        self.student = FullWeightsStudent(self.network, self.teacher, as_denoiser=as_denoiser)
        hook(self)
        self.run = run or RunFolder(root, "run")
        chosen = TrainOptions(**{"batch_size": 12, "log_every": 1, "seed": 4, **training})
        train(self.run, self.method, self.student, self.data, options=chosen, observers=list(observers))

    def weights(self):
        return self.network.state_dict()


def gradients(root, **training):
    """The student's gradient after each backward pass, what the networks saw, and the run; the teacher never changes."""
    seen, found = {"student": [], "teacher": []}, []

    def counting(role, denoiser):
        def counted(x, sigma, **condition):
            assert len(x) == len(sigma) == len(condition["y"])
            seen[role].append(len(x))
            return denoiser(x, sigma, **condition)

        return counted

    def hook(trained):
        trained.student.teacher = counting("teacher", trained.student.teacher)
        trained.student.denoiser = counting("student", trained.student.denoiser)
        trained.student.promote = lambda: None
        trained.network.hidden.register_post_accumulate_grad_hook(lambda p: found.append(p.grad.clone()))

    trained = Trained(root, hook=hook, gradient_clip=1e9, **training)
    return found, seen, trained


@pytest.mark.parametrize("pieces", first_then_thorough([3], [2, 12]))
def test_accumulation_changes_the_gradient_by_rounding_only(pieces, tmp_path):
    """The same draws, and the mean over the whole batch: neither the sum of the pieces' means nor a share of a share."""
    whole, _, one = gradients(tmp_path / "one")
    parts, seen, many = gradients(tmp_path / "many", accumulation=pieces)
    torch.testing.assert_close(parts[pieces - 1], whole[0], rtol=1e-5, atol=1e-7)
    size = 12 // pieces
    assert set(seen["student"]) == set(seen["teacher"]) == {size}, "no network sees more than a piece"
    for line, other in zip(many.run.metrics(), one.run.metrics(), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert line["x0_error"] == pytest.approx(other["x0_error"], rel=1e-3)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)


def test_pieces_keep_samples_levels_and_conditions_together():
    """The teacher's answer names each sample's condition and level; no piece may pair it with another's."""

    def denoiser(x, sigma, y, shared):
        assert shared.shape == (1, 2)
        return x + 100.0 * sigma[:, None] + 10000.0 * y

    x, sigma, y = torch.arange(6.0)[:, None], torch.arange(6.0) + 1, torch.arange(6.0)[:, None] + 1
    condition = {"y": y, "shared": torch.zeros(1, 2)}
    expected = denoiser(x, sigma, **condition)
    assert torch.equal(in_pieces(denoiser, 3)(x, sigma, **condition), expected)
    deepest = Target(x + 2.0, sigma, condition, expected + 2.0, sigma)
    beside = Target(x + 1.0, sigma, condition, expected + 1.0, sigma, beside=deepest)
    pieces = split(Target(x, sigma, condition, expected, sigma * 2, beside=beside), 3)
    assert [len(piece.x_t) for piece in pieces] == [2, 2, 2]
    assert torch.equal(torch.cat([denoiser(p.x_t, p.sigma, **p.condition) for p in pieces]), expected)
    assert torch.equal(torch.cat([p.x0 for p in pieces]), expected)
    assert torch.equal(torch.cat([p.weight for p in pieces]), sigma * 2)
    for depth, further in ((1.0, [p.beside for p in pieces]), (2.0, [p.beside.beside for p in pieces])):
        assert [len(piece.x_t) for piece in further] == [2, 2, 2], "what is beside goes with its samples"
        assert torch.equal(torch.cat([p.x0 - p.x_t for p in further]), expected - x)
        assert torch.equal(torch.cat([p.x_t for p in further]), x + depth)


ONE_STAGE = {"iterations": ITERATIONS, "learning_rate": 1e-3}
METHODS = {
    "progressive": options(iterations=ITERATIONS, learning_rate=1e-3),
    "guidance": GuidanceOptions(guidance_scale=3.0, **ONE_STAGE),
    "consistency": ConsistencyOptions(steps=2, levels=8, guidance_scale=2.0, distance=Distance.SQUARED, **ONE_STAGE),
    "consistency training": ConsistencyTrainingOptions(
        steps=2, first_levels=4, last_levels=8, distance=Distance.SQUARED, **ONE_STAGE
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_default_run_is_the_plain_loop_bit_for_bit(name, tmp_path):
    """Adam, the annealed rate, clipping and one stream for each iteration, written out: nothing else may happen."""
    trained = Trained(tmp_path, method=METHODS[name].on(KIND))
    network, teacher = TinyNetwork(), TinyNetwork(seed=1)
    for number, stage in enumerate(trained.method.stages()):
        optimiser = torch.optim.Adam(network.parameters())
        for i in range(ITERATIONS):
            optimiser.param_groups[0]["lr"] = 1e-3 * (1.0 - i / ITERATIONS)
            generator = torch.Generator().manual_seed((4 * 0x9E3779B97F4A7C15 + number * ITERATIONS + i) % 2**63)
            drawn = trained.data.take(torch.randint(64, (12,), generator=generator))
            lesson = Lesson(
                batch=drawn, stage=number, iteration=i, teacher=teacher, student=network, generator=generator
            )
            target = trained.method.target(lesson)
            optimiser.zero_grad()
            error = (network(target.x_t, target.sigma) - target.x0) ** 2
            (target.weight.reshape(-1, 1, 1, 1) * error).mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        teacher.load_state_dict(network.state_dict())
        assert stage.iterations == ITERATIONS
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in trained.weights().items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 8, "accumulation": 3}, "batch_size is 8 and accumulation is 3; batch_size must be a multiple"),
        ({"accumulation": 0}, "accumulation is 0; it must be at least 1"),
        ({"learning_rate_schedule": "step"}, "learning_rate_schedule is 'step'; allowed are linear, cosine, constant"),
        (
            {"optimiser": "schedule_free"},
            "learning_rate_schedule is 'linear' .* set learning_rate_schedule to constant",
        ),
        (
            {"optimiser": "schedule_free", "learning_rate_schedule": "constant", "ema_decay": 0.9},
            "ema_decay is 0.9; schedule_free averages",
        ),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; allowed is 0 .off. to below 1"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"warmup": -1}, "warmup is -1; it must not be negative"),
    ],
)
def test_bad_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        TrainOptions(**changed)


def torch_rates(kind, *, warmup):
    """The rates of torch's own schedulers over a stage of ITERATIONS at a base of 1e-3."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    rest = ITERATIONS - warmup
    after = {
        "linear": lambda: lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=rest),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimiser, T_max=rest),
        "constant": lambda: lr_scheduler.ConstantLR(optimiser, factor=1.0),
    }
    if warmup:
        start = 1.0 / (warmup + 1)
        rising = lr_scheduler.LinearLR(optimiser, start_factor=start, end_factor=1.0, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimiser, [rising, after[kind]()], milestones=[warmup])
    else:
        scheduler = after[kind]()
    rates = []
    for _ in range(ITERATIONS):
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("kind", "warmup"),
    first_then_thorough(
        [("linear", 0), ("cosine", 4), ("constant", 1)],
        [(kind, warmup) for kind in ("linear", "cosine", "constant") for warmup in (0, 1, 4)],
    ),
)
def test_the_rates_are_those_of_torchs_schedulers(kind, warmup, tmp_path):
    """In both stages, as logged; and the optimiser is given them, since Adam's first update is as long as its rate."""
    moved = []

    def hook(trained):
        start = trained.network.out.detach().clone()
        trained.network.out.register_post_accumulate_grad_hook(
            lambda p: moved.append((p.detach() - start).abs().max().item())
        )

    trained = Trained(tmp_path, hook=hook, learning_rate_schedule=kind, warmup=warmup)
    expected = torch_rates(kind, warmup=warmup)
    assert [line["learning_rate"] for line in trained.run.metrics()] == pytest.approx(expected * 2, abs=1e-12)
    assert moved[1] == pytest.approx(expected[0], rel=1e-2)


def test_a_warmup_longer_than_a_stage_is_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="warmup is 12, but the stage '16 to 8 steps' has 12 iterations; allowed is 0"):
        Trained(tmp_path, warmup=12)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_average_is_the_recursion_written_out_and_each_stages_result(tmp_path):
    """average = d average + (1 - d) weights from the weights each stage begins at; the next stage begins at the average."""
    steps, borders = {}, []

    def hook(trained):
        start.append(trained.network.hidden.detach().clone())
        network.append(trained.network)
        promote = trained.student.promote
        trained.student.promote = lambda: (borders.append(trained.network.hidden.detach().clone()), promote())

    def observe(metrics):
        steps[metrics.iteration] = network[0].hidden.detach().clone()

    start, network = [], []
    trained = Trained(tmp_path, hook=hook, observers=[observe], ema_decay=0.8, learning_rate=1e-2)
    average = start[0].double()
    for i in range(1, 2 * ITERATIONS + 1):
        average = 0.8 * average + 0.2 * steps[i].double()
        if i % ITERATIONS == 0:
            result = borders[i // ITERATIONS - 1]
            torch.testing.assert_close(result.double(), average, rtol=1e-5, atol=1e-6)
            assert (result - steps[i]).abs().max() > 1e-3, "the average is not the last weights"
            average = result.double()
    assert torch.equal(trained.network.hidden, borders[1])
    assert torch.equal(trained.teacher.hidden, borders[1])
    plain = Trained(tmp_path / "plain", learning_rate=1e-2)
    assert plain.run.metrics()[:ITERATIONS] == trained.run.metrics()[:ITERATIONS], "averaging does not steer a stage"


def test_the_average_of_half_precision_weights_keeps_small_steps():
    """A step of 1/128 at decay 0.999 moves the average by less than bfloat16 can hold at 1."""
    weight = torch.ones(3, dtype=torch.bfloat16)
    average = Average([weight], decay=0.999)
    weight.add_(1 / 128)
    for done in range(1000):
        average.update(done)
    average.to_weights()
    expected = 1 + (1 - 0.999**1000) / 128
    assert average.state_dict()["average.0"].tolist() == pytest.approx([expected] * 3, abs=1e-5)
    assert torch.equal(weight, torch.full((3,), expected, dtype=torch.bfloat16))


def test_a_short_run_is_what_was_learnt_and_not_its_start(tmp_path):
    """a = d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)), n anew in each stage; of the start 1 / C(n + 9, 9) is left."""
    steps, borders = {}, []

    def hook(trained):
        start.append(trained.network.hidden.detach().clone())
        promote = trained.student.promote
        trained.student.promote = lambda: (borders.append(trained.network.hidden.detach().clone()), promote())
        observers.append(lambda metrics: steps.update({metrics.iteration: trained.network.hidden.detach().clone()}))

    start, observers = [], []
    Trained(tmp_path, hook=hook, observers=observers, ema_decay=0.6, ema_warms_up=True, learning_rate=1e-2)
    average = start[0].double()
    for stage in range(2):
        for n in range(ITERATIONS):
            decay = min(0.6, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * steps[stage * ITERATIONS + n + 1].double()
        torch.testing.assert_close(borders[stage].double(), average, rtol=1e-5, atol=1e-6)
        average = borders[stage].double()
    assert start_left(0.999, 100, warms_up=True) == pytest.approx(1 / math.comb(109, 9))
    assert start_left(0.999, 100, warms_up=False) == pytest.approx(0.999**100)
    assert start_left(0.6, 20, warms_up=True) == pytest.approx(
        math.prod((1 + n) / (10 + n) for n in range(13)) * 0.6**7
    )


class Stopped(Exception):
    pass


def stop_at(iteration):
    def observer(metrics):
        if metrics.iteration == iteration:
            raise Stopped

    return observer


RESUMED = {
    "average": {"ema_decay": 0.8},
    "warm-up": {"learning_rate_schedule": "cosine", "warmup": 4, "accumulation": 3},
}


@pytest.mark.parametrize(
    ("name", "iteration"),
    first_then_thorough([("average", 12), ("warm-up", 3)], [(name, i) for name in RESUMED for i in (3, 12, 13)]),
)
def test_a_broken_run_resumes_bit_for_bit(name, iteration, tmp_path):
    """Within a stage, at its last iteration and after it; the student's weights, the teacher's and the metrics."""
    training = RESUMED[name]
    unbroken = Trained(tmp_path / "a", **training)
    with pytest.raises(Stopped):
        Trained(tmp_path / "b", observers=[stop_at(iteration)], **training)
    resumed = Trained(tmp_path / "b", **training)
    assert all(torch.equal(value, unbroken.weights()[name]) for name, value in resumed.weights().items())
    assert torch.equal(resumed.teacher.hidden, unbroken.teacher.hidden)
    lines = {line["iteration"]: line for line in unbroken.run.metrics()}
    assert all(line == lines[line["iteration"]] for line in resumed.run.metrics())
    assert len(resumed.run.metrics()) == len(lines)


def test_the_time_that_is_left_is_that_of_the_iterations_of_this_start(tmp_path, monkeypatch):
    """Those that were made before a resume took none of its time: at 2 seconds each there are 2 for each that is to come."""
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    left = {}

    def observe(metrics):
        left[metrics.iteration] = metrics.seconds_left

    with pytest.raises(Stopped):
        Trained(tmp_path, observers=[observe, stop_at(9)])
    Trained(tmp_path, observers=[observe])
    assert left == {i: 2.0 * (2 * ITERATIONS - i) for i in range(1, 2 * ITERATIONS + 1)}


class Gain(torch.nn.Module):
    """x0 = gain * x, computed in a precision of its own, as a host's network is."""

    def __init__(self, gain, dtype):
        super().__init__()
        self.gain, self.dtype = torch.nn.Parameter(torch.tensor([gain])), dtype

    def forward(self, x):
        return self.gain.to(self.dtype) * x.to(self.dtype)


def gradient_norm(root, dtype, monkeypatch):
    """Of the first iteration, on pictures so many and errors so small that the mean's gradients are below 6e-8."""
    student = FullWeightsStudent(
        Gain(0.5 + 2**-11, dtype), Gain(0.5, dtype), as_denoiser=lambda network: lambda x, sigma, **_: network(x)
    )
    data = TensorData(x0=torch.randn(8, 1, 128, 128, generator=torch.Generator().manual_seed(0)), condition={})
    method = options(start_steps=2, target_steps=1, iterations=1).on(KIND)
    ones = torch.ones(8)

    def halved(lesson):
        return Target(lesson.batch.x0, ones, {}, 0.5 * lesson.batch.x0, ones)

    monkeypatch.setattr(method, "target", halved)
    run = RunFolder(root, "run")
    train(run, method, student, data, options=TrainOptions(batch_size=8, log_every=1))
    return run.metrics()[0]["gradient_norm"]


def test_small_gradients_survive_half_precision(tmp_path, monkeypatch):
    full, half = (gradient_norm(tmp_path / str(dtype), dtype, monkeypatch) for dtype in (torch.float32, torch.float16))
    assert half == pytest.approx(full, rel=0.3)
