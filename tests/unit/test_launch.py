"""What launch.py and its commands start ends with them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


SERVING = """
import signal, sys, time
from pathlib import Path
from comfyui_fewstep.commands import server
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
server.command = lambda **_: [sys.executable, "-c", "import time; time.sleep(60)"]
server.Server.wait_until_ready = lambda self: None
with server.serving(base=Path(sys.argv[1])) as running:
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
    for _ in range(1 + (how == "SIGHUP")):  # of a closed terminal: from the system and from the shell
        command.send_signal(getattr(signal, how))
    assert command.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
