"""Runs on one process and on several, and what they left: for tests of both."""

import socket
import sys

import process_worker
import pytest
from comfyui_fewstep.trainers.storage.export import read_student

linux = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
SECONDS = 120
"""For processes to end by themselves; one that hangs fails its test."""
ROUNDING = 1e-5
"""
What a weight may differ by where its gradients were summed in another order: Adam divides a gradient by its own size,
so one that nearly cancels carries the sum's rounding at full step. Which weights those are differs from processor to
processor (up to 3e-6 seen); the runs move their weights by more than 5e-3.
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ended(made):
    """(exit code, the error) of each process."""
    try:
        for process, _ in made:
            process.join(SECONDS)
            assert process.exitcode is not None, "a process hangs"
    finally:
        for process, _ in made:
            process.kill()
    return [(process.exitcode, log.read_text()) for process, log in made]


def alone(root, **arguments):
    """The run in this process."""
    return process_worker.run(root, **arguments).run


def result(run):
    return read_student(run.student_file)[0]


def greatest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def checkpoints(run):
    return [int(path.stem) for path in run.checkpoints()]


def assert_same_metrics(run, other):
    """To float32 rounding: some errors are differences of nearly equal numbers."""
    for a, b in zip(run.metrics(), other.metrics(), strict=True):
        assert a["iteration"] == b["iteration"]
        for name in ("loss", "x0_error", "gradient_norm", "learning_rate", "band_errors"):
            mine, theirs = (_numbers(line[name]) for line in (a, b))
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-12), (name, a["iteration"])


def _numbers(value):
    """-1 for a band without a sample."""
    return [-1.0 if one is None else one for one in value] if isinstance(value, list) else value
