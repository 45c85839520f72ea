"""A run on several processes is the run on one: real processes on this machine, with gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import process_worker
import pytest
from comfyui_fewstep.trainers.export import read_student
from comfyui_fewstep.trainers.files import read_tensors
from comfyui_fewstep.trainers.run_folder import RunFolder

KINDS = ["lora", "full"]
WORKER = Path(process_worker.__file__).resolve()
SECONDS = 120
"""For processes to end by themselves; one that hangs fails its test."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(root, count=2, **arguments):
    """Processes of a run, which find each other as accelerate launch and torchrun let them."""
    shared = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    given = json.dumps({"root": str(root), **arguments})
    ranks = [
        {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(count)} if count > 1 else {} for i in range(count)
    ]
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), given], env={**shared, **rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ranks
    ]


def ended(processes):
    """(return code, last lines of the error) of each."""
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error[-2000:]) for process, error in zip(processes, errors, strict=True)]


def finish(root, count=2, **arguments):
    for code, error in ended(start(root, count, **arguments)):
        assert code == 0, error
    return RunFolder(root, "run")


def result(run):
    return read_student(run.student_file)[0]


def greatest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_equal_metrics(one, other, *, within=1e-6):
    for a, b in zip(one.metrics(), other.metrics(), strict=True):
        for name in ("loss", "x0_error", "gradient_norm", "learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=within), (name, a["iteration"])
        assert a["band_errors"] == pytest.approx(b["band_errors"], rel=within)
        assert a["iteration"] == b["iteration"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of each kind in this process."""
    return {kind: process_worker.run(tmp_path_factory.mktemp(kind), kind=kind).run for kind in KINDS}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same on two processes."""
    return {kind: finish(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind, one, two):
    assert greatest_difference(result(one[kind]), result(two[kind])) < 1e-6
    assert_equal_metrics(one[kind], two[kind])
    mine, theirs = (read_tensors(of[kind].checkpoints()[-1])[0] for of in (one, two))
    assert greatest_difference(mine, theirs) < 1e-6, "a checkpoint is the same file"
