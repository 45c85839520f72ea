"""What the browser loads of the pack, whatever its folder is called."""

import asyncio
import types
import urllib.parse

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfyui_fewstep.commands.embedded import import_host
from hosting import ROOT

import_host()

from comfyui_fewstep.nodes import host, routes

NAMES = [
    "ComfyUI-FewStep-main (1)",
    "My \u4e2d\u6587 pack",
    "few%20step",
    "few[step]'s",
    "few{step}?",
    "ComfyUI-FewStep-0.2.0",
]
FILES = {"/extensions": ["guide.html", "fewstep_panel.js", "docs/FewStepDistill.md"]}
FILES["/api/workflow_templates"] = ["Make digits fast.json", "Make digits fast.jpg"]


def served(pack, paths):
    """What a server like the host's, with the pack in a folder of that name, answers to these addresses."""
    table = web.RouteTableDef()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "PACK", pack)
        patch.setattr(host.signals, "server", lambda: types.SimpleNamespace(routes=table))
        routes.add_routes()
        app = web.Application()
        app.add_routes([web.get(f"/api{route.path}", route.handler) for route in table if route.method == "GET"])
        app.add_routes(table)
        app.add_routes([web.static(f"/extensions/{pack.name}", pack / "web")])
        app.add_routes([web.static(f"/api/workflow_templates/{pack.name}", pack / "workflows")])
        return asyncio.run(_answers(app, paths))


async def _answers(app, paths):
    async with TestClient(TestServer(app)) as client:
        answers = [await client.get(path) for path in paths]
        return [(answer.status, await answer.read()) for answer in answers]


@pytest.mark.parametrize("name", NAMES)
def test_the_browser_gets_its_files_whatever_the_folder_is_called(name, tmp_path):
    """As a zip is called that was loaded twice. All panels, the list of runs and the help were gone, and no word said why."""
    pack = tmp_path / name
    pack.symlink_to(ROOT, target_is_directory=True)
    folders = {"/extensions": ROOT / "web", "/api/workflow_templates": ROOT / "workflows"}
    asked = {
        (root, file): f"{root}/{urllib.parse.quote(name)}/{urllib.parse.quote(file)}"
        for root, own in FILES.items()
        for file in own
    }
    answers = served(pack, list(asked.values()))
    for (root, file), (status, content) in zip(asked, answers, strict=True):
        assert status == 200, (root, file)
        assert content == (folders[root] / file).read_bytes()


def test_nothing_else_is_served(tmp_path):
    pack = tmp_path / "My pack"
    pack.symlink_to(ROOT, target_is_directory=True)
    outside = [
        "My%20pack/..%2Flaunch.py",
        "My%20pack/docs",
        "My%20pack/none.js",
        "other%20pack/guide.html",
        "My%20pack/%2Fetc%2Fpasswd",
    ]
    assert {status for status, _ in served(pack, [f"/extensions/{path}" for path in outside])} == {404}
