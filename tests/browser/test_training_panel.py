"""The training panel, from the first queueing to the finished student, as a user sees it."""

import uuid

import pytest
from comfyui_fewstep.trainers.run_folder import RunFolder
from editing import read
from hosting import ROOT

DEMO = ROOT / "workflows" / "Distil digits to 4 steps.json"
KEPT = {
    *("FewStepDemoTeacher", "FewStepDigitsData", "FewStepDigitPrompt", "FewStepProgressiveDistillation"),
    *("FewStepFullWeightsStudent", "FewStepDistill", "FewStepLossChart"),
}
LISTENERS = """
const held = window.heldListeners = new Set(), names = new Map();
const own = type => /^(fewstep|reconnect|resize|scroll|mousedown)/.test(type);
const key = (target, type, listener) => {
  for (const part of [target, listener]) if (!names.has(part)) names.set(part, names.size);
  return [names.get(target), type, names.get(listener)].join() };
for (const name of ["addEventListener", "removeEventListener"]) {
  const before = EventTarget.prototype[name];
  EventTarget.prototype[name] = function (type, listener, ...rest) {
    const lasting = !(this instanceof Node) || this === document;
    const change = name === "addEventListener" ? "add" : "delete";
    if (lasting && own(type) && listener) held[change](key(this ?? window, type, listener));
    return before.call(this, type, listener, ...rest);
  };
}
"""


@pytest.fixture
def name():
    return uuid.uuid4().hex


def training_only():
    """The demo's workflow up to Distill Model, with the chart of its loss as what the graph is queued for."""
    workflow = read(DEMO)
    kind = {node["id"]: node["type"] for node in workflow["nodes"]}
    (shown,) = [link[3] for link in workflow["links"] if kind[link[1]] == "FewStepLossChart"]
    kept = {number for number in kind if kind[number] in KEPT} | {shown}
    workflow["nodes"] = [node for node in workflow["nodes"] if node["id"] in kept]
    workflow["links"] = [link for link in workflow["links"] if link[1] in kept and link[3] in kept]
    links = {link[0] for link in workflow["links"]}
    for node in workflow["nodes"]:
        for slot in node.get("outputs", []):
            slot["links"] = [link for link in slot["links"] or [] if link in links]
        for slot in node.get("inputs", []):
            slot["link"] = slot["link"] if slot["link"] in links else None
    return workflow


def begin(editor, name, **method):
    editor.load(training_only())
    node = editor.find("FewStepDistill")
    editor.set(node, run_name=name, batch_size=16, checkpoint_every=20)
    editor.set(editor.find("FewStepProgressiveDistillation"), start_steps=8, **method)
    editor.show(node)
    return node


def panel(editor):
    return editor.page.locator("fewstep-panel")


def sentence(editor, text, *, seconds=90):
    panel(editor).locator(".sentence", has_text=text).wait_for(timeout=1000 * seconds)


def points(editor):
    return editor.page.evaluate(
        "() => document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').data[0]?.length ?? 0"
    )


def press(editor, label):
    panel(editor).get_by_role("button", name=label).click()


def wait_for_points(editor, more_than):
    editor.page.wait_for_function(
        "(least) => (document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').data[0]?.length ?? 0)"
        " > least",
        arg=more_than,
    )


def test_a_run_is_watched_cancelled_reloaded_resumed_and_finished(editor, runs, name):
    begin(editor, name, iterations=300)
    sentence(editor, "Not begun")
    editor.queue()
    sentence(editor, "Training: stage 1 of 1 (8 to 4 steps)")
    wait_for_points(editor, 0)
    first = points(editor)
    wait_for_points(editor, first)
    press(editor, "Cancel")
    sentence(editor, "Stopped at iteration")
    seen = points(editor)
    assert seen == len(RunFolder(runs, name).metrics()), "the chart has every logged point"

    editor.reload()
    node = begin(editor, name, iterations=300)
    sentence(editor, "Stopped at iteration")
    wait_for_points(editor, seen - 1)
    assert points(editor) == seen, "after a reload all of it is there again"

    press(editor, "Resume")
    sentence(editor, "Training: stage 1 of 1")
    sentence(editor, "Finished after 300 iterations")
    wait_for_points(editor, 29)
    assert points(editor) == 30
    assert not panel(editor).get_by_role("button", name="Resume").is_visible()
    press(editor, "Pictures")
    slider = panel(editor).get_by_label("Training time: which preview is shown")
    slider.wait_for()
    slider.focus()
    newest = panel(editor).locator("output").text_content()
    assert newest == "iteration 300"
    editor.page.keyboard.press("Home")
    assert panel(editor).locator("output").text_content() == "iteration 20", "by keyboard, to the first picture"
    assert editor.page.evaluate("(id) => !!app.graph.getNodeById(id)", node), (
        "keys in the panel do nothing to the graph"
    )


