"""The pictures in the list of runs, and in the whole window."""

import json
import shutil
import time

import pytest
from PIL import Image, ImageColor, PngImagePlugin
from test_runs_browser import another, card, finished, open_runs  # noqa: F401 (fixtures)

COLOURS = {20: ("red", "lime", "blue", "white"), 40: ("maroon", "green", "navy", "gray")}
"""Of a preview by iteration: teacher and student of the first prompt, then of the second."""


@pytest.fixture
def shown_run(runs):
    """The name of a run with two previews of two prompts, each picture of one colour."""
    name = f"shown {time.time_ns()}"
    (runs / name / "previews").mkdir(parents=True)
    (runs / name / "run.json").write_text(json.dumps({"run": {"method": "m", "teacher_sha256": "ab"}}))
    said = PngImagePlugin.PngInfo()
    said.add_itxt("fewstep.preview", json.dumps({"columns": 2, "prompts": ["a red fox", "<b>a lake</b>"]}))
    for iteration, colours in COLOURS.items():
        picture = Image.new("RGB", (80, 60))
        for i, colour in enumerate(colours):
            picture.paste(Image.new("RGB", (40, 30), colour), (40 * (i // 2), 30 * (i % 2)))
        picture.save(runs / name / "previews" / f"{iteration:08d}.png", pnginfo=said)
    yield name
    shutil.rmtree(runs / name)


def seen(page):
    """What stands above the two pictures, and their sizes and colours."""
    return page.evaluate(
        "() => { const { shadowRoot } = document.querySelector('fewstep-enlarged');"
        " const of = canvas => [canvas.width, canvas.height,"
        " ...canvas.getContext('2d').getImageData(20, 15, 1, 1).data.slice(0, 3)].join();"
        " return [shadowRoot.querySelector('h2').innerText, ...[...shadowRoot.querySelectorAll('canvas')].map(of)] }"
    )


def seen_soon(page, prompt, *colours):
    wanted = [prompt, *(",".join(map(str, (40, 30, *ImageColor.getrgb(colour)))) for colour in colours)]
    end = time.monotonic() + 10
    while seen(page) != wanted:
        assert time.monotonic() < end, f"{seen(page)} is not {wanted}"
        time.sleep(0.1)


def test_a_picture_is_enlarged_by_keyboard_prompt_by_prompt_and_checkpoint_by_checkpoint(editor, shown_run):
    page, keys = editor.page, editor.page.keyboard
    picture = card(open_runs(editor), shown_run).get_by_role("button", name="Enlarge")
    picture.focus()
    keys.press("Enter")
    shown = page.locator("fewstep-enlarged")
    seen_soon(page, "a red fox", "maroon", "green")
    keys.press("ArrowRight")
    seen_soon(page, "<b>a lake</b>", "navy", "gray")
    keys.press("ArrowRight")
    keys.press("ArrowLeft")
    seen_soon(page, "<b>a lake</b>", "navy", "gray")
    shown.get_by_label("Checkpoint").focus()
    keys.press("ArrowLeft")
    seen_soon(page, "<b>a lake</b>", "blue", "white")
    assert shown.get_by_text("iteration 20").is_visible()
    boxes = [shown.get_by_role("img").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"], "side by side"
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["width"] > 500, "in the whole window"
    keys.press("Escape")
    shown.wait_for(state="detached")
    assert picture.evaluate("button => button.getRootNode().activeElement === button"), "where it was before"


def test_what_lies_below_a_picture_stays_where_it_is_when_that_comes(editor, shown_run):
    """Whoever is about to press a button there would press another."""
    waiting = []
    editor.page.route("**/preview?*", lambda route: waiting.append(route))
    try:
        shown = card(open_runs(editor), shown_run)
        load = shown.get_by_role("button", name="Load student")
        load.scroll_into_view_if_needed()
        editor.page.wait_for_timeout(500)
        before = load.bounding_box()
        assert waiting
        for route in waiting:
            route.continue_()
        drawn = "async compare => { await compare.both.decode(); return compare.both.naturalWidth }"
        assert shown.locator("fewstep-compare").evaluate(drawn) == 80
        editor.page.wait_for_timeout(300)
        assert load.bounding_box() == before
    finally:
        editor.page.unroute("**/preview?*")


def test_a_picture_that_does_not_come_is_said(editor, shown_run):
    enlarge = card(open_runs(editor), shown_run).get_by_role("button", name="Enlarge")
    enlarge.wait_for()
    editor.page.route("**/preview?*", lambda route: route.abort())
    try:
        enlarge.click()
        shown = editor.page.locator("fewstep-enlarged")
        shown.get_by_text("The picture could not be loaded.").wait_for()
        shown.get_by_role("button", name="Close").click()
    finally:
        editor.page.unroute("**/preview?*")
    editor.errors.clear()


def test_a_picture_of_an_older_version_is_enlarged_whole(editor, runs, another):  # noqa: F811
    for file in (runs / another / "previews").glob("*.png"):
        Image.open(file).convert("RGB").save(file)
    card(open_runs(editor), another).get_by_role("button", name="Enlarge").click()
    shown = editor.page.locator("fewstep-enlarged")
    shown.get_by_role("heading", name="Teacher and student").wait_for()
    assert not shown.get_by_role("button", name="Next").is_visible()
    shown.get_by_role("button", name="Close").click()
    shown.wait_for(state="detached")
