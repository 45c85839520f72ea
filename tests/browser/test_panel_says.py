"""What the training panel says, and does not ask, of a run that is not training yet."""

import json
import shutil

from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_training_panel import panel, press, sentence, stopped_run

TELL = (
    "async detail => (await import('/scripts/api.js')).api.dispatchEvent(new CustomEvent('fewstep.phase', { detail }))"
)


def test_a_stop_is_acknowledged_while_data_are_still_made(editor, runs, name):
    """For hours, it may be. The run is trained by another process, this one."""
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    with RunFolder(runs, name).locked():
        phase = {"run": name, "node": f"{node}", "phase": "encoding", "share": 0.32, "seconds_left": None}
        sentence(editor, "Preparing the training", seconds=10)
        editor.page.evaluate(TELL, phase)
        sentence(editor, "Making the training data: 32 % ...", seconds=10)
        press(editor, "Stop after this checkpoint")
        sentence(editor, "Making the training data: 32 % ... Stopping after the first checkpoint.", seconds=10)
        heard = panel(editor).get_by_role("status").text_content()
    shutil.rmtree(runs / name)
    assert heard == "Making the training data ... Stopping after the first checkpoint."


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
    for typed in (f"{name} ", "two.", "-", f"{name}/two", f" {name}"):
        editor.set(node, run_name=typed)
        sentence(editor, "which begins with a letter or digit and ends with no space or dot.", seconds=10)
    editor.page.wait_for_timeout(1500)  # in which it would be asked
    editor.set(node, run_name=f"{name} two")
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)
    assert editor.errors == []
