"""Another name, a note, and a new run of the same settings: what is kept, and what is refused."""

import json
import os
import pathlib
import shutil
import threading
import time

import pytest
from comfyui_fewstep.trainers.runs import keeping
from comfyui_fewstep.trainers.runs.watching import State, state_of, summary
from comfyui_fewstep.trainers.storage import locking
from comfyui_fewstep.trainers.storage.files import writing
from comfyui_fewstep.trainers.storage.reading import LONGEST_LINE
from comfyui_fewstep.trainers.storage.run_folder import RunFolder

SAID = {"run": {"method": "m", "teacher_sha256": "ab"}}
PROPOSED = "FewStep run name proposed"


def node(kind, *values, **more):
    return {"type": kind, "widgets_values": list(values), **more}


def linked(**more):
    """A node whose run_name comes over a link, and which keeps what its widget was."""
    return node("FewStepDistill", "", inputs=[{"name": "model", "link": 3}, {"name": "run_name", "link": 4}], **more)


def workflow(name):
    """All that names the run, and texts that are the same by chance."""
    named = {"run_name": name, "caption": "one"}
    ours = node("FewStepDistill", name, 0, f"{name} (run)", widgets_values_named=named, properties={PROPOSED: name})
    chance = [
        node("Note", "one"),
        node("FewStepImageFolder", "one", 512, "one"),
        node("FewStepPreviewPrompts", "one"),
        node("PrimitiveString", "one", id=8),
        {"type": "FewStepMakeItFast", "widgets_values": None},
    ]
    folded = [{"name": "clip"}, {"name": "caption", "widget": {}}, {"name": "name", "widget": {}}]
    return {
        "nodes": [
            ours,
            node("FewStepMakeItFast", "4", "closest", name, "train"),
            linked(),
            node("PrimitiveString", name, id=7, widgets_values_named={"value": name}),
            node("9f1c", "one", name, inputs=folded, widgets_values_named={"caption": "one", "name": name}),
            *chance,
        ],
        "links": [[3, 8, 0, 1, 0, "STRING"], [4, 7, 0, 1, 1, "STRING"]],
        "definitions": {
            "subgraphs": [
                {"nodes": [node("FewStepWatchRun", name)]},
                {"id": "9f1c", "nodes": [linked()], "links": [{"id": 4, "origin_id": -10, "origin_slot": 2}]},
            ]
        },
    }


@pytest.fixture
def run(tmp_path):
    """One that has begun, with data and a workflow."""
    made = RunFolder(tmp_path, "one")
    for folder in ("checkpoints", "data"):
        (made.path / folder).mkdir(parents=True)
    (made.path / "run.json").write_text(json.dumps(SAID))
    (made.path / "data" / "cache.safetensors").write_bytes(b"data")
    (made.path / "checkpoints" / "00000001.safetensors").write_bytes(b"state")
    made.keep_workflow(workflow("one"))
    return made


def called(run):
    """What its workflow calls it, as `workflow` makes one: of its own names, but for who has proposed it."""
    wanted = workflow(run.name)
    wanted["nodes"][0]["properties"] = {}
    return run.workflow() == wanted


def test_a_renamed_run_is_the_same_run(run):
    now = keeping.renamed(run, "two")
    assert not run.path.exists()
    assert state_of(now) is State.STOPPED
    assert called(now)


