"""The list of runs: what it says of each, and what its buttons do."""

import csv
import json
import re
import shutil
import time

import pytest
from editing import SETTINGS
from hosting import ROOT, demo


@pytest.fixture(scope="module")
def finished(server, runs):
    """The name of a small finished run with a report, started by another program than the editor. Not to be changed."""
    name = f"finished {time.time_ns()}"
    server.queue(demo(name), client="test")
    end = time.monotonic() + 120
    while not (runs / name / "report.json").exists():
        assert time.monotonic() < end, server.tail()
        time.sleep(0.3)
    return name


@pytest.fixture
def another(runs, finished):
    """A copy of that, for one test."""
    name = f"copied {time.time_ns()}"
    shutil.copytree(runs / finished, runs / name)
    return name


def open_runs(editor, say=str):
    """Anew, so that the list is asked for: in the sidebar, or in a dialog of editors that have none. say: in its language."""
    close_runs(editor, say)
    _button(editor, say("FewStep runs")).click()
    return editor.page.locator("fewstep-runs")


def close_runs(editor, say=str):
    shown = editor.page.locator("fewstep-runs")
    if shown.is_visible():
        _button(editor, say("Close")).click()
        shown.wait_for(state="hidden")


def _button(editor, name):
    tab = editor.page.locator(".side-bar-button:has(.pi-bolt)")  # by our icon, in every editor that has tabs
    return tab if tab.count() else editor.page.get_by_role("button", name=name, exact=True)


def card(runs_list, name):
    return runs_list.locator("li").filter(has=runs_list.page.get_by_role("heading", name=name, exact=True))


def test_a_run_is_listed_with_what_it_is_and_how_good(editor, finished):
    shown = card(open_runs(editor), finished)
    shown.wait_for()
    text = shown.inner_text()
    assert "finished" in text
    assert "progressive distillation 8 to 4 steps, full weights, teacher" in text
    assert "Distance from the teacher: 8 to 4 steps:" in text
    assert "Best student: 4 steps, Frechet distance" in text
    steps, teacher, student = shown.locator("fewstep-chart").evaluate("chart => chart.data")
    assert steps == [4, 8]
    assert None not in teacher
    assert (student[0] is None, student[1]) == (False, None)
    compare = shown.locator("fewstep-compare")
    compare.scroll_into_view_if_needed()
    compare.locator("img[src]").wait_for(state="attached")
    drawn = "async compare => { await compare.both.decode(); return compare.both.naturalWidth }"
    assert compare.evaluate(drawn) > 100


def test_pictures_are_compared_under_a_slider(editor, finished):
    shown = card(open_runs(editor), finished)
    slider = shown.get_by_label("Where the teacher's picture ends")
    slider.focus()
    student = shown.locator(".half.student")
    assert student.evaluate("half => half.style.clipPath") == "inset(0px 0px 0px 50%)"
    editor.page.keyboard.press("End")
    assert student.evaluate("half => half.style.clipPath") == "inset(0px 0px 0px 100%)"


def test_its_student_is_put_into_the_graph(editor, finished):
    card(open_runs(editor), finished).get_by_role("button", name="Load student").click()
    node = editor.find("FewStepLoadStudent")
    value = editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets[0].value", node)
    assert value == f"{finished} (run)"
    selected = editor.page.evaluate("() => Object.values(app.canvas.selected_nodes).map(node => node.id)")
    assert selected == [node]


def test_a_second_student_lies_over_no_other_node(editor, finished):
    load = card(open_runs(editor), finished).get_by_role("button", name="Load student")
    load.click()
    load.click()
    boxes = editor.page.evaluate("() => app.graph._nodes.map(({ pos, size }) => [pos[1], pos[1] + size[1]])")
    (top, bottom), (other_top, _) = sorted(boxes)
    assert other_top - 30 >= bottom > top


def test_its_workflow_opens_again(editor, runs, another):
    workflow = editor.page.evaluate(
        "() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('FewStepDemoTeacher'));"
        " return app.graph.serialize() }"
    )
    (runs / another / "workflow.json").write_text(json.dumps(workflow))
    editor.clear()
    card(open_runs(editor), another).get_by_role("button", name="Open workflow").click()
    editor.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'FewStepDemoTeacher')")


def test_a_command_that_the_clipboard_refuses_is_said(editor, another):
    """Over plain HTTP from another machine pages have none."""
    shown = card(open_runs(editor), another)
    editor.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    try:
        button = shown.get_by_role("button", name="Copy command")
        command = button.get_attribute("title")
        assert "train" in command
        button.click()
        shown.get_by_role("status").filter(has_text=command).wait_for()
    finally:
        editor.page.evaluate("() => delete navigator.clipboard")


