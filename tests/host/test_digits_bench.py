"""The benchmark of the digits' students: what its judge sees, what a solver may take, and its table."""

import dataclasses
import json
import re

import pytest
import torch
from comfyui_fewstep.benchmarks import digits
from comfyui_fewstep.benchmarks.scenes.engine.parts import Parts
from comfyui_fewstep.benchmarks.scenes.trials import measure


@pytest.fixture(scope="module")
def teacher():
    return digits.Teacher()


@pytest.fixture(scope="module")
def judge(teacher):
    whole = digits.REFERENCE_STEPS
    digits.REFERENCE_STEPS = 8
    made = digits.Judge(teacher, pictures=600, real=1200)
    made.row(torch.rand(600, 1, 8, 8))  # its own pictures are drawn now
    digits.REFERENCE_STEPS = whole
    return made


def near(pair, value):
    return abs(pair[0] - value) < pair[1]


def test_the_judge_sees_what_is_wrong_with_the_teachers_own_pictures(teacher, judge):
    """Nothing with others of them; few of them lack spread and recall; under the next prompt's name none is right."""
    own = teacher.ddim(8, count=600, seed=1)
    row = judge.row(own)
    assert near(row["frechet"], 0.0) and near(row["frechet_random"], 0.0)
    assert row["spread"] == pytest.approx(1.0, abs=0.05)
    assert row["accuracy"][0] > 0.98
    few = judge.row(own[torch.arange(600) % 20])
    assert few["recall"] < 0.7 < row["recall"]
    assert few["frechet"][0] > 1.0 and few["frechet_random"][0] > 1.0
    assert few["spread"] < 0.85
    assert judge.row(own.roll(1, dims=0))["accuracy"][0] < 0.02
    assert judge.row(own * 0.7)["frechet_random"][0] > 1.0


@pytest.mark.parametrize("calls", digits.CALLS)
def test_a_solver_takes_the_calls_that_it_may(teacher, monkeypatch, calls):
    """Both branches of guidance counted, by the rows that the network sees."""
    rows = 0

    def counted(apply_model, given):
        nonlocal rows
        rows += len(given["input"])
        return apply_model(given["input"], given["timestep"], **given["c"])

    model = teacher.model.clone()
    model.set_model_unet_function_wrapper(counted)
    monkeypatch.setattr(teacher, "model", model)
    settings = digits.offered(calls)
    assert len(settings) == {8: 8, 4: 8, 2: 7, 1: 3}[calls]
    for setting in settings:
        rows = 0
        setting.pictures(teacher, count=1, seed=0)
        evaluations = 2 * setting.steps - 1 if setting.solver == "Heun" else setting.steps
        assert rows == evaluations * (1 if setting.guidance_scale == 1.0 else 2) <= calls


def test_noise_between_steps_is_of_the_rows_seed(teacher, monkeypatch):
    """As KSampler draws it: rows of several seeds would else share all but their first noise."""
    sampler, sigmas = teacher.host.models.sampler(digits.sample_few_step, gamma=1.0), teacher.levels(4)
    sample, first = teacher.host.models.sample, torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        teacher.host.models, "sample", lambda *given, noise, **more: sample(*given, noise=first, **more)
    )
    one, other = (teacher.draw(teacher.model, sampler, sigmas, cfg=1.0, count=10, seed=seed) for seed in (0, 1))
    assert (one - other).abs().max() > 0.1


def test_students_are_trained_and_drawn_once_and_stand_beside_the_solvers(teacher, judge, tmp_path, monkeypatch):
    """Two iterations each: the page has every row, and a second start does nothing again."""
    monkeypatch.setattr(digits, "HOME", tmp_path)
    monkeypatch.setattr(digits, "CALLS", (4, 1))
    subject = digits.Digits(teacher, judge)
    subject.trials = {
        label: dataclasses.replace(
            trial,
            options={**trial.options, "iterations": 2, **({"companion_first": 1} if label == "rCM" else {})},
        )
        for label, trial in subject.trials.items()
        if label in ("progressive", "rCM")
    }
    assert all(trial.options["guidance_scale"] == digits.SCALE for trial in subject.trials.values())

    def measured():
        parts = Parts(tmp_path / "digits.json", command="digits", sources=[teacher.file])
        for _ in digits.measure_teacher(parts, teacher, judge, noise_seeds=1):
            pass
        for _ in measure(parts, subject, list(subject.trials), seeds=1, noise_seeds=1):
            pass
        return parts.written

    page = digits.page(measured())
    for label, trial in subject.trials.items():
        assert len(re.findall(rf"\| {label}, 1 training \| [1248] \|", page)) == len(trial.steps)
    assert len(re.findall(r"\| teacher, [^|]*, guidance 1(?:\.5)? \| [41] \|", page)) == 2
    assert re.search(r"- 4 calls, from the nearest: progressive [-\d.]+ \+- [\d.]+, rCM", page)
    first = json.loads((tmp_path / "digits.json").read_text())
    monkeypatch.setattr(digits.Judge, "row", pytest.fail)
    monkeypatch.setattr(digits.Digits, "trained", pytest.fail)
    assert measured() == first
