"""A new run that begins at another's last good checkpoint, with settings of its own."""

import dataclasses
import json
import math

import pytest
import torch
from comfyui_fewstep.trainers.methods.progressive import Progressive
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.method import Companion
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_metadata, read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import NonFiniteLoss
from comfyui_fewstep.trainers.training.optimisation.average import Averages, start_left
from comfyui_fewstep.trainers.training.starting import require_started_from, start_from
from test_progressive import TinyNetwork, as_denoiser, method
from test_run import FAMILY, TRAINING, Stopped, distillation, execute, stop_at

AVERAGED = dataclasses.replace(TRAINING, ema_decay=0.9)


def stopped(root, at, *, name="old", **settings):
    made = distillation(root, name=name, **settings)
    with pytest.raises(Stopped):
        execute(made, [stop_at(at)])
    return made


def started(old, *, name="new", **settings):
    """The new run at its beginning, and what it begins with."""
    new = distillation(old.run.path.parent, name=name, **settings)
    start = start_from(old.run, new, method=old.method)
    new = dataclasses.replace(new, started_from=start.said)
    assert not new.finished()
    start.save(new)
    return new, start


def first_weights(made, *, iteration):
    """What the run's student has before its next iteration, by a look at the weights before it."""
    network, seen = TinyNetwork(), {}
    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    load = student.load_state_dict

    def watched(tensors):
        load(tensors)
        seen.update({name: value.clone() for name, value in network.state_dict().items()})

    student.load_state_dict = watched
    with pytest.raises(Stopped), made.run.locked():
        made.execute(student, observers=[stop_at(iteration)])
    return seen