def test_deleting_wants_a_second_word(editor, runs, another):
    shown = card(open_runs(editor), another)
    shown.get_by_role("button", name="Delete", exact=True).click()
    focused = "() => { let at = document.activeElement; while (at.shadowRoot) at = at.shadowRoot.activeElement;"
    assert editor.page.evaluate(focused + " return at.textContent }") == "No"
    shown.get_by_role("button", name="No", exact=True).click()
    assert (runs / another).exists()
    shown.get_by_role("button", name="Delete", exact=True).click()
    shown.get_by_role("button", name="Yes, delete").click()
    shown.wait_for(state="detached")
    assert not (runs / another).exists()


def test_a_damaged_run_is_listed_repaired_and_deleted(editor, runs):
    name = f"damaged {time.time_ns()}"
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    line = {"iteration": 3, "iterations": 9, "stage": 0, "stage_name": "s", "loss": float("nan"), "x0_error": 0.25}
    line |= {"gradient_norm": 1.0, "learning_rate": 0.1, "band_errors": [None]}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\nnull\n")
    shown = card(open_runs(editor), name)
    shown.wait_for()
    text = shown.inner_text()
    assert "not begun, 3 of 9, damaged" in text
    assert "line 2 of metrics.jsonl" in text
    shown.get_by_role("button", name="Repair", exact=True).click()
    shown.locator(".error").wait_for(state="detached")
    assert shown.get_by_role("button", name="Repair", exact=True).count() == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    shown.get_by_role("button", name="Delete", exact=True).click()
    shown.get_by_role("button", name="Yes, delete").click()
    shown.wait_for(state="detached")
    assert not folder.exists()


def test_what_distill_model_began_keeps_the_editors_graph(editor, runs):
    from test_training_panel import begin, sentence

    name = f"begun {time.time_ns()}"
    begin(editor, name, iterations=20)
    editor.queue()
    sentence(editor, "Finished after 20 iterations")
    kept = json.loads((runs / name / "workflow.json").read_text())
    assert "FewStepDistill" in {node["type"] for node in kept["nodes"]}


def test_a_name_is_text_and_never_markup(editor, runs):
    run = runs / "harmless"
    run.mkdir(parents=True)
    script = "<img src=x onerror='window.bad = true'>"
    said = {"method": script, "teacher_sha256": script, "student.kind": "lora", "student.rank": script}
    (run / "run.json").write_text(json.dumps({"run": said}))
    shown = card(open_runs(editor), "harmless")
    assert script in shown.inner_text()
    assert editor.page.evaluate("() => window.bad") is None


def write(shown, button, label, text):
    """Presses a button, types into what it asks for, and saves."""
    shown.get_by_role("button", name=button, exact=True).click()
    shown.get_by_label(label).fill(text)
    shown.get_by_role("button", name="Save", exact=True).locator("visible=true").click()


def test_a_run_is_noted_renamed_and_cloned(editor, runs, another):
    shown = open_runs(editor)
    write(card(shown, another), "Note", f"Note on {another}", "the sharpest so far")
    card(shown, another).locator(".note", has_text="the sharpest so far").wait_for()
    renamed, cloned = f"{another} renamed", f"{another} cloned"
    write(card(shown, another), "Rename", f"New name of {another}", renamed)
    card(shown, renamed).wait_for()
    assert not (runs / another).exists()
    write(card(shown, renamed), "Clone", f"Name of the new run like {renamed}", cloned)
    card(shown, cloned).get_by_text("not begun", exact=True).wait_for()
    assert (runs / cloned / "data").is_dir() == (runs / renamed / "data").is_dir()
    write(card(shown, cloned), "Rename", f"New name of {cloned}", renamed)
    card(shown, cloned).get_by_text(f"there is a run '{renamed}' already").wait_for()
    editor.errors.clear()


def test_what_is_being_typed_is_not_drawn_away(editor, runs, another):
    shown = open_runs(editor)
    card(shown, another).get_by_role("button", name="Note", exact=True).click()
    field = card(shown, another).get_by_label(f"Note on {another}")
    field.press_sequentially("a new w")  # letters that open the editor's own tabs
    shutil.copytree(runs / another, runs / f"{another} besides")
    shown.get_by_role("button", name="Refresh").click()
    editor.page.wait_for_timeout(700)
    assert field.input_value().endswith("a new w")
    field.press("Escape")
    shown.get_by_role("button", name="Refresh").click()
    card(shown, f"{another} besides").wait_for()


