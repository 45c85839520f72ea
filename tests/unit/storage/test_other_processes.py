"""A run's folder while other processes, and people, do with it what they may: nothing that one of them writes is lost."""

import contextlib
import errno
import os
import pathlib
import re
import threading
import time

import pytest
from comfyui_fewstep.trainers.runs.watching import State, state_of, summary
from comfyui_fewstep.trainers.storage import locking, places
from comfyui_fewstep.trainers.storage.files import writing
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """One that is written."""
    made = RunFolder(tmp_path, "run")
    with made.locked():
        made.claim({"run": {"method": "m", "teacher_sha256": "ab"}})
    return made


@pytest.mark.parametrize(
    "place", ["note.txt", "stop", "cancel", "report.json", "report/report.html", "report/pictures/00.png"]
)
def test_a_start_takes_nothing_from_who_writes_without_its_lock(place, run):
    """A report of minutes was lost where a terminal went on with its run."""
    with writing(run.path / place) as unfinished:
        unfinished.write_bytes(b"content")
        with RunFolder(run.path.parent, run.name).locked():
            pass
    assert (run.path / place).read_bytes() == b"content"


def test_a_start_that_waited_for_another_and_comes_to_nothing_leaves_what_that_wrote(tmp_path):
    """Two servers prepare one run: the second waits for the lock, which it gets as the first has written the run."""
    first, second, ready = RunFolder(tmp_path, "run"), RunFolder(tmp_path, "run"), threading.Event()

    def refused():
        ready.set()
        with (
            pytest.raises(ValueError, match="no such VAE"),
            second.locked(),
            second.gone_if_refused(keep_data=True),
        ):
            raise ValueError("no such VAE")

    waits = threading.Thread(target=refused)
    with first.locked(), first.gone_if_refused(keep_data=True):
        waits.start()
        ready.wait()
        time.sleep(0.2)
        first.claim({"run": {}})
        first.keep_workflow({})
    waits.join()
    assert (first.description(), first.workflow()) == ({"run": {}}, {})


def test_what_goes_while_a_folder_is_looked_at_ends_no_look(run, monkeypatch):
    """A file that was being written, under its own name now: a watch of hours ended with an error."""
    scandir, then = os.scandir, places.last_change(run.path)
    (run.path / ".stages.json.1-1.part").touch()

    @contextlib.contextmanager
    def scanned(folder):
        with scandir(folder) as entries:
            found = list(entries)
        (run.path / ".stages.json.1-1.part").unlink()
        yield found

    monkeypatch.setattr(os, "scandir", scanned)
    assert places.last_change(run.path) == then


def test_a_checkpoint_that_somebody_else_deletes_ends_no_training(run, monkeypatch):
    """To make room, just as it would be deleted here."""
    unlink = pathlib.Path.unlink

    def twice(path, **how):
        unlink(path)
        unlink(path, **how)

    for iteration in (1, 2):
        run.save_checkpoint(iteration, {}, {"stage": 0})
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", twice)
        run.save_checkpoint(3, {}, {"stage": 0})
    assert [file.stem for file in run.checkpoints()] == ["00000002", "00000003"]


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(locking.fcntl is None, reason="Windows has no locks that are shared")
def test_who_looks_in_another_process_is_not_taken_for_who_trains(run):
    with run.place(".lock").open("rb") as look:
        locking.fcntl.flock(look, locking.fcntl.LOCK_SH)
        assert state_of(run) is State.WRITTEN


def test_nor_where_a_look_takes_the_lock_for_a_moment(run, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "_GLANCE_SECONDS", 2.0)  # however busy this machine is
    other, looks = run.lock, threading.Event()

    def look():
        with other.held():
            looks.set()
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    looks.wait()
    assert state_of(run) is State.WRITTEN
    thread.join()
    with run.locked():
        assert RunFolder(run.path.parent, run.name).busy


@pytest.mark.skipif(locking.fcntl is None, reason="Windows locks files of every disk")
def test_a_disk_without_locks_is_named(run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    with (
        pytest.raises(OSError, match=r"the disk of .*run knows no locks \(No locks available\).*--output-directory"),
        run.locked(),
    ):
        pytest.fail("it trains")
    assert "knows no locks" in summary(run)["error"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("what", ["its folder", "its lock"])
def test_a_run_that_cannot_be_written_to_says_what_to_do(what, code, run, monkeypatch):
    """Trained as another user, in a container say: the words were those of the system, of a hidden file."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code), ".lock")

    place = (pathlib.Path, "mkdir") if what == "its folder" else (locking.FileLock, "acquire")
    monkeypatch.setattr(*place, refuse)
    folder = run.path.parent if what == "its folder" else run.path
    said = rf"nothing can be written to {re.escape(str(folder))} \({os.strerror(code)}\).*--output-directory"
    with pytest.raises(OSError, match=said) as refused, run.locked():
        pytest.fail("it trains")
    assert refused.value.errno == code
    assert isinstance(refused.value, PermissionError) == (code == errno.EACCES)
