"""Blueprints, as a user finds them in the editor's search: a template's loaders and Make It Fast in one node."""

import pytest
from comfyui_fewstep.commands.server import ServerError
from hosting import ROOT, api_twin
from test_lists_of_students import tell
from test_training_panel import panel, sentence, stopped_run

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SDXL = "Make my SDXL checkpoint fast"
OUTSIDE = """([name, value]) => {
  const [node] = app.graph._nodes, widget = node.widgets.find(one => one.name === name);
  if (value !== undefined) { widget.value = value; widget.callback?.(value) }
  return widget.value }"""
"""Of the only node in the graph."""
AGAIN = """() => { const made = LiteGraph.createNode(app.graph._nodes[0].type); app.graph.add(made); made.pos = [60, 60] }"""
"""Another node of the same subgraph."""
INSIDE = """() => {
  const [node] = app.graph._nodes; app.canvas.openSubgraph(node.subgraph, node);
  const inside = node.subgraph._nodes.find(one => one.comfyClass === 'FewStepMakeItFast'), view = app.canvas.ds;
  view.scale = 1; view.offset = [200 - inside.pos[0], 150 - inside.pos[1]]; app.canvas.setDirty(true, true) }"""


@pytest.fixture
def place(editor):
    """What puts a blueprint into the graph."""
    try:
        listed = editor.server.get("/global_subgraphs")
    except (ServerError, ValueError):
        pytest.skip("this host knows no blueprints")
    assert {one["name"] for one in listed.values()} >= {path.stem for path in BLUEPRINTS}

    def find_and_place(name):
        search = editor.page.get_by_placeholder("Add a node").last
        for _ in range(3):  # on a busy machine an editor may take a double click for two
            editor.page.locator("#graph-canvas").dblclick(position={"x": 900, "y": 500})
            editor.page.wait_for_timeout(2000)
            if search.is_visible():
                break
        search.fill(name[:20])
        editor.page.get_by_role("listbox").filter(has_text=name).wait_for()
        editor.page.wait_for_timeout(1000)
        editor.page.keyboard.press("Enter")
        editor.page.wait_for_function("() => app.graph._nodes.some(node => node.subgraph)")
        editor.page.wait_for_timeout(1000)
        editor.page.mouse.click(900, 500)  # editors of today let it hang on the pointer until then
        editor.page.wait_for_timeout(1000)

    yield find_and_place
    editor.page.keyboard.press("Escape")
    editor.page.evaluate("() => app.canvas.setGraph?.(app.rootGraph ?? app.graph)")


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_it_would_queue_what_its_template_does(path, place, editor):
    place(path.stem)
    twin = api_twin(ROOT / "workflows" / path.name)
    queued = {number.split(":")[-1]: node for number, node in editor.prompt().items()}
    assert {number: node["class_type"] for number, node in queued.items()} == {
        number: twin[number]["class_type"] for number in queued
    }
    for number, node in queued.items():
        assert typed(node) == typed(twin[number])


def typed(node):
    """What no link brings."""
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}


def test_its_run_is_named_with_the_file_that_is_chosen_on_it(place, editor):
    place(SDXL)
    assert editor.page.evaluate(OUTSIDE, ["run_name"]) == "sd_xl_base_1.0 in 4 steps"
    for name, value, run in (
        ("ckpt_name", "dreamy v3.safetensors", "dreamy v3 in 4 steps"),
        ("steps", "8", "dreamy v3 in 8 steps"),
        ("goal", "sharpest", "dreamy v3 in 8 steps sharpest"),
    ):
        editor.page.evaluate(OUTSIDE, [name, value])
        wait_for_name(editor, run)
    editor.page.evaluate(OUTSIDE, ["run_name", "my own"])
    editor.page.evaluate(OUTSIDE, ["steps", "4"])
    editor.page.wait_for_timeout(1000)
    assert editor.page.evaluate(OUTSIDE, ["run_name"]) == "my own"


def wait_for_name(editor, run):
    named = "app.graph._nodes[0].widgets.find(one => one.name === 'run_name').value"
    editor.page.wait_for_function(f"run => {named} === run", arg=run, timeout=10_000)


