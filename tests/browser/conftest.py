"""The editor in a real Chromium, on the embedded host or the one at COMFYUI_PATH."""

import shutil
import uuid

import pytest
from comfyui_fewstep.commands.server import serving
from editing import SETTINGS, Editor

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run"]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The server's own folder with custom_nodes, input, output and user."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="session")
def server(base):
    with serving(base=base) as running:
        running.post("/settings", SETTINGS)
        yield running


@pytest.fixture(scope="session")
def runs(base):
    """The folder of all runs."""
    return base / "output" / "fewstep" / "runs"


@pytest.fixture
def name():
    """A run name of the test's own."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def chromium():
    """One for each module: while Playwright runs, nothing else may run an event loop in this thread."""
    driver = pytest.importorskip("playwright.sync_api", reason="no Playwright: python -m pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(chromium, server):
    """The editor, opened once for all tests of a module: opening it takes longer than most of them."""
    with chromium.new_context(viewport={"width": 1700, "height": 1300}) as context:
        made = Editor(context.new_page(), server)
        made.open()
        yield made


@pytest.fixture
def editor(tab):
    """The module's tab with an empty graph. Whatever the page complains about meanwhile fails the test."""
    tab.clear()
    tab.errors.clear()
    yield tab
    assert tab.errors == []
