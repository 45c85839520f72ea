"""Names, roles, keyboard and contrast of everything of ours, by axe-core: nothing found in any state."""

import json
import shutil

import pytest
from test_elements import SHOWING
from test_runs_browser import card, open_runs, seen_soon, shown_run  # noqa: F401 (a fixture)
from test_training_panel import panel, press, wait_for_points

RUN = {"method": "m", "teacher_sha256": "ab", "method.learning_rate": 0.1}
LINE = {"iterations": 9, "stage": 0, "stage_name": "s", "loss": 2.0, "x0_error": 0.25, "gradient_norm": 1.0}
LINE |= {"learning_rate": 0.1, "band_errors": [None, 0.5]}


@pytest.fixture
def found(editor):
    """What axe finds in the elements of these names, shadows and all: (rule, element) each."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python"
    )

    def run(*names):
        told = axe.Axe().run(editor.page, context={"include": [[name] for name in names]}).response
        return [
            (one["id"], node["html"][:160], node["any"][0]["message"] if node["any"] else "")
            for one in told["violations"]
            for node in one["nodes"]
        ]

    return run


@pytest.fixture
def two_runs(runs, name):
    """The names of two that have logged something and differ in a setting."""
    names = [f"{name} one", f"{name} two"]
    for i, one in enumerate(names):
        folder = runs / one
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"run": {**RUN, "method.learning_rate": 0.1 * (i + 1)}}))
        lines = [json.dumps({**LINE, "iteration": k}) for k in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    yield names
    for one in names:
        shutil.rmtree(runs / one)


def test_what_is_on_nodes(editor, found):
    for kind, output in SHOWING.items():
        node = editor.add(kind)
        if output:
            editor.page.evaluate("([id, said]) => app.graph.getNodeById(id).onExecuted(said)", [node, output])
    editor.page.locator("fewstep-schedule").first.wait_for()
    editor.page.wait_for_timeout(700)
    names = "() => [...new Set([...document.querySelectorAll('*')].map(e => e.localName))].filter(n => n.startsWith('fewstep-'))"
    shown = editor.page.evaluate(names)
    assert len(shown) >= 5
    assert found(*shown) == []
    editor.errors[:] = [error for error in editor.errors if "none.png" not in error]


def test_the_training_panel(editor, found, two_runs):
    node = editor.add("FewStepDistill", run_name=two_runs[0])
    editor.show(node)
    wait_for_points(editor, 2)
    for view in ("Noise levels", "Learning rate", "Pictures", "Loss"):
        press(editor, view)
        assert found("fewstep-panel") == [], view
    assert panel(editor).get_by_role("img", name="Chart over iteration 1 to 3: loss from 2 to 2").count() == 1


def test_the_list_of_runs(editor, found, two_runs):
    shown = open_runs(editor)
    for one in two_runs:
        card(shown, one).get_by_label(f"Compare {one}").check()
    shown.get_by_role("rowheader", name="learning rate", exact=True).wait_for()
    for label in ("Note", "Rename", "Clone", "Delete"):
        card(shown, two_runs[0]).get_by_role("button", name=label, exact=True).click()
    assert found("fewstep-runs") == []


def test_an_enlarged_picture(editor, found, shown_run):  # noqa: F811
    card(open_runs(editor), shown_run).get_by_role("button", name="Enlarge").click()
    seen_soon(editor.page, "a red fox", "maroon", "green")
    assert found("fewstep-enlarged") == []
    editor.page.keyboard.press("Escape")
