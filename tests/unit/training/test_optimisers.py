"""Optimisers whose weights during training are not their result, and those whose library may be missing."""

import dataclasses
import sys

import pytest
import torch
from comfyui_fewstep.trainers.objective.method import Lesson, Stage
from comfyui_fewstep.trainers.training.optimisation.optimisers import load_optimiser_state, optimiser_state
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from test_progressive import TinyNetwork
from test_training import ITERATIONS, Stopped, Trained, stop_at
from thorough import first_then_thorough

SCHEDULE_FREE = {"optimiser": "schedule_free", "learning_rate_schedule": "constant"}


def defazio(made, data, *, decay):
    """Defazio et al. 2024, "The Road Less Scheduled", algorithm 1, for each stage: gradients at y, the result is x."""
    beta1, beta2, rate, eps = 0.9, 0.999, 1e-2, 1e-8
    network, teacher = TinyNetwork(), TinyNetwork(seed=1)
    weights = list(network.parameters())
    y = weights
    for number in range(2):
        x, z = ([w.detach().clone() for w in weights] for _ in range(2))
        v = [torch.zeros_like(w) for w in weights]
        for i in range(ITERATIONS):
            generator = torch.Generator().manual_seed((4 * 0x9E3779B97F4A7C15 + number * ITERATIONS + i) % 2**63)
            drawn = data.take(torch.randint(64, (12,), generator=generator))
            lesson = Lesson(batch=drawn, stage=number, teacher=teacher, student=network, generator=generator)
            target = made.target(lesson)
            error = (network(target.x_t, target.sigma) - target.x0) ** 2
            gradients = torch.autograd.grad((target.weight.reshape(-1, 1, 1, 1) * error).mean(), weights)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            with torch.no_grad():
                for j, raw in enumerate(gradients):
                    g = raw * min(1.0, 1.0 / (float(norm) + 1e-6))
                    v[j] = beta2 * v[j] + (1 - beta2) * g**2
                    scaled = g / ((v[j] / (1 - beta2 ** (i + 1))).sqrt() + eps)
                    z[j] = z[j] - rate * scaled - rate * decay * y[j]
                    x[j] = (1 - 1 / (i + 1)) * x[j] + 1 / (i + 1) * z[j]
                    y[j].copy_((1 - beta1) * z[j] + beta1 * x[j])
        training = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for weight, result in zip(weights, x, strict=True):
                weight.copy_(result)
        teacher.load_state_dict(network.state_dict())
    return network, training


def test_schedule_free_is_the_papers_algorithm_and_its_average_is_the_result(tmp_path):
    pytest.importorskip("schedulefree")
    trained = Trained(tmp_path, learning_rate=1e-2, weight_decay=0.1, **SCHEDULE_FREE)
    expected, training = defazio(trained.method, trained.data, decay=0.1)
    torch.testing.assert_close(trained.network.hidden, expected.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.network.out, expected.out, rtol=1e-4, atol=1e-5)
    assert torch.equal(trained.teacher.hidden, trained.network.hidden)
    assert (trained.network.hidden - training[0]).abs().max() > 1e-3, "the weights of training are not the result"


@pytest.mark.parametrize(
    ("warmup", "iteration"), first_then_thorough([(0, 12), (4, 3)], [(w, i) for w in (0, 4) for i in (3, 12, 13)])
)
def test_schedule_free_resumes_bit_for_bit(warmup, iteration, tmp_path):
    pytest.importorskip("schedulefree")
    training = {**SCHEDULE_FREE, "warmup": warmup}
    unbroken = Trained(tmp_path / "a", learning_rate=1e-2, **training)
    with pytest.raises(Stopped):
        Trained(tmp_path / "b", observers=[stop_at(iteration)], learning_rate=1e-2, **training)
    resumed = Trained(tmp_path / "b", learning_rate=1e-2, **training)
    assert all(torch.equal(value, unbroken.weights()[name]) for name, value in resumed.weights().items())
    assert resumed.run.metrics()[-1] == unbroken.run.metrics()[-1]


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("adamw8bit", "bitsandbytes.optim", "bitsandbytes"), ("schedule_free", "schedulefree", "schedulefree")],
)
def test_a_missing_library_is_named_before_work_starts(name, module, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"optimiser is '{name}', which needs .*pip install {package}"):
        Trained(tmp_path, optimiser=name, learning_rate_schedule="constant")
    assert not list(tmp_path.rglob("*.*"))


def test_a_finished_runs_options_need_no_library(monkeypatch):
    """Options are also made to find a run that was trained elsewhere; only training asks for the optimiser."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert TrainOptions(optimiser="adamw8bit").optimiser == "adamw8bit"


class EightBitLike(torch.optim.Optimizer):
    """Keeps its state as bitsandbytes does: uint8 and float32 tensors, a plain count, and a dictionary inside."""

    def __init__(self, weights):
        super().__init__(weights, {"lr": 0.0, "betas": (0.9, 0.999)})

    def fill(self):
        for group in self.param_groups:
            for weight in group["params"]:
                inner = {"state1": torch.arange(3, dtype=torch.uint8), "absmax1": torch.rand(2)}
                self.state[weight] = {"step": 7, "qmap1": torch.rand(4), "quantised": inner}


def test_counts_and_nested_states_come_back_as_they_were():
    weights = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    saved, loaded = EightBitLike(weights), EightBitLike(weights)
    saved.fill()
    tensors, values = optimiser_state(saved)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    load_optimiser_state(loaded, {**tensors, "student.hidden": torch.ones(1)}, values)
    for weight in weights:
        before, after = saved.state[weight], loaded.state[weight]
        assert after["step"] == 7
        assert isinstance(after["step"], int)
        assert torch.equal(after["qmap1"], before["qmap1"])
        for name, value in before["quantised"].items():
            assert torch.equal(after["quantised"][name], value)


def test_what_has_no_momentum_is_refused_where_the_optimiser_lives_by_it():
    """Schedule-free divides by it when it tells its result."""
    stage = Stage(name="matching", iterations=10, learning_rate=1e-3, sigmas=[1.0, 0.0], betas=(0.0, 0.99))
    chosen = TrainOptions(**SCHEDULE_FREE)
    with pytest.raises(ValueError, match="optimiser is 'schedule_free', which goes by momentum"):
        chosen.require_suit([stage])
    chosen.require_suit([dataclasses.replace(stage, betas=None)])
    TrainOptions().require_suit([stage])


def test_a_run_that_is_trained_elsewhere_needs_no_library_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    stage = Stage(name="matching", iterations=10, learning_rate=1e-3, sigmas=[1.0, 0.0])
    chosen = TrainOptions(optimiser="adamw8bit")
    chosen.require_suit([stage], libraries=False)
    with pytest.raises(ValueError, match="needs the Python package bitsandbytes"):
        chosen.require_suit([stage])
