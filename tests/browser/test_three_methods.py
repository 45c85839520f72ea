"""Three methods on one teacher, compared in the list of runs and saved as one table, with a user's clicks, which are counted."""

import csv

import pytest
from hosting import Client
from test_first_run import SMALL, User
from test_runs_browser import card, open_runs

pytestmark = pytest.mark.thorough

GOALS = {"closest to my model": "progressive", "sharpest": "distribution", "cheapest to train": "consistency"}
MOST_CLICKS = 6


@pytest.fixture(scope="module")
def three(server):
    """The names of three finished runs, one for each goal of Make It Fast."""
    names = {goal: f"three methods {method}" for goal, method in GOALS.items()}
    for goal, name in names.items():
        make = {
            "model": ["1", 0],
            "clip": ["1", 2],
            "steps": "4",
            "goal": goal,
            "run_name": name,
            "do": "train",
            **SMALL,
        }
        prompt = {
            "1": {"class_type": "FewStepDemoTeacher", "inputs": {}},
            "2": {"class_type": "FewStepMakeItFast", "inputs": make},
        }
        Client(server).run(prompt)
    return list(names.values())


def test_three_methods_are_compared_and_saved_as_one_table(three, editor):
    user = User(editor)
    shown = open_runs(editor)
    user.clicks += 1
    for name in three:
        user.click(card(shown, name).get_by_label(f"Compare {name}"))
    beside = shown.locator("fewstep-runs-compared")
    beside.get_by_role("rowheader", name="method", exact=True).wait_for()
    _, *losses = beside.locator("fewstep-chart").evaluate("chart => chart.data")
    assert len(losses) == 3
    assert all(any(value is not None for value in loss) for loss in losses), "all three in one chart"
    with editor.page.expect_download() as waiting:
        user.click(beside.get_by_role("button", name="Save table as CSV"))
    with waiting.value.path().open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert {row["run"]: row["method"] for row in table} == {
        name: f"{name.split()[-1]}_{'matching' if 'distribution' in name else 'distillation'}" for name in three
    }
    assert all(float(row["last loss"]) > 0.0 and int(row["iterations"]) >= 20 for row in table)
    assert user.clicks <= MOST_CLICKS
