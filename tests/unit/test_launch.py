"""What launch.py and its commands start ends with them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from comfyui_fewstep import launch
from comfyui_fewstep.commands import server, train

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import signal, sys, time
def end(number, frame):
    print("state saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("training", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_sigterm_ends_the_command_which_may_save_first():
    code = f"import pathlib, sys, launch; sys.exit(launch.run_in_environment(pathlib.Path(sys.executable), '-c', {CHILD!r}))"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "training\n"
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=30)
    assert (launcher.returncode, said) == (130, "state saved\n")


@pytest.fixture
def shut(tmp_path, monkeypatch):
    """A pack's folder in which nothing can be made: of a container's image, or on a disk without links."""
    home = tmp_path / "file" / ".fewstep"
    home.parent.touch()
    monkeypatch.setattr(launch, "HOME", home)
    monkeypatch.setattr(launch, "environment_python", lambda **_: Path(sys.executable))
    return home


def test_a_pack_that_cannot_be_written_to_is_said_so(shut, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", "ui"])
    assert launch.main() == 2
    assert f"nothing can be written to {shut} (" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_run_is_trained_by_a_pack_that_cannot_be_written_to(command, shut, tmp_path, monkeypatch, capfd):
    """Write Run's command is the first to write there, where it made a link that it does not need."""
    monkeypatch.setattr(sys, "argv", ["launch.py", command, str(tmp_path / "runs" / "mine")])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert launch.main() == 1
    assert f"launch.py {command}: {tmp_path / 'runs' / 'mine'} is no folder; give" in capfd.readouterr().err


SERVING = """
import signal, sys, time
from pathlib import Path
from comfyui_fewstep.commands import server
ready = Path(sys.argv[1]) / "ready"
SLOW = '''
import signal, sys, time
from pathlib import Path
def end(number, frame):
    time.sleep(0.5)
    sys.exit()
signal.signal(signal.SIGINT, end)
Path(sys.argv[1]).touch()
time.sleep(60)
'''
def wait(self):
    while not ready.exists():
        time.sleep(0.01)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
server.command = lambda **_: [sys.executable, "-c", SLOW, str(ready)]
server.Server.wait_until_ready = wait
with server.serving(base=ready.parent) as running:
    print(running.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_no_server_stays_when_its_command_is_ended_or_the_terminal_closed(how, tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-c", SERVING, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    server = int(command.stdout.readline())
    command.send_signal(getattr(signal, how))
    if how == "SIGHUP":  # a closed terminal is told of by the system and by the shell, here while the server ends
        time.sleep(0.2)
        command.send_signal(signal.SIGHUP)
    assert command.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_a_server_that_is_begun_in_the_background_still_hears_how_it_is_stopped(tmp_path):
    """A shell has what it puts there ignore SIGINT, which children inherit; the server is told by it to save and go."""
    heard = "signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    says = f"import pathlib, signal, sys; pathlib.Path(sys.argv[1]).write_text(str({heard}))"
    code = f"""
import signal, sys
from comfyui_fewstep.commands import server
said = {str(tmp_path / "said")!r}
signal.signal(signal.SIGINT, signal.SIG_IGN)
server.command = lambda **_: [sys.executable, "-c", {says!r}, said]
server.Server.wait_until_ready = lambda self: self.process.wait()
with server.serving(base=__import__("pathlib").Path(said).parent):
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "said").read_text() == "True"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, server.LOOPBACK), (socket.AF_INET6, "::1")])
def test_of_the_logs_of_free_ports_the_newest_few_stay(family, host, tmp_path, monkeypatch):
    """Each start has a port of its own, and a log; that of a server that still runs is not taken from under it."""
    with socket.socket(family) as running:
        try:
            running.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        running.listen()
        taken = running.getsockname()[1]
        ports = [taken, *range(1, 10)]
        for age, port in enumerate(reversed(ports)):
            log = tmp_path / f"server-{port}.log"
            log.touch()
            os.utime(log, (1e9 - age, 1e9 - age))
        (tmp_path / "server-mine.log").touch()
        os.utime(tmp_path / "server-mine.log", (1e8, 1e8))
        monkeypatch.setattr(server, "command", lambda **_: [sys.executable, "-c", ""])
        monkeypatch.setattr(server.Server, "wait_until_ready", lambda self: self.process.wait())
        with server.serving(base=tmp_path) as now:
            left = {path.name for path in tmp_path.glob("server-*.log")}
    newest = {f"server-{port}.log" for port in range(9, 9 - server.KEPT_LOGS, -1)}
    assert left == {*newest, f"server-{taken}.log", "server-mine.log", now.log.name}


