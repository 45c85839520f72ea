"""What our elements have in common: charts, text that scales, keys, and nothing left behind."""

import pytest
from editing import Editor
from test_training_panel import begin, panel, press, sentence

EXTENSION = "/extensions/comfyui_fewstep"
HOLDING = """
const held = window.heldListeners = new Set(), timers = window.heldTimers = new Set(), names = new Map();
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
const begun = window.setInterval, ended = window.clearInterval;
window.setInterval = function (...given) { const timer = begun.apply(window, given); timers.add(timer); return timer };
window.clearInterval = function (timer) { timers.delete(timer); return ended.call(window, timer) };
"""
SHOWING = {
    "FewStepDistill": None,
    "FewStepWatchRun": None,
    "FewStepSchedule": None,
    "FewStepApplyRecipe": None,
    "FewStepConsistencyTraining": None,
    "FewStepWriteRun": {"text": ["a command"]},
    "FewStepEvaluateDigits": {"text": ["| model | steps |", "|---|--:|", "| teacher | 8 |"]},
    "FewStepCompare": {"text": ["PSNR"], "comparison": [{"filename": "none.png", "subfolder": "", "type": "temp"}]},
}
"""Nodes with an element of ours, and what they say when they have run, where the element comes with that."""

OURS = "() => [...document.querySelectorAll('*')].filter(e => e.localName.startsWith('fewstep-')).length"


def test_nothing_is_left_of_removed_nodes(chromium, server):
    with chromium.new_context() as context:
        page = context.new_page()
        page.add_init_script(HOLDING)
        editor = Editor(page, server)
        editor.open()
        editor.clear()
        before = page.evaluate(OURS)
        page.evaluate(f"async () => {{ window.service = await import('{EXTENSION}/fewstep_service.js') }}")
        counts = []
        for _ in range(3):
            for kind, output in SHOWING.items():
                node = editor.add(kind)
                if output:
                    page.evaluate("([id, said]) => app.graph.getNodeById(id).onExecuted(said)", [node, output])
                expected = 2 if kind in ("FewStepDistill", "FewStepWatchRun") else 0
                shown = f"before => ({OURS})() > before && service.subscribers() === {expected}"
                page.wait_for_function(shown, arg=before)
                editor.remove(node)
                gone = f"before => ({OURS})() === before && service.subscribers() === 0"
                page.wait_for_function(gone, arg=before)
            page.wait_for_timeout(400)  # for what an element might still begin after it has gone
            counts.append(page.evaluate("() => [heldListeners.size, heldTimers.size]"))
        assert counts[0] == counts[-1], "each round leaves as many listeners and timers as the one before"
        editor.errors[:] = [error for error in editor.errors if "none.png" not in error]
        assert editor.errors == []


def test_nothing_is_left_of_a_node_in_a_subgraph_that_is_no_more(editor):
    """An editor that loads another graph tells only nodes outside of subgraphs that they are gone."""
    node = editor.add("FewStepDistill")
    if not editor.page.evaluate("() => Boolean(app.graph.convertToSubgraph)"):
        pytest.skip("this editor has no subgraphs")
    editor.page.evaluate(f"async () => {{ window.service = await import('{EXTENSION}/fewstep_service.js') }}")
    editor.page.evaluate("id => { app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])) }", node)
    editor.page.wait_for_timeout(700)
    assert editor.page.evaluate("() => service.subscribers()") >= 1
    editor.clear()
    editor.page.wait_for_function("() => service.subscribers() === 0")


@pytest.fixture
def drawn(editor):
    """Draws on a chart of 600 pixels. Returns how many red pixels each place (0 to 1) between the first and last x has."""

    def draw(content, places):
        return editor.page.evaluate(
            """async ([module, content, places]) => {
              await import(module);
              const chart = document.createElement("fewstep-chart");
              chart.style.cssText = "width: 600px; height: 300px; font-size: 12px; --red: rgb(255, 0, 0)";
              document.body.append(chart);
              chart.draw(content);
              await new Promise(done => setTimeout(done, 300));
              const over = chart.shadowRoot.querySelector(".u-over"), canvas = chart.shadowRoot.querySelector("canvas");
              const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              const scale = canvas.width / canvas.clientWidth;
              const counts = places.map(place => {
                const x = Math.round((over.offsetLeft + place * over.offsetWidth) * scale);
                let count = 0;
                for (let y = 0; y < pixels.height; y++) {
                  const at = 4 * (y * pixels.width + x);
                  count += pixels.data[at] > 200 && pixels.data[at + 1] < 90 && pixels.data[at + 3] > 100 } return count });
              chart.remove();
              return counts }""",
            [f"{EXTENSION}/fewstep_chart.js", content, places],
        )

    return draw


