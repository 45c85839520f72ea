"""Looks at runs of days: what they cost the process that trains, and the server's other answers."""

import asyncio
import json
import os
import threading
import time
import types
from pathlib import Path

import pytest
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.trainers.storage import reading
from comfyui_fewstep.trainers.storage.run_folder import RunFolder

import_host()

from comfyui_fewstep.nodes import routes
from comfyui_fewstep.nodes.host import folders

LINES, PICTURES = 3000, 500


def logged(iteration):
    figures = dict.fromkeys(("loss", "x0_error", "gradient_norm", "learning_rate"), 0.5)
    stage = {"stage": 0, "stage_name": "s", "iterations": 99999, "band_errors": [0.5, None]}
    return json.dumps({"iteration": iteration, **stage, **figures}) + "\n"


@pytest.fixture
def run(output):
    made = RunFolder(folders.runs_root(), "long")
    made.place("previews").mkdir(parents=True)
    made.place("metrics.jsonl").write_text("".join(map(logged, range(1, LINES + 1))))
    for i in range(PICTURES):
        made.place("previews", f"{i:08d}.png").touch()
    return made


def asked(run, **query):
    return types.SimpleNamespace(match_info={"run": run.name}, query=query)


def counted(monkeypatch, owner, name):
    calls, own = [], getattr(owner, name)

    def counting(*given, **named):
        calls.append(threading.get_ident())
        return own(*given, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_a_page_that_is_opened_again_reads_what_is_new_alone(run, monkeypatch):
    told = routes.run_now(asked(run))
    assert (told["iteration"], len(told["curves"]["iteration"])) == (LINES, LINES // 2)
    with run.place("metrics.jsonl").open("a") as file:
        file.write(logged(LINES + 1))
    parsed = counted(monkeypatch, reading, "parsed")
    assert routes.run_now(asked(run))["curves"]["iteration"][-2:] == [LINES, LINES + 1]
    assert len(parsed) == 1


def test_a_look_asks_the_disk_nothing_of_each_picture(run, monkeypatch):
    looks = [counted(monkeypatch, os, name) for name in ("stat", "lstat")]
    looks += [counted(monkeypatch, Path, name) for name in ("stat", "lstat")]
    assert len(routes.run_now(asked(run, after=str(LINES)))["previews"]) == PICTURES
    assert sum(map(len, looks)) < PICTURES


def test_an_answer_is_written_beside_the_servers_loop(monkeypatch):
    """Of a long list it takes a while, in which no other answer would come."""
    wrote = counted(monkeypatch, json, "dumps")
    request = types.SimpleNamespace(method="GET", content_type="", can_read_body=False)
    said = {}

    class Request(dict):
        def __getattr__(self, name):
            return getattr(request, name)

    async def ask():
        said["loop"] = threading.get_ident()
        return await routes.answering(lambda _: {"runs": [1, 2]})(Request())

    assert json.loads(asyncio.run(ask()).text) == {"runs": [1, 2]}
    assert wrote and said["loop"] not in wrote


@pytest.fixture
def many(output):
    """Runs in which nothing has changed for a while."""
    for i in range(20):
        made = RunFolder(folders.runs_root(), f"run {i}")
        made.path.mkdir(parents=True)
        made.place("run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
        made.place("metrics.jsonl").write_text(logged(1))
        made.place("previews").mkdir()
    rest(folders.runs_root())
    return [RunFolder(folders.runs_root(), f"run {i}") for i in range(20)]


def rest(folder):
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


def listed():
    return {told["run"]: told for told in routes.runs(None)}


def test_of_a_long_list_what_has_changed_alone_is_read_again(many, monkeypatch):
    first = listed()
    parsed = counted(monkeypatch, reading, "parsed")
    assert listed() == first
    assert parsed == []
    many[3].place("metrics.jsonl").write_text(logged(1) + logged(2))
    many[5].place("previews", "00000007.png").touch()
    many[7].place("note.txt").write_text("mine")
    many[9].delete()
    now = listed()
    assert now["run 3"]["iteration"] == 2
    assert now["run 5"]["previews"] == [7]
    assert now["run 7"]["note"] == "mine"
    assert len(now) == 19
    assert len(parsed) == 4, "what describes three runs, and a line"
    assert {name: told for name, told in now.items() if name not in ("run 3", "run 5", "run 7")} == {
        name: told for name, told in first.items() if name not in ("run 3", "run 5", "run 7", "run 9")
    }


def test_a_training_is_seen_in_the_list_from_its_beginning_to_its_end(many):
    """Though nothing in its folder changes, as when its process is killed."""
    assert listed()["run 3"]["state"] == "written"
    with many[3].lock.held():
        assert listed()["run 3"]["state"] == "training"
        assert listed()["run 4"]["state"] == "written"
    assert listed()["run 3"]["state"] == "written"


def test_what_changes_twice_within_a_tick_of_the_disks_clock_is_read_twice(many):
    file = many[3].place("run.json")
    for method in ("a", "b"):  # in the same moment, and of one size
        file.write_text(json.dumps({"run": {"method": method, "teacher_sha256": "ab"}}))
        os.utime(file, (told := int(time.time()), told))
        assert listed()["run 3"]["method"] == method


def test_a_run_that_goes_while_it_is_listed_spoils_no_list(many, monkeypatch):
    own = routes.is_quiet

    def gone(run):
        if run.name == "run 3":
            many[3].delete()
        return own(run)

    monkeypatch.setattr(routes, "is_quiet", gone)
    told = listed()
    assert len(told) == 20
    assert told["run 3"]["state"] == "absent"


def test_a_menu_of_students_reads_the_folders_of_runs_that_have_changed(many, monkeypatch):
    """A host makes its menus in the server's loop, where no other answer comes meanwhile."""
    students = [run.place("stages", "4 steps.safetensors") for run in many]
    for file in students:
        file.parent.mkdir()
        file.touch()
    rest(folders.runs_root())
    listed = {f"{run.name}, 4 steps (run)": file for run, file in zip(many, students, strict=True)}
    assert folders.student_files() == listed
    looks = counted(monkeypatch, RunFolder, "files")
    assert folders.student_files() == listed
    assert looks == []
    students[3].unlink()
    many[5].student_file.touch()
    many[7].delete()
    later = many[9].path.with_name("later")
    many[9].path.rename(later)
    gone = [f"{many[i].name}, 4 steps (run)" for i in (3, 7, 9)]
    now = {name: file for name, file in listed.items() if name not in gone}
    now |= {"run 5 (run)": many[5].student_file, "later, 4 steps (run)": later / "stages" / "4 steps.safetensors"}
    assert folders.student_files() == now
    assert len(looks) == 3