NEVER = """
import sys
from pathlib import Path
from comfyui_fewstep.commands import server, ui
server.HOME = ui.HOME = Path(sys.argv.pop(1))
server.command = lambda **_: [sys.executable, "-c", "import time; time.sleep(60)"]
server.START_SECONDS = 1
ui.main()
"""
"""The editor's command with a server that says nothing, so that only another could answer."""


def asked_to_serve(home, port):
    command = [sys.executable, "-c", NEVER, str(home), "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "The editor is at" not in done.stdout
    return done.stderr


def test_a_port_where_another_server_answers_is_refused_by_name(tmp_path):
    another = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=another.serve_forever, daemon=True).start()
    try:
        said = asked_to_serve(tmp_path, another.server_port)
    finally:
        another.shutdown()
        another.server_close()
    assert said.startswith(
        f"The editor did not start: nothing can listen at --listen 127.0.0.1 --port {another.server_port} ("
    )


class Answering(BaseHTTPRequestHandler):
    """Whatever it is asked."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_that_none_can_be_is_refused_by_name(port, tmp_path):
    said = asked_to_serve(tmp_path, port)
    assert said == (f"The editor did not start: --port is {port}; give 1 to 65535, or leave it out for a free one.\n")


def test_each_server_has_a_log_of_its_own(tmp_path):
    ports = [server.free_port() for _ in range(2)]
    for port in ports:
        assert f"({tmp_path / 'host' / f'server-{port}.log'})" in asked_to_serve(tmp_path, port)
    assert len(list((tmp_path / "host").glob("*.log"))) == 2


def launched(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", f"import pathlib, sys, launch; {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def home(tmp_path):
    """A .fewstep with an environment, what the user of its ComfyUI has, and what can be made again."""
    made = tmp_path / ".fewstep"
    files = ["venv/bin/python", "mypy/cache", "host/temp/preview.png", "host/output/loras/fewstep/mine.safetensors"]
    for name in (*files, "host/models/checkpoints/sdxl.safetensors"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("content")
    (made / "host" / "input").mkdir()
    return made


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def cleaned(home, *arguments):
    return launched(f"launch.HOME = pathlib.Path({str(home)!r}); sys.exit(launch.command_clean({list(arguments)!r}))")


def test_asking_what_clean_does_removes_nothing(home):
    before = files_in(home)
    helped, unknown = cleaned(home, "--help"), cleaned(home, "--dry-run")
    assert (helped.returncode, unknown.returncode) == (0, 2)
    assert "--all" in helped.stdout
    assert files_in(home) == before


def test_clean_keeps_what_cannot_be_made_again_and_says_so(home):
    done = cleaned(home)
    assert done.returncode == 0, done.stderr
    assert files_in(home) == ["host/models/checkpoints/sdxl.safetensors", "host/output/loras/fewstep/mine.safetensors"]
    assert sorted(path.name for path in (home / "host").iterdir()) == ["models", "output"]
    assert done.stdout.count("; --all removes it too") == 2
    assert cleaned(home, "--all").returncode == 0
    assert not home.exists()


def test_a_command_that_a_signal_ended_ends_as_shells_say_it():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert (
        launched(f"sys.exit(launch.run_in_environment(pathlib.Path(sys.executable), '-c', {code!r}))").returncode == 137
    )


def test_a_name_that_the_terminal_cannot_write_ends_nothing():
    code = "print(chr(0x6a21))"
    command = f"sys.exit(launch.run_in_environment(pathlib.Path(sys.executable), '-c', {code!r}))"
    for encoding in ("cp1252", "ascii:strict"):
        done = launched(command, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stdout) == ((0, "?\n") if encoding == "cp1252" else (1, "")), (
            "as it was asked for"
        )


@pytest.mark.parametrize(("command", "said"), [("ui", "--port"), ("demo", "--seed"), ("bench", "architectures: Every")])
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_a_command_is_explained_without_an_environment(command, said, asked, tmp_path):
    """By a Python with nothing installed."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    home = f"launch.HOME = pathlib.Path({str(tmp_path / 'home')!r}); launch._install = None; "
    code = f"import pathlib, sys, launch; {home}sys.argv[1:] = {[command, asked]!r}; sys.exit(launch.main())"
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMFYUI_PATH")}
    python = str(launch.python_in(bare))
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, env=alone, timeout=60)
    assert (done.returncode, said in done.stdout) == (0, True), done.stderr
    assert not (tmp_path / "home" / "venv").exists()


