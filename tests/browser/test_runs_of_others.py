"""The list of runs where there are many, and where they were written by somebody else."""

import csv
import json
import time

from PIL import Image
from test_runs_browser import card, open_runs
from test_training_panel import LINE, stopped_run


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


def saved_table(shown, names):
    """Of these runs beside each other, as it is saved: run -> {what: value}."""
    for name in names:
        card(shown, name).get_by_label(f"Compare {name}").check()
    beside = shown.locator("fewstep-runs-compared")
    beside.locator("caption", has_text="What differs").wait_for()
    with shown.page.expect_download() as waiting:
        beside.get_by_role("button", name="Save table as CSV").click()
    with waiting.value.path().open(newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_runs_are_compared_stage_by_stage_and_by_their_last_loss(editor, runs, name):
    """A run that has ended its easy stages alone is no better, and a loss is what the run's own card has."""
    names = [f"{name} {i}" for i in range(2)]
    for run, count in zip(names, (1, 2), strict=True):
        stopped_run(runs, run)
        (runs / run / "metrics.jsonl").write_text(
            "".join(f"{json.dumps({**LINE, 'iteration': i, 'loss': 1 / i})}\n" for i in (1, 2, 4))
        )
        ended = [{"stage": f"{2 * steps} to {steps} steps", "steps": steps} for steps in (16, 8)][:count]
        ended = [
            {**stage, "mean_squared_distance": 1.0 / stage["steps"], "teacher_mean_square": 1.0} for stage in ended
        ]
        (runs / run / "stages.json").write_text(json.dumps(ended))
    first, second = map(saved_table(open_runs(editor), names).get, names)
    apart = "distance from the teacher, percent: "
    assert [first["last loss"], second["last loss"]] == ["0.25"] * 2
    assert [first[apart + "32 to 16 steps"], second[apart + "32 to 16 steps"]] == ["6.25"] * 2
    assert [first[apart + "16 to 8 steps"], second[apart + "16 to 8 steps"]] == ["-", "12.5"]


def test_a_setting_is_no_formula_in_a_table_that_is_saved(editor, runs, name):
    """Numbers stay numbers, and what is not known a dash."""
    settings = [{"from": '=HYPERLINK("a","b")', "rate": -0.5, "of": "@x"}, {"from": "b", "rate": 0.5, "of": "-y"}]
    for i, options in enumerate(settings):
        (runs / f"{name} {i}").mkdir(parents=True)
        said = {"method": "m", "teacher_sha256": "ab", **{f"method.{key}": value for key, value in options.items()}}
        (runs / f"{name} {i}" / "run.json").write_text(json.dumps({"run": said}))
    names = [f"{name} {i}" for i in range(2)]
    first, second = map(saved_table(open_runs(editor), names).get, names)
    assert [first[key] for key in ("from", "rate", "of")] == ['\'=HYPERLINK("a","b")', "-0.5", "'@x"]
    assert [second[key] for key in ("from", "rate", "of")] == ["b", "0.5", "'-y"]
    assert first["last loss"] == "-"


def test_what_becomes_of_a_student_is_said_before_its_run_is_deleted(editor, runs, name):
    """Not of one that was never published. Of the digits what no loader reads goes too."""
    digits = {"nodes": {"1": {"class_type": "FewStepDemoTeacher", "inputs": {}}}, "outputs": {"model": ["1", 0]}}
    questions = {
        "unfinished": "?",
        "lora": "? What lies in output/loras/fewstep of its student stays.",
        "full_weights": "? What lies in output/diffusion_models/fewstep of its student stays.",
        "digits": "? Its student goes with it.",
    }
    for kind in questions:
        folder = runs / f"{name} {kind}"
        folder.mkdir(parents=True)
        said = {"method": "m", "teacher_sha256": "ab", "student.kind": "lora" if kind == "lora" else "full_weights"}
        said |= {"student.rank": 8} if kind == "lora" else {}
        (folder / "run.json").write_text(json.dumps({"run": said} | ({"teacher": digits} if kind == "digits" else {})))
        if kind != "unfinished":
            (folder / "student.safetensors").touch()
    shown = open_runs(editor)
    for kind, question in questions.items():
        of = card(shown, f"{name} {kind}")
        of.get_by_role("button", name="Delete", exact=True).click()
        asked = of.locator("form", has_text="for good").evaluate("form => form.firstChild.textContent")
        assert asked == f"Delete {name} {kind} for good{question}"


def test_a_run_of_training_data_alone_is_listed_said_and_deleted(editor, runs):
    """What a start leaves that was cancelled while its data were made."""
    folder = runs / f"data of {time.time_ns()}" / "data"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text("{}")
    (folder / "0.safetensors").touch()
    name = folder.parent.name
    editor.show(editor.add("FewStepDistill", run_name=name))
    panel = editor.page.locator("fewstep-panel")
    panel.locator(".sentence").get_by_text("The training data that were made are kept").wait_for()
    shown = card(open_runs(editor), name)
    assert "data alone" in shown.inner_text()
    assert not shown.get_by_role("button", name="Start").is_visible()
    assert shown.get_by_role("button", name="Clone").is_disabled()
    shown.get_by_role("button", name="Delete", exact=True).click()
    shown.get_by_role("button", name="Yes, delete").click()
    shown.wait_for(state="detached")
    assert not folder.exists()
