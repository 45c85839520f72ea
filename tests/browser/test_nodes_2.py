"""Our elements where the editor draws nodes as elements too (Nodes 2.0), on hosts whose editor does."""

import pytest
from editing import SETTINGS, Editor
from test_training_panel import begin, panel, points, press, sentence, wait_for_points


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
