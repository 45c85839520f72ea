"""The training panel, from the first queueing to the finished student, as a user sees it."""

import json
import shutil
import time

from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from editing import read
from hosting import ROOT, Client, demo

DEMO = ROOT / "workflows" / "Distil digits to 4 steps.json"
KEPT = {
    *("FewStepDemoTeacher", "FewStepDigitsData", "FewStepDigitPrompt", "FewStepProgressiveDistillation"),
    *("FewStepFullWeightsStudent", "FewStepDistill", "FewStepLossChart"),
}
LINE = {
    **{"iteration": 3, "iterations": 9, "stage": 0, "stage_name": "s", "loss": 1.0, "x0_error": 0.25},
    **{"gradient_norm": 1.0, "learning_rate": 0.1, "band_errors": [None]},
}
"""Of a run's metrics."""


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
    editor.set(node, run_name=name, batch_size=8, checkpoint_every=20)
    editor.set(editor.find("FewStepProgressiveDistillation"), start_steps=8, **method)
    editor.show(node)
    return node


def panel(editor):
    return editor.page.locator("fewstep-panel")


def sentence(editor, text, *, seconds=300):
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


def test_a_node_that_may_only_plan_says_how_to_train(editor, name):
    node = editor.add("FewStepMakeItFast", run_name=name, do="plan only")
    editor.show(node)
    sentence(editor, "Not begun. Set do to train and queue the graph.", seconds=10)
    editor.set(node, do="train")
    sentence(editor, "Not begun. Queue the graph to train.", seconds=10)


def test_nothing_is_said_of_a_run_before_the_server_has_answered(editor, runs, name):
    """A page that is loaded again while it trains would say of it that it has not begun."""
    stopped_run(runs, name)
    held = []
    editor.page.route(f"**/fewstep/runs/{name}?*", lambda route: held.append(route))
    editor.show(editor.add("FewStepDistill", run_name=name))
    for _ in range(50):
        if not held:
            editor.page.wait_for_timeout(100)
    said = panel(editor).evaluate("panel => [panel.sentence, panel.heard].map(element => element.textContent)")
    held[0].continue_()
    editor.page.unroute(f"**/fewstep/runs/{name}?*")
    assert said == ["...", "..."]
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)


def test_a_node_without_a_name_shows_no_run(editor, runs, name):
    """Not the one that it named before."""
    stopped_run(runs, name)
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    sentence(editor, "Stopped at iteration 3 of 9", seconds=10)
    editor.hear("fewstep.state", {"run": name, "node": f"{node}", "state": "stopped"})
    editor.set(node, run_name="")
    sentence(editor, "Give run_name a name", seconds=10)


def test_a_run_is_watched_cancelled_reloaded_resumed_and_finished(editor, runs, name):
    begin(editor, name, iterations=200)
    sentence(editor, "Not begun")
    asked = []
    editor.page.on("request", lambda request: asked.append(time.monotonic()) if f"{name}?" in request.url else None)
    editor.queue()
    sentence(editor, "Training: stage 1 of 1 (8 to 4 steps)")
    wait_for_points(editor, 0)
    first = points(editor)
    wait_for_points(editor, first)
    press(editor, "Cancel")
    sentence(editor, "Stopped at iteration")
    sentence(editor, f"Stopped at iteration {RunFolder(runs, name).saved} of 200; its state is saved.")
    seen = points(editor)
    assert seen == len(RunFolder(runs, name).metrics()), "the chart has every logged point"
    assert len(asked) <= 2 + (asked[-1] - asked[0]), (
        "whatever the server says, its curves are asked for once a second at most"
    )

    editor.reload()
    node = begin(editor, name, iterations=200)
    sentence(editor, "Stopped at iteration")
    wait_for_points(editor, seen - 1)
    assert points(editor) == seen, "after a reload all of it is there again"

    press(editor, "Resume")
    sentence(editor, "Training: stage 1 of 1")
    sentence(editor, "Finished after 200 iterations")
    wait_for_points(editor, 19)
    assert points(editor) == 20
    assert not panel(editor).get_by_role("button", name="Resume").is_visible()
    press(editor, "Pictures")
    slider = panel(editor).get_by_label("Training time: which preview is shown")
    slider.wait_for()
    slider.focus()
    newest = panel(editor).locator("output").text_content()
    assert newest == "iteration 200"
    editor.page.keyboard.press("Home")
    assert panel(editor).locator("output").text_content() == "iteration 20", "by keyboard, to the first picture"
    assert editor.page.evaluate("(id) => !!app.graph.getNodeById(id)", node), (
        "keys in the panel do nothing to the graph"
    )


