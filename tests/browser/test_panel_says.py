"""What the training panel says, and does not ask, of a run that is not training yet."""

import json
import shutil

import pytest
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_training_panel import panel, press, sentence, stopped_run


def test_a_stop_is_acknowledged_while_data_are_still_made(editor, runs, name):
    """For hours, it may be. The run is trained by another process, this one."""
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    with RunFolder(runs, name).locked():
        phase = {"run": name, "node": f"{node}", "phase": "encoding", "share": 0.32, "seconds_left": None}
        sentence(editor, "Preparing the training", seconds=10)
        editor.hear("fewstep.phase", phase)
        sentence(editor, "Making the training data: 32 % ...", seconds=10)
        charts = panel(editor).locator("fewstep-chart")
        assert not charts.is_visible(), "nor an empty chart is shown for hours"
        press(editor, "Stop after this checkpoint")
        sentence(editor, "Making the training data: 32 % ... Stopping after the first checkpoint.", seconds=10)
        heard = panel(editor).get_by_role("status").text_content()
        figures = {
            "iteration": 1,
            "iterations": 9,
            "stage": 0,
            "stages": 1,
            "stage_name": "s",
            "loss": 2.0,
            "x0_error": 0.25,
        }
        first = {**figures, "run": name, "node": f"{node}", "learning_rate": 0.1, "seconds_left": 8.0}
        editor.hear("fewstep.metrics", first)
        charts.wait_for(timeout=5000)
    shutil.rmtree(runs / name)
    assert heard == "Making the training data ... Stopping after the first checkpoint."


def begun(runs, name, *, iteration=0, iterations=9):
    """The folder of a run that somebody trains, so many iterations of it done."""
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    line = {
        "iteration": iteration,
        "iterations": iterations,
        "stage": 0,
        "stage_name": "s",
        "loss": 2.0,
        "x0_error": 0.25,
    }
    line |= {"gradient_norm": 1.0, "learning_rate": 0.1, "band_errors": [None], "measures": {}}
    (runs / name / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")


@pytest.mark.parametrize(
    ("phase", "iteration", "said"),
    [
        ("measuring", 4, "Comparing the student with its teacher ... Stopping after the next checkpoint."),
        ("measuring", 9, "Comparing the student with its teacher ... All iterations are done, so it ends with this."),
        ("exporting", 9, "Writing the student's file ... All iterations are done, so it ends with this."),
    ],
)
def test_a_stop_is_acknowledged_while_the_student_is_compared_or_written(phase, iteration, said, editor, runs, name):
    begun(runs, name, iteration=iteration)
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    with RunFolder(runs, name).locked():
        sentence(editor, f"Training, at iteration {iteration}.", seconds=10)
        editor.hear(
            "fewstep.phase", {"run": name, "node": f"{node}", "phase": phase, "share": None, "seconds_left": None}
        )
        press(editor, "Stop after this checkpoint")
        sentence(editor, said, seconds=10)
        heard = panel(editor).get_by_role("status").text_content()
    shutil.rmtree(runs / name)
    assert heard == said


def test_the_error_of_a_start_is_not_said_of_the_plan_that_is_made_after_it(editor, name):
    """Nor in its colour while the plan is made; of a plan that was made nothing is told but its phases."""
    node = editor.add("FewStepMakeItFast", run_name=name, do="plan only")
    editor.show(node)
    sentence(editor, "Not begun. Set do to train", seconds=10)
    failed = {"run": name, "node": f"{node}", "state": "failed", "error": "clip is not connected"}
    editor.hear("fewstep.state", failed)
    sentence(editor, "Stopped by an error: clip is not connected", seconds=10)
    red = "panel => panel.sentence.classList.contains('failed')"
    assert panel(editor).evaluate(red)
    phase = {"run": name, "node": f"{node}", "phase": "probing", "share": None, "seconds_left": None}
    editor.hear("fewstep.phase", phase)
    sentence(editor, "Trying a few iterations ...", seconds=10)
    assert not panel(editor).evaluate(red)
    editor.hear("fewstep.phase", {**phase, "phase": None})
    sentence(editor, "Not begun. Set do to train", seconds=10)


def test_a_page_that_is_opened_while_a_plan_is_tried_says_so(editor, name):
    """Of what is no run yet, and tells nothing for minutes where a try takes them."""
    phase = {"run": name, "node": "1", "phase": "probing", "share": 0.25, "seconds_left": None}

    def answer(route):
        told = route.fetch()
        route.fulfill(response=told, json={**told.json(), "phase": phase})

    editor.page.route(f"**/fewstep/runs/{name}?*", answer)
    try:
        editor.show(editor.add("FewStepMakeItFast", run_name=name))
        sentence(editor, "Trying a few iterations: 25 % ...", seconds=10)
    finally:
        editor.page.unroute(f"**/fewstep/runs/{name}?*")
    editor.hear("fewstep.phase", {**phase, "phase": None, "share": None})
    sentence(editor, "Not begun", seconds=10)


def test_a_name_is_asked_for_where_there_is_none(editor):
    node = editor.add("FewStepDistill", run_name="")
    editor.show(node)
    sentence(editor, "Give run_name a name", seconds=10)


def test_the_server_is_asked_of_no_name_that_it_refuses(editor, runs, name):
    """Which is in the console: of two words, the first with a blank behind it is typed on the way."""
    stopped_run(runs, f"{name} two")
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    sentence(editor, "Not begun", seconds=10)
    for typed in (f"{name} ", "two.", "-", "..", f"{name}/two", f" {name}", f"{name[:8]}" * 13, "con", "nul.txt"):
        editor.set(node, run_name=typed)
        sentence(editor, "which begins with a letter or digit and ends with no space or dot;", seconds=10)
        editor.set(node, run_name="two")
        sentence(editor, "Not begun", seconds=10)
    editor.page.wait_for_timeout(1500)  # in which it would be asked
    editor.set(node, run_name=f"{name} two")
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)
    assert editor.errors == []