def line(values, stages):
    lines = [{"label": "loss", "values": values, "colour": "--red"}]
    return {"x": list(range(len(values))), "stages": stages, "names": {}, "log": True, "lines": lines}


def test_a_curve_is_not_joined_across_stages(drawn):
    inside, across, after = drawn(line([1, 1, 0.001, 0.001], [0, 0, 1, 1]), [1 / 6, 3 / 6, 5 / 6])
    assert (inside > 0, across, after > 0) == (True, 0, True)


def test_values_that_are_missing_are_spanned_inside_a_stage_only(drawn):
    places = [1 / 12, 5 / 12, 7 / 12, 11 / 12]
    counts = drawn(line([1, None, 1, None, None, 0.01, 0.01], [0, 0, 0, 0, 1, 1, 1]), places)
    assert (counts[0] > 0, counts[1:3], counts[3] > 0) == (True, [0, 0], True)


def test_a_single_value_is_a_full_dot_of_its_lines_colour(drawn):
    """Not a ring around white, which is nothing on a white node."""
    (height,) = drawn(line([None, 1, None], [0, 0, 0]), [1 / 2])
    assert height >= 4


def test_a_faint_line_is_seen(drawn):
    """Between two lines of the grid, which would count with it."""
    content = line([1, 0.9, 0.8], [0, 0, 0])
    content["lines"][0]["faint"] = True
    assert sum(drawn(content, [place / 40 for place in range(1, 40)])) > 12


def test_smoothing_begins_anew_in_every_stage(editor):
    smoothed = editor.page.evaluate(
        f"async () => (await import('{EXTENSION}/fewstep_chart.js')).smoothed([4, 2, null, 8, 8], [0, 0, 0, 1, 1])"
    )
    assert smoothed == [
        pytest.approx(4),
        pytest.approx((0.9 * 0.1 * 4 + 0.1 * 2) / 0.19),
        None,
        *[pytest.approx(8)] * 2,
    ]


def test_what_is_said_of_a_chart_has_its_iterations_exactly(editor):
    content = {**line([2.5, 0.123456, 0.1], [0, 0, 0]), "x": [1, 12345, 100000]}
    said = editor.page.evaluate(
        f"async content => (await import('{EXTENSION}/fewstep_chart.js')).described(content)", content
    )
    assert said == "Chart over iteration 1 to 100000: loss from 2.5 to 0.1."


def focused(editor):
    """The text or label of what has the focus, through all shadows."""
    return editor.page.evaluate(
        "() => { let at = document.activeElement; while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;"
        " return at.getAttribute('aria-label') || at.textContent.trim() }"
    )


def test_all_of_the_panel_is_reached_by_keyboard(editor, name):
    node = begin(editor, name, iterations=20)
    editor.queue()
    sentence(editor, "Finished after 20 iterations")
    panel(editor).get_by_role("button", name="Loss").focus()
    reached = [focused(editor)]
    for _ in range(3):
        editor.page.keyboard.press("Tab")
        reached.append(focused(editor))
    assert reached == ["Loss", "Noise levels", "Learning rate", "Pictures"]
    editor.page.keyboard.press("Enter")
    panel(editor).get_by_label("Training time").wait_for()
    editor.page.keyboard.press("Tab")
    assert focused(editor) == "Enlarge: teacher and student side by side"
    editor.page.keyboard.press("Tab")
    assert focused(editor) == "Training time: which preview is shown"
    editor.page.keyboard.press("Tab")
    assert focused(editor) == "One over the other"
    editor.page.keyboard.press("Space")
    editor.page.keyboard.press("Shift+Tab")
    editor.page.keyboard.press("Shift+Tab")
    assert focused(editor) == "Where the teacher's picture ends and the student's begins"
    editor.page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    editor.page.keyboard.press("Delete")
    assert editor.page.evaluate("(id) => !!app.graph.getNodeById(id)", node), "keys in it do nothing to the graph"


def test_bands_are_told_apart(editor, name):
    begin(editor, name, iterations=20)
    editor.queue()
    sentence(editor, "Finished after 20 iterations")
    press(editor, "Noise levels")
    editor.wait_until_drawn()
    colours = panel(editor).evaluate(
        "panel => [1, 2, 3, 4].map(i => getComputedStyle(panel).getPropertyValue(`--curve-${i}`).trim())"
    )
    parts = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]
    apart = [
        sum(abs(a - b) for a, b in zip(one, other, strict=True)) for one in parts for other in parts if one != other
    ]
    assert len(apart) == 12
    assert min(apart) > 150
    chart = panel(editor).locator("fewstep-chart")
    bottoms = "chart => [chart, chart.shadowRoot.querySelector('.u-legend')].map(e => e.getBoundingClientRect().bottom)"
    own, legends = chart.evaluate(bottoms)
    assert legends <= own + 1, "the whole legend is seen"
    assert chart.locator(".u-over").evaluate("plot => plot.offsetHeight") > 150, "and it leaves the chart its room"


