"""A real ComfyUI server with the pack: the embedded one, or the one at COMFYUI_PATH. One for all host tests."""

import uuid

import pytest
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.commands.server import serving
from hosting import Client


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_messages():
    """Nobody listens to what runs in this process say, so that none of them waits with its next word; see telling."""
    import_host()  # before nodes, whichever test comes first
    from comfyui_fewstep.nodes.distillation import telling

    telling.MESSAGES._sleep = lambda seconds: None


@pytest.fixture(autouse=True)
def folders_of_this_test():
    """What a test adds to the host's folders of models is listed in no other, where another file may have its name."""
    import folder_paths

    held = [(name, entry[0], list(entry[0])) for name, entry in folder_paths.folder_names_and_paths.items()]
    yield
    for name, paths, before in held:
        if paths != before:
            paths[:] = before
            for cache in ("filename_list_cache", "_filename_list_cache"):
                getattr(folder_paths, cache, {}).pop(name, None)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The server's own folder with custom_nodes, input, output and user, four folders deep in one of its own.

    Whatever lies below it, `../../../..` leads to no place that other tests write to.
    """
    return tmp_path_factory.mktemp("host").joinpath("a", "b", "c", "base")


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


@pytest.fixture(scope="module")
def vae():
    """The host's own, small."""
    from encoders import tiny_vae

    return tiny_vae()


@pytest.fixture(scope="module")
def clip():
    """The host's own, small."""
    from encoders import tiny_clip

    return tiny_clip()


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's input and output folders, for this test alone."""
    import folder_paths

    for kind in ("input", "output"):
        monkeypatch.setattr(folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind))
    (tmp_path / "input").mkdir(exist_ok=True)
    return tmp_path / "output"


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two aspect ratios, two of them with a text, named so that the sizes take turns."""
    from making_data import picture

    made = tmp_path / "input" / "pictures"
    made.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate([(64, 64), (96, 48), (80, 80), (120, 60), (70, 70)]):
        picture(made / f"{i}.png", width, height, seed=i)
    (made / "0.txt").write_text("a red fox")
    (made / "3.txt").write_text("a blue house")
    return made