def test_cancel_is_said_at_once_and_touches_no_other_job(editor, runs, name):
    """The shown run is trained by another process, this one; meanwhile the server trains something else."""
    other, run = f"{name} other", RunFolder(runs, name)
    with run.locked():
        begin(editor, name, iterations=4000)
        editor.server.queue(demo(other, FewStepProgressiveDistillation={"iterations": 100}), client="another tab")
        sentence(editor, "Preparing the training")
        press(editor, "Cancel")
        sentence(editor, "Cancelling ... the state is saved first.")
        assert panel(editor).get_by_role("button", name="Cancel").is_disabled()
        for _ in range(100):
            if not run.cancel_asked:  # said before it has arrived
                editor.page.wait_for_timeout(100)
        assert run.cancel_asked
    sentence(editor, "Not begun")
    Client(editor.server).wait_until_idle()
    assert RunFolder(runs, other).finished


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
    # it is refused at once, perhaps before the panel has heard of the name
    editor.page.wait_for_function("name => document.querySelector('fewstep-panel').run === name", arg=name)
    editor.queue()
    sentence(editor, "Stopped by an error: ")
    editor.errors.clear()


def test_damage_is_a_sentence_of_its_own(editor, runs, name):
    (runs / name).mkdir(parents=True)
    said = {"method": "progressive_distillation", "teacher_sha256": "ab"}
    (runs / name / "run.json").write_text(json.dumps({"run": said}))
    (runs / name / "metrics.jsonl").write_text("null\n")
    begin(editor, name)
    sentence(editor, "Repair or delete it in the list of runs.", seconds=30)
    text = panel(editor).locator(".sentence").inner_text()
    assert f"it begins anew. The run '{name}' is damaged: line 1 of metrics.jsonl" in text


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
            wait_for_points(editor, 2)
            server.process.kill()
            server.process.wait()
            sentence(editor, "The server does not answer")
            assert not panel(editor).get_by_role("button", name="Cancel").is_visible()
        with serving(base=tmp_path, port=port):
            sentence(editor, "Stopped at iteration")
            assert points(editor) >= 2, "what was shown stays"
            assert panel(editor).get_by_role("button", name="Resume").is_visible()


