"""What the browser asks the server for, as the browser asks it."""

import json
import re
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.commands.server import ServerError
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from hosting import ROOT, Failed, demo
from PIL import Image

import_host()

from comfyui_fewstep.nodes import host, routes
from comfyui_fewstep.nodes.distillation.distillation import Distill
from comfyui_fewstep.nodes.host import folders


def ask(server, path, *, data=None):
    """(status, body as bytes) of a request that is sent as it is written: nothing tidies the path on its way."""
    request = urllib.request.Request(server.address + path, data=data)  # noqa: S310 (our own http address)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def snapshot(folder):
    """Of all but what only holding a lock touches: most versions of filelock write the file then."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_a_run_is_told_whole_and_looking_changes_nothing(client, server, runs, name):
    client.run(demo(name, FewStepProgressiveDistillation={"iterations": 20}))
    before = snapshot(runs / name)
    told = server.get(f"/fewstep/runs/{name}")
    assert (told["state"], told["iteration"], told["iterations"], told["live"]) == ("finished", 20, 20, None)
    assert told["curves"]["iteration"] == [10, 20]
    logged = RunFolder(runs, name).metrics()
    assert told["curves"]["loss"] == [line["loss"] for line in logged]
    assert told["stages"] == {"0": "8 to 4 steps"}
    assert server.get(f"/fewstep/runs/{name}?after=10")["curves"]["iteration"] == [20]
    newest = told["previews"][-1]
    status, picture = ask(server, f"/fewstep/runs/{name}/preview?iteration={newest}")
    assert (status, picture) == (200, (runs / name / "previews" / f"{newest:08d}.png").read_bytes())
    assert ask(server, f"/fewstep/runs/{name}/preview?iteration=7777")[0] == 404
    about = server.get(f"/fewstep/runs/{name}/preview/about?iteration={newest}")
    assert about == {"columns": 10, "prompts": None}
    assert ask(server, f"/fewstep/runs/{name}/preview/about?iteration=7777")[0] == 400
    assert snapshot(runs / name) == before


@pytest.mark.parametrize("named", ["never begun", "\u5b66\u751f", "\u043c\u043e\u0439 \u0441"])
def test_a_run_that_is_not_there_is_told_so_and_not_made(named, server, runs):
    told = server.get(f"/fewstep/runs/{urllib.parse.quote(named)}")
    assert (told["run"], told["state"], told["iteration"], told["previews"]) == (named, "absent", 0, [])
    assert not (runs / named).exists()


@pytest.mark.parametrize("path", ["..", "../../..", "a/../..", ".", "/etc", "a\\..\\b", "..\x00"])
@pytest.mark.parametrize("what", ["", "/preview?iteration=1", "/preview/about?iteration=1"])
def test_no_name_leads_out_of_the_runs(path, what, server, base, runs):
    """Written as one part of the address, percent signs and all, the name is what the nodes would refuse."""
    (base / "previews").mkdir(exist_ok=True)
    (base / "previews" / "00000001.png").write_bytes(b"secret")
    status, body = ask(server, f"/fewstep/runs/{urllib.parse.quote(path, safe='')}{what}")
    assert status in (400, 404, 405)
    assert b"secret" not in body
    if status == 400:
        assert "run name" in json.loads(body)["error"]


@pytest.mark.parametrize("number", ["", "x", "1.5", "../1", "1e3", "1" * 5000])
def test_what_is_no_number_is_refused_by_name(number, server, name):
    for what in ("preview", "preview/about"):
        status, body = ask(server, f"/fewstep/runs/{name}/{what}?iteration={urllib.parse.quote(number)}")
        assert status == 400
        assert json.loads(body)["error"].startswith("iteration is ")


class Request(dict):
    """As much of one as a route asks for."""

    def __init__(self, run, **given):
        super().__init__(given=given)
        self.match_info = {"run": run}


def test_what_becomes_of_a_run_is_told_to_every_tab(server, runs, name, monkeypatch):
    """Those that show it ask anew: nothing else would tell them."""
    told = []
    monkeypatch.setattr(host.signals, "send", lambda event, data: told.append((event, data["run"], data["state"])))
    monkeypatch.setattr(folders, "runs_root", lambda: runs)
    made = RunFolder(runs, name)
    made.path.mkdir(parents=True)
    made.place("run.json").write_text('{"run": {}}')

    routes.clone(Request(name, name=f"{name} like"))
    routes.rename(Request(name, name=f"{name} now"))
    routes.delete(Request(f"{name} now"))
    states = [(event, run.removeprefix(name), state) for event, run, state in told]
    assert states == [("fewstep.state", run, "changed") for run in (" like", "", " now", " now")]


def test_a_stop_needs_a_run_that_goes_on(server, name):
    with pytest.raises(ServerError, match="nobody trains"):
        server.post(f"/fewstep/runs/{name}/stop", {})
    assert ask(server, f"/fewstep/runs/{name}/stop")[0] in (404, 405), "looking never stops"


def test_stop_after_this_checkpoint(client, server, runs, name):
    """It ends at the first checkpoint after the request, whose state is saved, and the next start goes on from there."""
    long = demo(name, FewStepProgressiveDistillation={"iterations": 2000}, FewStepDistill={"checkpoint_every": 50})
    asked, states = [], []

    def listen(kind, data):
        if kind == "fewstep.state":
            states.append(data["state"])
        if kind == "fewstep.metrics" and not asked:
            asked.append(data["iteration"])
            assert server.post(f"/fewstep/runs/{name}/stop", {}) == {"run": name, "stopping": True}
            assert server.get(f"/fewstep/runs/{name}")["stopping"]

    with pytest.raises(Failed, match="interrupted"):
        client.run(long, on_event=listen)
    told = server.get(f"/fewstep/runs/{name}")
    saved = [int(path.stem) for path in RunFolder(runs, name).checkpoints()]
    assert saved[-1] % 50 == 0
    assert asked[0] <= saved[-1] < 2000
    assert (told["state"], told["saved"], told["stopping"]) == ("stopped", saved[-1], False)
    assert told["previews"][-1] == saved[-1], "the picture of that checkpoint is drawn first"
    assert states == ["begun", "stopped"]
    shutil.rmtree(runs / name)


def test_cancel_is_of_this_run_and_of_no_other_job(client, server, runs, name):
    """It is saved and stopped at once, far from a checkpoint; what is queued behind it runs."""
    with pytest.raises(ServerError, match="nobody trains"):
        server.post(f"/fewstep/runs/{name}/cancel", {})
    long = demo(name, FewStepProgressiveDistillation={"iterations": 4000}, FewStepDistill={"checkpoint_every": 4000})
    told = []

    def listen(kind, data):
        if kind == "fewstep.metrics" and not told:
            server.queue(demo(f"{name} next"), client="another tab")
            with pytest.raises(ServerError, match="nobody trains"):
                server.post(f"/fewstep/runs/{name} next/cancel".replace(" ", "%20"), {})
            assert server.post(f"/fewstep/runs/{name}/cancel", {}) == {"run": name, "cancelling": True}
            told.append(server.get(f"/fewstep/runs/{name}"))

    with pytest.raises(Failed, match="interrupted"):
        client.run(long, on_event=listen)
    (saved,) = RunFolder(runs, name).checkpoints()
    assert int(saved.stem) < 4000
    assert told[0]["cancelling"] or told[0]["state"] == "stopped"
    client.wait_until_idle()
    assert RunFolder(runs, f"{name} next").finished
    assert not server.get(f"/fewstep/runs/{name}")["cancelling"]
    shutil.rmtree(runs / name)


def test_while_it_trains_a_second_tab_finds_the_newest_figures(client, server, name):
    seen = []

    def listen(kind, data):
        if kind == "fewstep.metrics" and not seen:
            told = server.get(f"/fewstep/runs/{name}")
            seen.append(told)
            threading.Thread(target=server.post, args=("/interrupt", {})).start()

    with pytest.raises(Failed, match="interrupted"):
        client.run(demo(name, FewStepProgressiveDistillation={"iterations": 2000}), on_event=listen)
    (told,) = seen
    assert told["state"] == "training"
    assert told["live"]["run"] == name
    assert told["live"]["iterations"] == 2000
    assert told["live"]["seconds_left"] > 0.0
    assert told["phase"] is None


def test_runs_are_listed_opened_and_deleted(client, server, runs, name):
    client.run(demo(name))
    (told,) = [run for run in server.get("/fewstep/runs") if run["run"] == name]
    assert (told["state"], told["method"], told["iteration"]) == ("finished", "progressive_distillation", 6)
    assert (told["student"], told["options"]["start_steps"]) == ({"kind": "full_weights"}, 8)
    assert told["scores"][0]["model"] == "teacher"
    assert told["demo"] is True
    with Image.open(runs / name / "previews" / f"{told['preview']:08d}.png") as picture:
        assert tuple(told["preview_size"]) == picture.size
    assert [(stage["stage"], stage["steps"]) for stage in told["stages"]] == [("8 to 4 steps", 4)]
    assert f"train {runs / name}" in told["command"]
    status, body = ask(server, f"/fewstep/runs/{name}/workflow")
    assert (status, "keeps no workflow" in json.loads(body)["error"]) == (400, True), "this client sends none"
    status, body = ask(server, f"/fewstep/runs/{name}/delete", data=b"")
    assert status == 415, "a form of another site cannot delete"
    assert (runs / name).exists()
    published = runs.parents[1] / "diffusion_models" / "fewstep"
    assert (published / f"{name}.safetensors").exists()
    users_own = published / f"{name} of a user.safetensors"
    users_own.write_bytes(b"something else")
    assert server.post(f"/fewstep/runs/{name}/delete", {}) == {"run": name, "deleted": True}
    assert not (runs / name).exists()
    assert [path.name for path in published.glob(f"{name}*")] == [users_own.name], "no loader reads the demo's networks"


def executed(client, prompt):
    """The kinds of nodes that the host did not take out of its memory."""
    seen = []
    client.run(prompt, on_event=lambda kind, data: seen.append(data["node"]) if kind == "executing" else None)
    return {prompt[node]["class_type"] for node in seen if node in prompt}


def test_the_queue_outlives_a_number_that_was_another_nodes(client, server, runs, name):
    """Editors number nodes anew in every workflow. A host may ask a node whether it changed by what that number gave before."""
    picture = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    nodes = demo(name)
    trainer = next(number for number, node in nodes.items() if node["class_type"] == "FewStepDistill")
    prompt, method = {trainer: nodes[trainer], **nodes}, nodes[trainer]["inputs"]["method"][0]
    client.run({"p": picture, method: {"class_type": "PreviewImage", "inputs": {"images": ["p", 0]}}})
    assert "FewStepDistill" in executed(client, prompt)


@pytest.mark.skipif(not hasattr(Distill, "IS_CHANGED"), reason="this host cannot be asked whether a node changed")
def test_after_a_run_was_deleted_the_same_queue_trains_it_again(client, server, runs, name):
    prompt = demo(name)
    assert "FewStepDistill" in executed(client, prompt)
    server.post(f"/fewstep/runs/{name}/delete", {})
    assert "FewStepDistill" in executed(client, prompt)
    assert (runs / name / "student.safetensors").exists()
    executed(client, prompt)
    assert "FewStepDistill" not in executed(client, prompt), "what is there is not loaded again"


LINE = {
    "iteration": 3,
    "iterations": 9,
    "stage": 0,
    "stage_name": "s",
    "loss": 0.5,
    "x0_error": 0.25,
    "gradient_norm": 1.0,
}
LINE |= {"learning_rate": 0.1, "band_errors": [0.5, None]}


def write_run(runs, name, **files):
    """A run's folder with files of any content."""
    folder = runs / name
    folder.mkdir(parents=True)
    said = {"run": {"method": "m", "teacher_sha256": "ab"}}
    for file, text in ({"run.json": json.dumps(said), "metrics.jsonl": json.dumps(LINE) + "\n"} | files).items():
        (folder / file).write_text(text)
    return folder


