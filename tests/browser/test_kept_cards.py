"""What the list of runs and the panel keep, and what they let go, as runs change beside them."""

import json

import pytest
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_runs_browser import another, card, close_runs, finished, open_runs, write  # noqa: F401 (fixtures)
from test_training_panel import begin, sentence, wait_for_points

FOCUSED = "list => list.shadowRoot.activeElement?.textContent"
REFRESH = "list => [...list.shadowRoot.querySelectorAll('button')].find(one => one.textContent === 'Refresh').click()"


def test_a_card_of_another_run_keeps_the_focus_and_what_is_chosen(editor, runs, finished, another):  # noqa: F811
    """And pictures: only what changed is drawn anew."""
    shown = open_runs(editor)
    kept = card(shown, finished)
    kept.get_by_role("button", name="Copy command").focus()
    kept.locator("fewstep-compare").evaluate("compare => (compare.mark = 'mine')")
    (runs / another / "note.txt").write_text("begun anew")
    shown.evaluate(REFRESH)
    card(shown, another).get_by_text("begun anew").wait_for()
    assert shown.evaluate(FOCUSED) == "Copy command"
    assert kept.locator("fewstep-compare").evaluate("compare => compare.mark") == "mine"


def wait_until_focused(editor, run, button):
    editor.page.wait_for_function(
        "wanted => { const focused = document.querySelector('fewstep-runs').shadowRoot.activeElement;"
        " return focused?.closest('li')?.querySelector('h3').textContent === wanted[0] && focused.textContent === wanted[1] }",
        arg=[run, button],
        timeout=10_000,
    )


def test_the_focus_goes_on_to_the_new_card_and_from_a_deleted_one_to_the_next(editor, runs, another):  # noqa: F811
    shown, renamed = open_runs(editor), f"{another} renamed"
    write(card(shown, another), "Note", f"Note on {another}", "a note")
    card(shown, another).locator(".note").wait_for()
    wait_until_focused(editor, another, "Note")
    write(card(shown, another), "Rename", f"New name of {another}", renamed)
    card(shown, renamed).wait_for()
    wait_until_focused(editor, renamed, "Rename")
    names = shown.locator("h3").all_text_contents()
    after = names[names.index(renamed) + 1]
    card(shown, renamed).get_by_role("button", name="Delete", exact=True).click()
    editor.page.keyboard.press("Shift+Tab")
    editor.page.keyboard.press("Enter")
    card(shown, renamed).wait_for(state="detached")
    wait_until_focused(editor, after, "Delete")


def test_a_clone_is_named_for_some_seconds_and_is_started(editor, runs, another):  # noqa: F811
    """Resume is for what has been begun."""
    shown, cloned = open_runs(editor), f"{another} cloned"
    write(card(shown, another), "Clone", f"Name of the new run like {another}", cloned)
    said = card(shown, another).get_by_role("status")
    said.get_by_text(f"written as {cloned}").wait_for()
    said.get_by_text(f"written as {cloned}").wait_for(state="detached", timeout=10_000)
    for name, there in (("Start", True), ("Resume", False)):
        assert card(shown, cloned).get_by_role("button", name=name, exact=True).is_visible() == there


def test_iterations_beside_each_other_are_named_apart_and_no_number_is_broken(editor, runs, finished, another):  # noqa: F811
    file = runs / another / "run.json"
    said = json.loads(file.read_text())
    said["run"] |= {"method.iterations": 123456789012, "method.learning_rate": 0.00012345678901}
    file.write_text(json.dumps(said))
    shown = open_runs(editor)
    for name in (finished, another):
        card(shown, name).get_by_label(f"Compare {name}").check()
    table = shown.get_by_role("table", name="What differs")
    heads = table.get_by_role("rowheader").filter(has_text="iterations")
    heads.first.wait_for()
    assert heads.all_text_contents() == ["iterations done", "iterations asked for"]
    table.evaluate(
        "table => { table.parentElement.style.width = '200px';"
        " for (const head of table.querySelectorAll('[scope=col]')) head.textContent = 'short' }"
    )
    one_line = "cells => cells.every(cell => { const range = document.createRange(); range.selectNodeContents(cell);"
    cells = table.locator("td").filter(has_text="12345678")
    assert cells.count() == 2
    assert cells.evaluate_all(f"{one_line} return range.getClientRects().length === 1 }})")


