"""The run folder and the loop: a run that is broken anywhere goes on as if it had not been."""

import dataclasses
import json
import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors, write_atomically, write_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.distillation import Distillation, Recorded, as_begun
from comfyui_fewstep.trainers.training.optimisation.options import OF_NEW_RUNS, TrainOptions
from comfyui_fewstep.trainers.training.optimisation.tally import NonFiniteLoss
from gaussian import gaussian_denoiser, table
from test_progressive import TinyNetwork, as_denoiser, batch, options
from thorough import first_then_thorough

FAMILY = NoiseFamily.VARIANCE_EXPLODING
TRAINING = TrainOptions(batch_size=8, log_every=5, checkpoint_every=7, seed=4)


def distillation(root, *, name="run", training=TRAINING, teacher="a" * 64, **changed):
    return Distillation(
        run=RunFolder(root, name),
        method=options(**{"iterations": 12, **changed}).on(TeacherKind(family=FAMILY, table=table(FAMILY))),
        data=TensorData(x0=batch(64).x0, condition={"y": torch.ones(1, 1)}),
        options=training,
        teacher_sha256=teacher,
        prediction_type="x0",
    )


def execute(made, observers=()):
    network = TinyNetwork()
    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    with made.run.locked():
        done = made.execute(student, observers=observers)
    return network.state_dict(), done


class Stopped(Exception):
    pass


