"""Who learns besides the student: with its own target, pace and draws, in the checkpoint, and never in anybody's way."""

import contextlib
import dataclasses
import types

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.methods.guidance import GuidanceDistillation, GuidanceOptions
from comfyui_fewstep.trainers.objective.loss import loss_and_error
from comfyui_fewstep.trainers.objective.method import Companion, Target, TeacherKind
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.gradient_checkpointing import checkpointed
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import _Training, train
from comfyui_fewstep.trainers.training.optimisation.bands import NoiseBands
from comfyui_fewstep.trainers.training.optimisation.learner import Learner
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.optimisation.tally import NonFiniteLoss
from gaussian import table
from process_worker import data, student_of
from thorough import first_then_thorough

FAMILY = NoiseFamily.VARIANCE_EXPLODING
KINDS = ["lora", "full"]
ITERATIONS, LEAD, UPDATES = 6, 2, 3


class Followed(GuidanceDistillation):
    """Guidance distillation beside which a companion learns to denoise what the student says of pure noise."""

    lead, updates, broken = LEAD, UPDATES, False

    def stages(self):
        return [dataclasses.replace(stage, lead=self.lead) for stage in super().stages()]

    def companions(self, *, stage):
        return [Companion(name="fake", learning_rate=1e-2, updates=self.updates, rank=5)] if self.updates else []

    @torch.no_grad()
    def examples(self, lesson):
        noise = 10.0 * torch.randn(lesson.batch.x0.shape, generator=torch.Generator().manual_seed(lesson.iteration))
        return {"x0": lesson.student(noise, torch.full((len(noise),), 10.0), **lesson.batch.condition)}

    @torch.no_grad()
    def companion_target(self, name, lesson):
        assert name == "fake"
        x0, sigma = lesson.examples["x0"], torch.ones(len(lesson.batch.x0))
        x_t = x0 + lesson.noise()
        drift = (lesson.companions["fake"](x_t, sigma, **lesson.batch.condition) - x0).flatten(1).mean(dim=1)
        if self.broken and lesson.iteration == 3:
            x0 = x0 * torch.nan
        return Target(x_t, sigma, lesson.batch.condition, x0, sigma, measures={"drift": drift, "one": sigma})


def method(**changed):
    options = GuidanceOptions(guidance_scale=2.0, iterations=ITERATIONS, learning_rate=1e-2)
    made = Followed(options, TeacherKind(family=FAMILY, table=table(FAMILY), empty_prompt=True))
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def options(**changed):
    return TrainOptions(**{"batch_size": 4, "log_every": 1, "checkpoint_every": 100, "seed": 3, **changed})


def learning(kind):
    """On a network that writes into what autograd saved, as the hosts' do."""
    student = student_of(kind)
    student.writes_in_place = True
    return student


def trained(root, kind, *, observers=(), followed=None, **training):
    student, run = learning(kind), RunFolder(root, "run")
    train(run, followed or method(), student, data(), options=options(**training), observers=list(observers))
    return student, run


def snapshot(tensors):
    return [value.detach().clone() for value in tensors]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def checkpoint(run):
    return read_tensors(run.checkpoints()[-1])[0]


def fakes(run):
    return {name: value for name, value in checkpoint(run).items() if name.startswith("companion.fake.")}


