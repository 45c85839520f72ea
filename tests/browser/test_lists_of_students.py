"""Nodes list a student as soon as its run has made it, and no longer than that is there; what was chosen stays chosen."""

import shutil

from test_runs_browser import another, finished  # noqa: F401 (fixtures)

LISTED = "id => app.graph.getNodeById(id).widgets.find(widget => widget.name === 'student').options.values"


def tell(editor, run, state):
    """As the server does."""
    editor.hear("fewstep.state", {"run": run, "node": None, "state": state})


def wait_until_listed(editor, node, student, *, listed=True):
    editor.page.wait_for_function(
        f"([id, student, listed]) => ({LISTED})(id).includes(student) === listed",
        arg=[node, student, listed],
        timeout=10_000,
    )


def test_a_new_student_is_listed_at_once_and_a_choice_stays(editor, runs, finished, name):  # noqa: F811
    editor.reload()
    shown, saving = editor.add("FewStepLoadStudent"), editor.add("FewStepSaveStudentLoRA")
    editor.set(shown, student=f"{finished} (run)")
    shutil.copytree(runs / finished, runs / name)
    tell(editor, name, "finished")
    for node in (shown, saving):
        wait_until_listed(editor, node, f"{name} (run)")
    assert f"{name} (run)" in editor.page.evaluate(LISTED, editor.add("FewStepLoadStudent")), "of nodes to come too"
    chosen = "id => app.graph.getNodeById(id).widgets.find(widget => widget.name === 'student').value"
    assert editor.page.evaluate(chosen, shown) == f"{finished} (run)"
    editor.set(saving, student=f"{name} (run)")
    editor.server.post(f"/fewstep/runs/{name}/delete", {})
    wait_until_listed(editor, shown, f"{name} (run)", listed=False)
    assert editor.page.evaluate(chosen, saving) == f"{name} (run)"


def test_the_hosts_own_loaders_list_it_too(editor, runs, name):
    """Of a run, and of a node that saves one: nobody need know of the editor's key for that."""
    folder = runs.parents[1] / "loras" / "fewstep"
    folder.mkdir(parents=True, exist_ok=True)
    loader, saving = editor.add("LoraLoaderModelOnly"), editor.add("FewStepSaveStudentLoRA")
    events = (
        ("fewstep.state", {"run": name, "state": "finished"}),
        ("executed", {"node": f"7:{saving}", "output": {}}),
    )
    for number, event in enumerate(events):
        file = folder / f"{name} {number}.safetensors"
        file.write_bytes(b"")
        editor.hear(*event)
        for node in (loader, editor.add("LoraLoaderModelOnly")):
            editor.page.wait_for_function(
                "([id, file]) => app.graph.getNodeById(id).widgets[0].options.values.some(one => one.endsWith(file))",
                arg=[node, file.name],
                timeout=10_000,
            )
        file.unlink()
