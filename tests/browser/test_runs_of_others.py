"""The list of runs where there are many, and where they were written by somebody else."""

from PIL import Image
from test_runs_browser import card, open_runs
from test_training_panel import stopped_run


def test_pictures_are_fetched_when_they_come_into_sight(editor, runs, name):
    for i in range(12):
        stopped_run(runs, f"{name} {i}")
        (runs / f"{name} {i}" / "previews").mkdir()
        Image.new("RGB", (80, 60)).save(runs / f"{name} {i}" / "previews" / "00000003.png")
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url) if "/preview?" in request.url else None)
    shown = open_runs(editor)
    card(shown, f"{name} 0").wait_for(state="attached")
    editor.page.wait_for_timeout(1500)
    fetched = {url for url in asked if name in url}
    assert 1 <= len(fetched) <= 8
    unseen = next(i for i in range(12) if not any(f"{name}%20{i}/" in url for url in fetched))
    with editor.page.expect_response(lambda answer: f"{name}%20{unseen}/preview?" in answer.url):
        card(shown, f"{name} {unseen}").locator("fewstep-compare").scroll_into_view_if_needed()
