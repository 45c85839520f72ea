"""Names, roles, keyboard and contrast of everything of ours, by axe-core: nothing found in any state. And colours by theme."""

import io
import json
import shutil

import pytest
from contrast import contrast
from PIL import Image
from test_elements import SHOWING
from test_pictures_of_runs import seen_soon, shown_run  # noqa: F401 (a fixture)
from test_runs_browser import card, close_runs, open_runs
from test_training_panel import panel, press, wait_for_points

RUN = {"method": "m", "teacher_sha256": "ab", "method.learning_rate": 0.1}
LINE = {"iterations": 9, "stage": 0, "stage_name": "s", "loss": 2.0, "x0_error": 0.25, "gradient_norm": 1.0}
LINE |= {"learning_rate": 0.1, "band_errors": [None, 0.5]}
PALETTES = ("light", "dark")
SET = (
    "async ([name, value]) => { const set = app.extensionManager?.setting?.set;"
    " await (set ? set(name, value) : app.ui.settings.setSettingValue(name, value)) }"
)
OURS = ("panel", "chart", "compare", "previews", "enlarged", "runs", "runs-compared", "schedule", "table", "text")
TEXT = {"ink", "soft", "failed"}
GROUNDS = {"ground", "menu", "line"}
"""What lies behind, and the lines between: everything else that an element declares is drawn with."""
COLOURS = """
async (names) => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const said = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const shown = names.map((name) => document.body.appendChild(document.createElement(`fewstep-${name}`)));
  const drawn = {}, behind = { node: read(LiteGraph.NODE_DEFAULT_BGCOLOR), list: read(said("--comfy-menu-bg")) };
  for (const element of shown) {
    const style = element.shadowRoot.querySelector("style").textContent;
    const probe = element.shadowRoot.appendChild(document.createElement("i"));
    for (const [, name] of style.matchAll(/--([a-z]+(?:-[0-9]+)?):/g)) {
      probe.style.color = `var(--${name})`;
      drawn[name] = read(getComputedStyle(probe).color);
    }
    const dialog = element.shadowRoot.querySelector("dialog");
    if (dialog) behind.dialog = read(getComputedStyle(dialog).backgroundColor);
    element.remove();
  }
  return { drawn, behind };
}
"""


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
def four_runs(runs, name):
    """The names of four that have logged something and differ in a setting."""
    names = [f"{name} {number}" for number in ("one", "two", "three", "four")]
    for i, one in enumerate(names):
        folder = runs / one
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"run": {**RUN, "method.learning_rate": 0.1 * (i + 1)}}))
        lines = [json.dumps({**LINE, "iteration": k}) for k in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    yield names
    for one in names:
        shutil.rmtree(runs / one)


@pytest.fixture
def two_runs(four_runs):
    return four_runs[:2]


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


@pytest.fixture
def palette(editor):
    yield lambda name: editor.page.evaluate(SET, ["Comfy.ColorPalette", name])
    editor.page.evaluate(SET, ["Comfy.ColorPalette", "dark"])


def test_text_and_lines_stand_out_in_both_themes(editor, palette):
    """Text by 4.5 to 1, lines and marks by 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11), on nodes, in the list and in the dialog."""
    backgrounds, found = set(), []
    for name in PALETTES:
        palette(name)
        told = editor.page.evaluate(COLOURS, OURS)
        backgrounds.add(tuple(told["behind"]["list"]))
        assert {"ink", "failed", "student", "curve-4"} <= told["drawn"].keys()
        for drawn, place in ((d, p) for d in told["drawn"].keys() - GROUNDS for p in told["behind"]):
            needed = 4.5 if drawn in TEXT else 3
            seen = contrast(told["drawn"][drawn], told["behind"][place])
            if seen < needed:
                found.append((name, place, drawn, round(seen, 2)))
    assert len(backgrounds) == len(PALETTES), "the theme does change"
    assert found == []


def test_what_is_drawn_around_a_focused_button_is_whole(editor, two_runs):
    """On all four sides, for the button at the panel's edge too."""
    close_runs(editor)  # a test before this one opened it, and it lies over the node
    editor.show(editor.add("FewStepDistill", run_name=two_runs[0]))
    wait_for_points(editor, 2)
    first = panel(editor).get_by_role("button", name="Loss")
    first.focus()
    editor.page.keyboard.press("Tab")
    editor.page.keyboard.press("Shift+Tab")
    box, around = first.bounding_box(), 4
    clip = {"x": box["x"] - around, "y": box["y"] - around, "width": box["width"] + 8, "height": box["height"] + 8}
    shot = Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")
    (width, height), middle = shot.size, [shot.width // 2, shot.height // 2]
    lines = {
        "left": [shot.getpixel((x, middle[1])) for x in range(around)],
        "right": [shot.getpixel((width - 1 - x, middle[1])) for x in range(around)],
        "top": [shot.getpixel((middle[0], y)) for y in range(around)],
        "bottom": [shot.getpixel((middle[0], height - 1 - y)) for y in range(around)],
    }
    orange = (0xE8, 0x59, 0x0C)
    assert [side for side, line in lines.items() if line.count(orange) < 2] == []


def test_the_chart_of_runs_keeps_its_height_under_long_names(editor, four_runs):
    shown = open_runs(editor)
    for one in four_runs:
        card(shown, one).get_by_label(f"Compare {one}").check()
    chart = shown.locator("fewstep-runs-compared fewstep-chart")
    chart.locator(".u-legend").get_by_text(four_runs[3]).wait_for()
    editor.wait_until_drawn()
    heights = "chart => ['.u-over', '.u-legend'].map(part => chart.shadowRoot.querySelector(part).offsetHeight)"
    plot, key = chart.evaluate(heights)
    assert plot > 80
    assert chart.evaluate("chart => chart.offsetHeight") >= plot + key
