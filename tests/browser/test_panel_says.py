"""What the training panel says, and does not ask, of a run that is not training yet."""

import json
import shutil

from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_training_panel import panel, press, sentence

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
