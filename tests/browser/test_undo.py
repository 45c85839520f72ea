"""What is undone and redone is what somebody did: nodes that grow and are named by themselves add no step."""

import pytest
from test_run_names import behind, wait_for_name  # noqa: F401 (a fixture)
from test_runs_browser import card, open_runs, write
from test_training_panel import sentence, stopped_run, wait_for_points

BESIDE = "PreviewImage"
MILLISECONDS = 1000  # in which a node grows, or is named


def record(editor):
    """A click beside all nodes, at which every editor looks what has changed; two at once would be a double click."""
    editor.page.mouse.click(1300, 1200)
    editor.page.wait_for_timeout(400)


def begin_history(editor):
    record(editor)
    editor.add("PrimitiveNode")
    record(editor)


def press(editor, keys):
    editor.page.keyboard.press(keys)
    editor.page.wait_for_timeout(MILLISECONDS)
    record(editor)


def kinds(editor):
    return editor.page.evaluate("app.graph._nodes.map(node => node.type).filter(type => type !== 'PrimitiveNode')")


def step_beside(editor):
    editor.page.wait_for_timeout(MILLISECONDS)
    record(editor)
    editor.page.evaluate(
        "type => { const node = LiteGraph.createNode(type); node.pos = [60, 900]; app.graph.add(node) }", BESIDE
    )
    record(editor)


@pytest.mark.parametrize("kind", ["FewStepSchedule", "FewStepDistill", "FewStepMakeItFast", "FewStepWatchRun"])
def test_what_is_undone_beside_a_node_that_grows_is_redone(editor, kind):
    begin_history(editor)
    editor.add(kind)
    record(editor)
    step_beside(editor)
    press(editor, "Control+z")
    assert kinds(editor) == [kind]
    press(editor, "Control+y")
    assert kinds(editor) == [kind, BESIDE]
    press(editor, "Control+z")
    press(editor, "Control+z")
    assert kinds(editor) == [], "the node was one step"


def test_a_panel_that_shows_a_run_is_no_step(editor, runs, name):
    stopped_run(runs, name)
    begin_history(editor)
    editor.add("FewStepWatchRun", run_name=name)
    record(editor)
    wait_for_points(editor, 0)
    step_beside(editor)
    press(editor, "Control+z")
    sentence(editor, "Stopped at iteration 3 of 9")
    press(editor, "Control+y")
    assert kinds(editor) == ["FewStepWatchRun", BESIDE]
    press(editor, "Control+z")
    press(editor, "Control+z")
    assert kinds(editor) == [], "the node was one step"


def test_the_graph_keeps_the_size_that_a_node_was_given(editor, runs, name):
    stopped_run(runs, name)
    node = editor.add("FewStepWatchRun")
    sizes = "id => { const node = app.graph.getNodeById(id); return [node.size[1], node.serialize().size[1]] }"
    editor.wait_until_drawn()
    made, kept = editor.page.evaluate(sizes, node)
    assert made == kept
    editor.set(node, run_name=name)
    wait_for_points(editor, 0)
    editor.wait_until_drawn()
    grown, kept = editor.page.evaluate(sizes, node)
    assert (grown > made + 200, kept) == (True, made)
    editor.page.evaluate("id => { app.graph.getNodeById(id).setSize([500, 900]) }", node)
    editor.wait_until_drawn()
    assert editor.page.evaluate("id => [...app.graph.getNodeById(id).serialize().size]", node) == [500, 900]


