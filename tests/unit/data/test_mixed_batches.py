"""Prompts of several lengths in one batch: what is drawn, and that a network says of each what it says of it alone."""

import dataclasses
import math

import pytest
import torch
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.data.batches import Buckets, TensorData
from comfyui_fewstep.trainers.data.conditions import by_shape, chosen, is_mixed, one_batch
from comfyui_fewstep.trainers.training.optimisation.micro_batches import in_pieces, on_share


def of_length(length, *numbers, size=(2,), dtype=torch.float32):
    """Samples whose every value is their own number, told in so many tokens and in a constant; the empty prompt is one of -1."""
    values = torch.tensor(numbers, dtype=torch.float32)
    return TensorData(
        x0=values.reshape(-1, *[1] * len(size)).expand(-1, *size).contiguous(),
        condition={
            "text": values.reshape(-1, 1, 1).repeat(1, length, 2).to(dtype),
            f"tokens={length}": torch.empty(len(values), 0),
            "y": values[:, None],
        },
        unconditional={
            "text": torch.full((1, 1, 2), -1.0),
            "tokens=1": torch.empty(1, 0),
            "y": torch.full((1, 1), -1.0),
        },
    )


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tells(x, sigma, **condition):
    """(B, 1) what a network sees of each sample: its text's sum, refused where the text is not as long as the constant says."""
    text = condition["text"]
    assert condition.keys() == {"text", "y", f"tokens={text.shape[1]}"}, "as it was put in"
    assert len(text) == len(x) == len(sigma)
    assert bool((text[:, :1] == text).all()), "nothing put behind it is seen"
    return text[:, 0, :1] * 10.0 + text.shape[1] + 0.1 * x.flatten(1)[:, :1] + sigma[:, None] * condition["y"]


def denoiser(x, sigma, **condition):
    return by_shape(tells, x, sigma, condition=condition)


DATA = Buckets([of_length(3, 0, 1, 2, 3), of_length(5, 4, 5), of_length(2, 6, 7, 8, 9, 10, 11)])
LENGTHS = torch.tensor([3.0] * 4 + [5.0] * 2 + [2.0] * 6)


def expected(x0, sigma):
    return x0[:, :1] * 10.0 + LENGTHS[x0[:, 0].long()][:, None] + 0.1 * x0[:, :1] + sigma[:, None] * x0[:, :1]


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_a_network_says_of_each_sample_what_it_says_of_it_alone(pieces):
    """Whatever the pieces that a batch passes it in, and for each process's share of it."""
    batch = DATA.batch(8, generator=rng(1), mixed=True)
    assert len(LENGTHS[batch.x0[:, 0].long()].unique()) == 3
    sigma = torch.linspace(1.0, 2.0, 8)
    said = in_pieces(denoiser, pieces)(batch.x0, sigma, **batch.condition)
    torch.testing.assert_close(said, expected(batch.x0, sigma))
    share = on_share(denoiser, 1, of=2)(batch.x0, sigma, **batch.condition)
    torch.testing.assert_close(share[4:], said[4:])


def test_in_any_order():
    batch = DATA.batch(8, generator=rng(1), mixed=True)
    rows = torch.tensor([5, 0, 7, 2, 6, 1, 4, 3])
    sigma = torch.linspace(1.0, 2.0, 8)
    said = denoiser(batch.x0[rows], sigma, **chosen(batch.condition, rows))
    torch.testing.assert_close(said, expected(batch.x0[rows], sigma))


@pytest.mark.parametrize(("alone", "calls"), [(False, 3), (True, 8)])
def test_it_is_asked_once_for_a_shape_or_once_for_a_sample(alone, calls):
    batch, asked = DATA.batch(8, generator=rng(1), mixed=True), []

    def counted(x, sigma, **condition):
        asked.append(len(x))
        return tells(x, sigma, **condition)

    sigma = torch.ones(8)
    said = by_shape(counted, batch.x0, sigma, condition=batch.condition, each_alone=alone)
    assert len(asked) == calls
    torch.testing.assert_close(said, expected(batch.x0, sigma))
    asked.clear()
    one = of_length(4, 1, 2, 3).take(torch.arange(3))
    by_shape(counted, one.x0, torch.ones(3), condition=one.condition, each_alone=alone)
    assert asked == ([1, 1, 1] if alone else [3])


def test_guidance_takes_each_samples_own_empty_prompt():
    batch = DATA.batch(6, generator=rng(1), mixed=True)
    sigma = torch.ones(6)
    said = guided(denoiser, guidance_scale=2.0, unconditional=batch.empty_prompt())(batch.x0, sigma, **batch.condition)
    empty = -10.0 + 1.0 + 0.1 * batch.x0[:, :1] - 1.0
    torch.testing.assert_close(said, empty + 2.0 * (expected(batch.x0, sigma) - empty))


def test_gradients_reach_every_sample():
    batch = DATA.batch(8, generator=rng(1), mixed=True)
    x = batch.x0.clone().requires_grad_()
    weights = torch.arange(1.0, 9.0)[:, None]
    (weights * denoiser(x, torch.ones(8), **batch.condition)).sum().backward()
    torch.testing.assert_close(x.grad, torch.cat([0.1 * weights, torch.zeros(8, 1)], dim=1))


def test_every_sample_is_as_likely_as_every_other():
    seen, generator, lengths = torch.zeros(12), rng(), 0
    for _ in range(3000):
        batch = DATA.batch(4, generator=generator, mixed=True)
        own = batch.x0[:, 0].long()
        assert torch.equal(batch.condition["y"], batch.x0[:, :1])
        lengths += len(LENGTHS[own].unique())
        seen += torch.bincount(own, minlength=12)
    # each of the draws is of its own, but the first, of which only the bucket's size counts
    assert (seen / seen.sum() - 1 / 12).abs().max() < 5 * math.sqrt(1 / 12 * 11 / 12 / 12000)
    drawn = sum(1 - (1 - share) ** 4 for share in (4 / 12, 2 / 12, 6 / 12))
    assert lengths / 3000 == pytest.approx(drawn, rel=0.02)


