"""The scenes' solvers by the host's own samplers, and the whole book at its smallest."""

import dataclasses
import json
import re

import pytest
import torch
from comfyui_fewstep.benchmarks.scenes import ablation, curves, diversity, students, students_page, trials
from comfyui_fewstep.benchmarks.scenes.engine.parts import Parts
from comfyui_fewstep.benchmarks.scenes.judging import judges
from comfyui_fewstep.benchmarks.scenes.model import teacher
from comfyui_fewstep.benchmarks.scenes.model.network import noise_levels
from comfyui_fewstep.benchmarks.scenes.model.solvers import CALLS, Setting, draw, noise, setting, solvers
from comfyui_fewstep.benchmarks.scenes.tables import pages
from PIL import Image

NAMES = ("DDIM", "Heun", "DPM++ 2M", "UniPC")


def unit_gaussian(x, sigma, y):
    """D of data of unit variance around 0: x / (1 + sigma^2)."""
    return x / (1.0 + sigma[:, None, None, None] ** 2)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_takes_as_many_calls_as_it_says_and_no_more_than_allowed(name, guidance):
    """Counted at the network, both branches of guidance; and one step more would be too many."""
    captions = torch.zeros(2, 30)
    for calls in CALLS:
        chosen = setting(name, calls, guidance_scale=guidance, grid="trailing")
        if chosen is None:
            assert calls < (2 if guidance == 1.0 else 4)
            continue
        seen = []

        def counted(x, sigma, y):
            seen.append(len(x))  # noqa: B023
            return unit_gaussian(x, sigma, y)

        draw(counted, chosen, noise=noise(2, seed=0), captions=captions)
        assert sum(seen) == 2 * chosen.calls <= 2 * calls
        assert chosen._replace(steps=chosen.steps + 1).calls > calls


def test_calls_that_are_not_as_said_are_refused(monkeypatch):
    wrong = solvers()["DDIM"]._replace(evaluations=lambda n: n + 1)
    monkeypatch.setitem(solvers(), "DDIM", wrong)
    with pytest.raises(ValueError, match=r"took 4\.0 network calls for a picture, not 5"):
        draw(unit_gaussian, Setting("DDIM", 4, 1.0, "edm"), noise=noise(2, seed=0), captions=torch.zeros(2, 30))


def test_solvers_come_to_the_exact_end_of_the_path_each_at_its_order():
    """Of a unit Gaussian the path ends at x / sqrt(1 + sigma^2), which is the initial noise. Halved steps: DDIM's error halves,
    that of the second order falls to a quarter or less."""
    start, captions = noise(4, seed=1), torch.zeros(4, 30)

    def error(name, steps):
        found = draw(unit_gaussian, Setting(name, steps, 1.0, "trailing"), noise=start, captions=captions)
        return float((found - start).abs().max())

    falls = {name: error(name, 20) / error(name, 40) for name in NAMES}
    assert 1.7 < falls["DDIM"] < 2.3
    assert all(error(name, 40) < 0.3 * error("DDIM", 40) for name in NAMES[1:])


def test_guidance_is_by_the_empty_caption():
    """A network that answers its caption's sum: guided it is s times that."""
    seen = draw(
        lambda x, sigma, y: y.sum(dim=1)[:, None, None, None].expand_as(x),
        Setting("DDIM", 1, 3.0, "trailing"),
        noise=noise(2, seed=0),
        captions=torch.eye(30)[:2],
    )
    assert torch.allclose(seen, torch.full_like(seen, 3.0), atol=1e-4)


def test_levels_are_those_of_the_grid(monkeypatch):
    asked = []
    draw(
        lambda x, sigma, y: asked.append(float(sigma[0])) or unit_gaussian(x, sigma, y),
        Setting("DDIM", 4, 1.0, "trailing"),
        noise=noise(1, seed=0),
        captions=torch.zeros(1, 30),
    )
    assert asked == noise_levels()[[999, 749, 499, 249]].tolist()


