"""What the pack's browser code asks the host's server for. Looking changes nothing; a POST changes a run."""

from __future__ import annotations

import asyncio
import functools
import json
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ..trainers.runs import keeping
from ..trainers.runs.unchanged import Unchanged
from ..trainers.runs.watching import State, all_runs, curves_after, is_quiet, preview_file, summary
from ..trainers.storage import reading
from ..trainers.storage.export import FULL_WEIGHTS
from ..trainers.storage.places import is_name, is_regular
from ..trainers.storage.run_folder import RunFolder
from . import host
from .distillation.data import preview_pictures
from .distillation.telling import MESSAGES, STATE
from .host import folders
from .previews import of_method, of_recipe, of_schedule

PACK = Path(__file__).parents[1]

_MOST_DIGITS = 15
"""Of an iteration: Python itself makes no number of thousands of them."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answering(answer: Callable[[web.Request], Any]) -> Handler:
    """A route from a function that returns JSON values or a response; it may read files, so it runs beside the server's loop.

    A ValueError is the asker's: status 400, with its words. What the disk refuses is told too, with status 500.
    """

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and request.content_type != "application/json":
            # a page of another site can send a form here, and this type only after asking
            return web.json_response({"error": "the request must be of type application/json."}, status=415)
        try:
            request["given"] = await _given(request)
            return await asyncio.get_running_loop().run_in_executor(None, answered, request)
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        except OSError as error:
            return _json({"error": f"the disk refuses: {error}"}, status=500)

    def answered(request: web.Request) -> web.StreamResponse:
        """Written as JSON here too: of a long list of runs that takes a while."""
        values = answer(request)
        return values if isinstance(values, web.StreamResponse) else _json(values)

    return handler


async def _given(request: web.Request) -> dict[str, Any]:
    """What a POST brings. ValueError for what is no JSON object."""
    if request.method != "POST" or not request.can_read_body:
        return {}
    return reading.require(reading.parsed(await request.read(), what="the request"), {}, what="the request")


def _json(values: Any, *, status: int = 200) -> web.Response:
    return web.json_response(text=json.dumps(reading.without_nan(values), allow_nan=False), status=status)


def _run_of(request: web.Request) -> RunFolder:
    """ValueError for names that the nodes would refuse too: they could lead elsewhere."""
    return folders.run_named(request.match_info["run"])


def _number(request: web.Request, name: str, *, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.removeprefix("-").isdecimal() or len(text) > _MOST_DIGITS:
        raise ValueError(f"{name} is {text[:40]!r}; give a whole number of at most {_MOST_DIGITS} digits.")
    return int(text)


def run_now(request: web.Request) -> dict[str, Any]:
    """How a run stands, and its curves after the iteration `after`. live, phase: the newest words of one that goes on here, which
    in its first phases is no run yet."""
    run = _run_of(request)
    drawn = curves_after(run, _number(request, "after", default=-1))  # which reads what the summary then knows
    told = summary(run)
    training = told["state"] == State.TRAINING.value
    return {
        "run": run.name,
        "state": told["state"],
        "damage": told.get("error"),
        "failure": None if training else told["failure"],
        "iteration": told["iteration"],
        "iterations": told["iterations"],
        "saved": told["saved"],
        "stages": told["stage_names"],
        "curves": drawn,
        "previews": told["previews"],
        "live": MESSAGES.newest.get(run.name) if training else None,
        "phase": MESSAGES.phases.get(run.name),
        "stopping": training and run.stop_asked,
        "cancelling": training and run.cancel_asked,
        "command": folders.command_for(run.path),
    }


def name_allowed(request: web.Request) -> dict[str, bool]:
    """Whether a run may be called `text`: an ordinary answer, since whoever is typing has not finished yet."""
    return {"allowed": is_name(request.query.get("text", ""))}


def preview(request: web.Request) -> web.StreamResponse:
    """The picture of one iteration: the teacher's row above, the student's below."""
    file = preview_file(_run_of(request), _number(request, "iteration", default=-1))
    if not is_regular(file):
        raise web.HTTPNotFound(text=f"the run has no preview of iteration {request.query.get('iteration')}")
    return web.FileResponse(file, headers={"Cache-Control": "no-cache"})  # a run of the same name may be begun anew


def preview_about(request: web.Request) -> dict[str, Any]:
    """What the columns of that picture are of: {columns, prompts}, None each where it does not say."""
    file = preview_file(_run_of(request), _number(request, "iteration", default=-1))
    if not is_regular(file):
        raise ValueError(f"the run has no preview of iteration {request.query.get('iteration')}.")
    return preview_pictures.about(file)


def stop(request: web.Request) -> dict[str, Any]:
    """Asks whoever trains the run to stop after the next checkpoint."""
    run = _run_of(request)
    run.ask_to_stop()
    return {"run": run.name, "stopping": True}


def cancel(request: web.Request) -> dict[str, Any]:
    """Asks whoever trains the run to save its state and stop now. Nothing else that this host executes is touched."""
    run = _run_of(request)
    run.ask_to_stop(now=True)
    return {"run": run.name, "cancelling": True}


def guide(request: web.Request) -> web.StreamResponse:
    """A file of the pack's own documentation by its place in the pack; web/guide.html shows its Markdown."""
    place = request.match_info["place"]
    found = [*(PACK / "docs").rglob("*"), *(PACK / "benchmarks" / "results").iterdir()]
    pages = {file.relative_to(PACK).as_posix(): file for file in found if file.suffix in (".md", ".json", ".png")}
    if place not in pages:
        raise web.HTTPNotFound(text=f"the documentation has no page {place!r}; there are {', '.join(sorted(pages))}")
    return web.FileResponse(pages[place])