def test_a_batch_is_of_one_size_and_repeats_count():
    """Of latents of two sizes each batch has one, as often as its share; a sample of three repeats comes three times as often."""
    thrice = dataclasses.replace(of_length(5, 4, 5), repeats=torch.tensor([3, 1]))
    data = Buckets([of_length(3, 0, 1), thrice, of_length(3, 6, 7, size=(3,)), of_length(2, 8, 9, size=(3,))])
    seen, generator = torch.zeros(10), rng()
    for _ in range(3000):
        batch = data.batch(4, generator=generator, mixed=True)
        own = batch.x0[:, 0].long()
        assert batch.x0.shape[1] == (2 if own[0] < 6 else 3)
        assert bool((own < 6).all() or (own >= 6).all())
        seen += torch.bincount(own, minlength=10)
    share = seen / seen.sum()
    torch.testing.assert_close(share, torch.tensor([1, 1, 0, 0, 3, 1, 1, 1, 1, 1]) / 10, atol=0.01, rtol=0.0)


def test_inputs_of_another_kind_or_type_do_not_stand_together():
    halves = Buckets([of_length(3, 0, 1), of_length(2, 2, 3, dtype=torch.float16)])
    plain = dataclasses.replace(of_length(2, 2, 3), condition={"text": torch.ones(2, 2, 2)})
    for data in (halves, Buckets([of_length(3, 0, 1), plain])):
        for seed in range(20):
            batch = data.batch(8, generator=rng(seed), mixed=True)
            assert not is_mixed(batch.condition)
            assert len(batch.condition["text"][0]) == (3 if batch.x0[0, 0] < 2 else 2)


@pytest.mark.parametrize("buckets", [[of_length(3, *range(9))], [of_length(3, *range(9)), of_length(3, 9, size=(3,))]])
def test_where_nothing_is_to_be_mixed_the_same_is_drawn(buckets):
    """Data of one length draw, seed for seed, what they drew before; for the empty prompt's length is that of prompts here."""
    buckets = [dataclasses.replace(one, unconditional={**one.condition, "y": -one.condition["y"]}) for one in buckets]
    data = Buckets(buckets)
    for seed in range(10):
        one, other = (data.batch(5, generator=rng(seed), caption_dropout=0.4, mixed=mixed) for mixed in (False, True))
        assert torch.equal(one.x0, other.x0)
        assert all(torch.equal(value, other.condition[name]) for name, value in one.condition.items())


@pytest.mark.parametrize("data", [DATA, of_length(3, *range(12))], ids=["several lengths", "one length"])
def test_captions_are_dropped_one_by_one_where_the_empty_prompt_is_of_another_length(data):
    dropped, some, generator = 0, 0, rng(2)
    for _ in range(1000):
        batch = data.batch(4, generator=generator, caption_dropout=0.3, mixed=True)
        said = denoiser(batch.x0, torch.ones(4), **batch.condition)
        empty = -10.0 + 1.0 + 0.1 * batch.x0[:, :1] - 1.0
        lengths = LENGTHS[batch.x0[:, 0].long()][:, None] if data is DATA else 3.0
        own = batch.x0[:, :1] * 11.1 + lengths
        gone = (said - empty).abs() < 1e-4
        torch.testing.assert_close(said, torch.where(gone, empty, own))
        dropped += int(gone.sum())
        some += bool(gone.any()) and not bool(gone.all())
    assert abs(dropped / 4000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert abs(some / 1000 - (1 - 0.7**4 - 0.3**4)) < 4 * math.sqrt(0.25 / 1000)


def test_a_pair_keeps_its_noise():
    data = Buckets([dataclasses.replace(one, noise=-one.x0) for one in DATA.buckets])
    batch = data.batch(8, generator=rng(), mixed=True)
    assert torch.equal(batch.noise, -batch.x0)


def test_how_many_of_a_mixed_batch_are_different():
    data = Buckets([*DATA.buckets, of_length(3, 12, 13, size=(3,))])
    drawn = [data.batch(8, generator=rng(seed), mixed=True).x0[:, 0] for seed in range(2000)]
    assert data.distinct(8, mixed=True) == pytest.approx(sum(len(x0.unique()) for x0 in drawn) / 2000, rel=0.02)


def test_what_is_shown_is_of_as_many_lengths_as_there_are():
    """Each in turn, as many as asked for; a size of its own stands apart."""
    data = Buckets([*DATA.buckets, of_length(3, 12, 13, size=(3,))])
    for count, numbers in (
        (1, [0]),
        (2, [0, 4]),
        (5, [0, 1, 4, 5, 6]),
        (8, [0, 1, 2, 4, 5, 6, 7, 8]),
        (99, [*range(12)]),
    ):
        shown = data.varied(count)
        assert shown.x0[:, 0].tolist() == numbers
        sigma = torch.ones(len(numbers))
        torch.testing.assert_close(denoiser(shown.x0, sigma, **shown.condition), expected(shown.x0, sigma))


def test_what_all_have_in_one_shape_stays_as_it_is():
    rows = [{"text": torch.ones(1, length, 2), "y": torch.ones(1, 4)} for length in (2, 2, 3)]
    assert one_batch(rows[:2])["text"].shape == (2, 2, 2)
    assert not is_mixed(one_batch(rows[:2]))
    assert one_batch(rows)["y"].shape == (3, 4)
    assert is_mixed(one_batch(rows))
