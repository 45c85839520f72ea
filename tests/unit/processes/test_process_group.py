"""What a process that was one of several leaves behind: nothing."""

import os
import subprocess
import sys

import pytest
from several import SECONDS, free_port, linux

LEAVING = """
import os
from comfyui_fewstep.trainers.processes.group import Processes

child = os.fork()  # torch is imported once for both, and has started nothing yet
os.environ["RANK"] = "1" if child else "0"
with Processes.from_environment() as processes:
    processes.agree()
    import torch.distributed.fsdp  # as torch itself does when the first optimiser is made
print([open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")], flush=True)
if child and os.waitpid(child, 0)[1] != 0:
    raise SystemExit("the other process failed")
"""


@linux
def test_no_thread_of_a_group_outlives_it():
    """One that still ran while the process ended could abort it."""
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", LEAVING],
        env={**os.environ, **shared},
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2, "the names of the threads of each"
    assert "gloo" not in done.stdout


@pytest.mark.parametrize(("count", "code"), [(1, -6), (2, 0)])
def test_one_of_several_that_is_done_ends_well_whatever_python_does_at_its_end(count, code):
    """As threads of torch.distributed do then, now and again: a launcher would take the finished run for a failed one."""
    work = (
        "import atexit, os; from comfyui_fewstep.trainers.processes.group import Processes; atexit.register(os.abort); "
        f"print('done'); Processes(rank=0, count={count}).leave()"
    )
    ended = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == "done\n" or code != 0