def test_the_training_inside_is_of_the_run_that_is_named_on_it(place, editor, runs, name):
    """It is seen on the blueprint, and inside."""
    stopped_run(runs, name)
    place(SDXL)
    editor.page.evaluate(OUTSIDE, ["run_name", name])
    editor.page.evaluate(OUTSIDE, ["do", "plan only"])
    sentence(editor, "Stopped at iteration 3 of 9", seconds=20)
    lowest = "app.graph._nodes[0].pos[1] + app.graph._nodes[0].size[1]"
    box = panel(editor).bounding_box()
    below = editor.page.evaluate(f"() => ({lowest} + app.canvas.ds.offset[1]) * app.canvas.ds.scale")
    top = editor.page.locator("#graph-canvas").bounding_box()["y"]
    assert box["y"] + box["height"] <= top + below, "it stands on the node"
    editor.page.evaluate(INSIDE)
    inside = editor.page.locator("fewstep-panel:visible .sentence", has_text="Stopped at iteration 3 of 9")
    editor.page.wait_for_function("() => app.canvas.graph === app.graph._nodes[0].subgraph")
    inside.wait_for(timeout=20_000)


def test_of_a_subgraph_that_stands_twice_each_shows_its_own_run(place, editor, runs, name):
    stopped_run(runs, name)
    place(SDXL)
    editor.page.evaluate(AGAIN)
    holds = "() => app.graph._nodes.every(node => node.size[1] >= node.computeSize()[1])"
    assert editor.page.evaluate(holds), "each is as large as what is on it"
    first, second = numbers = editor.page.evaluate("() => app.graph._nodes.map(node => node.id)")
    editor.set(first, run_name=name)
    editor.set(second, run_name=f"{name} too")
    at = "number => app.graph.getNodeById(number).widgets.find(one => one.name === 'training').element.sentence.textContent"
    said = [f"number => ({at})(number).startsWith('{begin}')" for begin in ("Stopped at iteration 3", "Not begun")]
    for number, begins in zip(numbers, said, strict=True):
        editor.page.wait_for_function(begins, arg=number, timeout=20_000)
    told = {"run": f"{name} too", "node": f"{second}:3", "phase": "hashing", "share": 0.5, "seconds_left": 7}
    editor.hear("fewstep.phase", told)
    editor.page.wait_for_function(f"number => !({said[1]})(number)", arg=second, timeout=10_000)
    assert editor.page.evaluate(said[0], first)


def test_a_plan_is_read_on_it(place, editor, name):
    place(SDXL)
    editor.page.evaluate(OUTSIDE, ["run_name", name])
    (number,) = editor.page.evaluate("() => app.graph._nodes.map(node => node.id)")
    plan = {"run": name, "node": f"{number}:3", "plan": ["in all: 7 min", "memory: 3 GB"]}
    editor.hear("fewstep.plan", plan)
    read = "() => document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-text')?.text"
    editor.page.wait_for_function(f"text => ({read})() === text", arg="in all: 7 min\nmemory: 3 GB", timeout=10_000)
    seen = "() => { const all = document.querySelector('fewstep-panel'), read = all.shadowRoot.querySelector('fewstep-text');"
    seen += " return read.getBoundingClientRect().bottom <= all.getBoundingClientRect().bottom + 1 }"
    editor.page.wait_for_function(seen, timeout=10_000)
    editor.page.evaluate(AGAIN)  # of which of the two it is, nobody knows later
    editor.page.wait_for_function(f"() => ({read})() === undefined", timeout=10_000)


def test_a_menu_that_stands_on_it_lists_a_new_student_at_once(place, editor, runs, name):
    folder = runs.parents[1] / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    place(SDXL)
    file = folder / f"{name}.safetensors"
    file.write_bytes(b"")
    tell(editor, name, "finished")
    listed = "app.graph._nodes[0].widgets.find(one => one.name === 'ckpt_name').options.values"
    editor.page.wait_for_function(f"file => {listed}.some(one => one.endsWith(file))", arg=file.name, timeout=10_000)
    file.unlink()
