"""The panel of a run that has gone on for days in a page that was open all the time."""

import json

from test_training_panel import LINE, points, stopped_run, wait_for_points

SENTENCE = "document.querySelector('fewstep-panel').shadowRoot.querySelector('.sentence').textContent"
COUNT = """() => {
  const chart = document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart');
  const { draw } = chart;
  window.charted = 0;
  chart.draw = (content) => { window.charted++; draw.call(chart, content); };
}"""
SHOWN = "() => document.querySelector('fewstep-panel').shadowRoot.querySelector('fewstep-chart').data[0]"


def log(runs, name, begin, end):
    with (runs / name / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(LINE | {"iteration": i, "iterations": 99999}) + "\n" for i in range(begin, end))


def tell(editor, node, name, iteration):
    said = LINE | {"run": name, "node": f"{node}", "iteration": iteration, "iterations": 99999, "stages": 1}
    return editor.hear("fewstep.metrics", {**said, "seconds_left": 9.0}, then=SENTENCE)


def opened(editor, runs, name):
    stopped_run(runs, name)
    log(runs, name, 10, 20)
    node = editor.add("FewStepDistill", run_name=name)
    editor.show(node)
    wait_for_points(editor, 10)
    return node


def test_the_points_of_an_open_page_are_bounded_and_of_the_whole_run(editor, runs, name):
    node, end = opened(editor, runs, name), 20
    seen = []
    for more in (2000, 2000, 2000, 10, 10):  # the server puts none of these together
        log(runs, name, end, end + more)
        end += more
        tell(editor, node, name, end - 1)
        editor.page.wait_for_function(f"({SHOWN})().at(-1) === {end - 1}", timeout=15_000)
        seen.append(points(editor))
    assert max(seen) < 6100
    assert seen[-1] <= 2100, "and no more than that from then on"
    assert editor.page.evaluate(SHOWN)[0] < 20, "from the beginning on"


def test_figures_alone_draw_no_chart_anew(editor, runs, name):
    node = opened(editor, runs, name)
    editor.page.evaluate(COUNT)
    for iteration in range(20, 30):
        assert f"iteration {iteration} of 99999" in tell(editor, node, name, iteration)
    assert editor.page.evaluate("() => window.charted") == 0
    log(runs, name, 20, 31)
    tell(editor, node, name, 30)
    editor.page.wait_for_function(f"({SHOWN})().at(-1) === 30", timeout=15_000)
    assert editor.page.evaluate("() => window.charted") >= 1
