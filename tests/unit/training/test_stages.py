"""What is kept of each stage, and going on from it: after a crash, without checkpoints, and with further halvings."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.students.student import FullWeightsStudent, LoRAStudent
from comfyui_fewstep.trainers.training import stages
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.stages import compared
from gaussian import FAMILIES
from test_progressive import TinyNetwork, as_denoiser, batch, conditional_teacher, method
from test_run import TRAINING, Stopped, distillation, execute, stop_at
from thorough import first_then_thorough
from torch import nn
from torch.nn import Linear

FAMILY = NoiseFamily.VARIANCE_EXPLODING


def students(run):
    """Steps to the weights of every kept student."""
    return {int(path.stem.split()[0]): read_student(path)[0] for path in (run.path / "stages").iterdir()}


def assert_equal_students(one, other):
    assert one.keys() == other.keys()
    for steps in one:
        assert one[steps].keys() == other[steps].keys()
        assert all(torch.equal(one[steps][name], other[steps][name]) for name in one[steps]), steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    made = distillation(tmp_path_factory.mktemp("whole"))
    execute(made)
    return made


def test_every_stage_leaves_its_student_with_its_own_recipe(tmp_path):
    made, at_border = distillation(tmp_path), {}
    network = TinyNetwork()

    def watch(metrics):
        at_border[metrics.stage] = {k: v.detach().clone() for k, v in network.state_dict().items()}

    with made.run.locked():
        made.execute(FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser), observers=[watch])
    assert_equal_students(students(made.run), {8: at_border[0], 4: at_border[1]})
    for stage, steps, iterations in ((0, 8, "12"), (1, 4, "24")):
        _, recipe, metadata = read_student(made.run.stage_file(steps))
        assert (recipe.steps, metadata["fewstep.iterations"]) == (steps, iterations)
        assert metadata["modelspec.title"] == f"run, {steps} steps"
        assert recipe.sigmas == tuple(made.method.stages()[stage].sigmas.tolist())
    assert made.run.student_file.read_bytes() == made.run.stage_file(4).read_bytes()


def test_the_kept_student_is_the_average_where_there_is_one(tmp_path):
    """It is what the next stage learns from, and what a run of the stage alone would export."""
    training = TrainOptions(batch_size=8, seed=4, ema_decay=0.7)
    made = distillation(tmp_path / "both", training=training)
    execute(made)
    first = distillation(tmp_path / "first", training=training, target_steps=8)
    weights, _ = execute(first)
    assert_equal_students(students(first.run), {8: students(made.run)[8]})
    assert torch.equal(students(first.run)[8]["hidden"], weights["hidden"])


@pytest.mark.parametrize("iteration", first_then_thorough([12], [11, 13]))
def test_a_broken_run_keeps_the_same_students(iteration, whole, tmp_path):
    broken = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(broken, [stop_at(iteration)])
    execute(broken)
    assert_equal_students(students(broken.run), students(whole.run))
    assert broken.run.comparisons() == whole.run.comparisons()


def test_a_crash_after_a_stages_student_and_before_its_checkpoint_compares_it_again(whole, tmp_path, monkeypatch):
    """The last iteration is saved before the comparison, under the same name as the next stage's beginning after it."""
    broken = distillation(tmp_path)
    save, saved = RunFolder.save_checkpoint, []

    def crashing(run, at, *state):
        if at in saved:
            _crash()
        saved.append(at)
        save(run, at, *state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", crashing)
    with pytest.raises(Stopped):
        execute(broken)
    monkeypatch.undo()
    assert (len(broken.run.comparisons()), broken.run.checkpoints()[-1].stem) == (1, "00000012")
    execute(broken)
    assert broken.run.comparisons() == whole.run.comparisons()
    assert_equal_students(students(broken.run), students(whole.run))


@pytest.mark.parametrize("iteration", first_then_thorough([13], [18, 24]))
def test_a_resume_writes_the_missing_student_of_the_stage_before(iteration, whole, tmp_path):
    """As in a folder that an earlier version began."""
    broken = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(broken, [stop_at(iteration)])
    shutil.rmtree(broken.run.path / "stages")
    execute(broken)
    assert_equal_students(students(broken.run), students(whole.run))


def test_a_signal_between_two_stages_waits_for_the_next_iteration(whole, tmp_path, monkeypatch):
    """Where the state can be saved: before, the stage's last iterations would be lost."""
    broken = distillation(tmp_path)
    compared_before = stages.compared

    def interrupted(*arguments, **others):
        os.kill(os.getpid(), signal.SIGINT)
        return compared_before(*arguments, **others)

    monkeypatch.setattr(stages, "compared", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"), Processes() as processes:
        execute(dataclasses.replace(broken, processes=processes))
    monkeypatch.undo()
    assert broken.run.checkpoints()[-1].stem == "00000013"
    execute(broken)
    assert_equal_students(students(broken.run), students(whole.run))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_what_nohup_started_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Processes() as processes:
            os.kill(os.getpid(), signal.SIGHUP)
            assert processes.agree() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_damaged_checkpoint_says_that_the_stage_is_kept(tmp_path):
    made = distillation(tmp_path)
    with pytest.raises(Stopped):
        execute(made, [stop_at(13)])
    first, newest = made.run.checkpoints()
    first.unlink()
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=f"Delete .*{newest.name} to go on from the student of the last finished stage"
    ):
        execute(made)
    newest.unlink()
    seen = []
    execute(made, [lambda metrics: seen.append(metrics.iteration)])
    assert seen == list(range(13, 25))


# --- further halvings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stopped_at", "lost"),
    first_then_thorough([(None, ""), (None, "checkpoints stages"), (7, "")], [(None, "stages"), (None, "checkpoints")]),
)
def test_an_extended_run_is_the_run_that_was_asked_for_at_once(stopped_at, lost, tmp_path):
    """Bit for bit: a finished run by its checkpoint or, without any, by its student, and one that is amid its last stage."""
    training = dataclasses.replace(TRAINING, ema_decay=0.7)
    at_once = distillation(tmp_path / "a", target_steps=2, training=training)
    first = distillation(tmp_path / "b", target_steps=8, training=training)
    execute(at_once)
    with contextlib.suppress(Stopped):
        execute(first, [stop_at(stopped_at)])
    assert first.run.finished == (stopped_at is None)
    for folder in lost.split():
        shutil.rmtree(first.run.path / folder)
    seen, further = [], distillation(tmp_path / "b", target_steps=2, training=training)
    weights, done = execute(further, [lambda metrics: seen.append(metrics.iteration)])
    assert done
    assert seen == list(range((stopped_at or 12) + 1, 37))
    assert_equal_students(students(further.run), students(at_once.run))
    assert torch.equal(weights["hidden"], students(at_once.run)[2]["hidden"])
    assert further.run.comparisons() == at_once.run.comparisons()
    for line, other in zip(further.run.metrics(), at_once.run.metrics(), strict=True):
        if line["iteration"] != math.ceil((stopped_at or 5) / 5) * 5:  # a mean that a cancel cut in two
            of_all = {"stages": line["stages"], "iterations": line["iterations"]}
            assert line == {**other, **of_all}
            assert tuple(of_all.values()) == ((1, 12) if line["iteration"] <= (stopped_at or 12) else (3, 36))
    same, other = (json.loads((run.path / "run.json").read_text())["run"] for run in (at_once.run, further.run))
    assert same == other


