"""What launch.py and its commands start ends with them."""

import os
import signal
import subprocess
import sys
import time
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
