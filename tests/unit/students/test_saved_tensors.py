"""Networks that work in place have the gradients of their out-of-place twins, bit for bit."""

import gc
import weakref

import pytest
import torch
from comfyui_fewstep.trainers.students.saved_tensors import copied_when_overwritten
from torch.autograd.graph import allow_mutation_on_saved_tensors


def gradient(function, context=torch.enable_grad):
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with context():
        return torch.autograd.grad(function(w), w)[0]


def chain(scale):
    """Saves a tensor, overwrites it, lets go of it; the next is likely to be given its id and its memory."""

    def run(w):
        total = w.new_zeros(())
        for k in range(40):
            value = w * (k + 1)
            total = total + value.sin().sum()
            value = scale(value)
            total = total + value.sum()
            del value
        return total

    return run


def by_view(add):
    """The saved tensor is written to through a view, and a saved view through its base."""

    def run(w):
        value, other = w * 2, w * 3
        total = value.sin().sum() + other[:500].sin().sum()
        add(value, other)
        return total

    return run


def outputs(double):
    """exp and sigmoid save what they give back, of which one tensor is saved three times."""

    def run(w):
        growth, gate = w.exp(), w.sigmoid()
        total = (growth * gate).sum() + (growth * growth).sum() + gate.sin().sum()
        double(growth, gate)
        return total

    return run


def write_halves(value, other):
    value[:500] += 1.0
    other.mul_(5.0)


IN_PLACE = {
    "one_by_one": (chain(lambda v: v.mul_(1.5)), chain(lambda v: v * 1.5)),
    "out": (chain(lambda v: torch.mul(v.detach(), 1.5, out=v.detach())), chain(lambda v: v.detach() * 1.5)),
    "views": (by_view(write_halves), by_view(lambda *_: None)),
    "outputs": (outputs(lambda *both: [v.mul_(2.0) for v in both]), outputs(lambda *_: None)),
    "lists": (outputs(lambda *both: torch._foreach_mul_(list(both), 2.0)), outputs(lambda *_: None)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_gradient_is_the_out_of_place_twins(name):
    run, twin = IN_PLACE[name]
    assert torch.equal(gradient(run, copied_when_overwritten), gradient(twin))


def test_why_torchs_own_does_not_do():
    """By chance, most of the time: so it may try twenty times."""
    run, twin = IN_PLACE["one_by_one"]
    found = (gradient(run, allow_mutation_on_saved_tensors) for _ in range(20))
    assert not all(torch.allclose(one, gradient(twin)) for one in found), "now theirs will do"


def test_what_is_not_overwritten_is_not_copied():
    w = torch.randn(8, requires_grad=True)
    with copied_when_overwritten():
        kept, overwritten = w * 2, w * 3
        first, second = kept.sin(), overwritten.sin()
        overwritten.add_(1.0)
        assert first.grad_fn._saved_self.data_ptr() == kept.data_ptr()
        assert second.grad_fn._saved_self.data_ptr() != overwritten.data_ptr()


def test_one_copy_serves_all_who_saved_the_same():
    w = torch.randn(8, requires_grad=True)
    with copied_when_overwritten():
        value = w * 2
        first, second, *parts = value.sin(), value.cos(), value[:4].sin(), value[4:].sin()
        value.add_(1.0)
        places = {f.grad_fn._saved_self.data_ptr() for f in (first, second)}
        assert len(places) == 1 and value.data_ptr() not in places
        assert torch.equal(torch.cat([part.grad_fn._saved_self for part in parts]), w * 2)


def test_weights_may_be_gathered_anew():
    """FSDP writes a weight into its memory again before backward, which is no reason to keep the old."""
    w, x = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    with copied_when_overwritten():
        loss = (w.view(2, 4) * x.view(2, 4)).sum()
        with torch.no_grad():
            w.fill_(3.0)
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.full((8,), 3.0))


class Owned:
    pass


def test_the_graph_goes_with_its_result():
    """Also where an output was saved, and without waiting for the garbage collector."""
    gc.disable()
    try:
        w = torch.randn(8, requires_grad=True)
        with copied_when_overwritten():
            value = (w * 2).exp()
            owned = Owned()
            value.grad_fn.register_hook(lambda *_, owned=owned: None)
            watched, result = weakref.ref(owned), value * value
            del owned, value, result
            assert watched() is None
    finally:
        gc.enable()