def test_extending_in_two_goes_is_extending_in_one(tmp_path):
    at_once = distillation(tmp_path / "a", target_steps=1)
    execute(at_once)
    for target in (4, 2, 1):
        made = distillation(tmp_path / "b", target_steps=target)
        execute(made)
        assert read_student(made.run.student_file)[1].steps == target
    assert_equal_students(students(made.run), students(at_once.run))


def test_of_several_kept_students_the_newest_goes_on(tmp_path):
    at_once, first = distillation(tmp_path / "a", target_steps=2), distillation(tmp_path / "b", target_steps=4)
    execute(at_once)
    execute(first)
    shutil.rmtree(first.run.path / "checkpoints")
    seen = []
    execute(distillation(tmp_path / "b", target_steps=2), [lambda metrics: seen.append(metrics.iteration)])
    assert seen == list(range(25, 37))
    assert_equal_students(students(first.run), students(at_once.run))


def test_while_it_goes_on_the_run_is_not_finished(tmp_path):
    execute(distillation(tmp_path, target_steps=8))
    further = distillation(tmp_path, target_steps=4)
    before = read_student(further.run.stage_file(8))[0]
    with pytest.raises(Stopped):
        execute(further, [stop_at(15)])
    assert not further.run.finished
    assert_equal_students(students(further.run), {8: before})


