"""Where the keyboard's focus is when the button that had it goes: where Enter once more does no harm."""

from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_elements import focused
from test_runs_browser import card, open_runs
from test_training_panel import panel, sentence, stopped_run


def begun(editor, name):
    """While another process, this one, trains the run."""
    editor.hear("fewstep.state", {"run": name, "node": "1", "state": "begun"})


def test_on_a_node_it_is_on_what_is_said(editor, runs, name):
    stopped_run(runs, name)
    editor.show(editor.add("FewStepDistill", run_name=name))
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)
    panel(editor).evaluate("panel => { panel.onresume = () => {} }")
    panel(editor).get_by_role("button", name="Resume").focus()
    editor.page.keyboard.press("Enter")
    run = RunFolder(runs, name)
    with run.locked():
        begun(editor, name)
        panel(editor).get_by_role("button", name="Cancel").wait_for()
        assert focused(editor) == "Training, at iteration 3."
        editor.page.keyboard.press("Enter")
        editor.page.wait_for_timeout(300)
        assert not (run.stop_asked or run.cancel_asked)


def test_in_the_list_it_is_on_the_runs_own_card(editor, runs, name):
    stopped_run(runs, name)
    (runs / name / "workflow.json").write_text('{"nodes": [], "links": [], "version": 0.4}')
    shown = card(open_runs(editor), name)
    shown.get_by_role("button", name="Resume").focus()
    with RunFolder(runs, name).locked():
        begun(editor, name)
        shown.get_by_role("button", name="Cancel").wait_for()
        assert focused(editor) == f"Compare {name}"
