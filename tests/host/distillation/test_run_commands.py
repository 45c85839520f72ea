"""The command that trains a run, as a terminal executes it: where output lies elsewhere, is a link, or wants quotes."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

import folder_paths
from comfyui_fewstep import launch
from comfyui_fewstep.commands import train as commands_train
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.processes.group import ProcessLost, StoppedElsewhere
from comfyui_fewstep.trainers.training.optimisation.tally import NonFiniteLoss
from comfyui_fewstep.trainers.training.out_of_memory import OutOfMemory
from test_runs import SECONDS, style, words_for, workflow  # noqa: F401 (a fixture)


def as_shown(command):
    """Executes it in a terminal that knows of no ComfyUI."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_")}
    return subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=SECONDS, env=environment, cwd="/"
    )


def started_in(base, monkeypatch):
    monkeypatch.setattr(folder_paths, "base_path", str(base))
    monkeypatch.setattr(folder_paths, "models_dir", str(base / "models"))


@pytest.mark.usefixtures("style")
def test_the_command_works_as_shown_where_output_lies_elsewhere(client, runs, name, base, tmp_path, monkeypatch):
    """ComfyUI started with --output-directory: the folder has any name, with what a shell reads in it."""
    client.run(workflow(name, "FewStepWriteRun"))
    elsewhere = tmp_path / "what is $HOME 'made'"
    shutil.copytree(runs / name, elsewhere / "fewstep" / "runs" / name)
    started_in(base, monkeypatch)
    command = host.folders.command_for(elsewhere / "fewstep" / "runs" / name)
    assert shlex.split(command) == words_for(elsewhere / "fewstep" / "runs" / name, "--base", str(base))
    done = as_shown(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (elsewhere / "diffusion_models" / "fewstep" / f"{name}.safetensors").is_file(), done.stdout
    if importlib.util.find_spec("comfy_execution"):  # older hosts complain of their own nodes
        alarming = re.findall(r".*(?:warning|failed|error|deprecat|traceback).*", done.stdout + done.stderr, re.I)
        assert alarming == []


def test_models_are_found_where_extra_model_paths_says(tmp_path):
    """In a process that trains: the pack is imported before the host's node classes, which needs what the pack hides."""
    (tmp_path / "shared loras").mkdir()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"shared:\n    base_path: {tmp_path}\n    loras: shared loras\n")
    code = (
        "import pathlib, sys; from comfyui_fewstep.commands.embedded import import_host, node_classes;"
        " import_host('--extra-model-paths-config', sys.argv[1], base=pathlib.Path(sys.argv[2]));"
        " import comfyui_fewstep.nodes, folder_paths; assert 'LoraLoader' in node_classes();"
        " print(*folder_paths.get_folder_paths('loras'), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config), str(tmp_path)], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(tmp_path / "shared loras") in done.stdout.splitlines()


def test_the_command_names_further_model_folders_and_is_read_as_meant(tmp_path, monkeypatch):
    """ComfyUI's desktop application is started with such a file."""
    given = types.SimpleNamespace(extra_model_paths_config=[["/a b/one.yaml"], ["/two.yaml"]])
    monkeypatch.setattr(host.folders, "args", given)
    run, found = tmp_path / "output" / "fewstep" / "runs" / "run", []
    command = shlex.split(host.folders.command_for(run))
    assert command[-4:] == ["--", "--extra-model-paths-config", "/a b/one.yaml", "/two.yaml"]
    assert "--base" in command, "an option before them"
    monkeypatch.setattr(launch, "environment_python", lambda: "python")
    monkeypatch.setattr(launch, "run_in_environment", lambda *words, **_: found.append(words) or 0)
    monkeypatch.setenv("COMFYUI_PATH", os.environ.get("COMFYUI_PATH", ""))  # put back after launch's own
    launch.command_train(command[3:])
    launch.command_plan(command[3:])
    for words in found:
        monkeypatch.setattr(sys, "argv", ["python", *words[words.index(str(run)) :]])
        read = commands_train.arguments_of("launch.py train", None)
        assert (read.run, read.host_options) == (run, command[-3:])
        assert read.base is not None


def test_the_command_names_a_folder_of_models_that_is_elsewhere(tmp_path, monkeypatch):
    """ComfyUI started with --models-directory: packs are still where ComfyUI is."""
    started_in(tmp_path, monkeypatch)
    monkeypatch.setattr(folder_paths, "models_dir", "/mnt/my models")
    command = shlex.split(host.folders.command_for(tmp_path / "output" / "fewstep" / "runs" / "run"))
    assert command[-3:] == ["--", "--models-directory", "/mnt/my models"]
    assert "--base" not in command


@pytest.mark.parametrize("options", [["--fp8_e4m3fn-unet", "--bf16-vae", "--force-upcast-attention"], []])
def test_the_command_names_the_precision_that_the_host_was_started_with(options, tmp_path, monkeypatch):
    """Weights that are held in another type are another teacher's."""
    started_in(tmp_path, monkeypatch)
    set_to = {option[2:].replace("-", "_"): True for option in options}
    given = types.SimpleNamespace(extra_model_paths_config=None, fp16_unet=False, **set_to)
    monkeypatch.setattr(host.folders, "args", given)
    run = tmp_path / "output" / "fewstep" / "runs" / "run"
    assert shlex.split(host.folders.command_for(run)) == [*words_for(run), *(["--", *options] if options else [])]


def test_the_command_names_the_precision_as_the_host_takes_it(tmp_path):
    """It reads --force-fp16 as --fp16-unet besides, and refuses two for the network."""
    options = ["--force-fp16", "--fp8_e5m2-unet"]
    if importlib.util.find_spec("comfy_execution"):  # older hosts have no such option
        options += ["--fast", "autotune", "fp8_matrix_mult"]
    code = (
        "import pathlib, sys; from comfyui_fewstep.commands.embedded import import_host; import_host(*sys.argv[2:]);"
        " from comfyui_fewstep.nodes.host import folders; print(folders.command_for(pathlib.Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "output" / "fewstep" / "runs" / "run"), *options],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[command.index("--") + 1 :] == options


@pytest.fixture
def linked(base, tmp_path, monkeypatch):
    """A ComfyUI whose output and models are links."""
    made = tmp_path / "ComfyUI"
    (tmp_path / "disk" / "fewstep" / "runs").mkdir(parents=True)
    made.mkdir()
    (made / "output").symlink_to(tmp_path / "disk")
    (made / "models").symlink_to(base / "models")
    started_in(made, monkeypatch)
    return made


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_the_command_finds_everything_where_output_is_a_link(linked, monkeypatch):
    """Neither the run nor its ComfyUI is where the link leads."""
    run, found = linked / "output" / "fewstep" / "runs" / "run", []
    command = shlex.split(host.folders.command_for(run))
    assert command == words_for(run)
    monkeypatch.setattr(commands_train, "train", lambda run, *, base, **_: found.append((run.path, base)))
    monkeypatch.setattr(sys, "argv", ["train", command[3]])
    commands_train.main()
    assert found == [(run, linked)]
    assert commands_train.output_of(run) == linked / "output"


@pytest.mark.thorough
@pytest.mark.usefixtures("style")
@pytest.mark.skipif(os.name == "nt", reason="links")
def test_the_command_works_where_output_is_a_link(client, runs, name, linked):
    client.run(workflow(name, "FewStepWriteRun"))
    shutil.copytree(runs / name, linked / "output" / "fewstep" / "runs" / name)
    done = as_shown(host.folders.command_for(linked / "output" / "fewstep" / "runs" / name))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (linked.parent / "disk" / "diffusion_models" / "fewstep" / f"{name}.safetensors").is_file(), done.stdout


@pytest.mark.parametrize(
    ("windows", "line"), [(False, "python '/a b/$x' \"it's\""), (True, 'python "C:\\a b\\$x" it\'s')]
)
def test_a_command_is_quoted_for_its_shell(windows, line):
    path = "C:\\a b\\$x" if windows else "/a b/$x"
    made = host.folders.in_shell(["python", path, "it's"], windows=windows)
    assert made == line if windows else shlex.split(made) == ["python", path, "it's"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("C:\\R&D\\python.exe", '"C:\\R&D\\python.exe"'),
        ("D:\\a^b\\", '"D:\\a^b\\\\"'),
        ("C:\\plain", "C:\\plain"),
        ("C:\\a & b", '"C:\\a & b"'),
    ],
)
def test_marks_of_windows_shell_are_inside_quotes(word, said):
    """It would end the command at an ampersand."""
    assert host.folders.in_shell(["python", word], windows=True) == f"python {said}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            NonFiniteLoss("the loss became nan; the last good checkpoint is kept"),
            "launch.py train: the loss became nan",
        ),
        (OutOfMemory("training ran out of memory"), "launch.py train: training ran out of memory"),
        (ProcessLost("process 1 failed"), "launch.py train: process 1 failed"),
        (StoppedElsewhere("process 0 was asked to stop"), 130),
    ],
)
def test_what_has_words_for_the_user_is_no_traceback(error, code, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(commands_train, "train", failing)
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "output" / "fewstep" / "runs" / "mine")])
    with pytest.raises(SystemExit) as ended:
        commands_train.main()
    assert ended.value.code == code if isinstance(code, int) else str(ended.value.code).startswith(code)