def test_a_distance_that_is_no_number_is_not_zero(editor, runs, another):  # noqa: F811
    file = runs / another / "stages.json"
    told = json.loads(file.read_text())
    told[-1]["mean_squared_distance"] = None
    file.write_text(json.dumps(told))
    text = card(open_runs(editor), another).inner_text()
    assert f"{told[-1]['stage']}: -" in text


@pytest.mark.parametrize("then", ["reconnected", "changed"])
def test_a_phase_whose_end_nobody_told_is_not_said_for_ever(then, editor, name):
    begin(editor, name)
    editor.page.wait_for_function("name => document.querySelector('fewstep-panel').run === name", arg=name)
    sentence(editor, "Not begun")
    phase = {"run": name, "node": None, "phase": "encoding", "share": 0.4, "seconds_left": 180}
    editor.hear("fewstep.phase", phase)
    sentence(editor, "Making the training data: 40 %")
    if then == "reconnected":
        editor.hear("reconnecting")
        editor.hear("reconnected")
    else:
        editor.hear("fewstep.state", {"run": name, "node": None, "state": "changed"})
    sentence(editor, "Not begun")


def test_a_node_without_a_name_shows_no_run_of_another(editor, name):
    begin(editor, "")
    metrics = {"run": name, "iteration": 10, "iterations": 20, "stage": 0, "stages": 1, "stage_name": "one"}
    editor.hear("fewstep.metrics", metrics)
    editor.page.wait_for_timeout(700)
    assert "Training" not in editor.page.locator("fewstep-panel").inner_text()


def test_a_node_whose_name_is_hidden_from_it_is_told_again_after_a_reload(editor, runs, finished):  # noqa: F811
    """The name comes over a link, and the word that its run begins was heard by a page that is gone."""
    node = begin(editor, "")
    hidden = "node => { const name = 'run_name', slot = node.inputs.find(slot => slot.name === name);"
    hidden += " if (slot) slot.link = 1; else node.inputs.push({ name, link: 1 });"  # editors of today have one for each widget
    hidden += " node.isInputConnected = () => true; return node.id }"
    number = editor.page.evaluate(f"id => ({hidden})(app.graph.getNodeById(id))", node)
    editor.page.wait_for_timeout(700)
    metrics = {"run": finished, "iteration": 10, "iterations": 20, "stage": 0, "stages": 1, "stage_name": "one"}
    editor.hear("fewstep.metrics", {**metrics, "node": str(number)})
    editor.page.wait_for_function("name => document.querySelector('fewstep-panel').run === name", arg=finished)


def test_runs_that_another_process_trains_are_followed(editor, runs, another):  # noqa: F811
    """It tells this page nothing: its folder is looked at again and again."""
    with RunFolder(runs, another).locked():
        shown = card(open_runs(editor), another)
        shown.get_by_text("training", exact=False).first.wait_for()
        (runs / another / "note.txt").write_text("far away")
        shown.get_by_text("far away").wait_for(timeout=20_000)
    shown.get_by_text("finished", exact=True).wait_for(timeout=20_000)


def test_resume_says_where_a_run_is_trained_that_its_workflow_only_writes(editor, runs, another):  # noqa: F811
    RunFolder(runs, another).student_file.unlink()
    workflow = {"nodes": [{"id": 1, "type": "FewStepWriteRun"}], "links": []}
    (runs / another / "workflow.json").write_text(json.dumps(workflow))
    shown = card(open_runs(editor), another)
    shown.get_by_role("button", name="Resume").click()
    shown.get_by_text("leaves the training to a terminal: Copy command").wait_for()
    assert editor.page.evaluate("app.graph._nodes.length") == 0, "nothing was opened"


SLOWLY = """async ([name, milliseconds]) => {
  const { api } = await import('/scripts/api.js');
  const own = api.fetchApi;
  api.fetchApi = async (path, ...more) => {
    const slow = path.startsWith(`/fewstep/runs/${encodeURIComponent(name)}?`) || path === '/fewstep/runs';
    if (slow) await new Promise((done) => setTimeout(done, milliseconds));
    return own.call(api, path, ...more);
  };
  const detail = { run: name, iteration: 1, iterations: 20, stage: 0, stages: 1, stage_name: 'one' };
  const talk = setInterval(() => api.dispatchEvent(new CustomEvent('fewstep.metrics', { detail })), 200);
  window.beQuiet = () => { clearInterval(talk); api.fetchApi = own; };
}"""


