"""From a template to a sampled student of one's own checkpoint, with a user's clicks, which are counted."""

import time

import pytest
from comfyui_fewstep.commands.server import ServerError, serving
from editing import SETTINGS, Editor
from test_training_panel import sentence

pytestmark = pytest.mark.thorough

TEMPLATE = "Make my SD1.5 checkpoint fast"
CHECKPOINT = "dreamy v3.safetensors"
MOST_CLICKS = 6
MILLISECONDS = 120_000
SMALL = {"prompts": "7\n3", "side": 32, "pictures": 4, "iterations": 20}
"""Of Make It Fast, so that a CPU trains it; no click of a user's."""
LOADER = """
import nodes

NODE_CLASS_MAPPINGS = {}


def load(self, ckpt_name):
    model, vae, clip = nodes.NODE_CLASS_MAPPINGS["FewStepDemoTeacher"]().load()
    return model, clip, vae


def encode(self, clip, text):
    return nodes.NODE_CLASS_MAPPINGS["FewStepDigitPrompt"]().encode("7" if text.strip() else "")


nodes.CheckpointLoaderSimple.load_checkpoint, nodes.CLIPTextEncode.encode = load, encode
"""
"""Whatever checkpoint is loaded is the demo teacher, and whatever is written in a prompt is a seven."""


@pytest.fixture(scope="module")
def own_base(tmp_path_factory):
    base = tmp_path_factory.mktemp("walk")
    for folder in ("models/checkpoints", "custom_nodes/of_a_user"):
        (base / folder).mkdir(parents=True)
    (base / "models" / "checkpoints" / CHECKPOINT).touch()
    (base / "custom_nodes" / "of_a_user" / "__init__.py").write_text(LOADER)
    return base


@pytest.fixture(scope="module")
def own_server(own_base):
    with serving(base=own_base) as running:
        try:
            running.get("/workflow_templates")
        except (ServerError, ValueError):
            pytest.skip("this host has no template browser")
        yield running


class User:
    """Clicks, and counts them."""

    def __init__(self, editor):
        self.editor, self.page, self.clicks = editor, editor.page, 0

    def click(self, place):
        place.click()
        self.clicks += 1

    def choose(self, *, by_elements):
        """The checkpoint, in the loader's menu."""
        if by_elements:
            self.click(self.page.locator('[data-node-id="1"]').get_by_text("v1-5-pruned"))
        else:
            at = self.page.evaluate(
                "() => { const node = app.graph.getNodeById(1), { offset, scale } = app.canvas.ds;"
                " const { left, top } = app.canvas.canvas.getBoundingClientRect();"
                " const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + 78].map((place, i) => (place + offset[i]) * scale);"
                " return [left + at[0], top + at[1]] }"
            )
            self.page.mouse.click(*at)
            self.clicks += 1
        self.click(self.page.get_by_text(CHECKPOINT).last)


@pytest.mark.parametrize("by_elements", [False, True], ids=["canvas", "Nodes 2.0"])
def test_a_checkpoint_is_made_fast_and_draws(by_elements, chromium, own_server, own_base):
    own_server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": by_elements})
    with chromium.new_context(viewport={"width": 1600, "height": 1000}) as context:
        editor = Editor(context.new_page(), own_server)
        editor.page.set_default_timeout(MILLISECONDS)
        editor.open()
        user = User(editor)
        user.click(editor.page.get_by_role("button", name="Templates").first)
        editor.page.get_by_placeholder("Search").last.fill("SD1.5 checkpoint")  # typed
        user.click(editor.page.get_by_text(TEMPLATE, exact=True).first)
        editor.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'FewStepMakeItFast')")
        editor.wait_until_drawn()
        editor.page.wait_for_timeout(1000)
        user.choose(by_elements=by_elements)
        named = f"{CHECKPOINT.removesuffix('.safetensors')} in 4 steps"
        make = editor.find("FewStepMakeItFast")
        name = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'run_name').value"
        editor.page.wait_for_function(f"([id, named]) => ({name})(id) === named", arg=[make, named])
        editor.set(make, **SMALL, run_name=f"{named} {by_elements}")
        editor.set(editor.find("EmptyLatentImage"), width=32, height=32)
        before = set((own_base / "output").rglob("*.png"))
        user.click(editor.page.get_by_test_id("queue-button"))
        sentence(editor, "Finished after 60 iterations", seconds=300)
        end = time.monotonic() + 60
        while not set((own_base / "output" / "fewstep").glob("fast*.png")) - before:
            assert time.monotonic() < end, own_server.tail()
            time.sleep(0.3)
        assert user.clicks <= MOST_CLICKS
