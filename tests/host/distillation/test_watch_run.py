"""Watch Run, when the training that it watches ends otherwise than finished. A process that trains is a lock that is held."""

import itertools
import os
import time

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes.distillation import runs
from comfyui_fewstep.trainers.runs import keeping
from comfyui_fewstep.trainers.storage import places
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from PIL import Image

METRICS = {
    "iterations": 99,
    "stage": 0,
    "stage_name": "s",
    "loss": 0.5,
    "x0_error": 0.5,
    "gradient_norm": 1.0,
    "learning_rate": 0.1,
    "band_errors": [],
}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path, "mine")
    run.claim({"run": {}})
    return run


def watching(monkeypatch, run, *between, patience=60.0, **clock):
    """Waits for the run; of `between` one thing happens from each look to the next."""
    left = list(between)

    def sleep(seconds):
        assert left, "it still waits"
        left.pop(0)()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    runs._wait(run, patience=patience, **clock)


def fail(run):
    with pytest.raises(RuntimeError), run.locked(), run.keeping_error(unless=KeyboardInterrupt):
        raise RuntimeError("training ran out of memory")


def nothing():
    pass


def test_an_error_there_is_told_at_once(run, monkeypatch):
    message = r"training of 'mine' ended with an error: training ran out of memory\. To go on.*launch.py'? train .*mine"
    with pytest.raises(ValueError, match=message):
        watching(monkeypatch, run, nothing, lambda: fail(run))


def test_an_error_of_a_start_before_is_no_end_of_this_one(run, monkeypatch):
    """Somebody watches for the next start. Where none comes, it is named."""
    fail(run)
    with pytest.raises(AssertionError, match="it still waits"):
        watching(monkeypatch, run, nothing, nothing)
    with pytest.raises(ValueError, match="ended with an error, and nobody has started it again: training ran out"):
        watching(monkeypatch, run, patience=-1.0)


def test_a_training_that_is_stopped_is_over_for_who_watches_it(run, monkeypatch):
    """And one that waits for its first start is not, whatever was asked of a process before."""
    held = run.lock.held()
    with pytest.raises(ValueError, match=r"training of 'mine' was stopped at iteration 0\. To go on with it: .*mine"):
        watching(
            monkeypatch,
            run,
            held.__enter__,
            lambda: run.ask_to_stop(now=True),
            lambda: held.__exit__(None, None, None),
        )
    assert run.cancel_asked
    with pytest.raises(AssertionError, match="it still waits"):
        watching(monkeypatch, run, nothing)


def test_looking_is_no_sign_of_life_and_a_held_lock_is_one(run, monkeypatch):
    """Some versions of filelock write the lock's file when somebody looks whether it is held."""
    then = time.time() - 1000.0

    def aged():
        for path in [*run.path.iterdir(), run.path]:
            os.utime(path, (then, then))
        run.place(".lock").touch()

    aged()
    assert places.last_change(run.path) == then
    with run.lock.held(), pytest.raises(AssertionError, match="it still waits"):
        watching(monkeypatch, run, *5 * [aged], patience=250.0, clock=ticking())
    with pytest.raises(ValueError, match="was never started"):
        watching(monkeypatch, run, *5 * [aged], patience=250.0, clock=ticking())


def ticking():
    """A clock that is 100 seconds later whenever it is asked."""
    now = itertools.count(0.0, 100.0)
    return lambda: next(now)


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_training_on_a_disk_with_another_clock_lives_as_long_as_it_changes_something(wrong, run, monkeypatch):
    """Its lock is not seen from here. By a clock that is behind it was given up while it trained, and by one that is ahead it was
    waited for an hour too long."""
    now = itertools.count(time.time() + wrong)

    def changed():
        for path in [*run.path.iterdir(), run.path]:
            os.utime(path, (at := next(now), at))

    changed()
    with pytest.raises(AssertionError, match="it still waits"):
        watching(monkeypatch, run, *9 * [changed], patience=250.0, clock=ticking())
    with pytest.raises(ValueError, match="was never started"):
        watching(monkeypatch, run, *9 * [nothing], patience=250.0, clock=ticking())


@pytest.mark.parametrize(
    "gone", [RunFolder.delete, lambda run: keeping.renamed(run, "later")], ids=["deleted", "renamed"]
)
def test_a_run_that_goes_while_it_is_watched_is_named(gone, run, monkeypatch):
    with pytest.raises(ValueError, match="the run 'mine' was renamed or deleted while it was watched"):
        watching(monkeypatch, run, lambda: gone(run))


def test_a_picture_is_decoded_once_however_large(run, monkeypatch):
    """16 prompts of 2400 x 2400 are above what Image.open takes for a bomb."""
    decoded, own = [], runs.preview_pictures.opened

    def counting(file):
        decoded.append(file.name)
        return own(file)

    monkeypatch.setattr(runs.preview_pictures, "opened", counting)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    look = runs._Look(run)
    rows = [torch.rand(3, 8, 8, 3) for _ in range(2)]
    run.place("previews").mkdir()
    for iteration, kept in ((10, True), (20, False), (30, True)):
        if kept:
            runs.preview_pictures.write(runs.preview_file(run, iteration), rows, prompts=["a", "b", "c"])
        run.log(METRICS | {"iteration": iteration})
        look()
    assert decoded == ["00000010.png", "00000030.png"]
    assert runs.preview_pictures.about(runs.preview_file(run, 30)) == {"columns": 3, "prompts": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "damaged",
    [lambda whole: b"no picture", lambda whole: whole[: len(whole) // 2], lambda whole: whole[:8] + bytes(40)],
    ids=["no picture", "cut", "broken"],
)
def test_a_damaged_picture_ends_no_watching(damaged, run):
    file = runs.preview_file(run, 10)
    runs.preview_pictures.write(file, [torch.rand(3, 64, 64, 3) for _ in range(2)], prompts=None)
    file.write_bytes(damaged(file.read_bytes()))
    run.log(METRICS | {"iteration": 10})
    look = runs._Look(run)
    look()
    assert look._shown == 10