# --- the book --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """All results in a folder, few pictures, trainings of three iterations."""
    for module in (curves, students, students_page):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(students, "HOME", tmp_path / "students")
    monkeypatch.setattr(students, "LEARNT", 64)
    monkeypatch.setattr(diversity, "PROMPTS", 8)
    monkeypatch.setattr(curves, "GUIDANCES", (1.0, 1.5))
    monkeypatch.setattr(curves, "CALLS", (1, 4))
    for name, value in {"TUNING_PICTURES": 520, "TUNING_REAL": 520}.items():
        monkeypatch.setattr(curves, name, value)
    students.data.cache_clear()
    yield tmp_path
    students.data.cache_clear()


@pytest.mark.thorough
def test_solvers_are_tuned_and_drawn_once_and_written_as_they_come(small, monkeypatch):
    measure = {"pictures": 600, "noise_seeds": 1}
    parts = curves.results("solvers")
    assert len(list(curves.measure(parts, **measure))) == 7
    page = pages.solvers_page(parts.written)
    file = small / "scenes_solvers.json"
    first = json.loads(file.read_text())
    heun = {name for name in first["parts"] if name.startswith("Heun")}
    assert heun == {"Heun, 1 calls, noise 0", "Heun, 4 calls, noise 0"}
    assert "UniPC, 1 calls, noise 0" not in first["parts"]
    for name, part in first["parts"].items():
        if name.startswith("tuning: "):
            assert part["figures"]["best"] == min(part["figures"]["tried"], key=lambda row: row[-1])[:-1]
    value, margin = first["parts"]["DDIM, 4 calls, noise 0"]["figures"]["frechet"]
    assert f"| {value:.2f} +- {margin:.2f} |" in page
    monkeypatch.setattr(curves, "drawn_row", pytest.fail)
    again = curves.results("solvers")
    assert len(list(curves.measure(again, **measure))) == 7
    assert json.loads(file.read_text()) == first


def few(trial):
    """Iterations."""
    leads = {"companion_first": 1} if "companion_first" in trial.options else {}
    return dataclasses.replace(trial, options={**trial.options, "iterations": 3, **leads})


FEW = {name: few(trial) for name, trial in trials.TRIALS.items()}


def test_what_a_student_adds_between_its_steps_is_new_for_each_picture_and_seed(monkeypatch):
    """Of a model that answers what it sees and one first noise, pictures differ by the fresh noise alone."""
    monkeypatch.setattr(students, "CHUNK", 2)
    monkeypatch.setattr(students, "noise", lambda count, seed: torch.ones(count, 12, 8, 8))
    chosen, prompts = FEW["consistency"].chosen, torch.zeros(4, 30)
    first, again, other = (
        students.draw_student(lambda x, sigma, y: x, chosen, 4, prompts, seed=seed) for seed in (1000, 1000, 1001)
    )
    assert torch.equal(first, again)
    drawn = torch.cat([first, other]).flatten(1)
    assert torch.pdist(drawn).min() > drawn.std(), "all eight are apart"


def test_rows_of_students_that_added_one_seeds_noise_are_named():
    """Of those that add some at so many calls, and were drawn before it was new for each picture; they are drawn again."""
    rows = {}
    for label, calls, more in (
        ("consistency", 4, {}),
        ("consistency", 1, {}),
        ("matching in 4 with fresh noise", 4, trials.ADDED),
        ("guidance", 4, {}),
        ("matching in 4 by landings", 4, {}),
    ):
        settings = {**trials.TRIALS[label].settings(), "calls": calls, "steps": calls, **more}
        rows[f"{label}, {calls} calls, training 0, noise 0"] = {"settings": settings}
    (said,) = students_page.of_one_noise(rows)
    assert said.endswith("leave out: consistency.")
    assert students_page.of_one_noise({name: rows[name] for name in list(rows)[1:]}) == []


