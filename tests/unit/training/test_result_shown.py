"""Looking at what a stage would result in, an average of the weights, in the midst of training."""

import contextlib

import pytest
import torch
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from test_training import ITERATIONS, Trained

AVERAGES = [{"ema_decay": 0.7}, {"optimiser": "schedule_free", "learning_rate_schedule": "constant"}]


def copied(weights):
    return {name: value.clone() for name, value in weights.items()}


def same(weights, others):
    return all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.mark.parametrize("training", AVERAGES)
def test_it_shows_the_result_and_disturbs_no_bit(training, tmp_path):
    """What is seen last in a stage is what the stage results in; the run is the one of nobody looking."""
    if "optimiser" in training:
        pytest.importorskip("schedulefree")
    undisturbed = Trained(tmp_path / "a", **training)
    seen, results, observers = [], [], []

    def hook(trained):
        def look(metrics):
            before = copied(trained.weights())
            with pytest.raises(KeyError), trained.student.result():
                seen.append(copied(trained.weights()))
                raise KeyError
            assert same(trained.weights(), before)
            assert not same(seen[-1], before) or metrics.stage_iteration == 1

        def promote():
            results.append(copied(trained.weights()))
            FullWeightsStudent.promote(trained.student)

        observers.append(look)
        trained.student.promote = promote

    looked_at = Trained(tmp_path / "b", hook=hook, observers=observers, **training)
    assert len(results) == 2
    for stage, result in enumerate(results):
        assert same(seen[(stage + 1) * ITERATIONS - 1], result)
    assert same(looked_at.weights(), undisturbed.weights())
    assert looked_at.run.metrics() == undisturbed.run.metrics()
    assert looked_at.student.result is contextlib.nullcontext


def test_without_an_average_nothing_is_copied(tmp_path):
    """The weights themselves are the result: an in-place mark made inside is still there."""
    marks, observers = [], []

    def hook(trained):
        def look(metrics):
            weight = next(iter(trained.network.parameters()))
            with trained.student.result():
                marks.append(weight._version)
            marks.append(weight._version)

        observers.append(look)

    Trained(tmp_path, hook=hook, observers=observers)
    assert marks[::2] == marks[1::2]
    assert len(marks) == 2 * 2 * ITERATIONS