def test_text_and_what_holds_it_scale_with_the_pages(editor):
    sizes = []
    for size in ("16px", "24px"):
        editor.page.evaluate("size => document.documentElement.style.setProperty('font-size', size, 'important')", size)
        node = editor.add("FewStepSchedule")
        schedule = editor.page.locator("fewstep-schedule")
        schedule.locator("tbody tr").nth(3).wait_for()
        editor.show(node)
        sizes.append(schedule.evaluate("e => [parseFloat(getComputedStyle(e).fontSize), e.offsetHeight]"))
        whole = (
            "e => e.shadowRoot.querySelector('.steps').scrollHeight - e.shadowRoot.querySelector('.steps').clientHeight"
        )
        assert schedule.evaluate(whole) <= 1, "four steps need no scrolling"
        editor.remove(node)
    editor.page.evaluate("() => document.documentElement.style.removeProperty('font-size')")
    assert [sizes[1][0] / sizes[0][0], sizes[0][0]] == [1.5, 12]
    assert sizes[1][1] / sizes[0][1] == pytest.approx(1.5, abs=0.1)


PSNR = "PSNR 14.0 dB over 1 picture of 64x48"


def compared(editor):
    """A comparison of two grey pictures on its node, after that has run."""
    editor.page.evaluate(
        """() => {
          const [black, grey, compare] = ["EmptyImage", "EmptyImage", "FewStepCompare"].map((kind, i) => {
            const node = LiteGraph.createNode(kind); node.pos = [60 + 400 * i, 60]; app.graph.add(node); return node });
          for (const image of [black, grey])
            for (const [name, value] of [["width", 64], ["height", 48]]) image.widgets.find(w => w.name === name).value = value;
          grey.widgets.find(widget => widget.name === "color").value = 0x333333;
          black.connect(0, compare, 0); grey.connect(0, compare, 1) }"""
    )
    editor.queue()
    compare = editor.page.locator("fewstep-compare")
    compare.get_by_text(PSNR).wait_for()
    return compare


def test_a_comparison_shows_both_pictures_and_how_near_they_are(editor):
    compare = compared(editor)
    drawn = "async compare => { await compare.both.decode(); return [compare.both.naturalWidth, compare.both.naturalHeight] }"
    assert compare.evaluate(drawn) == [64, 96], "the teacher's above the student's"
    assert compare.get_by_label("Where the teacher's picture ends").is_visible()


def test_what_a_node_said_is_on_it_again_after_undo(editor):
    """Which loads the graph of before; the editor keeps what was said beside it."""
    compared(editor)
    editor.page.evaluate("async () => { await app.loadGraphData(app.graph.serialize(), false) }")
    editor.page.locator("fewstep-compare").get_by_text(PSNR).wait_for()


def test_what_a_node_said_is_on_it_again_in_its_tab(editor):
    compared(editor)
    if not editor.page.evaluate("() => Boolean(app.extensionManager?.command)"):
        pytest.skip("this editor has no tabs")
    editor.load({"nodes": [], "links": [], "version": 0.4})
    editor.page.locator("fewstep-compare").wait_for(state="detached")
    editor.page.evaluate(
        "async () => { await app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow') }"
    )
    editor.page.locator("fewstep-compare").get_by_text(PSNR).wait_for()


LONG = "cd /a/folder && " + " ".join(f"--option-{i} 'some value'" for i in range(25))


def test_a_long_command_is_seen_whole_with_its_button(editor):
    node = editor.add("FewStepWriteRun")
    editor.show(node)
    editor.page.evaluate("([id, text]) => app.graph.getNodeById(id).onExecuted({ text: [text] })", [node, LONG])
    text = editor.page.locator("fewstep-text")
    text.get_by_role("button", name="Copy").wait_for()
    hidden = (
        "e => { const area = e.shadowRoot.querySelector('textarea'); return area.scrollHeight - area.clientHeight }"
    )
    for _ in range(50):
        if text.evaluate(hidden) <= 1:
            break
        editor.page.wait_for_timeout(100)
    assert text.evaluate(hidden) <= 1
    heights = "e => [e, e.shadowRoot.querySelector('textarea')].map(e => e.offsetHeight)"
    own, area = text.evaluate(heights)
    assert area <= own + 1, "nothing of it is cut off below"
    size = editor.page.evaluate("(id) => app.graph.getNodeById(id).size", node)
    editor.page.evaluate("(id) => app.graph.getNodeById(id).onExecuted({ text: ['short'] })", node)
    editor.wait_until_drawn()
    assert editor.page.evaluate("(id) => app.graph.getNodeById(id).size", node) == size, (
        "what a user sees stays in place"
    )


