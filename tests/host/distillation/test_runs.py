"""A run folder that the editor wrote and another process trains: the same student, bit for bit, and every way to go wrong."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

import folder_paths
from comfyui_fewstep import nodes
from comfyui_fewstep.commands import train as commands_train
from comfyui_fewstep.launch import HOME, ROOT
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation import worker
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRALayers, LoRAOptions, lora_file
from hosting import Failed, demo
from safetensors.torch import save_file

LORA = "style.safetensors"
SECONDS = 240


def write_lora(file, *, seed):
    """A LoRA of the demo teacher's layers, as a user's style LoRA."""
    model = digits_model.load_teacher()
    options = LoRAOptions(rank=2, alpha=2.0, layers=LoRALayers.LINEAR_AND_CONV)
    adapters = Adapters(model.model.diffusion_model, options)
    generator = torch.Generator().manual_seed(seed)
    learnt = adapters.new_set(generator=generator)
    for adapter in learnt.values():
        adapter.up.data.normal_(std=0.02, generator=generator)
    names = host.naming.lora_names(model, adapters.paths)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora_file(learnt, alpha=2.0, names=names), file)


@pytest.fixture(scope="module")
def style(base):
    """The file of a LoRA that is wired into the teacher."""
    file = base / "models" / "loras" / LORA
    write_lora(file, seed=0)
    return file


def workflow(name, kind, student="full", iterations=6, **inputs):
    """The demo's training, its teacher with a LoRA, ending at a node of `kind`: FewStepDistill or FewStepWriteRun."""
    prompt = demo(
        name,
        FewStepDistill={"batch_size": 4, **inputs},
        FewStepProgressiveDistillation={"iterations": iterations},
    )
    (number,) = [key for key, node in prompt.items() if node["class_type"] == "FewStepDistill"]
    distil = prompt[number]["inputs"]
    prompt["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": distil["model"], "lora_name": LORA, "strength_model": 1.0},
    }
    distil["model"] = ["lora", 0]
    prompt[kind] = {
        "class_type": kind,
        "inputs": prompt.pop(number)["inputs"],
    }  # hosts of 2024 cache by id, not by class
    if student == "lora":
        options = {"rank": 4, "alpha": 4.0, "layers": "linear_and_conv"}
        prompt[distil["student"][0]] = {"class_type": "FewStepLoRAStudent", "inputs": options}
    needed = {"FewStepDigitsData", "FewStepDemoTeacher", "FewStepDigitPrompt", "FewStepProgressiveDistillation"}
    needed |= {"LoraLoaderModelOnly", "FewStepLoRAStudent", "FewStepFullWeightsStudent", kind}
    kept = {key: node for key, node in prompt.items() if node["class_type"] in needed}
    if kind != "FewStepWriteRun":
        kept["end"] = {"class_type": "FewStepLossChart", "inputs": {"run_name": [kind, 2]}}
        kept["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["end", 0]}}
    return kept


def watch(name, patience=SECONDS):
    """A watching node on the same teacher."""
    prompt = workflow(name, "FewStepWatchRun")
    prompt["FewStepWatchRun"]["inputs"] = {"model": ["lora", 0], "run_name": name, "patience": patience}
    return prompt


def start(run, *arguments, launcher=()):
    """The training process, as the launchers start it."""
    environment = {**os.environ, "PYTHONPATH": str(HOME / "packages")}
    command = [sys.executable, *launcher, "-m", "comfyui_fewstep.trainers", str(run), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process):
    said, errors = process.communicate(timeout=SECONDS)
    return process.returncode, said, errors


def train(run, *arguments):
    code, said, errors = finish(start(run, *arguments))
    assert code == 0, errors[-3000:]
    return said


def times(run):
    """When each file of the run was written."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(run, *arguments):
    """What the process says of a run that it does not train; nothing of the run changes."""
    before = times(run)
    code, _, errors = finish(start(run, *arguments))
    assert code == 1
    assert times(run) == before
    return errors.strip().splitlines()[-1]


def assert_same_student(one, other):
    first, second = (read_student(run / "student.safetensors")[0] for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def words_for(run, *more):
    """Of the command that trains a run from a terminal: this Python, and this ComfyUI where it is not the embedded one."""
    current = os.environ.get("COMFYUI_PATH")
    comfyui = ["--comfyui", os.path.realpath(current)] if current else []
    return [sys.executable, str(ROOT / "launch.py"), "train", str(run), *comfyui, *more]


@pytest.mark.parametrize(
    ("student", "folder"), [("full", "diffusion_models"), pytest.param("lora", "loras", marks=pytest.mark.thorough)]
)
def test_a_written_run_trained_elsewhere_is_the_same_run(
    student, folder, client, runs, style, name, base, trained_here
):
    history = client.run(workflow(f"{name} there", "FewStepWriteRun", student))
    there, here = runs / f"{name} there", runs / f"{name} here"
    (command,) = next(iter(history["outputs"].values()))["text"]
    assert shlex.split(command) == words_for(there)
    assert json.loads((there / "run.json").read_text())["teacher"]["outputs"].keys() == {"model", "vae"}
    assert not (there / "student.safetensors").exists()

    said = train(there)
    assert f"The student: {base / 'output' / folder / 'fewstep' / there.name}.safetensors" in said
    assert list((there / "previews").glob("*.png")), "the VAE was made again too"
    client.run(workflow(here.name, "FewStepDistill", student))
    assert_same_student(there, here)
    before = times(there)
    assert trained_here(there) == there / "student.safetensors"
    assert times(there) == before, "a finished run is not trained again"

    events = []
    client.run(watch(there.name), on_event=lambda kind, data: events.append(kind))
    assert "executed" in events


def test_a_run_stopped_there_goes_on_here(client, runs, style, name):
    run = runs / name
    client.run(workflow(name, "FewStepWriteRun", checkpoint_every=1))
    process = start(run)
    while process.poll() is None and not RunFolder(runs, name).checkpoints():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    code, said, errors = finish(process)
    if code == 0:
        pytest.skip("the run was finished before the signal came")
    assert (code, "Stopped; the same command goes on from here." in said) == (130, True), errors
    client.run(workflow(name, "FewStepDistill", checkpoint_every=1))
    client.run(workflow(f"{name} unbroken", "FewStepDistill", checkpoint_every=1))
    assert_same_student(run, runs / f"{name} unbroken")


def test_cancel_reaches_the_process_that_trains(client, server, runs, style, name):
    """By the panel's route, and far from a checkpoint; the same command goes on."""
    client.run(workflow(name, "FewStepWriteRun", checkpoint_every=100000, iterations=20000))
    run, process = RunFolder(runs, name), start(runs / name)
    while process.poll() is None and not (runs / name / "metrics.jsonl").exists():
        time.sleep(0.05)
    assert server.post(f"/fewstep/runs/{name}/cancel", {}) == {"run": name, "cancelling": True}
    code, said, errors = finish(process)
    assert (code, "Stopped; the same command goes on from here." in said) == (130, True), errors
    assert len(run.checkpoints()) == 1


def test_watching_shows_the_other_process(client, runs, style, name):
    client.run(workflow(name, "FewStepWriteRun", iterations=150))
    process, told = start(runs / name), []

    def note(kind, data):
        if kind == "fewstep.metrics":
            told.append(data["iteration"])

    client.run(watch(name), on_event=note)
    code, _, errors = finish(process)
    assert code == 0, errors[-3000:]
    assert told == sorted(told)
    assert told[-1] == 150
    assert len(told) > 2


def test_watching_gives_up_with_the_command(client, runs, style, name):
    client.run(workflow(name, "FewStepWriteRun"))
    with pytest.raises(Failed, match=f"the run .* was never started.* Start one: .*launch.py'? train .*{name}"):
        client.run(watch(name, patience=1))
    line = {"stage": 0, "stage_name": "4 steps", "iteration": 1, "iterations": 6, "loss": 0.5, "x0_error": 0.1}
    line |= {"gradient_norm": 1.0, "learning_rate": 1e-3, "band_errors": [0.1] * 4}
    (runs / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")  # as a process that began
    with pytest.raises(Failed, match=f"no process has trained the run .* Start one: .*launch.py'? train .*{name}"):
        client.run(watch(name, patience=1))


def test_watching_asks_for_the_teacher(client, runs, style, name):
    client.run(workflow(name, "FewStepWriteRun"))
    prompt = watch(name)
    prompt["lora"]["inputs"]["strength_model"] = 0.5
    with pytest.raises(Failed, match="was begun with another teacher"):
        client.run(prompt)


def test_a_folder_that_is_no_run(tmp_path, monkeypatch):
    for folder, said in (
        (tmp_path / "output" / "fewstep" / "runs" / "gone", "there is no run 'gone'"),
        (tmp_path, "say with --base where its models folder is"),
    ):
        monkeypatch.setattr(sys, "argv", ["train", str(folder)])
        with pytest.raises(SystemExit, match=said):
            commands_train.main()


@pytest.fixture
def trained_here(base):
    """Does what the training process does with a run of the server's, without starting one: that takes seconds each time."""
    folder_paths.add_model_folder_path("loras", str(base / "models" / "loras"))
    classes = {**node_classes(), **nodes.NODE_CLASS_MAPPINGS}

    def train(run):
        with Processes.from_environment() as processes:
            return worker.train_folder(RunFolder(run.parent, run.name), classes=classes, processes=processes, say=print)

    return train


@pytest.fixture
def refused_here(trained_here):
    """What the training process says of a run; nothing of it changes."""

    def said(run):
        before = times(run)
        with pytest.raises(ValueError) as error:
            trained_here(run)
        assert times(run) == before
        return str(error.value)

    return said


def test_what_the_run_names_must_be_here(client, runs, style, name, refused_here):
    client.run(workflow(name, "FewStepWriteRun"))
    run = runs / name
    content = style.read_bytes()
    try:
        style.unlink()
        assert f"lora_name '{LORA}', which is not here" in refused(run)
        assert f"lora_name '{LORA}', which is not here" in refused_here(run)
        write_lora(style, seed=1)
        assert "was begun with another teacher" in refused_here(run)
    finally:
        style.write_bytes(content)
    shard = next((run / "data").glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-4] + b"\0\0\0\1")
    assert f"{shard.name} is damaged" in refused_here(run)
    shard.write_bytes(content)
    with RunFolder(runs, name).locked():
        assert "is being trained by another process" in refused_here(run)
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**description, "teacher": None}))
    assert "does not say where its teacher comes from" in refused_here(run)
    (run / "run.json").write_text("{")
    assert "run.json of the run" in refused_here(run)


