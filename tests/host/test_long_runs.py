"""Looks at runs of days: what they cost the process that trains, and the server's other answers."""

import asyncio
import json
import os
import threading
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
