"""The host in a process of ours: what it asks for differs from version to version."""

import sys
import types

from comfyui_fewstep.commands import embedded
from comfyui_fewstep.commands.embedded import import_host

import_host()


def stand_in(monkeypatch, kind):
    kind.instance = None
    monkeypatch.setitem(sys.modules, "server", types.SimpleNamespace(PromptServer=kind))
    return kind


def test_a_server_that_wants_the_books_on_files_gets_empty_ones(monkeypatch):
    class NoAssets:
        def __init__(self, args):
            self.of = args

    class PromptServer:
        """As that of hosts from 0.36 on."""

        def __init__(self, loop, asset_manager):
            PromptServer.instance = self
            self.asset_manager = asset_manager

    monkeypatch.setitem(sys.modules, "app.assets.manager", types.SimpleNamespace(NoAssets=NoAssets))
    stand_in(monkeypatch, PromptServer)

    embedded._have_a_server()

    assert isinstance(PromptServer.instance.asset_manager, NoAssets)


def test_a_server_of_before_is_made_of_a_loop_alone(monkeypatch):
    class PromptServer:
        def __init__(self, loop):
            PromptServer.instance = self

    stand_in(monkeypatch, PromptServer)

    embedded._have_a_server()

    assert PromptServer.instance is not None