@pytest.mark.parametrize("at", [9, 16])
def test_it_goes_on_at_the_place_and_with_the_weights_and_its_own_settings(at, tmp_path):
    """In the first stage and in the second, whose teacher is a student already."""
    old = stopped(tmp_path, at)
    before = {path: path.read_bytes() for path in old.run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    lower = {"training": dataclasses.replace(TRAINING, seed=8, optimiser="adamw"), "learning_rate": 2e-4}
    new, start = started(old, **lower)
    said = json.loads(new.run.place("run.json").read_text())["started_from"]
    checkpoint = old.run.checkpoints()[-1]
    assert said == start.said
    assert (said["run"], said["checkpoint"], said["sha256"]) == (
        "old",
        f"{at:08d}",
        read_metadata(checkpoint)["fewstep.sha256"],
    )
    assert [file.stem for file in new.run.checkpoints()] == [checkpoint.stem]

    kept = read_tensors(checkpoint)[0]
    seen = first_weights(new, iteration=at + 1)
    assert all(torch.equal(value, kept[f"student.{name}"]) for name, value in seen.items())
    lines = []
    weights, done = execute(distillation(tmp_path, name="new", **lower), [lines.append])
    assert done
    assert lines[0].iteration == at + 2
    assert lines[0].learning_rate < 2e-4
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert json.loads(read_student(new.run.student_file)[2]["fewstep.started_from"]) == said
    assert {path: path.read_bytes() for path in before} == before, "the old run stays as it is"


def test_equal_settings_but_for_a_fresh_optimiser_are_another_run(tmp_path):
    """Adam without its moments steps otherwise: what is fresh is fresh. With plain gradients it would be the old run."""
    started(stopped(tmp_path, 9))
    ended = {name: execute(distillation(tmp_path, name=name))[0] for name in ("old", "new")}
    assert not torch.equal(ended["old"]["hidden"], ended["new"]["hidden"])


@pytest.mark.parametrize("here", [TRAINING, AVERAGED])
@pytest.mark.parametrize("there", [TRAINING, AVERAGED])
def test_the_average_comes_along_and_a_new_one_begins_at_the_weights(there, here, tmp_path):
    old = stopped(tmp_path, 9, training=there)
    new, start = started(old, training=here)
    assert ("average.0" in start.tensors) is bool(there.ema_decay and here.ema_decay)
    with pytest.raises(Stopped):
        execute(new, [stop_at(10)])
    after, kept = read_tensors(new.run.checkpoints()[-1])[0], start.tensors
    assert ("average.0" in after) is bool(here.ema_decay)
    if here.ema_decay:
        first = kept["average.0"] if there.ema_decay else kept["student.hidden"]
        weights = [after[f"student.{name}"] for name, _ in TinyNetwork().named_parameters()]
        (number,) = [i for i, value in enumerate(weights) if value.shape == kept["student.hidden"].shape]
        first = kept[f"average.{number}"] if there.ema_decay else kept["student.hidden"]
        torch.testing.assert_close(after[f"average.{number}"], 0.9 * first + 0.1 * weights[number])


@pytest.mark.parametrize("here", ["schedule_free", "adam"])
@pytest.mark.parametrize("at", [9, 17])
def test_what_schedule_free_found_is_where_it_begins_and_not_the_weights_of_its_training(at, here, tmp_path):
    """x of Defazio et al. 2024, y = 0.1 z + 0.9 x; at another rate than x has, whose own average begins there too."""
    pytest.importorskip("schedulefree")
    free = dataclasses.replace(
        TRAINING, optimiser="schedule_free", learning_rate_schedule="constant", ema_decay=0.0, weight_decay=0.1
    )
    old = stopped(tmp_path, at, training=free, learning_rate=1e-2)
    kept = read_tensors(old.run.checkpoints()[-1])[0]
    names = [name for name, _ in TinyNetwork().named_parameters()]
    x = {name: (kept[f"student.{name}"] - 0.1 * kept[f"optimiser.{i}.z"]) / 0.9 for i, name in enumerate(names)}
    assert (x["hidden"] - kept["student.hidden"]).abs().max() > 1e-4

    still = dataclasses.replace(free, optimiser=here, weight_decay=0.0)
    new, _ = started(old, training=still, learning_rate=1e-30)
    with pytest.raises(Stopped):
        execute(new, [stop_at(at + 2)])
    checkpoint = read_tensors(new.run.checkpoints()[-1])[0]
    for name in names:
        torch.testing.assert_close(checkpoint[f"student.{name}"], x[name], rtol=1e-5, atol=1e-6)
    assert ("optimiser.0.z" in checkpoint) is (here == "schedule_free")


def test_an_average_that_begins_at_the_start_warms_up_from_there(tmp_path):
    """Not from the updates that were made without it: the start would stay in it. Also over a resume, and a start from there."""
    warm = dataclasses.replace(TRAINING, ema_decay=0.999, ema_warms_up=True, checkpoint_every=1)
    old = stopped(tmp_path, 9)
    new, start = started(old, training=warm)
    average = start.tensors["student.hidden"].double()
    with pytest.raises(Stopped):
        execute(new, [stop_at(10)])
    with pytest.raises(Stopped):
        execute(new, [stop_at(11)])
    names = [name for name, _ in TinyNetwork().named_parameters()]
    for n, file in enumerate(new.run.checkpoints()[-2:]):
        tensors = read_tensors(file)[0]
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * tensors["student.hidden"].double()
        torch.testing.assert_close(tensors[f"average.{names.index('hidden')}"].double(), average, rtol=1e-5, atol=1e-6)
    assert new.start_left == pytest.approx(
        max(start_left(0.999, 3, warms_up=True), start_left(0.999, 12, warms_up=True))
    )
    assert start.said["average_begun_at"] == 9

    further, again = started(new, name="further", training=warm)
    assert again.said["average_begun_at"] == 9, "it comes along, and where it began"
    _, without = started(new, name="bare")
    assert "average_begun_at" not in without.said
    assert execute(distillation(tmp_path, name="further", training=warm))[1]
    left = float(read_metadata(further.run.student_file)["fewstep.ema_start_left"])
    assert left == pytest.approx(further.start_left, rel=1e-2), "as its file says"


def test_what_is_left_of_the_start_counts_the_stages_that_the_run_trains(tmp_path):
    """Of the second stage, begun after 5 of its 30 updates, without an average till then; the first, of 12, is another run's."""
    halvings = {"start_steps": 8, "target_steps": 2, "last_stages_iterations": 30}
    new, start = started(stopped(tmp_path, 17, **halvings), training=AVERAGED, **halvings)
    assert (start.said["stage"], start.said["average_begun_at"]) == (1, 5)
    assert new.start_left == pytest.approx(0.9**25)


def test_an_average_that_came_along_into_a_longer_lead_is_not_older_than_the_run(tmp_path):
    """What a companion learns first counts for no update of the student: with more of it the place is an earlier update."""
    warm = dataclasses.replace(TRAINING, ema_decay=0.999, ema_warms_up=True)
    middle, _ = started(stopped(tmp_path, 9), name="middle", training=warm)
    new = distillation(tmp_path, name="new", training=warm)
    stages = [dataclasses.replace(stage, lead=4) for stage in new.method.stages()]
    new.method.stages = lambda: stages
    begun = start_from(middle.run, new, method=middle.method)
    assert begun.position["average_begun_at"] == 5
    weights = [torch.ones(2)]
    averages = Averages(weights, decay=0.999, target_decay=0.0, warms_up=True)
    averages.result.begun_at = 40
    weights[0].zero_()
    averages.update(30)  # of a file that says otherwise
    assert averages.state_dict()["average.0"].tolist() == pytest.approx([0.1, 0.1])


def test_an_average_that_the_new_run_does_not_go_on_with_is_left(tmp_path):
    """It would be an old one to whoever starts from there."""
    _, start = started(stopped(tmp_path, 9, training=AVERAGED))
    assert not [name for name in start.tensors if name.startswith("average.")]


def test_a_loss_that_is_not_finite_says_how_to_go_on_and_that_goes_on(tmp_path):
    old = distillation(tmp_path, name="old")
    network = TinyNetwork()

    def break_it(metrics):
        if metrics.iteration == 8:
            with torch.no_grad():
                network.hidden.fill_(math.nan)

    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    words = "the last good checkpoint is kept.*lower the learning rate: .*with another run name and start_from at 'old'"
    with pytest.raises(NonFiniteLoss, match=words), old.run.locked():
        old.execute(student, observers=[break_it])
    started(old, learning_rate=1e-4)
    assert execute(distillation(tmp_path, name="new", learning_rate=1e-4))[1]


def test_before_anything_is_saved_the_same_name_is_free(tmp_path):
    never = distillation(tmp_path, training=dataclasses.replace(TRAINING, checkpoint_every=1000))
    network = TinyNetwork()
    student = FullWeightsStudent(network, TinyNetwork(seed=1), as_denoiser=as_denoiser)
    with torch.no_grad():
        network.hidden.fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match=r"nothing is saved yet.*and queue again"), never.run.locked():
        never.execute(student)
    assert execute(distillation(tmp_path, learning_rate=1e-4))[1]


