"""SIGKILL: a run that was killed anywhere, any number of times, ends as the unbroken one, bit for bit.

The demo teacher in the host's own classes, through the node that users run. Each start is a process of its own, forked
from one that has torch and the host imported already, since 20 fresh imports would take minutes.
"""

import importlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import folder_paths
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation.distillation import Distill
from comfyui_fewstep.nodes.distillation.learning.students import FullWeights
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked, and killed by SIGKILL")

CONVOLUTIONS = LoRALayers.LINEAR_AND_CONV
KINDS = {
    "full": {"student": FullWeights()},
    "lora": {"student": LoRAOptions(rank=4, alpha=4.0, layers=CONVOLUTIONS), "ema_decay": 0.9, "warmup": 4},
}
"""What Distill Model gets beside the inputs below, by kind of student; one of them with all that a state can hold."""
KILLS = [8, pytest.param(20, marks=pytest.mark.thorough)]
ITERATIONS = 38
"""Of two stages. Their border lies between two checkpoints, a logged mean may span a checkpoint."""
EVERY = {"checkpoint_every": 2, "log_every": 3}


def distil(output, name, kind, death=None):
    """The whole run, or what is left of it, as the host runs the node. death: see die_at."""
    folder_paths.set_output_directory(str(output))
    if death:
        sys.addaudithook(die_at(folders.runs_root() / name, *death))
    with torch.inference_mode():
        Distill().distil(
            digits_model.load_teacher(),
            latents={"samples": torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0))},
            positive=digits_model.prompt("0123456789"),
            negative=digits_model.prompt(""),
            method=ProgressiveOptions(
                start_steps=8,
                target_steps=2,
                iterations=ITERATIONS // 2,
                weighting=Weighting.TRUNCATED_SNR,
                learning_rate=1e-3,
                guidance_scale=2.0,
            ),
            run_name=name,
            **{"seed": 3, "batch_size": 4, "optimiser": "adam", "weight_decay": 0.0, "gradient_clip": 1.0},
            **EVERY,
            **KINDS[kind],
        )


def die_at(folder, progress, count, torn_at):
    """Dies before this process opens, renames or removes a file in folder for the count-th time after progress.

    Or, with torn_at, in the middle of the first write after that which reaches so many bytes.
    """
    run, counter = RunFolder(folder.parent, folder.name), itertools.count(1)

    def hook(event, arguments):
        if event not in ("open", "os.rename", "os.remove") or not str(arguments[0]).startswith(str(folder)):
            return
        if newest_iteration(run) >= progress and next(counter) == count:
            limit_files_to(torn_at) if torn_at else die()

    return hook


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def limit_files_to(size):
    """Dies as soon as a file would become larger; what fits is written."""
    import resource  # not on Windows

    signal.signal(signal.SIGXFSZ, die)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def newest_iteration(run):
    """Of its checkpoints; 0 before the first."""
    return max((int(path.stem) for path in run.checkpoints()), default=0)


@pytest.fixture(scope="module")
def start():
    """Starts distil(...) in a process of its own and returns that."""
    from multiprocessing import forkserver  # no Windows has it

    context = multiprocessing.get_context("forkserver")
    worker = importlib.import_module("test_killed")  # a process cannot import it by the name that pytest gave it
    context.set_forkserver_preload([worker.__name__, "torch._dynamo"])  # which torch's first optimiser imports
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # forkservers before Python 3.14 know no other sys.path
        patch.setenv("OMP_NUM_THREADS", "1")  # a pool of threads does not survive a fork
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # nor does CUDA
        forkserver.ensure_running()

    def started(*arguments):
        process = context.Process(target=worker.distil, args=arguments, daemon=True)
        process.start()
        return process

    return started


def finish(process):
    process.join(120)
    assert process.exitcode == 0


def wait_for_checkpoint(process, run, iteration):
    while process.is_alive() and newest_iteration(run) < iteration:
        time.sleep(0.001)


def kill_from_outside(process, run, *, progress, delay):
    """Kills delay seconds after a checkpoint of `progress` iterations at least that was not there before."""
    wait_for_checkpoint(process, run, max(progress, newest_iteration(run) + 1))
    process.join(delay)
    process.kill()
    process.join()


def files(run):
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*"))


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_many_times_ends_as_the_unbroken_one(kind, kills, start, tmp_path):
    """At any time, before a change to a file, within a write; twice before the first checkpoint and once at the end."""
    unbroken, killed = (RunFolder(tmp_path / "fewstep" / "runs", name) for name in ("unbroken", "killed"))
    finish(start(tmp_path, "unbroken", kind))
    begun, ended = ((unbroken.path / name).stat().st_mtime for name in ("run.json", "student.safetensors"))
    between_checkpoints = (ended - begun) / ITERATIONS * EVERY["checkpoint_every"]
    rng = random.Random(0)
    moments = [0, 0, *sorted(rng.randrange(ITERATIONS - 12) for _ in range(kills - 3)), ITERATIONS]
    reached = []
    for i, progress in enumerate(moments):
        if i % 2 or progress == 0:
            torn_at = rng.randint(1, 100_000) if i % 4 == 3 else None
            process = start(tmp_path, "killed", kind, (progress, rng.randint(1, 6), torn_at))
            process.join(120)
        else:
            process = start(tmp_path, "killed", kind)
            kill_from_outside(process, killed, progress=progress, delay=rng.uniform(0, between_checkpoints))
        assert process.exitcode == -signal.SIGKILL
        killed.load_checkpoint()
        reached.append(newest_iteration(killed))
    assert reached == sorted(reached), "no kill loses a checkpoint"
    in_the_middle = [iteration for iteration in reached if 0 < iteration < ITERATIONS]
    assert len(in_the_middle) >= kills - 5, "other kills prove little"
    assert len(set(in_the_middle)) >= 2 * kills // 5, "it went on between kills"
    finish(start(tmp_path, "killed", kind))
    one, other = (read_student(run.student_file)[0] for run in (unbroken, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (killed.path / "metrics.jsonl").read_bytes() == (unbroken.path / "metrics.jsonl").read_bytes()
    assert files(killed) == files(unbroken), "nothing half written stays behind"


def test_a_run_is_locked_until_its_process_is_killed(start, tmp_path):
    run = RunFolder(tmp_path / "fewstep" / "runs", "run")
    process = start(tmp_path, "run", next(iter(KINDS)))
    wait_for_checkpoint(process, run, 2)
    with pytest.raises(ValueError, match="being trained by another process"), run.locked():
        pass
    process.kill()
    process.join()
    with run.locked():
        pass
