"""A real ComfyUI server with the pack: the embedded one, or the one at COMFYUI_PATH. One for all host tests."""

import uuid

import pytest
from comfyui_fewstep.commands.server import serving
from hosting import Client


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


@pytest.fixture(scope="session")
def runs(base):
    """The folder of all runs."""
    return base / "output" / "fewstep" / "runs"


@pytest.fixture
def name():
    """A run name of the test's own: ComfyUI keeps the results of nodes whose inputs it has seen before."""
    return uuid.uuid4().hex