def test_a_crash_amid_the_extension_loses_nothing(tmp_path, monkeypatch):
    """After the student's last name is gone and before run.json says what the run is now: either request goes on."""
    made = distillation(tmp_path, target_steps=8)
    weights, _ = execute(made)
    shutil.rmtree(made.run.path / "checkpoints")
    monkeypatch.setattr("comfyui_fewstep.trainers.storage.run_folder.write_atomically", _crash)
    with pytest.raises(Stopped):
        distillation(tmp_path, target_steps=4).finished()
    monkeypatch.undo()
    assert not made.run.finished
    with pytest.raises(ValueError, match=r"holds another run.*training.seed"):
        distillation(tmp_path, training=TrainOptions(batch_size=8, seed=5)).finished()
    again, _ = execute(made, [stop_at(1)])
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert made.run.finished


def _crash(*_):
    raise Stopped


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target_steps": 8}, "method.target_steps: there 4, here 8"),
        ({"target_steps": 2, "start_steps": 32}, "method.start_steps"),
        ({"target_steps": 2, "learning_rate": 2e-3}, "method.learning_rate"),
        ({"target_steps": 2, "weighting": Weighting.SNR}, "method.weighting"),
        ({"target_steps": 2, "training": TrainOptions(batch_size=8, seed=5)}, "training.seed"),
        ({"target_steps": 2, "teacher": "b" * 64}, "teacher_sha256"),
    ],
)
def test_only_further_halvings_extend_a_run(changed, named, whole):
    folder = whole.run.path.parent
    before = sorted(path.read_bytes() for path in folder.rglob("*.*") if path.is_file())
    with pytest.raises(ValueError, match=f"holds another run.*{named}"):
        execute(distillation(folder, **changed))
    assert sorted(path.read_bytes() for path in folder.rglob("*.*") if path.is_file()) == before


def test_stages_of_other_lengths_are_not_the_first_of_this_run(tmp_path):
    """Should the length of a stage come to depend on where the run ends, an extension would not be the run at once."""
    longer = distillation(tmp_path, target_steps=2).method
    recorded = distillation(tmp_path, target_steps=8).method.options()
    assert longer.continues(recorded)
    inherited = type(longer).stages

    def uneven(self):
        found = inherited(self)
        return [
            stage if stage is not found[-1] else type(stage)(**{**vars(stage), "iterations": 99}) for stage in found
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(longer), "stages", uneven)
        assert not longer.continues(recorded)


