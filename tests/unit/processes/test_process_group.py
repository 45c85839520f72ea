"""What a process that was one of several leaves behind: nothing."""

import os
import subprocess
import sys

from test_processes import SECONDS, free_port, linux

LEAVING = """
import os
from comfyui_fewstep.trainers.processes.group import Processes

with Processes.from_environment() as processes:
    processes.agree()
    import torch.distributed.fsdp  # as torch itself does when the first optimiser is made
print([open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")])
"""


@linux
def test_no_thread_of_a_group_outlives_it():
    """One that still ran while the process ended could abort it."""
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    made = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING],
            env={**os.environ, **shared, "RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in made:
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert said, "the names of its threads"
        assert "gloo" not in said