def stop_at(iteration):
    def observer(metrics):
        if metrics.iteration == iteration:
            raise Stopped

    return observer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to, and its weights. Tests read its folder and change nothing in it."""
    made = distillation(tmp_path_factory.mktemp("whole"))
    weights, done = execute(made)
    assert done
    return made, weights


@pytest.mark.parametrize("iteration", first_then_thorough([6, 7, 12, 13], [1, 11, 20, 24]))
def test_a_cancelled_run_resumes_bit_for_bit(iteration, whole, tmp_path):
    """Around checkpoints, logged iterations and the border between two stages."""
    unbroken, expected = whole
    broken = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(broken, [stop_at(iteration)])
    assert not broken.run.finished
    seen = []
    resumed, _ = execute(broken, [lambda metrics: seen.append(metrics.iteration)])
    assert seen == list(range(iteration + 1, 25)), "resume goes on with the next iteration"
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    # a cancel logs no mean of its own, so only the means over an interval that it cut in two may differ
    cut = math.ceil(iteration / 5) * 5 if iteration % 5 else None
    lines = {line["iteration"]: line for line in unbroken.run.metrics()}
    for line in broken.run.metrics():
        if line["iteration"] not in (cut, 12):
            assert line == lines[line["iteration"]]


def test_the_student_of_a_stage_teaches_the_next(tmp_path):
    """At the end of each stage the teacher's weights are the student's, and stay so while the next one trains."""
    network, teacher = TinyNetwork(), TinyNetwork(seed=1)
    student = FullWeightsStudent(network, teacher, as_denoiser=as_denoiser)
    first, at_border, later = teacher.hidden.clone(), [], []

    def watch(metrics):
        if metrics.iteration == 12:
            assert torch.equal(teacher.hidden, first)
            at_border.append(network.hidden.detach().clone())
        if metrics.iteration > 12:
            later.append(teacher.hidden.clone())

    made = distillation(tmp_path)
    with made.run.locked():
        made.execute(student, observers=[watch])
    assert len(later) == 12
    assert all(torch.equal(hidden, at_border[0]) for hidden in later)


def test_a_finished_run_is_loaded_not_trained(whole):
    made, first = whole
    _, again = execute(made, [stop_at(1)])
    assert not again
    assert all(torch.equal(read_student(made.run.student_file)[0][name], first[name]) for name in first)


def test_the_seed_decides_the_run(whole, tmp_path):
    _, first = whole
    same, other = (
        execute(distillation(tmp_path, name=name, training=TrainOptions(batch_size=8, seed=seed)))[0]
        for name, seed in (("same", 4), ("other", 5))
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["hidden"], other["hidden"])


def test_the_learning_rate_falls_to_zero_in_every_stage(tmp_path):
    made = distillation(tmp_path, training=TrainOptions(batch_size=8, log_every=1))
    execute(made)
    rates = [line["learning_rate"] for line in made.run.metrics()]
    assert rates == pytest.approx([1e-3 * (1 - i / 12) for i in range(12)] * 2)


def test_the_optimiser_gets_what_was_asked_for(tmp_path):
    """Four different numbers, so that none can stand in for another."""
    from comfyui_fewstep.trainers.training.loop import _Training

    made = distillation(tmp_path)
    student = FullWeightsStudent(TinyNetwork(), TinyNetwork(), as_denoiser=as_denoiser)
    training = TrainOptions(batch_size=8, optimiser="adamw", weight_decay=0.037, gradient_clip=0.5)
    loop = _Training(made.run, made.method, student, made.data, training, [], Processes())
    (group,) = loop._learner.optimiser.param_groups
    assert (type(loop._learner.optimiser).__name__, group["weight_decay"]) == ("AdamW", 0.037)
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_a_run_that_never_began_leaves_its_name_free(tmp_path):
    refused = distillation(tmp_path, training=TrainOptions(batch_size=8, seed=4, warmup=99))
    with pytest.raises(ValueError, match="warmup is 99"):
        execute(refused)
    assert (refused.run.path / "run.json").exists()
    _, done = execute(distillation(tmp_path))
    assert done


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"start_steps": 8}, "method.start_steps"),
        ({"training": TrainOptions(batch_size=9, seed=4)}, "training.batch_size"),
        ({"teacher": "b" * 64}, "teacher_sha256"),
    ],
)
def test_a_folder_of_another_run_is_refused(changed, named, whole):
    folder = whole[0].run.path.parent
    before = sorted(path.read_bytes() for path in folder.rglob("*.*") if path.is_file())
    with pytest.raises(ValueError, match=f"holds another run.*{named}"):
        execute(distillation(folder, **changed))
    assert sorted(path.read_bytes() for path in folder.rglob("*.*") if path.is_file()) == before


def test_another_seed_alone_is_said_and_the_runs_own_offered(whole):
    """Editors draw a new seed after every start unless they are told not to."""
    folder, other = whole[0].run.path.parent, dataclasses.replace(TRAINING, seed=977)
    words = "begun with the seed 4, and seed is 977 here; all else is the same. Set seed to 4, with control after"
    with pytest.raises(ValueError, match=words):
        execute(distillation(folder, training=other))
    with pytest.raises(ValueError, match=r"holds another run.*teacher_sha256.*training\.seed: there 4, here 977"):
        execute(distillation(folder, training=other, teacher="b" * 64))


def test_saving_more_often_is_still_the_same_run(whole):
    rarely = TrainOptions(batch_size=8, seed=4, log_every=5, checkpoint_every=100)
    _, done = execute(distillation(whole[0].run.path.parent, training=rarely))
    assert not done


@pytest.mark.parametrize("older", [False, True])
def test_a_run_goes_on_in_smaller_pieces(older, whole, tmp_path):
    """Rounding alone differs. run.json then says so, for a process elsewhere; 0.1.0 had it among what identifies a run."""
    broken = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(broken, [stop_at(14)])
    file = broken.run.place("run.json")
    written = json.loads(file.read_text())
    if older:
        written["run"]["training.accumulation"] = written["free"].pop("accumulation")
        file.write_text(json.dumps(written))
        assert Recorded.of(broken.run).options == TRAINING
    pieces = dataclasses.replace(TRAINING, accumulation=4, checkpoint_every=9)
    resumed, done = execute(distillation(tmp_path, training=pieces))
    assert done
    for name, value in resumed.items():
        torch.testing.assert_close(value, whole[1][name], atol=1e-4, rtol=1e-3)
    assert Recorded.of(broken.run).options == pieces
    assert json.loads(file.read_text()) | {"free": {}} == written | {"free": {}}
    execute(distillation(tmp_path))
    assert Recorded.of(broken.run).options == pieces, "a finished run is what it was trained with"


def test_an_older_run_goes_on_with_the_average_that_it_was_begun_with(tmp_path):
    """Its run.json knows nothing of a warm-up, nor of batches of several lengths; a new run has both, to its end."""
    chosen = dataclasses.replace(TRAINING, ema_decay=0.9)
    expected, _ = execute(distillation(tmp_path, name="whole", training=chosen))
    broken = distillation(tmp_path, training=chosen)
    with pytest.raises(Stopped):
        execute(broken, [stop_at(16)])
    file = broken.run.place("run.json")
    written = json.loads(file.read_text())
    for name in OF_NEW_RUNS:
        del written["run"][f"training.{name}"]
    file.write_text(json.dumps(written))
    today = dataclasses.replace(chosen, **OF_NEW_RUNS)
    assert as_begun(today, RunFolder(tmp_path, "new")) == today
    resumed, done = execute(distillation(tmp_path, training=as_begun(today, broken.run)))
    assert done
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    made = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(made, [stop_at(16)])
    newest = made.run.checkpoints()[-1]
    _damage(newest, damage)
    with pytest.raises(ValueError, match=rf"cannot be resumed.*{newest.name}.*Delete"):
        execute(made)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_student_is_named(damage, whole, tmp_path):
    file = tmp_path / "student.safetensors"
    file.write_bytes(whole[0].run.student_file.read_bytes())
    _damage(file, damage)
    with pytest.raises(ValueError, match=r"student\.safetensors is damaged"):
        read_student(file)


def _damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-3] ^= 0x40
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else content)


def test_a_foreign_file_is_named(tmp_path):
    write_tensors(tmp_path / "lora.safetensors", {"a": torch.ones(1)}, metadata={})
    with pytest.raises(ValueError, match=r"lora\.safetensors carries no FewStep recipe"):
        read_student(tmp_path / "lora.safetensors")


def test_the_students_file_says_how_to_sample_it(whole):
    made, weights = whole
    read, recipe, metadata = read_student(made.run.student_file)
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert (recipe.steps, recipe.gamma, recipe.prediction_type) == (4, 0.0, "x0")
    assert recipe.sigmas == tuple(made.method.stages()[-1].sigmas.tolist())
    assert metadata["fewstep.seed"] == "4"
    assert metadata["fewstep.iterations"] == "24"


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(tmp_path):
    made = distillation(tmp_path)

    def break_it(metrics):
        if metrics.iteration == 8:
            with torch.no_grad():
                network.hidden.fill_(math.nan)

    network = TinyNetwork()
    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    with pytest.raises(NonFiniteLoss, match=r"nan at iteration 9 \(stage 16 to 8 steps\)"), made.run.locked():
        made.execute(student, observers=[break_it])
    tensors, _ = read_tensors(made.run.checkpoints()[-1])
    assert made.run.checkpoints()[-1].stem == "00000007"
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "a/b", "a\\b", "/etc", ".hidden", "nul\0", "a" * 101, "dot.", "C:x"]
)
def test_a_run_name_cannot_lead_elsewhere(name, tmp_path):
    with pytest.raises(ValueError, match="the run name is"):
        RunFolder(tmp_path, name)


def test_a_second_process_is_refused(tmp_path):
    first, second = RunFolder(tmp_path, "run"), RunFolder(tmp_path, "run")
    with first.locked(), pytest.raises(ValueError, match="another process"), second.locked():
        pass
    with second.locked():
        pass


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_cut_last_line_of_metrics_is_dropped(tmp_path):
    run = RunFolder(tmp_path, "run")
    line = {"iteration": 1, "iterations": 2, "stage": 0, "stage_name": "s", "loss": 0.5, "x0_error": 0.25}
    line |= {"gradient_norm": 1.0, "learning_rate": 0.1, "band_errors": [0.5, None]}
    run.log(line)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "lo')
    assert run.metrics() == [line]
    assert run.losses() == {"s": [0.5]}


def test_run_json_says_what_the_run_is(whole):
    made, _ = whole
    found = json.loads((made.run.path / "run.json").read_text())["run"]
    assert found["method"] == "progressive_distillation"
    assert found["method.weighting"] == "truncated_snr"
    assert found["training.seed"] == 4
    assert found["teacher_sha256"] == "a" * 64


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd'; allowed are adamw, adam"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0"),
    ],
)
def test_bad_training_options_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        TrainOptions(**changed)


@pytest.mark.parametrize(
    ("x0", "condition", "unconditional", "named"),
    [
        (torch.zeros(0, 4), {}, None, "empty"),
        (torch.tensor([[math.nan], [1.0]]), {}, None, "1 values that are NaN or infinite"),
        (torch.zeros(3, 4), {"y": torch.zeros(2, 1)}, None, "2 entries .* 3 latents"),
        (torch.zeros(3, 4), {"y": torch.full((3, 1), math.inf)}, None, "conditioning"),
        (torch.zeros(3, 4), {}, {"y": torch.zeros(2, 1)}, "negative conditioning holds 2 entries"),
    ],
)
def test_bad_data_is_named(x0, condition, unconditional, named):
    with pytest.raises(ValueError, match=named):
        TensorData(x0=x0, condition=condition, unconditional=unconditional)


def test_a_batch_keeps_samples_and_conditions_together():
    labels = torch.arange(50.0)
    data = TensorData(x0=labels.reshape(50, 1) * 2, condition={"y": labels, "shared": torch.ones(1, 3)})
    drawn = data.batch(500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.x0[:, 0], drawn.condition["y"] * 2)
    assert drawn.condition["shared"].shape == (500, 3)
    assert len(drawn.x0.unique()) == 50


def test_gaussian_teacher_needs_no_second_forward(tmp_path):
    """Progressive distillation costs two teacher forwards and one student forward an iteration, without guidance.

    Two more of the student, before the first, ask whether the network writes in place and whether all of it learns; and
    each draws once at the end of each stage, the teacher in twice the steps.
    """
    calls = {"teacher": 0, "student": 0}
    made = distillation(tmp_path)

    def counting(role, denoiser):
        def counted(x, sigma, **condition):
            calls[role] += 1
            return denoiser(x, sigma, **condition)

        return counted

    student = FullWeightsStudent(TinyNetwork(), TinyNetwork(seed=1), as_denoiser=as_denoiser)
    student.teacher = counting("teacher", gaussian_denoiser(FAMILY))
    student.denoiser = counting("student", student.denoiser)
    with made.run.locked():
        made.execute(student)
    assert calls == {"teacher": 48 + 16 + 8, "student": 24 + 2 + 8 + 4}