def test_the_newest_checkpoint_that_is_whole_and_finite_is_taken(tmp_path):
    old = stopped(tmp_path, 9)
    newest, before = old.run.checkpoints()[-1], old.run.checkpoints()[-2]
    newest.write_bytes(newest.read_bytes()[:-5])
    new, start = started(old)
    assert start.said["checkpoint"] == before.stem == "00000007"
    assert new.run.checkpoints()[-1].name == before.name
    before.write_bytes(b"")
    with pytest.raises(ValueError, match=r"it has no good checkpoint; .*00000009.* is damaged.*; .*00000007"):
        started(old, name="other")


def test_a_checkpoint_with_one_value_that_is_no_number_is_passed_over(tmp_path):
    old = stopped(tmp_path, 9)
    tensors, metadata = read_tensors(old.run.checkpoints()[-1])
    tensors["student.hidden"][0, 0] = math.nan
    old.run.save_checkpoint(10, tensors, json.loads(metadata["fewstep.position"]))
    assert started(old)[1].said["checkpoint"] == "00000009"


UNFIT = [
    ({"start_steps": 8}, {}, r"it is in its stage 1 \(16 to 8 steps\); the stages here are 8 to 4 steps"),
    *(
        (
            {"iterations": count},
            {},
            rf"it has done 9 iterations of its stage 1 \(16 to 8 steps\), which has {count} here; raise iterations",
        )
        for count in (5, 9)
    ),
    ({"teacher": "b" * 64}, {}, "teacher_sha256: there aaaa.*, here bbbb"),
    (
        {},
        {"student": {"kind": "lora", "rank": 8}},
        "student.kind: there full_weights, here lora; student.rank: there None, here 8",
    ),
    ({"name": "old"}, {}, "which is the run's own name"),
]


