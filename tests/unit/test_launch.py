"""What launch.py starts ends with it."""

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
