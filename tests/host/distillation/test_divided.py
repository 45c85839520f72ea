"""Full weights of the host's real architectures, divided over two processes: the losses and gradients of one process.

Some of the host's networks overwrite their blocks' inputs, call parts of themselves by other ways than as modules, and
return views; all of that is where FSDP acts. Gradient norms are those of all weights.
"""

import importlib
import multiprocessing
import os
import socket
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, has, kinds, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import running
from comfyui_fewstep.nodes.distillation.data.data_in_graph import data_in_graph
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions, StudentPrediction
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.distillation import Distillation
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions

KINDS = ("sd15", "sdxl", "sd3", "flux")
CONVERTING = "sd15 to v_prediction"


def distil_all(root, names, environment):
    """Four iterations of each name, by all processes of the environment: a kind, or a kind whose student predicts otherwise."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with torch.inference_mode(False), torch.enable_grad(), Processes.from_environment() as processes:
        for name in names:
            kind, _, prediction = name.partition(" to ")
            distil(RunFolder(root, name), kind, prediction, processes)
    processes.leave()


def distil(run, kind, prediction, processes):
    model = tiny(kind)
    latents = {"samples": noise_for(model, seed=1, batch=8)}
    prompts = conditioning(kind, seed=2), conditioning(kind, seed=5)
    data = data_in_graph(model, latents, *prompts, dropout=0.0).data
    sampling = host.models.model_sampling_of(model)
    options = ProgressiveOptions(
        start_steps=4,
        target_steps=2 if prediction else 1,
        iterations=2,
        weighting=Weighting.CONSTANT,
        learning_rate=1e-4,
        guidance_scale=1.5,
        student_prediction=StudentPrediction(prediction or "as_teacher"),
    )
    made = Distillation(
        run=run,
        method=options.on(running.teacher_kind(sampling, empty_prompt=True)),
        data=data,
        options=TrainOptions(batch_size=4, log_every=1, gradient_clip=1e9),
        teacher_sha256="a" * 64,
        prediction_type=host.models.prediction_type(sampling),
        processes=processes,
    )
    with (
        processes.held_by_first(made.run.locked()),
        students.student_of(model, students.FullWeights(), seed=0, prediction=made.student_prediction) as learning,
    ):
        made.execute(learning)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def finish(root, names, environments):
    """Runs by a process for each environment."""
    worker = importlib.import_module("test_divided")  # a process cannot import it by the name that pytest gave it
    spawn = multiprocessing.get_context("spawn")  # not the forkserver, which test_killed starts in its own way
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        processes = [
            spawn.Process(target=worker.distil_all, args=(root, names, own), daemon=True) for own in environments
        ]
        for process in processes:
            process.start()
    for process in processes:
        process.join(400)
        assert process.exitcode == 0
    return root


@pytest.fixture(scope="module")
def runs_of(request, tmp_path_factory):
    """The folders of the runs of all kinds that are asked for, by one process, and by two."""
    asked = [item.callspec.params for item in request.session.items if "runs_of" in item.fixturenames]
    names = [given["name"] for given in asked if given["name"] == CONVERTING or has(given["name"])]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pair = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [finish(tmp_path_factory.mktemp("runs"), names, environments) for environments in ([{}], pair)]


@pytest.mark.parametrize("name", [*kinds(*KINDS, thorough=["sd15", "sdxl"]), CONVERTING])
def test_divided_weights_learn_as_whole_ones(name, runs_of):
    """Also where a first stage converts the student, whose teacher is read otherwise until it is a copy of the student."""
    one, two = (RunFolder(root, name).metrics() for root in runs_of)
    assert [line["iteration"] for line in two] == [1, 2, 3, 4]
    for mine, theirs in zip(one, two, strict=True):
        for figure in ("loss", "x0_error", "gradient_norm"):
            assert mine[figure] == pytest.approx(theirs[figure], rel=1e-4), (figure, mine["iteration"])
    if name == CONVERTING:
        assert [line["stage"] for line in two] == [0, 0, 1, 1]


def test_gradient_checkpointing_of_divided_weights_is_refused(tmp_path):
    run = RunFolder(tmp_path, "run")
    options = TrainOptions(gradient_checkpointing=True)
    made = SimpleNamespace(run=run, options=options, processes=Processes(rank=0, count=2))
    with pytest.raises(ValueError, match="full weights are divided over 2 processes; these do not go together"):
        running.execute(made, students.FullWeights(), model=None, vae=None, show=None)
    assert not run.path.exists()