def _own_file(folder: str, request: web.Request) -> web.StreamResponse:
    """One of a folder of the pack, as the host would serve it."""
    root = PACK / folder
    file = root / request.match_info["file"]
    if request.match_info["pack"] != PACK.name or file not in root.rglob("*") or not file.is_file():
        raise web.HTTPNotFound(text=f"{request.path} is no file of ComfyUI-FewStep")
    return web.FileResponse(file, headers={"Cache-Control": "no-cache"})


def _said(preview: Callable[[Mapping[str, str]], dict[str, Any]], request: web.Request) -> dict[str, Any]:
    """A refusal is an ordinary answer here: whoever is typing a value has not finished yet."""
    try:
        return preview(request.query)
    except ValueError as error:
        return {"error": str(error)}


def runs(_: web.Request) -> list[dict[str, Any]]:
    """All runs, the one that changed last first.

    demo: whether what was published of its full weights goes with it. preview_size: of the newest picture, (width, height).
    """
    return [_in_list(run) for run in all_runs(folders.runs_root())]


_LISTED: Unchanged[dict[str, Any]] = Unchanged(most=2000)


def _in_list(run: RunFolder) -> dict[str, Any]:
    """Asked anew of a run that is trained or has changed: hundreds of others would else be read every few seconds, in the process
    that trains."""
    if not is_quiet(run):
        return _listed(run)
    return _LISTED.of(run.path, lambda: _listed(run), keep=lambda told: told["state"] != State.TRAINING.value)


def _listed(run: RunFolder) -> dict[str, Any]:
    told = summary(run)
    full = told["student"].get("kind") == FULL_WEIGHTS  # only of these run.json is read once more
    demo = full and folders.is_of_demo(run)
    size = None if told["preview"] is None else preview_pictures.size(preview_file(run, told["preview"]))
    return told | {"command": folders.command_for(run.path), "demo": demo, "preview_size": size}


def workflow(request: web.Request) -> dict[str, Any]:
    """The editor's graph that the run was last started from."""
    return _run_of(request).workflow()


def delete(request: web.Request) -> dict[str, Any]:
    """Removes a run's folder. What was published of it, a LoRA say, stays, but for what no loader of the host reads."""
    run = _run_of(request)
    in_vain = folders.listed_in_vain(run)
    run.delete()
    for file in in_vain:
        file.unlink()
    _tell_changed(run.name)
    return {"run": run.name, "deleted": True}


def repair(request: web.Request) -> dict[str, Any]:
    """Keeps of a damaged run's metrics the lines that are whole."""
    run = _run_of(request)
    lines = run.repair()
    _tell_changed(run.name)
    return {"run": run.name, "lines": lines}


def rename(request: web.Request) -> dict[str, Any]:
    """given: name, of the run from now on. What was published of it keeps its file's name."""
    run = _run_of(request)
    now = keeping.renamed(run, request["given"].get("name"))
    _tell_changed(run.name, now.name)
    return {"run": now.name}


def clone(request: web.Request) -> dict[str, Any]:
    """given: name, of a run with the same settings, data and workflow that is not begun yet."""
    now = keeping.cloned(_run_of(request), request["given"].get("name"))
    _tell_changed(now.name)
    return {"run": now.name}


def _tell_changed(*names: str) -> None:
    """To every tab, that these runs are others now, or gone."""
    for name in names:
        host.signals.send(STATE, {"run": name, "node": None, "state": "changed"})


def note(request: web.Request) -> dict[str, Any]:
    """given: note, in place of the one before."""
    run = _run_of(request)
    keeping.keep_note(run, request["given"].get("note"))
    return {"run": run.name, "note": keeping.note(run)}


ROUTES: dict[tuple[str, str], Callable[[web.Request], Any]] = {
    ("GET", "/fewstep/runs/{run}"): run_now,
    ("GET", "/fewstep/runs/{run}/preview"): preview,
    ("GET", "/fewstep/runs/{run}/preview/about"): preview_about,
    ("POST", "/fewstep/runs/{run}/stop"): stop,
    ("POST", "/fewstep/runs/{run}/cancel"): cancel,
    ("GET", "/fewstep/runs"): runs,
    ("GET", "/fewstep/runs/{run}/workflow"): workflow,
    ("POST", "/fewstep/runs/{run}/delete"): delete,
    ("POST", "/fewstep/runs/{run}/repair"): repair,
    ("POST", "/fewstep/runs/{run}/rename"): rename,
    ("POST", "/fewstep/runs/{run}/clone"): clone,
    ("POST", "/fewstep/runs/{run}/note"): note,
    ("GET", "/fewstep/guides/{place:.+}"): guide,
    ("GET", "/fewstep/name"): name_allowed,
    ("GET", "/fewstep/schedule"): lambda request: _said(of_schedule, request),
    ("GET", "/fewstep/recipe"): lambda request: _said(of_recipe, request),
    ("GET", "/fewstep/method"): lambda request: _said(of_method, request),
}


QUOTED = {
    ("GET", "/extensions/{pack:[^/]+}/{file:.+}"): functools.partial(_own_file, "web"),
    ("GET", "/workflow_templates/{pack:[^/]+}/{file:.+}"): functools.partial(_own_file, "workflows"),
}
"""What the host itself serves of every pack, but finds none of where the folder's name is another in an address: with a space in
it, say (aiohttp as of 3.14 looks for the name, and has the address)."""


def add_routes() -> None:
    """To the host's server, where one runs."""
    server = host.signals.server()
    if server is None:
        return
    quoted = QUOTED if urllib.parse.quote(PACK.name) != PACK.name else {}
    for (method, path), answer in (ROUTES | quoted).items():
        server.routes.route(method, path)(answering(answer))