def test_stop_after_this_checkpoint(editor, runs, name):
    begin(editor, name, iterations=4000)
    editor.queue()
    sentence(editor, "Training: stage 1 of 1")
    press(editor, "Stop after this checkpoint")
    sentence(editor, "Stopped at iteration")
    newest = RunFolder(runs, name).checkpoints()[-1]
    assert int(newest.stem) % 20 == 0


def test_a_second_tab_shows_the_same_run(editor, chromium, server, name):
    from editing import Editor

    begin(editor, name, iterations=4000)
    editor.queue()
    sentence(editor, "Training: stage 1 of 1")
    with chromium.new_context(viewport={"width": 1700, "height": 1300}) as context:
        second = Editor(context.new_page(), server)
        second.open()
        begin(second, name, iterations=4000)
        sentence(second, "Training: stage 1 of 1")
        wait_for_points(second, 2)
        press(second, "Cancel")
        sentence(second, "Stopped at iteration")
        assert second.errors == []
    sentence(editor, "Stopped at iteration")


def test_what_went_wrong_is_said(editor, name):
    begin(editor, name, iterations=20)
    editor.set(editor.find("FewStepDistill"), warmup=20)
    editor.queue()
    sentence(editor, "Stopped by an error: ")
    editor.errors.clear()


def test_nothing_is_left_of_a_removed_panel(chromium, server):
    from editing import Editor

    with chromium.new_context() as context:
        page = context.new_page()
        page.add_init_script(LISTENERS)
        editor = Editor(page, server)
        editor.open()
        editor.clear()
        service = "/extensions/comfyui_fewstep/fewstep_service.js"
        subscribers = "async (service) => (await import(service)).subscribers()"
        counts = []
        for _ in range(4):
            for kind in ("FewStepDistill", "FewStepWatchRun"):
                node = editor.add(kind, run_name="none of this name")
                editor.page.wait_for_timeout(800)
                assert panel(editor).count() == 1
                assert editor.page.evaluate(subscribers, service) == 2, "to its run, and to its node's beginning"
                editor.remove(node)
            editor.page.wait_for_timeout(300)
            assert panel(editor).count() == 0
            counts.append(editor.page.evaluate("() => heldListeners.size"))
        assert counts[0] == counts[-1], "each round leaves as many listeners as the one before"
        assert editor.page.evaluate(subscribers, service) == 0
        assert editor.errors == []


def test_a_server_that_restarts_in_the_middle_is_told_of(chromium, tmp_path, name):
    from comfyui_fewstep.commands.server import free_port, serving
    from editing import SETTINGS, Editor

    port = free_port()
    with chromium.new_context(viewport={"width": 1700, "height": 1300}) as context:
        with serving(base=tmp_path, port=port) as server:
            server.post("/settings", SETTINGS)
            editor = Editor(context.new_page(), server)
            editor.open()
            begin(editor, name, iterations=4000)
            editor.queue()
            sentence(editor, "iteration 30 of 4000")
            server.process.kill()
            server.process.wait()
            sentence(editor, "The server does not answer")
            assert not panel(editor).get_by_role("button", name="Cancel").is_visible()
        with serving(base=tmp_path, port=port):
            sentence(editor, "Stopped at iteration")
            assert points(editor) >= 2, "what was shown stays"
            assert panel(editor).get_by_role("button", name="Resume").is_visible()
