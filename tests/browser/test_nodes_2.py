"""Our elements where the editor draws nodes as elements too (Nodes 2.0), on hosts whose editor does."""

from itertools import combinations

import pytest
from editing import SETTINGS, Editor, read
from hosting import WORKFLOWS, api_twin, lacking
from test_training_panel import DEMO, begin, panel, points, press, sentence, wait_for_points

MATCHING = DEMO.with_stem("Match digits in 4 steps (DMD)")


@pytest.fixture(scope="module")
def drawn_by_elements(server):
    """The setting, for this module."""
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": True})
    yield
    server.post("/settings", SETTINGS)


@pytest.fixture(scope="module")
def tab(chromium, server, drawn_by_elements):
    with chromium.new_context(viewport={"width": 1700, "height": 1300}) as context:
        made = Editor(context.new_page(), server)
        made.open()
        if not shows_elements(made):
            pytest.skip("this host's editor has no Nodes 2.0, or shows no pack's elements there")
        yield made


def shows_elements(editor):
    editor.clear()
    return editor.page.evaluate(
        "async () => { if (!LiteGraph.vueNodesMode) return false;"
        " const node = LiteGraph.createNode('FewStepDigitPrompt'), shown = document.createElement('p');"
        " node.addDOMWidget('shown', 'shown', shown, {}); app.graph.add(node);"
        " await new Promise(done => setTimeout(done, 1500));"
        " const inside = !!shown.closest('[data-node-id]'); app.graph.remove(node); return inside }"
    )


def test_the_steps_of_a_schedule(editor):
    schedule = editor.add("FewStepSchedule")
    shown = editor.page.locator("fewstep-schedule")
    shown.locator("tbody").get_by_text("249", exact=True).wait_for()
    editor.set(schedule, steps=2)
    shown.locator("tbody").get_by_text("249", exact=True).wait_for(state="detached")
    assert shown.locator("tbody tr td:nth-child(2)").all_text_contents() == ["999", "499"]
    editor.remove(schedule)
    shown.wait_for(state="detached")


def wait_for_timesteps(editor, wanted):
    """In the only table of steps."""
    editor.page.wait_for_function(
        "wanted => { const table = document.querySelector('fewstep-schedule')?.shadowRoot.querySelector('tbody');"
        " return table && JSON.stringify([...table.rows].map(row => row.cells[1].textContent)) === JSON.stringify(wanted) }",
        arg=wanted,
        timeout=10_000,
    )


def test_a_rare_input_is_shown_where_it_is_set(editor):
    fast = editor.add("FewStepMakeItFast")
    node = editor.page.locator(f"[data-node-id='{fast}']").get_by_test_id("node-widgets")
    node.get_by_text("run_name", exact=True).wait_for()
    assert node.get_by_text("references", exact=True).count() == 0
    editor.set(fast, references="before")
    editor.load(editor.page.evaluate("() => app.graph.serialize()"))
    node.get_by_text("references", exact=True).wait_for(timeout=10_000)
    assert node.get_by_text("frames", exact=True).count() == 0


def test_what_is_on_a_node_goes_on_after_undo_and_redo(editor):
    """They make the nodes anew under the same numbers, whose old elements the editor would leave where they were."""
    schedule = editor.add("FewStepSchedule")
    wait_for_timesteps(editor, ["999", "749", "499", "249"])
    note_changes(editor, 900)
    editor.set(schedule, steps=2)
    wait_for_timesteps(editor, ["999", "499"])
    note_changes(editor, 1000)
    for key, restored in (("z", ["999", "749", "499", "249"]), ("y", ["999", "499"])):
        editor.page.keyboard.press(f"Control+{key}")
        wait_for_timesteps(editor, restored)
        editor.set(schedule, steps=1)
        wait_for_timesteps(editor, ["999"])


def note_changes(editor, y):
    """A click on the canvas, at another place each time: two on one would open a search."""
    editor.page.locator("#graph-canvas").click(position={"x": 1000, "y": y})
    editor.page.wait_for_timeout(300)


def test_a_long_table_of_steps_scrolls(editor):
    editor.add("FewStepSchedule", steps=60, schedule="trailing")
    shown = editor.page.locator("fewstep-schedule")
    shown.locator("tbody tr").nth(59).wait_for(state="attached")
    editor.wait_until_drawn()
    steps = shown.get_by_label("Timesteps and noise levels of the steps")
    inside, seen = steps.evaluate("e => [e.scrollHeight, e.clientHeight]")
    assert inside > 2 * seen > 200