GUIDES = (
    *("docs/choose-a-method.md", "docs/glossary.md", "docs/examples.md", "docs/examples/cifar10.json"),
    "benchmarks/results/gpu.md",
)


@pytest.mark.parametrize("place", GUIDES)
def test_the_guides_are_served_and_nothing_else_of_the_pack(place, server):
    status, text = ask(server, f"/fewstep/guides/{place}")
    assert (status, text) == (200, (ROOT / place).read_bytes())
    for other in ("README.md", "..%2FREADME.md", "%2Fetc%2Fpasswd", f"{place}/..", "docs", "docs/..%2FREADME.md"):
        assert ask(server, f"/fewstep/guides/{other}")[0] == 404


def test_the_guides_links_lead_somewhere():
    """In the pack: to a page that is served, or to a folder, which in the editor is no link."""
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def listed(server):
    return {run["run"]: run for run in server.get("/fewstep/runs")}


def test_a_damaged_run_is_opened_repaired_and_deleted(server, runs, name):
    """And hides no other; the browser gets JSON that it reads."""
    more = {**LINE, "iteration": 6, "loss": float("nan")}
    write_run(runs, f"{name} good")
    write_run(
        runs, name, **{"metrics.jsonl": f"{json.dumps(LINE)}\nnull\n\n{json.dumps(more)}\n", "stages.json": "[NaN]"}
    )
    told = listed(server)
    assert "error" not in told[f"{name} good"]
    assert told[f"{name} good"]["demo"] is False
    assert "line 2 of metrics.jsonl is None, not an object and 1 lines more" in told[name]["error"]
    assert "stages.json" in told[name]["error"]
    status, body = ask(server, f"/fewstep/runs/{name}")
    shown = json.loads(body, parse_constant=pytest.fail)
    assert (status, shown["curves"]["iteration"], shown["curves"]["loss"]) == (200, [3, 6], [0.5, None])
    assert shown["damage"] == told[name]["error"]
    assert server.get(f"/fewstep/runs/{name} good".replace(" ", "%20"))["damage"] is None
    assert server.post(f"/fewstep/runs/{name}/repair", {}) == {"run": name, "lines": 2}
    assert "metrics" not in listed(server)[name]["error"]
    with pytest.raises(ServerError, match="nothing to repair"):
        server.post(f"/fewstep/runs/{name}/repair", {})
    server.post(f"/fewstep/runs/{name}/delete", {})
    assert name not in listed(server)