def test_a_python_that_makes_no_environments_is_said_what_to_do(tmp_path):
    """That of ComfyUI's portable build has no venv."""
    home, none = f"launch.HOME = pathlib.Path({str(tmp_path)!r})", "sys.executable = shutil.which('false')"
    done = launched(f"import shutil; {home}; {none}; launch.own_environment()")
    assert done.returncode == 1
    assert "set COMFYUI_PATH to the folder of that ComfyUI" in done.stderr


def test_a_junction_to_where_the_pack_was_is_made_anew(tmp_path, monkeypatch):
    """Windows calls no junction a symbolic link, and makes none where there is one."""
    place = tmp_path / "packages" / "comfyui_fewstep"
    place.mkdir(parents=True)  # which is what a junction is to whoever asks
    made = {}

    def junction(target, at):
        os.mkdir(at)  # noqa: PTH102 (a Path would be one of Windows)
        made[at] = target

    monkeypatch.setitem(sys.modules, "_winapi", types.SimpleNamespace(CreateJunction=junction))
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        launch.link(ROOT, place)
    assert made == {str(place): str(ROOT)}


@pytest.mark.skipif(os.name == "nt", reason="made of a shell's script")
@pytest.mark.parametrize("command", ["train", "plan"])
def test_the_python_of_a_portable_comfyui_finds_the_package(command, tmp_path):
    """Its ._pth file keeps it from what the environment says, PYTHONPATH above all, and from the folder it is started in."""
    comfyui, python = tmp_path / "ComfyUI", tmp_path / "python_embeded" / "python.exe"
    for file in (comfyui / "main.py", python):
        file.parent.mkdir()
        file.touch()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "$@"\n')
    python.chmod(0o755)
    start = [python, ROOT / "launch.py", command, tmp_path / "runs" / "mine", "--comfyui", comfyui]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith(f"launch.py {command}: {tmp_path / 'runs' / 'mine'} is no folder; give")


@pytest.mark.parametrize("given", ["mine", "mine/run.json"])
def test_what_is_no_run_is_said_before_where_its_models_are(given, tmp_path):
    """Somebody typed a run's name for its folder, and was told to say --base, which does not help."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").touch()
    with pytest.raises(ValueError, match="is not within a ComfyUI's output" if given == "mine" else "is no folder"):
        train.base_of(tmp_path / given)
    with pytest.raises(ValueError, match=r"is no folder; give the run's own: ComfyUI/output/fewstep/runs/<run name>"):
        train.base_of(tmp_path / "output" / given)


@pytest.mark.parametrize("count", ["0", "-1", "999999", "9" * 20])
def test_more_processes_than_any_machine_takes_are_refused(count, monkeypatch, tmp_path):
    """A digit too many took the machine with it: torch's launcher starts as many as it is told."""
    monkeypatch.setattr(launch, "run_in_environment", lambda *arguments, **_: pytest.fail(f"started {arguments}"))
    with pytest.raises(launch.Stop, match=rf"--processes is {count}; give 1 to \d+, one for each GPU"):
        launch.command_train([str(tmp_path), "--processes", count])


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::1", "[::1]"),
        ("::", "[::1]"),
    ],
)
def test_a_server_is_at_an_address_that_browsers_take(listen, host, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "require_port", lambda *_: None)
    monkeypatch.setattr(server, "command", lambda **_: [sys.executable, "-c", ""])
    monkeypatch.setattr(server.Server, "wait_until_ready", lambda self: None)
    with server.serving(base=tmp_path, listen=listen, port=8188) as running:
        assert running.address == f"http://{host}:8188"


def test_several_processes_on_windows_are_refused_before_anything_starts(monkeypatch, tmp_path):
    """Torch's launcher would end in an error of its store's."""
    monkeypatch.setattr(launch, "run_in_environment", lambda *arguments: pytest.fail(f"started {arguments}"))
    monkeypatch.setattr(launch.sys, "platform", "win32")
    with pytest.raises(launch.Stop, match="--processes is 2; on Windows give 1"):
        launch.command_train([str(tmp_path), "--processes", "2"])
