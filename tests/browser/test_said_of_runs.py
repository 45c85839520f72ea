"""What is said when something was done with a run is seen, and what a run is called it is called everywhere."""

import json
import shutil

import pytest
from test_runs_browser import CHINESE, another, card, finished, in_chinese, open_runs, write  # noqa: F401 (fixtures)
from test_training_panel import panel, sentence, wait_for_points


def said(shown, run):
    return card(shown, run).get_by_role("status")


def test_what_was_done_is_said_on_the_card_that_is_there_then(editor, runs, another):  # noqa: F811
    """A note or another name makes the card anew; what was said on the one before nobody saw."""
    shown, renamed = open_runs(editor), f"{another} renamed"
    write(card(shown, another), "Note", f"Note on {another}", "a note")
    said(shown, another).get_by_text("noted").wait_for(timeout=5000)
    write(card(shown, another), "Rename", f"New name of {another}", renamed)
    said(shown, renamed).get_by_text("graphs in other tabs still have the old name").wait_for(timeout=5000)


def test_a_deletion_is_said_above_the_list(editor, runs, another):  # noqa: F811
    shown = open_runs(editor)
    card(shown, another).get_by_role("button", name="Delete", exact=True).click()
    card(shown, another).get_by_role("button", name="Yes, delete").click()
    shown.get_by_text(f"{another} is deleted").wait_for(timeout=5000)


def test_a_run_that_is_renamed_is_renamed_where_its_name_comes_from(editor, runs, another):  # noqa: F811
    """Over a link, from a node that another may take it from."""
    if "PrimitiveString" not in editor.server.get("/object_info"):
        pytest.skip("this editor has no node of a text that may be linked to a widget")
    source, other = (editor.add("PrimitiveString", value=value) for value in (another, f"{another} 2"))
    for given in (source, other):
        node = editor.add("FewStepWatchRun")
        editor.page.evaluate(
            "([from, to]) => { const [source, node] = [from, to].map(id => app.graph.getNodeById(id));"
            " source.connect(0, node, node.findInputSlot('run_name')) }",
            [given, node],
        )
    shown, renamed = open_runs(editor), f"{another} renamed"
    write(card(shown, another), "Rename", f"New name of {another}", renamed)
    card(shown, renamed).wait_for()
    values = "ids => ids.map(id => app.graph.getNodeById(id).widgets[0].value)"
    assert editor.page.evaluate(values, [source, other]) == [renamed, f"{another} 2"]


def test_a_server_that_does_not_answer_is_said_until_it_answers(editor, runs, another):  # noqa: F811
    """In our words, in the colour of a refusal; also where nothing changed meanwhile, and of a button that is pressed then."""
    shown, unanswered = open_runs(editor), "The server does not answer."
    card(shown, another).wait_for()
    above = shown.locator(":scope > p[role=status]")
    editor.page.route("**/fewstep/runs**", lambda route: route.abort("connectionrefused"))
    try:
        shown.get_by_role("button", name="Refresh").click()
        above.get_by_text(unanswered).wait_for(timeout=5000)
        assert above.evaluate("said => said.classList.contains('failed')")
        write(card(shown, another), "Note", f"Note on {another}", "a note")
        said(shown, another).get_by_text(unanswered).wait_for(timeout=5000)
    finally:
        editor.page.unroute("**/fewstep/runs**")
        editor.errors.clear()  # the browser's own, of what it asked in vain
    shown.get_by_role("button", name="Refresh").click()
    above.get_by_text(unanswered).wait_for(state="hidden", timeout=5000)
    assert not above.evaluate("said => said.classList.contains('failed')")


def test_a_page_to_log_in_is_no_answer(editor, runs, another):  # noqa: F811
    """Of a proxy, once its session is over: it was taken for an answer, and ended in errors that name nobody's words."""
    shown, between = open_runs(editor), "Something between this page and ComfyUI answered in its place"
    card(shown, another).wait_for()
    node = editor.add("FewStepWatchRun", run_name=another)
    editor.show(node)
    page = {"body": "<!doctype html><form>Password</form>", "content_type": "text/html"}
    editor.page.route("**/fewstep/runs**", lambda route: route.fulfill(**page))
    try:
        shown.get_by_role("button", name="Refresh").click()
        shown.locator(":scope > p[role=status]").get_by_text(between).wait_for(timeout=5000)
        write(card(shown, another), "Note", f"Note on {another}", "a note")
        said(shown, another).get_by_text(between).wait_for(timeout=5000)
    finally:
        editor.page.unroute("**/fewstep/runs**")


