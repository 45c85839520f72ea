"""The editor's app mode: of a template what matters is shown without its graph, and a training as it is on its node."""

import pytest
from editing import SETTINGS, Editor, read
from hosting import WORKFLOWS, api_twin, lacking
from test_training_panel import panel, sentence, stopped_run

FAST = next(path for path in WORKFLOWS if path.stem == "Make digits fast")
WELCOMED = {"Comfy.OnboardingCoachmarks.Seen": ["appMode"]}
APPS = [path for path in WORKFLOWS if read(path).get("extra", {}).get("linearData")]
SOME = [path if path == FAST else pytest.param(path, marks=pytest.mark.thorough) for path in APPS]


@pytest.fixture(scope="module")
def tab(chromium, server):
    """Apps switch Nodes 2.0 on, and it stays so."""
    server.post("/settings", {**SETTINGS, **WELCOMED, "Comfy.VueNodes.Enabled": True})
    with chromium.new_context(viewport={"width": 1700, "height": 1300}) as context:
        made = Editor(context.new_page(), server)
        made.open()
        if not made.page.evaluate(
            "() => !!app.extensionManager?.command?.commands.some(c => c.id === 'Comfy.ToggleLinear')"
        ):
            pytest.skip("this host's editor has no apps")
        yield made
    server.post("/settings", SETTINGS)


@pytest.fixture
def app(editor):
    """What opens a workflow as an app."""

    def open_as_app(workflow):
        editor.load(workflow)
        toggle(editor)
        widgets(editor).first.wait_for()

    yield open_as_app
    toggle(editor)


def toggle(editor):
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    editor.wait_until_drawn()


def widgets(editor):
    return editor.page.get_by_test_id("app-mode-widget-item")


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
def test_all_that_a_template_says_is_shown(path, app, editor):
    if lacking(api_twin(path), editor.server.get("/object_info")):
        pytest.skip("this host has not all of its nodes")
    workflow = read(path)
    app(workflow)
    keys = widgets(editor).evaluate_all("items => items.map(item => item.dataset.widgetKey.split(':').slice(1))")
    assert keys == [[str(number), name] for number, name in workflow["extra"]["linearData"]["inputs"]]
    if any(name == "training" for _, name in keys):
        training = widgets(editor).filter(has=editor.page.locator("fewstep-panel"))
        assert training.inner_text().startswith("Training")


def test_a_training_is_as_tall_as_on_its_node(app, editor, runs, name):
    stopped_run(runs, name)
    app(named(name))
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)
    chart = panel(editor).locator("fewstep-chart")
    chart.wait_for()
    assert chart.bounding_box()["height"] >= 200


def test_a_plan_is_shown_where_its_node_is_not(app, editor, name):
    app(named(name))
    node = editor.find("FewStepMakeItFast")
    sentence(editor, "Not begun", seconds=10)
    tell(editor, node, name, "10 minutes in all")
    said = panel(editor).locator("fewstep-text textarea")
    said.wait_for(timeout=10_000)
    assert said.input_value() == "10 minutes in all"
    editor.set(node, goal="sharpest")
    editor.page.wait_for_function(
        "() => document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-text').text"
        " && document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-text').outdated"
    )
    toggle(editor)
    try:
        panel(editor).locator("fewstep-text").wait_for(state="detached", timeout=10_000)
        assert editor.page.locator("fewstep-text").count() == 1, "on the node itself"
    finally:
        toggle(editor)


def named(name):
    """The template, with a run of that name."""
    workflow = read(FAST)
    (make,) = [node for node in workflow["nodes"] if node["type"] == "FewStepMakeItFast"]
    make["widgets_values"][2] = name
    return workflow


def tell(editor, node, name, plan):
    """As the server does."""
    editor.hear("fewstep.plan", {"run": name, "node": f"{node}", "plan": [plan]})
