"""Training data of gigabytes: their rows stay in the files, are read as they are drawn, and are the same as in memory."""

import dataclasses
import itertools

import pytest
import torch
from comfyui_fewstep.trainers.data import cache, held
from comfyui_fewstep.trainers.data.batches import Buckets, TensorData
from comfyui_fewstep.trainers.data.cache import Shard, cached_data, read_data, write_data
from comfyui_fewstep.trainers.storage.stored import Stored
from test_data import rng, same

COUNT = 40


def sample(number, *, caption=None, empty=0, width=5):
    """One of a part of its own, as a folder's are. caption, empty: the prompts by number."""
    text = torch.randn(1, width, 3, generator=rng(100 + (number if caption is None else caption)))
    return TensorData(
        x0=torch.randn(1, 4, 2, 2, generator=rng(number)),
        condition={"text": text, "constant": torch.empty(1, 0)},
        unconditional={"text": torch.randn(1, 5, 3, generator=rng(500 + empty)), "constant": torch.empty(1, 0)},
        noise=torch.randn(1, 4, 2, 2, generator=rng(1000 + number)),
        repeats=torch.tensor([1 + number % 3]),
    )


KINDS = {
    "a prompt each": {},
    "few prompts": {"caption": lambda i: i % 3},
    "one prompt": {"caption": lambda i: 0},
    "an empty prompt each": {"empty": lambda i: i},
    "of two lengths": {"width": lambda i: 5 + i % 2},
}


def made_in(folder, kind, **options):
    def samples(start):
        numbers = range(start, min(start + 16, COUNT))
        of = [{name: choose(i) for name, choose in KINDS[kind].items()} for i in numbers]
        found = cache.in_buckets(sample(i, **own) for i, own in zip(numbers, of, strict=True))
        return [found] if isinstance(found, TensorData) else list(found.buckets)

    plan = [Shard(lambda start=start: samples(start)) for start in range(0, COUNT, 16)]
    return cached_data(folder, source={"kind": kind}, plan=lambda: plan, replace=True, **options)


@pytest.fixture
def large(monkeypatch):
    """Data of any size count as such."""
    monkeypatch.setattr(cache, "HELD", 0)


def fields_of(data):
    for part in data.buckets if isinstance(data, Buckets) else [data]:
        yield from (part.x0, part.noise, *part.condition.values(), *part.unconditional.values())


def drawn_of(data):
    yield from (data.first(3), data.varied(4))
    for seed, dropout, mixed in itertools.product(range(4), (0.0, 0.5), (False, True)):
        yield data.batch(6, generator=rng(seed), caption_dropout=dropout, mixed=mixed)


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in {*one, *other})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_of_files_is_what_is_drawn_of_memory(kind, tmp_path, monkeypatch):
    in_memory = made_in(tmp_path, kind)
    assert not any(isinstance(value, Stored) for value in fields_of(in_memory))
    monkeypatch.setattr(cache, "HELD", 0)
    data = read_data(tmp_path)
    assert same(data, in_memory)
    assert held.tensors_sha256(data.rows()) == in_memory.sha256()
    for expected, found in zip(drawn_of(in_memory), drawn_of(data), strict=True):
        assert torch.equal(expected.x0, found.x0)
        assert torch.equal(expected.noise, found.noise)
        assert equal(expected.condition, found.condition)
        assert equal(expected.unconditional, found.unconditional)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_grows_with_the_samples_is_in_memory(kind, tmp_path):
    """Of 10,000 pictures the prompts alone, as a T5 encodes them, would be 80 GB."""
    held_rows = [len(value) for value in fields_of(made_in(tmp_path, kind)) if not isinstance(value, Stored)]
    assert all(rows == 1 for rows in held_rows)


@pytest.mark.usefixtures("large")
def test_a_batch_reads_the_rows_that_were_drawn_and_no_other(tmp_path, monkeypatch):
    data, read = made_in(tmp_path, "a prompt each"), []
    reading = Stored._read
    monkeypatch.setattr(Stored, "_read", lambda self, places: read.append(len(places)) or reading(self, places))
    data.batch(4, generator=rng())
    assert read == [4] * 4, "of x0, its noise, the prompts' texts and what has no values"


@pytest.mark.usefixtures("large")
def test_a_file_that_goes_while_it_is_trained_on_is_named(tmp_path):
    data = made_in(tmp_path, "a prompt each")
    (tmp_path / "00001.safetensors").unlink()
    data.take(torch.tensor([0]))
    with pytest.raises(
        ValueError, match=r"cannot be read any more: .*00001\.safetensors was moved, deleted or damaged"
    ):
        data.take(torch.tensor([20]))


@pytest.mark.usefixtures("large")
def test_a_damaged_file_is_found_before_anything_is_drawn(tmp_path):
    made_in(tmp_path, "a prompt each")
    file = tmp_path / "00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"00001\.safetensors is damaged"):
        read_data(tmp_path)


# --- how often they are read -----------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """How often all data were hashed as one."""
    seen, hashing = [], held.tensors_sha256
    monkeypatch.setattr(held, "tensors_sha256", lambda *args, **kw: seen.append(args) or hashing(*args, **kw))
    return seen


def test_the_hash_of_all_data_is_made_once_for_all_starts(hashed, tmp_path):
    """To compare each file with its checksum reads all of it already."""
    first = made_in(tmp_path, "few prompts").sha256()
    again, elsewhere = made_in(tmp_path, "few prompts"), read_data(tmp_path)
    assert [first] * 2 == [again.sha256(), elsewhere.sha256()]
    assert len(hashed) == 1
    other = dataclasses.replace(again, x0=again.x0[:] + 1)
    assert other.sha256() != first, "made of them, and other ones"


def test_data_of_which_a_file_was_made_again_are_hashed_again(hashed, tmp_path):
    made_in(tmp_path, "few prompts")
    (tmp_path / "00001.safetensors").unlink()
    made_in(tmp_path, "few prompts")
    assert len(hashed) == 2


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("known", [True, False])
def test_a_cancel_is_heard_while_data_are_read_and_hashed(known, tmp_path):
    made_in(tmp_path, "few prompts")
    shards = cache._read_index(tmp_path)[0]

    def calls(heed):
        if not known:
            cache._write_index(tmp_path, shards)
        made_in(tmp_path, "few prompts", heed=heed)

    asked = []
    calls(lambda: asked.append(None))
    assert len(asked) > len(shards) * 7 + (0 if known else 7), "before each tensor of each file, and of all together"

    def cancel():
        asked.pop()
        if not asked:
            raise Cancelled

    with pytest.raises(Cancelled):
        calls(cancel)


def test_finite_values_are_looked_at_in_one_pass_that_holds_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "isfinite", lambda values: pytest.fail("a second tensor as large as the data"))
    write_data(tmp_path, sample(0))
    read_data(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_none_is_found_wherever_it_is(bad, dtype):
    values = torch.zeros(3, 100, dtype=dtype)
    values[1, 57] = bad
    with pytest.raises(ValueError, match="hold 1 values that are NaN or infinite, of 300"):
        TensorData(x0=values, condition={})