def test_companions_losses_stand_beside_the_students_and_their_gauges_apart(editor, runs, name):
    """What a method tells of its companion and its critic; a run without either has no such view."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    line = {"iterations": 9, "stage": 0, "stage_name": "s", "x0_error": 0.25, "gradient_norm": 1.0}
    line |= {"learning_rate": 0.1, "band_errors": [None]}
    measures = {"gap": 0.5, "cosine": 0.75, "std": 1.25, "real_std": 1.0, "adversarial": 0.25}
    measures |= {"fake_loss": 0.125, "critic_loss": 1.5}
    lines = [line | {"iteration": i, "loss": 2.0, "measures": measures} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    node = begin(editor, name)
    wait_for_points(editor, 1)
    shown = "() => document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').data"
    assert editor.page.evaluate(shown) == [[1, 2], [2.0, 2.0], [2.0, 2.0], [0.125, 0.125], [1.5, 1.5]]
    colours = (
        panel(editor)
        .locator("fewstep-chart")
        .evaluate(
            "chart => [...chart.shadowRoot.querySelectorAll('.u-legend .u-series')].map(row =>"
            " [row.querySelector('.u-label').textContent, getComputedStyle(row.querySelector('.u-marker')).borderTopColor])"
        )
    )
    assert len({colour for label, colour in colours if label in ("smoothed", "fake loss", "critic loss")}) == 3
    press(editor, "Companion")
    assert editor.page.evaluate(shown) == [[1, 2], *([value] * 2 for value in (0.5, 0.75, 1.25, 1.0, 0.25))]
    editor.set(node, run_name="another run")
    panel(editor).get_by_role("button", name="Companion").wait_for(state="hidden")


def test_what_is_heard_of_a_run_does_not_change_with_every_iteration(editor, name):
    begin(editor, name, iterations=200)
    editor.page.evaluate(
        "() => { const status = document.querySelector('fewstep-panel').shadowRoot.querySelector('[role=status]');"
        " window.heardOf = []; new MutationObserver(() => heardOf.push(status.textContent))"
        ".observe(status, { childList: true, characterData: true, subtree: true }) }"
    )
    editor.queue()
    sentence(editor, "Finished after 200 iterations")
    heard = editor.page.evaluate("() => heardOf")
    assert heard[-1] == "Finished after 200 iterations."
    assert 1 <= heard.count("Training: stage 1 of 1 (8 to 4 steps)") <= 2, "before and after a phase of its own"
    assert len(heard) <= 12, "the phases, and none of 200 iterations"


def test_watch_run_says_what_to_do_next(editor, runs, name):
    """Its training is started in a terminal, not by its queue."""
    node = editor.add("FewStepWatchRun", run_name=name)
    editor.show(node)
    sentence(editor, "There is no run of this name yet. Queue Write Run first.", seconds=30)
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    sentence(editor, "Written, and not started yet. Start it with Write Run's command in a terminal", seconds=30)
    panel(editor).get_by_role("button", name="Copy command").wait_for()
    editor.page.wait_for_function(
        "() => { const panel = document.querySelector('fewstep-panel'), bottom = e => e.getBoundingClientRect().bottom;"
        " return bottom(panel.command) <= bottom(panel) + 1 }"
    )
    assert not panel(editor).get_by_role("button", name="Resume").is_visible()
    (folder / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "00000003.safetensors").touch()
    sentence(
        editor,
        "Stopped at iteration 3 of 9; its state is saved. Start the same command again, and it goes on.",
        seconds=30,
    )
    assert not panel(editor).get_by_role("button", name="Resume").is_visible()
    shutil.rmtree(folder)


def test_watch_run_says_that_it_waits_and_that_the_training_stops_soon(editor, runs, name):
    """Its run is trained by another process, this one."""
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    node = editor.add("FewStepWatchRun", run_name=name)
    editor.show(node)
    sentence(editor, "queue this node to wait for its student.", seconds=30)
    editor.page.evaluate(
        "id => { Object.defineProperty(app, 'runningNodeId', { value: `${id}`, configurable: true }) }", node
    )
    sentence(editor, "Start it with Write Run's command in a terminal; this node waits for its student.", seconds=30)
    editor.page.evaluate("() => { delete app.runningNodeId }")
    with RunFolder(runs, name).locked():
        sentence(editor, "Preparing the training ...", seconds=30)
        press(editor, "Stop after this checkpoint")
        sentence(editor, "Stopping after the first checkpoint.", seconds=30)
        (runs / name / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
        sentence(editor, "Stopping after the next checkpoint: iteration 3", seconds=30)
    shutil.rmtree(runs / name)


def stopped_run(runs, name):
    (runs / name / "checkpoints").mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    (runs / name / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (runs / name / "checkpoints" / "00000003.safetensors").touch()


def test_a_run_that_is_deleted_elsewhere_is_one_no_longer(editor, server, runs, name):
    """Its node would go on offering to resume it."""
    stopped_run(runs, name)
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    sentence(editor, "Stopped at iteration 3 of 9", seconds=30)
    server.post(f"/fewstep/runs/{name}/delete", {})
    panel(editor).locator(".sentence", has_text="Stopped").wait_for(state="detached", timeout=30000)
    assert not panel(editor).get_by_role("button", name="Resume").is_visible()


def test_a_refused_stop_is_said_until_it_was_read(editor, runs, name):
    begin(editor, name, iterations=4000)
    editor.queue()
    wait_for_points(editor, 2)
    editor.page.route("**/stop", lambda route: route.fulfill(status=500, json={"error": "the disk refuses: full"}))
    try:
        press(editor, "Stop after this checkpoint")
        sentence(editor, "the disk refuses: full", seconds=30)
        editor.page.wait_for_timeout(3000)
        assert "full" in panel(editor).locator(".sentence").inner_text()
        sentence(editor, "Training", seconds=30)
    finally:
        editor.page.unroute("**/stop")
        press(editor, "Cancel")
    sentence(editor, "Stopped at iteration")
    editor.errors.clear()


def test_one_failed_answer_does_not_end_the_watching(editor, runs, name):
    """A disk that refuses once, a proxy: nobody sends messages about a run that another process trains."""
    node = editor.add("FewStepWatchRun", run_name=name)
    asked = []

    def refuse_once(route):
        asked.append(route.request.url)
        route.fulfill(status=500, json={"error": "the disk refuses"}) if len(asked) == 1 else route.continue_()

    editor.page.route("**/fewstep/runs/*", refuse_once)
    try:
        editor.show(node)
        sentence(editor, "the disk refuses", seconds=30)
        sentence(editor, "There is no run of this name yet. Queue Write Run first.", seconds=30)
    finally:
        editor.page.unroute("**/fewstep/runs/*")
    editor.errors[:] = [error for error in editor.errors if "status of 500" not in error]  # the browser's own word