def test_a_name_that_a_link_brings_is_undone_with_it(editor, behind):  # noqa: F811
    begin_history(editor)
    node = behind("FewStepMakeItFast")
    wait_for_name(editor, node, "dreamy v3 in 4 steps")
    record(editor)
    other = "app.graph._nodes.find(node => node.type === 'CheckpointLoaderSimple')"
    editor.page.evaluate(f"() => {{ {other}.widgets[0].value = 'another.safetensors' }}")
    record(editor)
    editor.page.wait_for_timeout(MILLISECONDS)
    wait_for_name(editor, node, "another in 4 steps")
    record(editor)
    press(editor, "Control+z")
    assert editor.page.evaluate(f"{other}.widgets[0].value") == "models/dreamy v3.safetensors"
    wait_for_name(editor, node, "dreamy v3 in 4 steps")
    press(editor, "Control+y")
    assert editor.page.evaluate(f"{other}.widgets[0].value") == "another.safetensors"
    press(editor, "Control+z")
    press(editor, "Control+z")
    assert kinds(editor) == [], "loader and node were one step"


@pytest.fixture
def told(editor):
    """Editors that are told when a step begins and ends; that of 2024 only looks at clicks."""
    if not editor.page.evaluate("Boolean(app.canvas.emitBeforeChange)"):
        pytest.skip("this editor is told of no step")


def test_a_student_that_is_loaded_is_a_step(editor, told, runs, name):
    stopped_run(runs, name)
    (runs / name / "student.safetensors").touch()
    begin_history(editor)
    shown = card(open_runs(editor), name)
    shown.wait_for()
    editor.add(BESIDE)
    record(editor)
    shown.get_by_role("button", name="Load student").click()
    press(editor, "Control+z")
    assert kinds(editor) == [BESIDE], "what was done before stays"
    press(editor, "Control+y")
    assert kinds(editor) == [BESIDE, "FewStepLoadStudent"]


def names(editor):
    """What the graph's nodes call a run, Load Distilled Student's in a list."""
    widgets = "widgets.find(({ name }) => ['run_name', 'student'].includes(name))"
    return editor.page.evaluate(
        f"app.graph._nodes.flatMap(({{ widgets }}) => widgets ? [{widgets}] : []).map(w => w?.value)"
    )


@pytest.fixture
def renamed(editor, runs, name):
    """Renames a run that the graph names. Returns what its nodes call it before and after."""
    stopped_run(runs, name)
    begin_history(editor)
    for kind, value in {"FewStepMakeItFast": name, "FewStepWatchRun": f"{name} 2"}.items():
        editor.add(kind, run_name=value)
    editor.add("FewStepLoadStudent", student=f"{name}, 4 steps (run)")
    record(editor)
    before = names(editor)
    shown = open_runs(editor)
    write(card(shown, name), "Rename", f"New name of {name}", f"{name} now")
    card(shown, f"{name} now").wait_for()
    return before, [f"{name} now", f"{name} 2", f"{name} now, 4 steps (run)"]


def test_a_run_that_is_renamed_is_renamed_in_the_graph(editor, renamed):
    """Else it would be trained anew; a run whose name is longer is another."""
    assert names(editor) == renamed[1]


def test_a_run_that_is_renamed_is_one_step(editor, told, renamed):
    before, after = renamed
    press(editor, "Control+z")
    assert names(editor) == before
    press(editor, "Control+y")
    assert names(editor) == after


def test_a_kind_of_model_that_is_chosen_is_a_step(editor, told):
    begin_history(editor)
    editor.add("FewStepSchedule")
    record(editor)
    choice = editor.page.locator("fewstep-schedule").locator("select")
    before = choice.input_value()
    choice.select_option("flux")
    press(editor, "Control+z")
    assert kinds(editor) == ["FewStepSchedule"], "what was done before stays"
    assert choice.input_value() == before


def test_a_size_that_an_editor_gives_a_node_as_it_loads_stays_given(editor):
    editor.add("FewStepSchedule")
    saved = editor.page.evaluate("app.graph.serialize()")
    saved["nodes"][0]["size"] = [200, 300]
    sizes = "app.graph.serialize().nodes.map(({ size: [width, height] }) => [width, height])"
    loaded = editor.page.evaluate(f"async saved => {{ await app.loadGraphData(saved); return {sizes} }}", saved)
    editor.page.wait_for_timeout(MILLISECONDS)
    assert editor.page.evaluate(sizes) == loaded
