"""What the list of runs and the panel keep, and what they let go, as runs change beside them."""

import json

import pytest
from test_runs_browser import another, card, finished, open_runs  # noqa: F401 (fixtures)
from test_training_panel import begin, sentence

TELL = (
    "async ([kind, detail]) => (await import('/scripts/api.js')).api.dispatchEvent(new CustomEvent(kind, { detail }))"
)
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
    sentence(editor, "Not begun")
    phase = {"run": name, "node": None, "phase": "encoding", "share": 0.4, "seconds_left": 180}
    editor.page.evaluate(TELL, ["fewstep.phase", phase])
    sentence(editor, "Making the training data: 40 %")
    if then == "reconnected":
        editor.page.evaluate(TELL, ["reconnecting", None])
        editor.page.evaluate(TELL, ["reconnected", None])
    else:
        editor.page.evaluate(TELL, ["fewstep.state", {"run": name, "node": None, "state": "changed"}])
    sentence(editor, "Not begun")


def test_a_node_without_a_name_shows_no_run_of_another(editor, name):
    begin(editor, "")
    metrics = {"run": name, "iteration": 10, "iterations": 20, "stage": 0, "stages": 1, "stage_name": "one"}
    editor.page.evaluate(TELL, ["fewstep.metrics", metrics])
    editor.page.wait_for_timeout(700)
    assert "Training" not in editor.page.locator("fewstep-panel").inner_text()
