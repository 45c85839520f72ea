"""A real ComfyUI server with the pack: the embedded one, or the one at COMFYUI_PATH. One for all host tests."""

import shutil

import pytest
from hosting import Client

from comfyui_fewstep.commands.server import serving


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The server's own folder with custom_nodes, input, output and user."""
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="session")
def server(base):
    with serving(base=base) as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server)


@pytest.fixture
def runs(base):
    """The folder of all runs, emptied after the test."""
    place = base / "output" / "fewstep" / "runs"
    yield place
    shutil.rmtree(place, ignore_errors=True)