def test_a_clone_has_the_settings_and_data_and_has_not_begun(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    now = keeping.cloned(run, "two")
    assert now.description() == SAID
    assert (now.data_folder / "cache.safetensors").read_bytes() == b"data"
    assert (state_of(now), state_of(run)) == (State.WRITTEN, State.STOPPED)
    assert called(now)
    assert {path: path.read_bytes() for path in before} == before


def test_of_data_that_are_being_made_a_clone_has_what_is_whole(run):
    """What is half written may be gone, under its own name, before it is copied."""
    with writing(run.data_folder / "00001.safetensors") as unfinished:
        unfinished.write_bytes(b"half of")
        now = keeping.cloned(run, "two")
    assert [path.name for path in now.data_folder.iterdir()] == ["cache.safetensors"]


def test_a_damaged_run_has_no_clone(run):
    (run.path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        keeping.cloned(run, "two")
    assert not (run.path.parent / "two").exists()


def test_a_name_may_be_written_in_another_case_where_that_is_the_same_folder(run, monkeypatch):
    """As on Windows and macOS, whose answers these are."""

    def names():
        return [path.name for path in run.path.parent.iterdir()]

    monkeypatch.setattr(os.path, "lexists", lambda path: pathlib.Path(path).name.lower() in names())
    monkeypatch.setattr(pathlib.Path, "samefile", lambda path, other: str(path).lower() == str(other).lower())
    now = keeping.renamed(run, "ONE")
    monkeypatch.undo()
    assert (now.name, names()) == ("ONE", ["ONE"])


def test_a_link_to_the_run_is_another_name(run):
    (run.path.parent / "two").symlink_to(run.path)
    with pytest.raises(ValueError, match="there is a run 'two' already"):
        keeping.renamed(run, "two")
    assert run.path.is_dir()


@pytest.mark.parametrize("change", [keeping.renamed, keeping.cloned])
def test_a_folder_that_no_list_shows_is_told_of_and_left_alone(change, run, tmp_path):
    """Somebody's own, or a clone whose process was killed."""
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match=r"there is a folder \S*two already, without a run.json"):
        change(run, "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert not list((tmp_path / "two").iterdir())


@pytest.mark.parametrize("change", [keeping.renamed, keeping.cloned])
@pytest.mark.parametrize("name", ["../two", "", "CON", None, 3, "a/b", "two.", "one"])
def test_names_that_lead_elsewhere_or_are_taken_are_refused(change, name, run, tmp_path):
    with pytest.raises(ValueError, match="name"):
        change(run, name)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("change", [keeping.renamed, keeping.cloned])
def test_a_link_is_not_followed(change, run, tmp_path):
    (run.path / "data" / "elsewhere").symlink_to(tmp_path.parent)
    with pytest.raises(ValueError, match="is a link"):
        change(run, "two")
    with pytest.raises(ValueError, match="there is no run"):
        change(RunFolder(tmp_path, "never"), "two")


@pytest.mark.parametrize("change", [keeping.renamed, keeping.cloned])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"nodes": ' + b"[" * 700 + b"]" * 700 + b"}"])
def test_a_refused_change_changes_nothing(change, content, run):
    (run.path / "workflow.json").write_bytes(content)
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"workflow\.json"):
        change(run, "two")
    assert snapshot(run) == before


def snapshot(run):
    """Of all runs, but for who looked whether one is trained."""
    found = run.path.parent.rglob("*")
    return {path: path.is_file() and path.read_bytes() for path in found if path.name != ".lock"}


def test_a_long_text_is_told_by_its_beginning(run):
    """The list of all runs is one answer."""
    for name in ("note.txt", "error.txt"):
        (run.path / name).write_text("x" * 10**6)
    told = summary(run)
    assert len(told["note"]) == len(told["failure"]) == LONGEST_LINE


def test_a_run_that_goes_on_is_not_renamed(run):
    with run.locked(), pytest.raises(ValueError, match="is being trained"):
        keeping.renamed(run, "two")


def start(folder):
    """What another process does meanwhile."""
    with RunFolder(folder.parent, folder.name).locked():
        pytest.fail("a start came between")


def test_no_start_comes_between_the_look_and_the_rename(run, monkeypatch):
    def between(workflow):
        with pytest.raises(ValueError, match="is being trained"):
            start(run.path)
        return workflow

    with monkeypatch.context() as patch:
        found = run.workflow()
        patch.setattr(RunFolder, "workflow", lambda _: between(found))
        now = keeping.renamed(run, "two")
    with now.locked(), pytest.raises(ValueError, match="is being trained"):
        start(now.path)
    assert not run.path.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows renames no folder in which a file is open")
def test_a_start_that_waits_while_its_run_is_renamed_trains_no_other(run):
    """It has opened the lock by the old name, and gets it when the folder has the new one."""
    lock = run.lock
    acquire = lock._lock.acquire

    def acquired_late(**waiting):
        acquire(**waiting)
        run.path.rename(run.path.parent / "two")

    lock._lock.acquire = acquired_late
    with pytest.raises(ValueError, match="just renamed or deleted"), lock.held():
        pytest.fail("it trains")


def test_a_run_that_goes_while_its_lock_is_waited_for_is_told_of(run, monkeypatch):
    """Its folder is no more when the lock is tried once more."""
    with run.lock.held():
        waits = run.lock
        tried = waits._lock._acquire

        def tried_later():
            tried()
            shutil.rmtree(run.path, ignore_errors=True)

        monkeypatch.setattr(waits._lock, "_acquire", tried_later)
        with pytest.raises(ValueError, match="'one' was just renamed or deleted"), waits.held():
            pytest.fail("it trains")


@pytest.mark.parametrize(
    "ask",
    [
        RunFolder.repair,
        RunFolder.delete,
        lambda run: keeping.renamed(run, "two"),
        lambda run: keeping.cloned(run, "two"),
        lambda run: keeping.keep_note(run, "x"),
        RunFolder.ask_to_stop,
        lambda run: run.lock.held().__enter__(),
    ],
    ids=["repair", "delete", "rename", "clone", "note", "stop", "lock"],
)
def test_nothing_that_is_asked_of_a_run_that_is_gone_makes_its_folder(ask, tmp_path):
    with pytest.raises(ValueError, match="'one'"):
        ask(RunFolder(tmp_path, "one"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ask", [RunFolder.delete, lambda run: keeping.renamed(run, "two")], ids=["delete", "rename"])
def test_a_run_that_goes_just_before_its_lock_is_taken_stays_away(run, ask, monkeypatch):
    """Another tab deletes it meanwhile; the library of the lock makes a folder that is not there."""
    own = RunFolder.lock.fget

    def later(found):
        lock = own(found)
        shutil.rmtree(found.path, ignore_errors=True)
        return lock

    monkeypatch.setattr(RunFolder, "lock", property(later))
    with pytest.raises(ValueError, match="'one' was just renamed or deleted"):
        ask(run)
    assert list(run.path.parent.iterdir()) == []


def test_a_look_that_waits_for_another_makes_no_folder(run, monkeypatch):
    """Its run is deleted meanwhile. On Windows, where one look waits for another."""
    monkeypatch.setattr(locking, "fcntl", None)
    lock, told = run.lock, []
    run.place(".lock").touch()
    with locking._LOOKING:
        look = threading.Thread(target=lambda: told.append(lock.taken))
        look.start()
        time.sleep(0.1)
        run.delete()
    look.join()
    assert told == [False]
    assert not run.path.exists()


def test_nobody_comes_to_a_clone_before_it_is_whole(run, monkeypatch):
    """And one that fails leaves none behind."""

    def copied(_, data, **how):
        with pytest.raises(ValueError, match="is being trained"):
            start(data.parent)
        raise OSError("the disk is full")

    monkeypatch.setattr(keeping.shutil, "copytree", copied)
    with pytest.raises(OSError, match="the disk is full"):
        keeping.cloned(run, "two")
    assert [path.name for path in run.path.parent.iterdir()] == ["one"]


def test_a_run_that_is_trained_has_a_clone(run):
    with run.locked():
        assert keeping.cloned(run, "two").description() == SAID


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is open")
def test_a_run_is_deleted_under_its_lock(run, monkeypatch):
    unlink, tried = pathlib.Path.unlink, []

    def unlinked(path, **options):
        if path.name == ".lock":
            tried.append(run.busy)
        unlink(path, **options)

    monkeypatch.setattr(pathlib.Path, "unlink", unlinked)
    run.delete()
    assert tried[0]
    assert not run.path.exists()


def test_a_note_is_kept_and_told(run):
    keeping.keep_note(run, " sharper than the last \u2713 ")
    assert keeping.note(run) == summary(run)["note"] == "sharper than the last \u2713"
    keeping.keep_note(run, "")
    assert keeping.note(run) == ""
    for wrong in (None, 3, "x" * (keeping.LONGEST_NOTE + 1)):
        with pytest.raises(ValueError, match="note"):
            keeping.keep_note(run, wrong)


def test_a_note_goes_through_no_link(run, tmp_path):
    (run.path / "note.txt").symlink_to(tmp_path / "secret")
    for what in (lambda: keeping.note(run), lambda: keeping.keep_note(run, "x")):
        with pytest.raises(ValueError, match="link"):
            what()
    assert not (tmp_path / "secret").exists()


def test_students_of_single_stages_are_called_by_the_new_name_too(run):
    """In the menu of students; another run whose name begins alike is another."""
    listed = ["one (run)", "one, 4 steps (run)", "one more (run)", "one, 4 steps"]
    nodes = [{"id": i, "type": "FewStepLoadStudent", "widgets_values": [text]} for i, text in enumerate(listed)]
    run.keep_workflow({"nodes": nodes})
    found = [node["widgets_values"][0] for node in keeping.renamed(run, "two").workflow()["nodes"]]
    assert found == ["two (run)", "two, 4 steps (run)", "one more (run)", "one, 4 steps"]