@pytest.mark.parametrize(("settings", "replaced", "named"), UNFIT)
def test_what_does_not_fit_is_named_and_nothing_is_written(settings, replaced, named, tmp_path):
    old = stopped(tmp_path, 9)
    new = dataclasses.replace(distillation(tmp_path, **{"name": "new", **settings}), **replaced)
    with pytest.raises(ValueError, match=f"start_from is 'old'.*{named}"):
        start_from(old.run, new, method=old.method)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_later_stage_keeps_what_its_teacher_has_learnt(tmp_path):
    """In the first stage, whose teacher is the model itself, guidance and levels may be chosen anew."""
    guided = {scale: method(FAMILY, guidance_scale=scale, iterations=12) for scale in (3.0, 8.0)}
    cosine = method(FAMILY, guidance_scale=3.0, iterations=12, grid=Grid.COSINE)
    finer = method(FAMILY, guidance_scale=3.0, iterations=12, start_steps=32, merged_steps=4)
    later, first = stopped(tmp_path, 15, name="later"), stopped(tmp_path, 5, name="first")
    new = distillation(tmp_path, name="new")
    for here, named in (
        (guided[8.0], "has a guidance_scale of 3 baked in, and here that is 8: restore it"),
        (cosine, "learnt stage 1 on other noise levels than are asked for here: restore grid"),
    ):
        asked = dataclasses.replace(new, method=here)
        with pytest.raises(ValueError, match=f"start_from is 'later'.*it is in its stage 2, whose teacher {named}"):
            start_from(later.run, asked, method=guided[3.0])
        assert start_from(first.run, asked, method=guided[3.0]).position["stage"] == 0
    with pytest.raises(ValueError, match="on other noise levels than are asked for here: restore grid, start_steps"):
        start_from(later.run, dataclasses.replace(new, method=finer), method=guided[3.0])
    assert (
        start_from(later.run, dataclasses.replace(new, method=guided[3.0]), method=guided[3.0]).position["stage"] == 1
    )


def test_a_finished_run_is_no_start(tmp_path):
    old = distillation(tmp_path, name="old")
    execute(old)
    with pytest.raises(ValueError, match=r"it is finished\. Load Distilled Student loads what it became"):
        started(old)
    with pytest.raises(ValueError, match="there is no run 'gone'"):
        start_from(RunFolder(tmp_path, "gone"), distillation(tmp_path, name="new"), method=old.method)


def test_a_started_run_knows_where_from(tmp_path):
    old = stopped(tmp_path, 9)
    new, _ = started(old)
    require_started_from(new.run, "old")
    with pytest.raises(
        ValueError, match="start_from is 'else', but the run 'new' is there already and was begun from 'old'"
    ):
        require_started_from(new.run, "else")
    with pytest.raises(ValueError, match="was begun at its own beginning"):
        require_started_from(old.run, "new")
    assert not distillation(tmp_path, name="new").finished()
    said = json.loads(new.run.place("run.json").read_text())
    assert said["started_from"]["run"] == "old", "which a start without it does not forget"


def of_ranks(monkeypatch, *ranks):
    """A companion of the run there, and one of that here."""
    given = iter(ranks)

    def companions(self, *, stage):
        return [Companion(name="fake", learning_rate=1e-3, rank=next(given))]

    monkeypatch.setattr(Progressive, "companions", companions)


@pytest.mark.parametrize(("there", "here", "said"), [(4, 8, "4 there and 8"), (0, 8, "32 there and 8")])
def test_a_companion_of_another_size_is_named_before_anything_is_saved(there, here, said, tmp_path, monkeypatch):
    old = stopped(tmp_path, 8)
    of_ranks(monkeypatch, there, here)
    with pytest.raises(ValueError, match=f"companion_rank is {said} here"):
        started(old)


def test_the_students_own_rank_is_the_same_by_either_name(tmp_path, monkeypatch):
    old = stopped(tmp_path, 8)
    of_ranks(monkeypatch, 0, 32)
    started(old)