def test_a_pull_is_the_gradient_on_the_students_sample():
    """Times the weight, over the number of elements; the loss is half the squared pull, whatever the student says."""
    x0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    pull, weight = torch.randn(3, 2).float(), torch.tensor([1.0, 0.5, 2.0])
    ones = torch.ones(3)
    target = Target(x0.detach(), ones, {}, x0.detach() - pull, weight, pull=pull)
    loss, error = loss_and_error(lambda x, sigma: x0, target)
    loss.backward()
    torch.testing.assert_close(x0.grad, (weight[:, None] * pull / 6).double())
    torch.testing.assert_close(loss.detach(), (weight[:, None] * pull**2).mean() / 2)
    assert torch.equal(error.detach(), pull**2)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_touches_anothers_weights(kind, tmp_path):
    """Bit for bit: after each update only its own learner's weights are others, and the network below never is."""
    student = learning(kind)
    loop = _Training(RunFolder(tmp_path, "run"), method(), student, data(), options(), [], Processes())
    (one,) = loop._companions._all.values()
    network = student._teacher_module if kind == "full" else student._denoise.__closure__[0].cell_contents
    base = snapshot(network.parameters())
    seen = []

    def watching(learner, own, others):
        update = learner.update

        def watched(target, *, rate):
            before = snapshot(own()), snapshot(others())
            row = update(target, rate=rate)
            assert equal(before[1], others()), "the other's weights"
            assert not equal(before[0], own()), "its own"
            seen.append(own)
            return row

        learner.update = watched

    watching(loop._learner, student.parameters, one.network.parameters)
    watching(one.learner, one.network.parameters, student.parameters)
    for _ in range(ITERATIONS):
        loop._step(loop._stages[0])
    assert [own == student.parameters for own in seen].count(True) == ITERATIONS - LEAD
    assert len(seen) == ITERATIONS - LEAD + ITERATIONS * UPDATES
    assert equal(base, network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_companion_begins_as_the_teacher_bit_for_bit(kind):
    student = student_of(kind)
    made = student.companion(rank=2, seed=1)
    x, sigma, y = torch.randn(4, 1, 2, 2), torch.ones(4), torch.ones(4, 1)
    assert torch.equal(made.denoiser(x, sigma, y=y), student.teacher(x, sigma, y=y))
    assert made.parameters()[0].shape[0] == 2
    other = student.companion(rank=0, seed=2)
    assert other.parameters()[0].shape[0] == (3 if kind == "lora" else 32)


def test_a_companion_learns_on_every_layer_that_full_weights_may_change():
    """On the linear ones alone it cannot know what a student of convolutions draws: the pull then never ends."""

    def convolutions():
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1))

    student = FullWeightsStudent(
        convolutions(), convolutions(), as_denoiser=lambda module: lambda x, sigma, **_: module(x)
    )
    shapes = {tuple(value.shape) for value in student.companion(rank=2, seed=0).parameters()}
    assert shapes == {(2, 1, 3, 3), (4, 2, 1, 1), (2, 4, 3, 3), (1, 2, 1, 1)}


def test_both_learn_with_the_clip_that_is_asked_for_and_the_momentum_of_their_plans(tmp_path):
    """After Adam's first step its moments are 1 - beta of the clipped gradient and of its square, elementwise.

    Of nothing else: the student's weight decay would draw a companion back to the teacher, and what it says towards no pull.
    """
    followed, begun = method(lead=0, updates=1), learning("lora")
    own = [dataclasses.replace(stage, betas=(0.3, 0.8)) for stage in followed.stages()]
    followed.stages = lambda: own
    chosen = options(gradient_clip=1e-3, optimiser="adamw", weight_decay=0.1)  # whose decay is beside the moments
    loop = _Training(RunFolder(tmp_path, "run"), followed, begun, data(), chosen, [], Processes())
    loop._step(loop._stages[0])
    (one,) = loop._companions._all.values()
    for learner, (first, second) in ((loop._learner, (0.3, 0.8)), (one.learner, (0.0, 0.99))):
        state = learner.optimiser.state
        assert sum(float(value.grad.square().sum()) for value in state) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
        for value, moments in state.items():
            torch.testing.assert_close(moments["exp_avg"], (1.0 - first) * value.grad)
            torch.testing.assert_close(moments["exp_avg_sq"], (1.0 - second) * value.grad.square())


def test_what_the_student_is_asked_for_is_drawn_anew_in_each_iteration(tmp_path):
    followed, drawn = method(), []
    asked = followed.examples

    def watched(lesson):
        drawn.append(lesson.noise())
        return asked(lesson)

    followed.examples = watched
    trained(tmp_path, "lora", followed=followed)
    assert len(drawn) == len(torch.stack(drawn).flatten(1).unique(dim=0)) == ITERATIONS


def test_each_update_of_each_companion_has_draws_of_its_own(tmp_path):
    followed, drawn = method(), []
    learnt, (fake,) = followed.companion_target, followed.companions(stage=0)

    def watched(name, lesson):
        target = learnt("fake", lesson)
        drawn.append(target.x_t - target.x0)
        return target

    followed.companion_target = watched
    followed.companions = lambda *, stage: [fake, dataclasses.replace(fake, name="another")]
    trained(tmp_path, "lora", followed=followed)
    noise = torch.stack(drawn).flatten(1)
    assert len(noise) == len(noise.round(decimals=4).unique(dim=0)) == 2 * ITERATIONS * UPDATES