def test_a_plan_is_on_its_node_before_the_node_ends(editor):
    """Of the node inside a subgraph too, whose id is told behind that of the subgraph; of another tab's run not."""
    node, other = (editor.add("FewStepMakeItFast", run_name=name) for name in ("mine", "another"))
    editor.show(node)
    for of, run in ((f"{other}", "another"), (f"3:{node}", "mine"), (f"{other}", "of another tab")):
        told = {
            "run": run,
            "node": of,
            "plan": [f"plan of {of}" if run != "of another tab" else "wrong", "in all: 2 h"],
        }
        editor.hear("fewstep.plan", told)
    said = "(id) => app.graph.getNodeById(id).fewstepText?.text"
    assert [editor.page.evaluate(said, of) for of in (node, other)] == [
        f"plan of {of}\nin all: 2 h" for of in (f"3:{node}", other)
    ]
    editor.page.locator("fewstep-text").first.get_by_role("button", name="Copy").wait_for()


def test_a_plan_of_other_settings_says_so(editor):
    """Also after undo, which makes the node anew; the name of the run, and what a graph is queued for, are no such settings."""
    node = editor.add("FewStepMakeItFast", run_name="mine", steps="4")
    editor.show(node)
    said = "([id, text]) => app.graph.getNodeById(id).fewstepText?.area.value === text"
    old = "Of other settings than are set now:\n\n"

    def wait_for(text):
        editor.page.wait_for_function(said, arg=[node, text], timeout=10000)

    editor.hear("fewstep.plan", {"run": "mine", "node": f"{node}", "plan": ["four steps", "2 h"]})
    editor.set(node, do="plan only")
    editor.page.wait_for_timeout(700)
    wait_for("four steps\n2 h")
    editor.set(node, steps="8")
    wait_for(f"{old}four steps\n2 h")
    editor.page.evaluate(
        "([id, output]) => { app.nodeOutputs[id] = output }", [f"{node}", {"text": ["four steps\n2 h"]}]
    )
    editor.page.evaluate("async () => { await app.loadGraphData(app.graph.serialize(), false) }")
    wait_for(f"{old}four steps\n2 h")
    editor.set(node, steps="4")
    wait_for("four steps\n2 h")
    editor.set(node, steps="8")
    wait_for(f"{old}four steps\n2 h")
    editor.hear("fewstep.plan", {"run": "mine", "node": f"{node}", "plan": ["eight steps"]})
    wait_for("eight steps")


def test_elements_are_as_wide_as_their_node_and_stay_on_it(editor):
    node = editor.add("FewStepSchedule")
    shown = editor.page.locator("fewstep-schedule")
    shown.locator("tbody tr").first.wait_for()
    widths = []
    for width in (400, 700):
        editor.page.evaluate(
            "([id, width]) => { const node = app.graph.getNodeById(id); node.setSize([width, node.size[1]]);"
            " app.graph.setDirtyCanvas(true, true) }",
            [node, width],
        )
        editor.show(node)
        editor.page.wait_for_timeout(300)
        widths.append(shown.evaluate("e => e.offsetWidth"))
    assert widths == [pytest.approx(400, abs=40), pytest.approx(700, abs=40)]
    asked = "(id) => app.graph.getNodeById(id).widgets.filter(w => w.element?.localName.startsWith('fewstep-'))"
    assert editor.page.evaluate(f"(id) => ({asked})(id).map(w => w.options.hideInPanel)", node) == [True]


def test_a_long_table_of_steps_scrolls_by_keyboard(editor):
    node = editor.add("FewStepSchedule", steps=60, schedule="trailing")
    editor.show(node)
    shown = editor.page.locator("fewstep-schedule")
    shown.locator("tbody tr").nth(59).wait_for(state="attached")
    steps = shown.get_by_label("Timesteps and noise levels of the steps")
    assert steps.evaluate("e => e.scrollHeight > e.clientHeight + 300")
    steps.focus()
    editor.page.keyboard.press("End")
    at_end = "e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2"
    for _ in range(30):
        if steps.evaluate(at_end):
            break
        editor.page.wait_for_timeout(100)
    assert steps.evaluate(at_end)
    assert shown.locator("thead th").first.is_visible(), "its head stays"