CHANGED = """() => {
  const node = LiteGraph.createNode("FewStepGamma") ?? LiteGraph.createNode("KSampler");
  app.graph.add(node);
  const workflows = app.extensionManager?.workflow ?? app.workflowManager;
  const tracker = workflows?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  app.canvas.copyToClipboard([node]);
  return app.graph._nodes.length;
}"""


def pressed(editor, field, *keys):
    """With time for the editor to do something too."""
    for each in keys:
        field.press(each)
        editor.page.wait_for_timeout(300)


def test_what_is_undone_and_pasted_in_a_note_is_the_note(editor, another):
    """The graph has a change that could be undone, and a node that could be pasted."""
    shown, nodes = open_runs(editor), editor.page.evaluate(CHANGED)
    card(shown, another).get_by_role("button", name="Note", exact=True).click()
    field = card(shown, another).get_by_label(f"Note on {another}")
    field.press_sequentially("a tpyo")
    pressed(editor, field, "Control+z")
    assert field.input_value() != "a tpyo"
    field.fill("ab")
    pressed(editor, field, "Control+a", "Control+c", "Control+v", "Control+v")
    assert field.input_value() == "abab"
    assert editor.page.evaluate("() => app.graph._nodes.length") == nodes
    field.press("Escape")


def test_two_runs_are_shown_beside_each_other(editor, runs, finished, another):
    said = json.loads((runs / another / "run.json").read_text())
    (rate,) = [name for name in said["run"] if name.startswith("method.") and name.endswith("learning_rate")]
    said["run"][rate] = 0.125
    (runs / another / "run.json").write_text(json.dumps(said))
    shown = open_runs(editor)
    for name in (finished, another):
        card(shown, name).get_by_label(f"Compare {name}").check()
    beside = shown.locator("fewstep-runs-compared")
    row = beside.locator("tr").filter(has=shown.page.get_by_role("rowheader", name="learning rate", exact=True))
    row.wait_for()
    assert "0.125" in row.inner_text()
    assert beside.locator("tr").filter(has_text="iterations").count() == 1, "what is the same is left out"
    assert beside.locator("img").count() == 2
    x, one, other = beside.locator("fewstep-chart").evaluate("chart => chart.data")
    assert (len(x), one) == (len(one), other)
    chart = beside.get_by_role("img", name="Chart over iteration")
    assert f"{finished} from " in chart.get_attribute("aria-label")
    with shown.page.expect_download() as waiting:
        beside.get_by_role("button", name="Save table as CSV").click()
    with waiting.value.path().open(newline="", encoding="utf-8") as file:
        (first, second) = csv.DictReader(file)
    assert {first["run"], second["run"]} == {finished, another}
    assert {first["run"]: first["learning rate"], second["run"]: second["learning rate"]}[another] == "0.125"
    apart = "distance from the teacher, percent: 8 to 4 steps"
    assert first[apart] == second[apart] != "-"
    card(shown, finished).get_by_label(f"Compare {finished}").uncheck()
    beside.wait_for(state="detached")


CHINESE = json.loads((ROOT / "web" / "words" / "zh.json").read_text(encoding="utf-8"))


@pytest.fixture
def in_chinese(editor, server):
    server.post("/settings", {**SETTINGS, "Comfy.Locale": "zh"})
    editor.reload()
    yield
    server.post("/settings", {**SETTINGS, "Comfy.Locale": "en"})
    editor.reload()


def test_in_an_editor_in_chinese_so_are_list_and_panel(editor, finished, in_chinese):
    say = CHINESE.__getitem__
    shown = card(open_runs(editor, say), finished)
    shown.wait_for()
    apart = say("Distance from the teacher: {0}").format(say("{0} to {1} steps").format(8, 4))
    assert all(text in shown.inner_text() for text in (say("finished"), say("progressive distillation"), apart))
    texts = shown.locator("button").all_text_contents()
    close_runs(editor, say)
    editor.show(editor.add("FewStepDistill", run_name=finished))
    panel = editor.page.locator("fewstep-panel")
    sentence = re.compile(CHINESE["Finished after {0} iterations."].replace("{0}", "[0-9]+"))
    panel.locator(".sentence", has_text=sentence).wait_for()
    texts += panel.locator("button").all_text_contents()
    assert {CHINESE[text] for text in ("Pictures", "Loss", "Clone")} <= {text.strip() for text in texts}
    assert [text for text in texts if re.search("[A-Za-z]{2}", text)] == []