def test_a_lora_that_lost_its_checkpoints_goes_on_from_its_file(tmp_path):
    options = LoRAOptions(rank=2, alpha=3.0, layers=LoRALayers.LINEAR)

    def execute_lora(made):
        network = nn.Sequential(Linear(1, 8), nn.Tanh(), Linear(8, 1))
        with torch.no_grad():
            for value in network.parameters():
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(value.numel()))

        def denoise(x, sigma, y):
            scale = (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt()
            return network((x / scale).unsqueeze(-1)).squeeze(-1)

        with made.run.locked(), Adapters(network, options) as adapters:
            names = {path: f"lora_unet_{path}" for path in adapters.paths}
            made.execute(LoRAStudent(adapters, options, denoise=denoise, names=names, seed=0))

    at_once, first = distillation(tmp_path / "a"), distillation(tmp_path / "b", target_steps=8)
    execute_lora(at_once)
    execute_lora(first)
    shutil.rmtree(first.run.path / "checkpoints")
    execute_lora(distillation(tmp_path / "b"))
    assert_equal_students(students(first.run), students(at_once.run))
    assert students(first.run)[4]["lora_unet_0.lora_up.weight"].abs().max() > 0


def test_a_kept_student_of_another_network_is_refused(tmp_path):
    made = distillation(tmp_path, target_steps=8)
    execute(made)
    tensors, *_ = read_student(made.run.stage_file(8))
    for changed in ({"hidden": tensors["hidden"]}, {**tensors, "hidden": tensors["hidden"][:1]}):
        student = FullWeightsStudent(TinyNetwork(), TinyNetwork(), as_denoiser=as_denoiser)
        with pytest.raises(ValueError, match="weights do not fit the model: 1 differ"):
            student.load_exported(changed)


# --- how near the student is -----------------------------------------------------------------------------------------


class Answers:
    """Stands for a student: two denoisers."""

    def __init__(self, denoiser, teacher):
        self.denoiser, self.teacher = denoiser, teacher


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stage", "distance"), [(0, (3.0 - 0.25) ** 2), (1, (1.0 - 0.25) ** 2)])
def test_the_comparison_is_of_the_pictures_with_the_guidance_of_the_stage(stage, distance, family):
    """A denoiser that sees one picture everywhere draws it: y is 1, guided at 3 from an empty prompt of 0 it is 3."""
    answers = Answers(lambda x, sigma, y: torch.full_like(x, 0.25), conditional_teacher)
    found = compared(method(family, guidance_scale=3.0), answers, batch(5), stage=stage, at_once=2)
    assert found["mean_squared_distance"] == pytest.approx(distance, rel=1e-5)
    assert found["teacher_mean_square"] == pytest.approx(9.0 if stage == 0 else 1.0, rel=1e-5)
    assert (found["steps"], found["teacher_steps"], found["samples"]) == ((8, 16, 5) if stage == 0 else (4, 8, 5))


def test_each_sample_is_drawn_away_from_its_own_empty_prompt():
    """Of edit models, whose negative prompt has the sample's picture: whatever number of them passes the network together."""
    empty = torch.linspace(0.0, 0.4, 5)[:, None]
    given = dataclasses.replace(batch(5), unconditional={"y": empty})
    answers = Answers(lambda x, sigma, y: torch.zeros_like(x), conditional_teacher)
    for at_once in (5, 2):
        found = compared(method(FAMILIES[0], guidance_scale=3.0), answers, given, stage=0, at_once=at_once)
        assert found["teacher_mean_square"] == pytest.approx(float((3.0 - 2.0 * empty).square().mean()), rel=1e-5)


def test_each_draws_from_the_same_noise_in_its_own_steps():
    family, seen = FAMILIES[0], {"student": [], "teacher": []}
    made = method(family)
    network = TinyNetwork()

    def drawing(role):
        def denoiser(x, sigma, **condition):
            seen[role].append((len(x), float(sigma[0])))
            return network(x, sigma)

        return denoiser

    answers = Answers(drawing("student"), drawing("teacher"))
    found = compared(made, answers, batch(4), stage=0, at_once=3)
    assert {size for role in seen.values() for size, _ in role} == {2}, "in pieces, no larger than at_once"
    for role, sigmas in (("student", made.stages()[0].sigmas), ("teacher", made.stages()[0].teacher_sigmas)):
        assert [level for _, level in seen[role]] == [float(s) for s in sigmas[:-1] for _ in range(2)]
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    one, two = (
        sample_few_step(network, family.initial(noise, sigma=s[0]), s, disable=True, family=family, gamma=0.0)
        for s in (made.stages()[0].sigmas, made.stages()[0].teacher_sigmas)
    )
    assert found["mean_squared_distance"] == pytest.approx(float((one - two).square().mean()), rel=1e-5)


def test_the_comparison_lies_in_the_runs_folder_for_every_stage(whole):
    made = whole
    found = json.loads((made.run.path / "stages.json").read_text())
    assert [(entry["stage"], entry["steps"], entry["teacher_steps"]) for entry in found] == [
        ("16 to 8 steps", 8, 16),
        ("8 to 4 steps", 4, 8),
    ]
    tensors = students(made.run)
    networks = [TinyNetwork(), TinyNetwork()]
    for network, steps in zip(networks, (4, 8), strict=True):
        network.load_state_dict(tensors[steps])
    again = compared(made.method, Answers(*networks), made.data.first(8), stage=1, at_once=8)
    assert again == found[1]