def test_a_server_slower_than_the_messages_is_heard_to_the_end(editor, finished):  # noqa: F811
    begin(editor, "")
    editor.page.evaluate(SLOWLY, [finished, 2500])
    try:
        editor.set(editor.find("FewStepDistill"), run_name=finished)
        wait_for_points(editor, 0)
    finally:
        editor.page.evaluate("window.beQuiet()")


CHANGING = """async (beside, names) => {
  const runs = (await (await fetch('/fewstep/runs')).json()).filter(({ run }) => names.includes(run));
  window.changing = setInterval(() => beside.show([...runs]), 500);
}"""


@pytest.mark.parametrize("milliseconds", [0, 5000])
def test_the_list_is_told_while_runs_train(editor, runs, another, milliseconds):  # noqa: F811
    """By messages that come faster than it looks, and by a server slower than they."""
    editor.page.evaluate(SLOWLY, [another, milliseconds])
    try:
        shown = card(open_runs(editor), another)
        shown.wait_for()
        (runs / another / "note.txt").write_text("told meanwhile")
        shown.get_by_text("told meanwhile").wait_for(timeout=20_000)
    finally:
        editor.page.evaluate("window.beQuiet()")


def test_an_answer_that_a_broken_connection_owes_is_not_waited_for(editor, runs, another):  # noqa: F811
    held = []
    close_runs(editor)  # one that is open still would ask once more, and be held in place of the next
    editor.page.route("**/fewstep/runs", lambda route: held.append(route), times=1)
    shown = open_runs(editor)
    editor.page.wait_for_timeout(700)
    assert (len(held), card(shown, another).count()) == (1, 0)
    editor.hear("reconnected")
    card(shown, another).wait_for(timeout=10_000)


def test_runs_beside_each_other_are_shown_while_they_train(editor, finished, another):  # noqa: F811
    shown = open_runs(editor)
    editor.page.evaluate(SLOWLY, [another, 1500])
    try:
        for name in (finished, another):
            card(shown, name).get_by_label(f"Compare {name}").check()
        beside = shown.locator("fewstep-runs-compared")
        beside.evaluate(CHANGING, [finished, another])
        beside.locator("caption", has_text="What differs").wait_for(timeout=10_000)
    finally:
        editor.page.evaluate("window.beQuiet(); clearInterval(window.changing)")


def test_the_curves_of_a_run_that_is_begun_anew_are_its_own(editor, runs, another):  # noqa: F811
    file = runs / another / "metrics.jsonl"
    first = {**json.loads(file.read_text().splitlines()[0]), "iteration": 1, "loss": 0.125}
    file.write_text("".join(json.dumps({**first, "iteration": i, "loss": 0.5}) + "\n" for i in (1, 2, 3)))
    begin(editor, another)
    wait_for_points(editor, 2)
    file.write_text(json.dumps(first) + "\n")
    editor.hear("fewstep.state", {"run": another, "node": None, "state": "begun"})
    loss = "document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').data[1]"
    editor.page.wait_for_function(f"() => String({loss}) === '0.125'")


def test_a_workflow_opens_in_a_tab_of_its_runs_name_and_takes_no_other(editor, runs, another):  # noqa: F811
    if not editor.page.evaluate("() => Boolean(app.extensionManager?.workflow)"):
        pytest.skip("this editor has no tabs")
    (runs / another / "workflow.json").write_text(json.dumps(editor.page.evaluate("() => app.graph.serialize()")))
    opened = "() => app.extensionManager.workflow.openWorkflows.map(({ filename }) => filename)"
    before = editor.page.evaluate(opened)
    button = card(open_runs(editor), another).get_by_role("button", name="Open workflow")
    for count in (1, 2):
        button.click()
        editor.page.wait_for_function(f"count => ({opened})().length === count", arg=len(before) + count)
    first, second = editor.page.evaluate(opened)[len(before) :]
    assert first == f"{another} (run)"
    assert second.startswith("Unsaved Workflow")