def test_an_average_warms_up_over_the_students_own_updates(tmp_path):
    """The lead's are none: min(decay, (1 + n) / (10 + n)) after n of them, else the start would stay in the result."""
    steps, student = [], learning("lora")
    begun = snapshot(student.parameters())
    watch = [lambda metrics: steps.append(snapshot(student.parameters()))]
    chosen = options(ema_decay=0.999, ema_warms_up=True)
    train(RunFolder(tmp_path, "run"), method(), student, data(), options=chosen, observers=watch)
    for result, average, *weights in zip(student.parameters(), begun, *steps[LEAD:], strict=True):
        for n, value in enumerate(weights):
            decay = (1 + n) / (10 + n)
            average = decay * average + (1 - decay) * value
        torch.testing.assert_close(result, average, rtol=1e-5, atol=1e-7)


def test_the_students_draws_are_its_own(tmp_path):
    """However often a companion learns that the student's target does not ask, the student is the same to the bit."""
    results = [
        trained(tmp_path / str(updates), "lora", followed=method(updates=updates, lead=0))[0].parameters()
        for updates in (0, 1, 3)
    ]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_in_the_lead_the_companion_alone_learns(tmp_path):
    """And the student's rate falls over its own updates."""
    weights, lines = [], []
    student = learning("lora")

    def watch(metrics):
        weights.append(snapshot(student.parameters()))
        lines.append(metrics)

    run = RunFolder(tmp_path, "run")
    begun = snapshot(student.parameters())
    train(run, method(), student, data(), options=options(), observers=[watch])
    assert [equal(begun, one) for one in weights[: LEAD + 1]] == [True, True, False]
    assert [line.learning_rate for line in lines] == pytest.approx([0.0, 0.0, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert [line["loss"] is None for line in run.metrics()] == [True] * LEAD + [False] * (ITERATIONS - LEAD)
    assert all(line["measures"]["fake_loss"] > 0.0 for line in run.metrics())
    assert [line["measures"]["fake_one"] for line in run.metrics()] == [1.0] * ITERATIONS
    assert [len(losses) for losses in run.losses().values()] == [ITERATIONS - LEAD]


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("kind", "at"), first_then_thorough([("lora", 1), ("full", 4)], [("lora", 4), ("full", 1)]))
def test_a_run_with_a_companion_resumes_bit_for_bit(kind, at, tmp_path):
    """In the lead and after it: its weights and moments are in the checkpoint, and its draws follow the iteration."""

    def stop(metrics):
        if metrics.iteration == at:
            raise Stopped

    whole, unbroken = trained(tmp_path / "whole", kind)
    with pytest.raises(Stopped):
        trained(tmp_path / "broken", kind, observers=[stop])
    again, resumed = trained(tmp_path / "broken", kind)
    assert equal(whole.parameters(), again.parameters())
    assert resumed.metrics() == unbroken.metrics()


def test_its_weights_and_moments_are_in_the_checkpoint(tmp_path):
    def stop(metrics):
        if metrics.iteration == 3:
            raise Stopped

    with pytest.raises(Stopped):
        trained(tmp_path, "lora", observers=[stop])
    kept = fakes(RunFolder(tmp_path, "run"))
    assert {name.rsplit(".", 1)[1] for name in kept} == {"up", "down", "step", "exp_avg", "exp_avg_sq"}
    assert max(float(value) for name, value in kept.items() if name.endswith(".step")) == 3 * UPDATES


def test_blocks_computed_again_see_the_companions_adapters(tmp_path):
    """With gradient checkpointing the way back runs the blocks once more: the result is the same to the bit."""
    plain, _ = trained(tmp_path / "plain", "lora")
    student = learning("lora")
    network = student._denoise.__closure__[0].cell_contents
    with checkpointed(network):
        train(RunFolder(tmp_path, "run"), method(), student, data(), options=options())
    assert equal(plain.parameters(), student.parameters())
    unbroken, again = (checkpoint(RunFolder(root, "run")) for root in (tmp_path / "plain", tmp_path))
    assert all(torch.equal(unbroken[name], again[name]) for name in unbroken)


@pytest.mark.parametrize("kind", first_then_thorough(["lora"], KINDS))
def test_pieces_change_it_by_rounding_only(kind, tmp_path):
    one, whole = trained(tmp_path / "one", kind)
    four, parts = trained(tmp_path / "four", kind, accumulation=4)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for line, other in zip(whole.metrics(), parts.metrics(), strict=True):
        for name, value in line["measures"].items():
            assert other["measures"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_companion_whose_loss_is_not_finite_is_named(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"the fake's loss became nan at iteration 4 \(stage guidance 2 in one"):
        trained(tmp_path, "lora", followed=method(broken=True))


def test_a_run_that_begins_at_anothers_checkpoint_has_its_companion(tmp_path):
    """The weights, bit for bit, without the moments; a companion of another rank is named."""
    with pytest.raises(Stopped):
        trained(tmp_path / "old", "lora", observers=[stop_at(4)])
    tensors = checkpoint(RunFolder(tmp_path / "old", "run"))
    for rank, fits in ((5, True), (6, False)):
        new = RunFolder(tmp_path / str(rank), "run")
        bare = {name: value for name, value in tensors.items() if not name.startswith("optimiser.")}
        new.save_checkpoint(4, bare, {"stage": 0, "stage_iteration": 4, "started": True})
        followed = method()
        followed.companions = lambda stage, rank=rank: [Companion(name="fake", learning_rate=1e-2, rank=rank)]
        loop = _Training(new, followed, learning("lora"), data(), options(), [], Processes())
        if not fits:
            with pytest.raises(
                ValueError, match="the checkpoint's fake is another than this run's: these adapters do not"
            ):
                loop._restore()
            continue
        loop._restore()
        (one,) = loop._companions._all.values()
        assert all(
            torch.equal(value, tensors[f"companion.fake.{key}"]) for key, value in one.network.state_dict().items()
        )
        assert one.learner.optimiser.state == {}
        assert (
            max(float(value.abs().max()) for key, value in one.network.state_dict().items() if key.endswith("up")) > 0
        )


def stop_at(iteration):
    def stop(metrics):
        if metrics.iteration == iteration:
            raise Stopped

    return stop


def test_every_target_beside_another_is_learnt_from():
    """Consistency has the pull beside it, and that the anchor: the gradient is the sum of all three."""
    weight = torch.zeros(1, requires_grad=True)
    network = types.SimpleNamespace(parameters=lambda: [weight], autograd=contextlib.nullcontext)
    learner = Learner(
        network,
        torch.optim.SGD([weight], lr=1.0),
        loss=lambda piece: ((piece.weight * weight).mean(), torch.zeros_like(piece.x0)),
        gradient_clip=1e9,
        accumulation=2,
        processes=Processes(),
        bands=NoiseBands(table(FAMILY), device=torch.device("cpu")),
    )
    x, ones, target = torch.ones(4, 1), torch.ones(4), None
    for factor in (100.0, 10.0, 1.0):
        target = Target(x, ones, {}, x, factor * ones, beside=target)
    learner.update(target, rate=1.0)
    assert weight.item() == pytest.approx(-111.0)


def test_a_companion_that_the_other_run_had_not_begins_anew(tmp_path):
    """A critic that a run is to go on with, say."""
    with pytest.raises(Stopped):
        trained(tmp_path / "old", "lora", observers=[stop_at(4)])
    tensors = checkpoint(RunFolder(tmp_path / "old", "run"))
    new, followed = RunFolder(tmp_path / "new", "run"), method()
    bare = {name: value for name, value in tensors.items() if not name.startswith("optimiser.")}
    new.save_checkpoint(4, bare, {"stage": 0, "stage_iteration": 4, "started": True})
    followed.companions = lambda stage: [
        Companion(name=name, learning_rate=1e-2, rank=rank) for name, rank in (("fake", 5), ("other", 3))
    ]
    loop = _Training(new, followed, learning("lora"), data(), options(), [], Processes())
    before = snapshot(loop._companions._all["other"].network.state_dict().values())
    loop._restore()
    both = loop._companions._all
    assert equal(both["other"].network.state_dict().values(), before)
    assert all(
        torch.equal(value, bare[f"companion.fake.{key}"]) for key, value in both["fake"].network.state_dict().items()
    )
    both.pop("fake")
    with pytest.raises(ValueError, match="the checkpoint's other is another than this run's"):
        loop._companions.load_state_dict(bare, {})  # of a resume, whose checkpoint has them all
