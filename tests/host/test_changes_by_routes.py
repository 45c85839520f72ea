"""What the browser changes of a run by the server, and what such a request may not be."""

import json
import urllib.error
import urllib.request

import pytest
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_routes import write_run


def post(server, path, given):
    """(status, answer) of a POST."""
    request = urllib.request.Request(server.address + path, data=given, headers={"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_run_is_renamed_cloned_and_noted(server, runs, name):
    run = RunFolder(runs, name)
    run.path.mkdir(parents=True)
    (run.path / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    place = f"/fewstep/runs/{name}"
    assert post(server, f"{place}/note", b'{"note": " x "}') == (200, {"run": name, "note": "x"})
    assert post(server, f"{place}/clone", json.dumps({"name": f"{name} 2"}).encode()) == (200, {"run": f"{name} 2"})
    assert post(server, f"{place}/rename", json.dumps({"name": f"{name} 3"}).encode()) == (200, {"run": f"{name} 3"})
    assert sorted(path.name for path in runs.glob(f"{name}*")) == [f"{name} 2", f"{name} 3"]


@pytest.mark.parametrize("what", ["rename", "clone", "note"])
@pytest.mark.parametrize("given", [b"", b"[]", b"{", b"{}", b'{"name": "../x", "note": 3}'])
def test_what_a_change_does_not_understand_is_refused(what, given, server, runs, name):
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text("{}")
    assert post(server, f"/fewstep/runs/{name}/{what}", given)[0] == 400
    assert [path.name for path in runs.glob(f"{name}*")] == [name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"null", "the request is None, not an object"),
        (b"\xff", "the request is no JSON text (its byte 1 is no UTF-8)"),
        (b'{"note": "\\ud83d"}', "the note holds half of a character ('\\ud83d')"),
    ],
)
def test_what_a_request_is_not_is_said_in_words(given, said, server, runs, name):
    write_run(runs, name)
    status, answer = post(server, f"/fewstep/runs/{name}/note", given)
    assert (status, answer["error"].startswith(said)) == (400, True), answer
    assert not (runs / name / "note.txt").exists()
