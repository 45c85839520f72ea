"""A run on several processes is the run on one: real processes on this machine, with gloo."""

import re
import shutil
import signal

import process_worker
import pytest
import torch
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.optimisation.micro_batches import in_pieces, on_share, require_equal_parts
from several import ROUNDING, alone, assert_same_metrics, checkpoints, ended, greatest_difference, linux, result
from thorough import first_then_thorough

KINDS = ["lora", "full"]
DIVIDED = first_then_thorough(["full"], KINDS)
"""Where what is tested is that tensors are divided and put together: adapters are whole on all processes."""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return {kind: alone(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def two(tmp_path_factory, finish):
    return {kind: finish(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


# --- equal to one process --------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind, one, two):
    """After 8 steps in two stages, with accumulation, clipping, average, guidance and decay."""
    assert greatest_difference(result(one[kind]), result(two[kind])) < ROUNDING
    start = process_worker.student_of(kind).exported()
    first = {name.removeprefix("model.diffusion_model."): value for name, value in start.items()}
    moved = [float((value - first[name]).abs().max()) for name, value in result(two[kind]).items()]
    assert max(moved) > 5e-3, "the bound means something"
    assert_same_metrics(one[kind], two[kind])
    assert one[kind].metrics()[0]["gradient_norm"] > 2 * process_worker.TRAINING["gradient_clip"]
    mine, theirs = (read_tensors(of[kind].checkpoints()[-1])[0] for of in (one, two))
    assert greatest_difference(mine, theirs) < ROUNDING, "a checkpoint is the same, with the teacher in it"


@linux
def test_two_processes_are_two_pieces_bit_for_bit(finish, tmp_path):
    """The same sums in the same order: all of the difference to one process is that of accumulation."""
    pieces = alone(tmp_path / "a", kind="lora", training={"accumulation": 2})
    shares = finish(tmp_path / "b", kind="lora", training={"accumulation": 1})
    assert greatest_difference(result(pieces), result(shares)) == 0.0


@linux
@pytest.mark.parametrize("kind", DIVIDED)
def test_a_run_begun_on_one_process_ends_on_two(kind, finish, tmp_path):
    """Optimiser state and both averages go over, also the one that teaches; for the other way round see a cancel."""
    expected = result(alone(tmp_path / "a", kind=kind, consistency=True))
    with pytest.raises(process_worker.Cancelled):
        alone(tmp_path / "b", kind=kind, consistency=True, cancel_at=3)
    assert greatest_difference(result(finish(tmp_path / "b", kind=kind, consistency=True)), expected) < ROUNDING


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_the_students_of_the_stages_are_those_of_one_process(kind, one, two):
    for steps in (8, 4):
        first, second = (read_student(of[kind].stage_file(steps))[0] for of in (one, two))
        assert greatest_difference(first, second) < ROUNDING
    for mine, theirs in zip(one[kind].comparisons(), two[kind].comparisons(), strict=True):
        assert mine.pop("stage") == theirs.pop("stage")
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(one[kind].comparisons()) == 2


@linux
@pytest.mark.parametrize("kind", DIVIDED)
def test_a_run_of_one_process_is_extended_on_two_from_its_student_alone(kind, one, finish, tmp_path):
    """Whole weights from the file become divided ones."""
    run = alone(tmp_path, kind=kind, target_steps=8)
    shutil.rmtree(run.path / "checkpoints")
    assert greatest_difference(result(finish(tmp_path, kind=kind)), result(one[kind])) < ROUNDING
    assert run.metrics()[-1]["iteration"] == process_worker.ITERATIONS


@linux
@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_the_student_teaches_on_two_processes_as_on_one(kind, finish, tmp_path):
    expected = result(alone(tmp_path / "a", kind=kind, consistency=True))
    assert greatest_difference(result(finish(tmp_path / "b", kind=kind, consistency=True)), expected) < ROUNDING


@linux
def test_schedule_free_steps_divided_weights(finish, tmp_path):
    pytest.importorskip("schedulefree")
    training = {"optimiser": "schedule_free", "learning_rate_schedule": "constant", "ema_decay": 0.0}
    chosen = {"kind": "full", "training": training, "target_steps": 8}
    expected = result(alone(tmp_path / "a", **chosen))
    assert greatest_difference(result(finish(tmp_path / "b", **chosen)), expected) < ROUNDING


# --- stopping --------------------------------------------------------------------------------------------------------


@linux
def test_a_killed_run_resumes_from_its_last_checkpoint(one, start, tmp_path):
    """SIGKILL leaves no chance to save: the checkpoint before it is what there is, and the result is the same."""
    ((code, _),) = ended(start(tmp_path, count=1, kind="lora", fault={"rank": 0, "at": 8, "what": "kill"}))
    assert code == -signal.SIGKILL
    killed = RunFolder(tmp_path, "run")
    assert checkpoints(killed) == [4, 6]
    assert not killed.finished
    assert greatest_difference(result(alone(tmp_path, kind="lora")), result(one["lora"])) == 0.0
    assert (killed.path / "metrics.jsonl").read_bytes() == (one["lora"].path / "metrics.jsonl").read_bytes()


@linux
@pytest.mark.parametrize(("kind", "rank"), first_then_thorough([("lora", 0), ("full", 1)], [("lora", 1), ("full", 0)]))
def test_when_one_is_killed_the_others_stop_and_the_run_goes_on(kind, rank, one, two, start, finish, tmp_path):
    """At iteration 5, after the checkpoint of the first stage's end at 4."""
    ends = ended(start(tmp_path / "two", kind=kind, fault={"rank": rank, "at": 5, "what": "kill"}))
    assert ends[rank][0] == -signal.SIGKILL
    code, error = ends[1 - rank]
    assert code == 1
    assert "ProcessLost: another process of this run ended without a word. This one stops too" in error
    killed = RunFolder(tmp_path / "two", "run")
    assert checkpoints(killed) == [3, 4]
    (killed.path / "checkpoints" / ".half.safetensors.1.part").write_bytes(b"half written")
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert greatest_difference(result(finish(tmp_path / "two", kind=kind)), result(two[kind])) == 0.0
    assert greatest_difference(result(alone(tmp_path / "one", kind=kind)), result(one[kind])) < ROUNDING
    for root in ("one", "two"):
        assert not list((tmp_path / root).rglob("*.part"))
    assert (killed.path / "metrics.jsonl").read_bytes() == (two[kind].path / "metrics.jsonl").read_bytes()


@linux
@pytest.mark.parametrize("kind", DIVIDED)
def test_a_cancel_saves_and_stops_all_and_one_or_two_go_on(kind, one, two, stop, finish, tmp_path):
    """The two draw a preview on the way, for which one lends the other its weights: it changes nothing."""
    first, second = stop(tmp_path / "two", kind=kind, cancel_at=5)
    assert first == "process_worker.Cancelled: enough"
    assert second.endswith("StoppedElsewhere: process 0 of this run stopped: Cancelled: enough")
    assert checkpoints(RunFolder(tmp_path / "two", "run")) == [4, 5]
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    previewed = finish(tmp_path / "two", kind=kind, preview_at=6)
    assert greatest_difference(result(previewed), result(two[kind])) == 0.0
    assert greatest_difference(result(alone(tmp_path / "one", kind=kind)), result(one[kind])) < ROUNDING


@linux
@pytest.mark.parametrize(("what", "named"), [("interrupt", "SIGINT"), ("terminate", "SIGTERM"), ("hang_up", "SIGHUP")])
def test_a_signal_to_one_saves_and_stops_all(what, named, stop, tmp_path):
    first, second = stop(tmp_path, kind="lora", fault={"rank": 1, "at": 2, "what": what})
    assert second == f"KeyboardInterrupt: stopped by {named}"
    assert first.endswith(f"process 1 of this run stopped: KeyboardInterrupt: stopped by {named}")
    assert checkpoints(RunFolder(tmp_path, "run")) == [2]


@linux
@pytest.mark.parametrize("kind", first_then_thorough(["lora"], KINDS))
def test_a_failure_of_one_is_told_by_the_others(kind, stop, tmp_path):
    first, second = stop(tmp_path, kind=kind, fault={"rank": 1, "at": 4, "what": "fail"})
    assert second == "ArithmeticError: this one cannot go on"
    assert "ProcessLost: process 1 failed: ArithmeticError: this one cannot go on. This one stops too" in first
    assert checkpoints(RunFolder(tmp_path, "run")) == [3]


@linux
def test_a_loss_that_is_not_finite_on_one_stops_all_alike(stop, tmp_path):
    first, second = stop(tmp_path, kind="lora", fault={"rank": 1, "at": 4, "what": "not_finite"})
    assert re.search(r"NonFiniteLoss: the loss became nan at iteration 4 \(stage 16 to 8 steps\)", first)
    assert first == second
    assert checkpoints(RunFolder(tmp_path, "run")) == [3]


@linux
def test_weights_that_drift_apart_are_not_saved(stop, tmp_path):
    """By a part in a million, in one tensor of one process."""
    for line in stop(tmp_path, kind="lora", fault={"rank": 1, "at": 4, "what": "drift"}):
        assert "ValueError: the student's weights differ between the processes, in " in line
    assert checkpoints(RunFolder(tmp_path, "run")) == [3]


# --- refusals --------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"training": {"batch_size": 10}}, "batch_size is 10, accumulation is 2 and there are 2 processes"),
        ({"teacher": ["a" * 64, "b" * 64]}, "the run must be the same in all processes: teacher_sha256 is bbbb"),
        ({"training": {"optimiser": "adamw8bit"}, "kind": "full"}, "'adamw8bit', which cannot step full weights"),
        ({"kind": "full", "sharing": True}, "this network computes something else when its weights are divided"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_by_all(changed, named, stop, tmp_path):
    for line in stop(tmp_path, **{"kind": "lora", **changed}):
        assert line.startswith("ValueError: ")
        assert named in line
    assert not list(tmp_path.rglob("*.safetensors"))


@linux
def test_a_folder_of_another_run_is_refused_by_all(two, stop):
    for line in stop(two["lora"].path.parent, kind="lora", teacher="c" * 64):
        assert "ValueError: the run folder 'run' holds another run." in line


@linux
def test_a_locked_run_is_refused_by_all(stop, tmp_path):
    with RunFolder(tmp_path, "run").locked():
        for line in stop(tmp_path, kind="lora"):
            assert line.startswith("ValueError: the run 'run' is being trained by another process")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; it must be a whole number"),
        ({"WORLD_SIZE": "2"}, "RANK is None; it must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK is 2 and WORLD_SIZE is 2; RANK must be 0 to 1",
        ),
    ],
)
def test_an_environment_that_describes_no_process_is_named(environment, named, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (Processes.from_environment().rank, Processes.from_environment().count) == (0, 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=named):
        Processes.from_environment()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "x")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="LOCAL_RANK is 1, but this machine has 1 GPUs"):
        Processes.from_environment()


@pytest.mark.parametrize(("rows", "pieces", "processes"), [(12, 2, 4), (12, 3, 3), (2, 1, 4)])
def test_a_batch_that_does_not_divide_is_named(rows, pieces, processes):
    with pytest.raises(ValueError, match=f"batch_size is {rows}, accumulation is {pieces} and there are {processes} "):
        require_equal_parts(rows, accumulation=pieces, processes=processes)


# --- parts of a batch ------------------------------------------------------------------------------------------------


def test_the_shares_of_a_batch_are_the_batch():
    """Each row is computed once, with its own level and condition; no process sees more than a piece of its share."""
    seen = []

    def denoiser(x, sigma, y, shared):
        seen.append(len(x))
        assert shared.shape == (1, 2)
        return x + 100.0 * sigma[:, None] + 10000.0 * y

    x, sigma, y = torch.arange(12.0)[:, None], torch.arange(12.0) + 1, torch.arange(12.0)[:, None] + 1
    condition = {"y": y, "shared": torch.zeros(1, 2)}
    shares = [on_share(in_pieces(denoiser, 2), rank, of=3)(x, sigma, **condition) for rank in range(3)]
    assert set(seen) == {2}
    assert [int((share != 0).sum()) for share in shares] == [4, 4, 4]
    assert torch.equal(sum(shares), denoiser(x, sigma, **condition))
    with pytest.raises(ValueError, match="12 rows, which do not divide over 5 processes"):
        on_share(denoiser, 0, of=5)(x, sigma, **condition)