@pytest.mark.parametrize("content", ["{", '{"run": {"method": 7}}', '{"run": {"method": "m", "teacher_sha256": "a"}}'])
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_damaged_run_is_refused_before_the_host_is_imported(command, content, tmp_path, monkeypatch):
    module = importlib.import_module(f"comfyui_fewstep.commands.{command}")
    monkeypatch.setattr(module, "import_host", lambda *_, **__: pytest.fail("it is imported"))
    run = RunFolder(tmp_path, "run")
    run.path.mkdir()
    (run.path / "run.json").write_text(content)
    processes = {"processes": Processes()} if command == "train" else {}
    with pytest.raises(ValueError, match=r"run\.json of the run 'run' is damaged"):
        getattr(module, command)(run, base=tmp_path, host_options=[], **processes)


def test_the_launcher_plans_it(client, runs, style, name):
    """By launch.py plan, which changes nothing of the folder."""
    client.run(workflow(name, "FewStepWriteRun"))
    before = {file: file.read_bytes() for file in (runs / name).rglob("*") if file.is_file()}
    planned = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "plan", str(runs / name)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert planned.returncode == 0, planned.stderr[-3000:]
    stages = json.loads(before[runs / name / "run.json"])["run"]
    lines = planned.stdout.splitlines()
    first = next(line for line in lines if " to " in line and " iterations of " in line)
    assert first.startswith(f"{stages['method.start_steps']} to "), lines
    assert any(line.startswith("memory beside the model:") for line in lines), lines
    assert {file: file.read_bytes() for file in (runs / name).rglob("*") if file.is_file()} == before


LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": (
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be one GPU only")
@pytest.mark.parametrize(
    ("launcher", "student"), [pytest.param("torchrun", "full", marks=pytest.mark.thorough), ("accelerate", "lora")]
)
def test_two_processes_make_the_student_of_one(launcher, student, client, runs, style, name):
    """But for the order of sums, which Adam's first steps amplify in the weights of the least gradients."""
    client.run(workflow(f"{name} two", "FewStepWriteRun", student))
    code, said, errors = finish(start(runs / f"{name} two", launcher=LAUNCHERS[launcher]))
    assert code == 0, errors[-3000:]
    assert said.count("The student") == 1, "the first process alone speaks"
    client.run(workflow(f"{name} one", "FewStepDistill", student))
    two, one = (read_student(runs / f"{name} {count}" / "student.safetensors")[0] for count in ("two", "one"))
    teacher, _ = read_tensors(digits_model.TEACHER_FILE)
    assert two.keys() == one.keys()
    apart = sum((two[key] - one[key]).square().sum() for key in one)
    moved = sum(
        (one[key] - (teacher[key] if student == "full" else 0.0)).square().sum() for key in one if key[-5:] != "alpha"
    )
    assert apart.sqrt() < 1e-3 * moved.sqrt()
    assert json.loads((runs / f"{name} two" / "run.json").read_text())["made_with"]["processes"] == 2
