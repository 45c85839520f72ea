"""Real processes on this machine, with gloo."""

import multiprocessing
import os
import sys

import process_worker
import pytest
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from several import ended, free_port


@pytest.fixture(scope="module")
def start():
    """Starts processes that find each other as those of accelerate launch and torchrun do. They are forked, to be quick."""
    from multiprocessing import forkserver  # no Windows has it

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([process_worker.__name__, "torch._dynamo", "torch.distributed.fsdp"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # forkservers before Python 3.14 know no other sys.path
        patch.setenv("OMP_NUM_THREADS", "1")  # a pool of threads does not survive a fork
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # nor does CUDA
        forkserver.ensure_running()

    def started(root, count=2, **arguments):
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        made = []
        root.mkdir(exist_ok=True)
        for rank in range(count):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = root / f"process-{rank}.txt"
            target = (environment, log, {"root": root, **arguments})
            made.append((context.Process(target=process_worker.process, args=target, daemon=True), log))
            made[-1][0].start()
        return made

    return started


@pytest.fixture(scope="module")
def finish(start):
    """A whole run on two processes."""

    def finished(root, **arguments):
        for code, error in ended(start(root, **arguments)):
            assert code == 0, error
        return RunFolder(root, "run")

    return finished


@pytest.fixture(scope="module")
def stop(start):
    """A run on two processes of which both end with an error. The last line of each."""

    def stopped(root, **arguments):
        both = ended(start(root, **arguments))
        assert all(code == 1 for code, _ in both), both
        return [error.strip().splitlines()[-1] for _, error in both]

    return stopped
