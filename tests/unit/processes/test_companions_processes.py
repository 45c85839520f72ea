"""A method with a companion on several processes, and killed amid one."""

import signal

import pytest
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from several import alone, assert_same_metrics, checkpoints, ended, greatest_difference, linux, result


@linux
def test_a_companion_learns_on_two_processes_as_on_one(finish, tmp_path):
    """Its weights and moments too, and what it and the student told."""
    one, two = alone(tmp_path / "a", kind="lora", matching=True), finish(tmp_path / "b", kind="lora", matching=True)
    mine, theirs = (read_tensors(of.checkpoints()[-2])[0] for of in (one, two))
    assert all(sum(key.startswith(f"companion.{name}.") for key in mine) > 10 for name in ("fake", "critic"))
    assert greatest_difference(mine, theirs) < 1e-5
    assert_same_metrics(one, two)
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert a["measures"] == pytest.approx(b["measures"], rel=1e-3, abs=1e-6)
    assert {"gap", "cosine", "adversarial", "fake_loss", "critic_loss"} <= one.metrics()[-1]["measures"].keys()


@linux
def test_a_companions_full_weights_are_refused_on_two_processes(stop, tmp_path):
    first, _ = stop(tmp_path, kind="full", matching=True)
    assert (
        "full weights are divided over several processes, and this method's companion wants its network whole" in first
    )


@linux
def test_a_killed_run_with_a_companion_resumes_bit_for_bit(start, tmp_path):
    """SIGKILL amid an iteration, after the companion's updates and before the student's."""
    whole = alone(tmp_path / "whole", kind="lora", matching=True)
    fault = {"rank": 0, "at": 5, "what": "kill"}
    ((code, _),) = ended(start(tmp_path / "killed", count=1, kind="lora", matching=True, fault=fault))
    assert code == -signal.SIGKILL
    killed = RunFolder(tmp_path / "killed", "run")
    assert checkpoints(killed) == [3, 6]
    assert greatest_difference(result(alone(tmp_path / "killed", kind="lora", matching=True)), result(whole)) == 0.0
    assert (killed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