def test_a_run_is_watched(editor, name):
    begin(editor, name, iterations=40)
    sentence(editor, "Not begun")
    editor.queue()
    sentence(editor, "Finished after 40 iterations")
    wait_for_points(editor, 3)
    assert points(editor) == 4
    chart = panel(editor).locator("fewstep-chart")
    for view in ("Noise levels", "Learning rate", "Loss"):
        press(editor, view)
        editor.wait_until_drawn()
        assert chart.evaluate("chart => chart.offsetHeight") > 200, f"{view}: with the room that it has on other nodes"
    press(editor, "Pictures")
    panel(editor).get_by_label("Training time").wait_for()
    assert panel(editor).locator("fewstep-compare").evaluate("compare => compare.offsetWidth") > 150


def overlapping(editor):
    """Pairs of nodes whose elements lie on each other, by their titles."""
    boxes = editor.page.evaluate(
        "() => [...document.querySelectorAll('[data-node-id]')].map(e => [e, e.getBoundingClientRect()])"
        ".filter(([e, { width, height }]) => width > 0 && height > 0 && !e.parentElement.closest('[data-node-id]'))"
        ".map(([e, { left, top, right, bottom }]) => [e.dataset.nodeId, left, top, right, bottom])"
    )
    found = {
        (one[0], other[0])
        for one, other in combinations(boxes, 2)
        if one[0] != other[0] and overlap(one[1:], other[1:])
    }
    title = "ids => ids.map(id => app.graph.getNodeById(id).title)"
    return [editor.page.evaluate(title, list(pair)) for pair in sorted(found)], len({box[0] for box in boxes})


def overlap(one, other):
    """Of boxes left, top, right, bottom: by more than a pixel of rounding."""
    return all(one[i] < other[i + 2] - 1 and other[i] < one[i + 2] - 1 for i in (0, 1))


def show_all(editor):
    """All nodes of the graph in sight, since an editor lays out what is seen."""
    editor.page.evaluate(
        "() => { const of = ({ pos: [x, y], size: [w, h] }) => [x, y - 30, x + w, y + h], boxes = app.graph._nodes.map(of);"
        " const [x, y] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])));"
        " const [right, bottom] = [2, 3].map(i => Math.max(...boxes.map(box => box[i])));"
        " const view = app.canvas.ds; view.scale = Math.min(1, 1400 / (right - x), 1000 / (bottom - y));"
        " view.offset = [150 / view.scale - x, 100 / view.scale - y]; app.canvas.setDirty(true, true) }"
    )
    editor.wait_until_drawn()
    editor.page.wait_for_timeout(500)


RUNS = {
    DEMO: {"FewStepProgressiveDistillation": {"start_steps": 8, "iterations": 6}},
    MATCHING: {
        "FewStepDistributionMatching": {"iterations": 6, "companion_first": 0},
        "FewStepStudentReport": {"teacher_steps": 8},
    },
}
"""Templates whose nodes grow by a preview, a table and pictures, with what makes their runs short."""


@pytest.mark.parametrize(
    "template", [DEMO, pytest.param(MATCHING, marks=pytest.mark.thorough)], ids=lambda path: path.stem
)
def test_no_node_of_a_digits_template_lies_on_another_after_it_has_run(template, editor, name):
    workflow = read(template)
    editor.load(workflow)
    editor.set(editor.find("FewStepDistill"), run_name=name, batch_size=8, checkpoint_every=3)
    editor.set(editor.find("FewStepEvaluateDigits"), teacher_steps="8, 4", count=100)
    for kind, settings in RUNS[template].items():
        editor.set(editor.find(kind), **settings)
    show_all(editor)
    editor.queue()
    sentence(editor, "Finished after 6 iterations")
    press(editor, "Pictures")
    pictures = [node for node in workflow["nodes"] if node["type"] in ("SaveImage", "PreviewImage")]
    editor.page.wait_for_function(
        "ids => ids.every(id => app.nodeOutputs[id])", arg=[node["id"] for node in pictures], timeout=300_000
    )
    editor.page.wait_for_timeout(2000)
    show_all(editor)
    found, nodes = overlapping(editor)
    assert (found, nodes) == ([], len(workflow["nodes"]))
    assert outside(editor) == []


def outside(editor):
    """Titles of nodes that reach over the lower end of a group which they begin in, by the size of their elements."""
    return editor.page.evaluate(
        "() => app.graph._nodes.filter(({ id, pos: [x, y] }) => {"
        " const { height } = document.querySelector(`[data-node-id='${id}']`).getBoundingClientRect();"
        " const bottom = y - 30 + height / app.canvas.ds.scale;"
        " return app.graph._groups.some(({ pos: [left, top], size: [w, h] }) =>"
        " x >= left && x < left + w && y >= top && y < top + h && bottom > top + h + 1)"
        " }).map(({ title }) => title)"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_node_of_a_template_lies_on_another(path, editor):
    if lacking(api_twin(path), editor.server.get("/object_info")):
        pytest.skip("this host has not all of its nodes")
    editor.load(read(path))
    show_all(editor)
    found, nodes = overlapping(editor)
    assert nodes == len(read(path)["nodes"]), "all are laid out"
    assert found == []
