"""Runs that are cloned and deleted while other processes do something with them."""

import contextlib
import errno
import os
import pathlib
import shutil

import pytest
from comfyui_fewstep.trainers.runs import keeping
from comfyui_fewstep.trainers.runs.watching import summary
from comfyui_fewstep.trainers.storage import places
from comfyui_fewstep.trainers.storage.files import write_atomically
from comfyui_fewstep.trainers.storage.run_folder import RunFolder

OPENED = pathlib.Path("/proc/self/fd")


@pytest.fixture
def run(tmp_path):
    """One that has begun, with data and a workflow."""
    made = RunFolder(tmp_path, "one")
    with made.locked():
        made.claim({"run": {"method": "m", "teacher_sha256": "ab"}})
        made.keep_workflow({})
        made.save_checkpoint(1, {}, {"stage": 0})
    made.data_folder.mkdir()
    (made.data_folder / "00000.safetensors").write_bytes(b"data")
    return made


def deleted_while_its_data_are_copied(run):
    """They go last: the checkpoints before them are large."""
    (run.path / "run.json").unlink()


def deleted_before_all_is_copied(run):
    shutil.rmtree(run.path)
    raise shutil.Error([("cache.safetensors", "", "No such file or directory")])


def begun_anew(run):
    """With data of the same names."""
    (run.data_folder / "source.json").write_text("another")


@pytest.mark.parametrize("what", [deleted_while_its_data_are_copied, deleted_before_all_is_copied, begun_anew])
def test_a_clone_is_of_one_run(what, run, monkeypatch):
    """Its settings were missing then, or its data were of two sources and passed for those of one."""
    (run.data_folder / "source.json").write_text("one")
    copytree = shutil.copytree

    def copied(*folders, **how):
        copytree(*folders, **how)
        what(run)

    monkeypatch.setattr(keeping.shutil, "copytree", copied)
    with pytest.raises(ValueError, match="'one' was deleted or begun anew while it was cloned"):
        keeping.cloned(run, "two")
    assert not (run.path.parent / "two").exists()


def test_who_writes_into_a_run_that_is_deleted_keeps_nothing_of_it(run, monkeypatch):
    """Its report, of another process. Half of the run was left, and who deleted it was told of a folder that is not empty."""
    rmdir, place = os.rmdir, run.path / "report" / "pictures"
    late = iter([place / "1.png", place / "2.png"])
    write_atomically(place / "0.png", b"")

    def filled(path, **how):
        if str(path) == "pictures":
            for file in late:
                file.touch()
                break
        return rmdir(path, **how)

    unlink, gone = pathlib.Path.unlink, run.path / ".note.txt.1-1.part"
    gone.touch()
    monkeypatch.setattr(
        pathlib.Path, "unlink", lambda path, **how: [unlink(path, **how) for _ in range(1 + (path == gone))]
    )
    monkeypatch.setattr(os, "rmdir", filled)
    run.delete()
    assert not run.path.exists()


def test_a_clone_leaves_alone_whose_start_came_to_its_folder_first(run, monkeypatch):
    locked, there = RunFolder.locked, RunFolder(run.path.parent, "two")

    @contextlib.contextmanager
    def late(asked):
        if asked.name == "two" and not there.path.joinpath("run.json").exists():
            with locked(there):
                there.claim({"run": {"theirs": True}})
        with locked(asked):
            yield

    monkeypatch.setattr(RunFolder, "locked", late)
    with pytest.raises(ValueError, match="there is a run 'two' already"):
        keeping.cloned(run, "two")
    assert there.description() == {"run": {"theirs": True}}


def test_who_looks_at_a_run_that_is_deleted_is_told_of_no_damage(run, monkeypatch):
    """Another tab, while many gigabytes go: run.json was lost, it said, and was to be restored."""
    remove, iterdir, told = places.remove, pathlib.Path.iterdir, []

    def watched(path):
        remove(path)
        if run.path.joinpath("run.json").exists() or any(run.path.joinpath("checkpoints").glob("*")):
            told.append(summary(RunFolder(run.path.parent, run.name)).get("error"))

    monkeypatch.setattr(
        pathlib.Path, "iterdir", lambda path: sorted(iterdir(path), key=lambda found: found.name != "run.json")
    )
    monkeypatch.setattr(places, "remove", watched)
    run.delete()
    assert len(told) > 1
    assert not any(told)


@pytest.mark.skipif(not OPENED.is_dir(), reason="looks there which files are open")
def test_a_run_on_a_network_disk_is_deleted(run, monkeypatch):
    """Whose folder is not empty while a file is open that was in it."""
    rmdir = pathlib.Path.rmdir

    def refused(path):
        if f"{path}/.lock (deleted)" in [os.path.realpath(link) for link in OPENED.iterdir()]:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        rmdir(path)

    monkeypatch.setattr(pathlib.Path, "rmdir", refused)
    run.delete()
    assert not run.path.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is open")
def test_a_start_that_comes_to_the_folder_of_a_deleted_run_has_it(run, monkeypatch):
    """It waited for the lock. Who deleted the run was told of a folder that is not empty."""
    unlink, start = pathlib.Path.unlink, contextlib.ExitStack()
    new = RunFolder(run.path.parent, run.name)

    def unlinked(path, **how):
        unlink(path, **how)
        if path.name == ".lock":
            start.enter_context(new.locked())

    with start:
        monkeypatch.setattr(pathlib.Path, "unlink", unlinked)
        run.delete()
        new.claim({"run": {"new": True}})
    assert new.description() == {"run": {"new": True}}


def test_a_name_that_is_taken_while_a_run_is_renamed_is_told_of(run, monkeypatch):
    there = RunFolder(run.path.parent, "two")

    def taken(found):
        there.keep_workflow({})
        return {}

    monkeypatch.setattr(RunFolder, "workflow", taken)
    with pytest.raises(ValueError, match=r"there is a folder .*two already, without a run\.json"):
        keeping.renamed(run, "two")
    assert run.path.is_dir()