@pytest.mark.thorough
def test_students_are_trained_once_and_stand_beside_the_solvers(small, monkeypatch):
    """Every method at every number of calls; a second start trains and draws nothing."""
    figures = {key: [4.0, 0.1] for key in ("frechet", "frechet_random", "kernel", "accuracy", "copied")}
    figures |= dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
    said = {"setting": ["DDIM", 4, 1.0, "trailing"], "calls": 4}
    solvers = Parts(small / "scenes_solvers.json", command="solvers", sources=[teacher.FILE, judges.FILE])
    solvers.part("DDIM, 4 calls, noise 0", said, lambda: figures)
    scenes = students.Scenes(FEW, pictures=600)

    def measured(parts):
        yield from trials.measure(parts, scenes, list(FEW), seeds=1, noise_seeds=1)
        yield from diversity.measure(parts, scenes, list(FEW), seeds=1, setting=students_page.best_setting())

    made = Parts(small / "scenes_students.json", command="students", sources=[teacher.FILE, judges.FILE])
    for _ in measured(made):
        students_page.write(made.written)
    assert min(Image.open(small / "scenes_students.png").size) > 100
    text = (small / "scenes_students.md").read_text()
    for label, trial in FEW.items():
        assert len(re.findall(rf"\| {label}, 1 training \| [1248] \|", text)) == len(trial.steps)
    value, margin = made.written["parts"]["progressive, 1 calls, training 0, noise 0"]["figures"]["frechet"]
    assert f"| progressive, 1 training | 1 | {value:.2f} +- {margin:.2f} |" in text
    label = r"- 4 calls, (progressive|guidance|consistency): [\d.]+ \+- [\d.]+ times"
    assert re.search(rf"{label} \(aim 1.05: (not )?reached\) the teacher's best", text)
    assert re.search(r"\| progressive \| 1 \| 0\.\d\d \+- ", text), "fewer steps, less spread than the teacher's"
    first = json.loads((small / "scenes_students.json").read_text())
    monkeypatch.setattr(students.Scenes, "spread", pytest.fail)
    monkeypatch.setattr(students.Scenes, "trained", pytest.fail)
    monkeypatch.setattr(students, "drawn_row", pytest.fail)
    again = Parts(small / "scenes_students.json", command="students", sources=[teacher.FILE, judges.FILE])
    list(measured(again))
    assert json.loads((small / "scenes_students.json").read_text()) == first


@pytest.mark.thorough
def test_every_prediction_learns_from_scratch_and_is_drawn_once(small, monkeypatch):
    """Two iterations each; a pair that diverges is told and stops nothing, and a second start does nothing again."""
    monkeypatch.setattr(ablation, "RESULTS", small)
    monkeypatch.setattr(ablation, "HOME", small / "ablation")
    monkeypatch.setattr(ablation, "ITERATIONS", 2)
    monkeypatch.setattr(ablation, "STEPS", (2, 1))
    monkeypatch.setattr(ablation, "WEIGHTINGS", ("snr", "truncated_snr"))
    monkeypatch.setattr(teacher, "OPTIONS", dataclasses.replace(teacher.OPTIONS, warmup=1, batch_size=4))
    whole = ablation.trained

    def diverges(prediction, weighting, seed):
        if (prediction, weighting) == ("eps", "truncated_snr"):
            raise ablation.NonFiniteLoss("the loss became nan")
        return whole(prediction, weighting, seed)

    monkeypatch.setattr(ablation, "trained", diverges)
    made = Parts(small / "scenes_ablation.json", command="ablation", sources=[judges.FILE])
    assert len(list(ablation.measure(made, seeds=1, pictures=600))) == 8
    page = ablation.page(made.written)
    assert "| eps | truncated_snr | diverged | - | diverged | - | 1 | diverged |" in page
    value, margin = made.written["parts"]["x0_and_eps, snr, training 0"]["figures"]["1"]["frechet"]
    assert re.search(rf"\| x0_and_eps \| snr \| .* \| {value:.2f} \+- {margin:.2f} \| .* \| 1 \| 2.78 \|", page)
    monkeypatch.setattr(ablation, "trained", pytest.fail)
    assert len(list(ablation.measure(made, seeds=1, pictures=600))) == 8