def test_an_empty_list_names_the_nodes_that_make_runs(editor, runs):
    """Make It Fast first, with which most begin."""
    editor.page.route("**/fewstep/runs", lambda route: route.fulfill(json=[]), times=1)
    open_runs(editor).get_by_text("No runs yet. Make It Fast, Distill Model and Write Run make them.").wait_for()


def test_what_is_compared_is_seen_from_far_down_the_list(editor, runs, finished, another):  # noqa: F811
    """It is above the list; the second choice seemed to do nothing."""
    for one in range(6):
        shutil.copytree(runs / finished, runs / f"{another} {one}")
    shown = open_runs(editor)
    card(shown, f"{another} 5").wait_for()
    for run in shown.locator("h3").all_text_contents()[-2:]:
        card(shown, run).get_by_role("checkbox").click()
    shown.locator("fewstep-runs-compared").wait_for()
    editor.wait_until_drawn()
    top = shown.evaluate("list => list.shadowRoot.querySelector('section').getBoundingClientRect().top")
    for one in range(6):
        shutil.rmtree(runs / f"{another} {one}")
    assert top >= 0


def test_an_error_with_a_long_path_is_read_whole(editor, runs, another):  # noqa: F811
    """It made its card wider than the list, whose buttons were out of sight, and was cut off on its node."""
    path = "C:\\Users\\somebody\\ComfyUI_windows_portable\\ComfyUI\\output\\fewstep\\runs\\one\\checkpoints\\00000400.safetensors"
    (runs / another / "error.txt").write_text(f"[Errno 28] {path} could not be written: No space left on device")
    shown, node = open_runs(editor), editor.add("FewStepDistill", run_name=another)
    editor.show(node)
    shown.get_by_role("button", name="Refresh").click()
    card(shown, another).get_by_text("could not be written").wait_for()
    sentence(editor, "could not be written", seconds=10)
    inside = "e => e.scrollWidth <= e.clientWidth"
    assert card(shown, another).evaluate(inside)
    assert panel(editor).locator(".sentence").evaluate(inside)


KEEP_TEXTS = (
    "() => { window.drawn = []; window.lowest = {}; const { fillText } = CanvasRenderingContext2D.prototype;"
    " CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {"
    " drawn.push(text); lowest[text] = Math.max(y, lowest[text] ?? y); return fillText.apply(this, arguments) } }"
)


def test_stages_are_named_in_chinese_on_the_chart_too(editor, finished, in_chinese):  # noqa: F811
    editor.clear()  # of what an editor of old brings back as it is loaded again
    editor.page.evaluate(KEEP_TEXTS)
    editor.show(editor.add("FewStepDistill", run_name=finished))
    wait_for_points(editor, 0)
    stage = CHINESE["{0} to {1} steps"].format(8, 4)
    editor.page.wait_for_function("stage => drawn.includes(stage)", arg=stage, timeout=10_000)
    assert "8 to 4 steps" not in editor.page.evaluate("drawn")


def test_stages_are_named_above_the_curves(editor, finished):  # noqa: F811
    """In them the first one's name was struck through: a loss begins at the top."""
    editor.clear()
    editor.page.evaluate(KEEP_TEXTS)
    editor.show(editor.add("FewStepDistill", run_name=finished))
    editor.page.wait_for_function("() => '8 to 4 steps' in lowest", timeout=10_000)
    editor.wait_until_drawn()
    top, lowest = (
        panel(editor)
        .locator("fewstep-chart")
        .evaluate(
            "chart => [chart.shadowRoot.querySelector('.u-over').offsetTop * devicePixelRatio, lowest['8 to 4 steps']]"
        )
    )
    assert 0 < lowest < top


def test_who_learns_besides_the_student_is_named_in_chinese(editor, runs, name, in_chinese):  # noqa: F811
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    line = {"iterations": 9, "stage": 0, "stage_name": "s", "loss": 2.0, "x0_error": 0.25, "gradient_norm": 1.0}
    line |= {"learning_rate": 0.1, "band_errors": [None], "measures": {"fake_loss": 0.125, "critic_loss": 1.5}}
    lines = [json.dumps(line | {"iteration": i}) for i in (1, 2)]
    (runs / name / "metrics.jsonl").write_text("".join(f"{one}\n" for one in lines))
    editor.clear()
    editor.show(editor.add("FewStepDistill", run_name=name))
    wait_for_points(editor, 1)
    labels = "document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').shadowRoot"
    texts = editor.page.evaluate(f"() => [...{labels}.querySelectorAll('.u-label')].map(one => one.textContent)")
    assert [CHINESE["{0} loss"].format(CHINESE[one]) for one in ("fake", "critic")] == texts[-2:]