@pytest.mark.parametrize(
    "body", [b"[" * 50000, b"{", b"\xff", b"7", b'{"name": ' + b"[" * 700 + b"]" * 700 + b"}", b'{"name": "../evil"}']
)
def test_whatever_a_post_brings_is_answered(body, server, runs, name):
    folder = write_run(runs, name)
    headers = {"Content-Type": "application/json; charset=nonsense"}
    asked = urllib.request.Request(f"{server.address}/fewstep/runs/{name}/rename", data=body, headers=headers)  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=60)  # noqa: S310 (our own http address)
    assert (refused.value.code, bool(json.loads(refused.value.read())["error"])) == (400, True)
    assert (folder / "run.json").exists()


def test_no_link_is_served_or_followed(server, base, runs, name):
    outside = base / "outside"
    (outside / "previews").mkdir(parents=True, exist_ok=True)
    for file in ("previews/00000001.png", "student.safetensors"):
        (outside / file).write_bytes(b"secret")
    for file in ("workflow.json", "run.json", "metrics.jsonl"):
        (outside / file).write_text('{"secret": 1}\n')
    before = snapshot(outside)
    (write_run(runs, f"{name} 1") / "previews").symlink_to(outside / "previews")
    (write_run(runs, f"{name} 2") / "workflow.json").symlink_to(outside / "workflow.json")
    (write_run(runs, f"{name} 3") / "previews").mkdir()
    (runs / f"{name} 3" / "previews" / "00000001.png").symlink_to(outside / "previews" / "00000001.png")
    (runs / f"{name} 4").symlink_to(outside, target_is_directory=True)
    for number in range(1, 5):
        place = f"/fewstep/runs/{name}%20{number}"
        for path in ("", "/preview?iteration=1", "/preview/about?iteration=1", "/workflow"):
            status, body = ask(server, place + path)
            assert b"secret" not in body
            assert status in (200, 400, 404)
    told = listed(server)
    for number, file in ((1, "previews"), (4, f"{name} 4")):
        assert f"{file} is a link" in told[f"{name} {number}"]["error"]
    for number in range(1, 5):
        server.post(f"/fewstep/runs/{name}%20{number}/delete", {})
    assert not {f"{name} {number}" for number in range(1, 5)} & listed(server).keys()
    assert snapshot(outside) == before


@pytest.mark.parametrize("path", ["..", "../../..", "../runs", ".hidden", ""])
def test_nothing_else_is_deleted(path, server, base, runs):
    runs.mkdir(parents=True, exist_ok=True)
    (runs / ".hidden").mkdir(exist_ok=True)
    with pytest.raises(ServerError):
        server.post(f"/fewstep/runs/{urllib.parse.quote(path, safe='')}/delete", {})
    assert (runs / ".hidden").exists()
    assert (base / "custom_nodes").exists()


def test_pictures_of_help_pages_are_served_beside_them(server):
    folder = f"{server.address}/extensions/comfyui_fewstep/docs"
    with urllib.request.urlopen(f"{folder}/training.jpg") as answer:  # noqa: S310 (this machine)
        assert answer.headers.get_content_type() == "image/jpeg"
    with urllib.request.urlopen(f"{folder}/FewStepDistill.md") as answer:  # noqa: S310 (this machine)
        assert b"](training.jpg)" in answer.read()
