"""A student of full weights whose layers take what is loaded as their own, as hosts' layers do that are lent or quantised."""

import pytest
import torch
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from torch import nn


class Taking(nn.Linear):
    def _load_from_state_dict(self, state_dict, prefix, *_):
        for name in ("weight", "bias"):
            setattr(self, name, nn.Parameter(state_dict[prefix + name], requires_grad=False))


def module(seed):
    torch.manual_seed(seed)
    return nn.Sequential(Taking(3, 4), nn.SiLU(), Taking(4, 3))


def student():
    return FullWeightsStudent(module(0), module(1), as_denoiser=lambda network: lambda x, sigma: network(x))


def squared(one):
    return one.denoiser(torch.ones(2, 3), torch.ones(2)).square().mean()


def test_a_promoted_teacher_is_a_copy_that_learns_no_more():
    learning = student()
    learning.promote()
    before = {name: value.clone() for name, value in learning.state_dict().items() if name.startswith("teacher.")}
    assert torch.equal(before["teacher.0.weight"], learning.module[0].weight)
    optimiser = torch.optim.SGD(learning.parameters(), lr=0.1)
    squared(learning).backward()
    optimiser.step()
    after = learning.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(after["student.0.weight"], after["teacher.0.weight"])


def test_weights_that_a_resume_brings_back_learn_on():
    """Those that an optimiser was given before are the module's still."""
    learning, other = student(), student()
    given = learning.parameters()
    kept = {name: value.clone() + 1.0 for name, value in other.state_dict().items()}
    learning.load_state_dict(kept)
    assert all(torch.equal(value, kept[name]) for name, value in learning.state_dict().items())
    assert all(one is two and one.requires_grad for one, two in zip(given, learning.parameters(), strict=True))
    squared(learning).backward()
    assert all(float(value.grad.abs().max()) > 0.0 for value in given)
    assert not any(value.requires_grad for value in learning._teacher_module.parameters())


def test_what_does_not_fit_is_refused_and_nothing_of_it_written():
    learning = student()
    before = {name: value.clone() for name, value in learning.state_dict().items()}
    wrong = {name: value + 1.0 for name, value in before.items()} | {"student.2.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"these weights do not fit the model: 1 differ, 2\.bias first"):
        learning.load_state_dict(wrong)
    assert all(torch.equal(value, before[name]) for name, value in learning.state_dict().items())
