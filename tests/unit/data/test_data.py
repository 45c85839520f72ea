"""Batches: from buckets of several shapes, with captions dropped, as pairs; and the same from the folder as from memory."""

import dataclasses
import json
import math

import pytest
import torch
from comfyui_fewstep.trainers.data.batches import Buckets, TensorData
from comfyui_fewstep.trainers.data.cache import SHARD_SAMPLES, Shard, cached_data, read_data, read_first, write_data
from comfyui_fewstep.trainers.storage.files import tensors_sha256
from comfyui_fewstep.trainers.training.loop import TrainOptions
from test_run import distillation, execute


def numbered(count, *shape, start=0, **more):
    """Samples whose every value is their own number, their label too; the empty prompt is -1."""
    numbers = torch.arange(start, start + count).float()
    return TensorData(
        x0=numbers.reshape(-1, *[1] * len(shape)).expand(count, *shape).contiguous(),
        condition={"y": numbers.reshape(-1, 1), "text": numbers.reshape(-1, 1, 1).repeat(1, 3, 2)},
        unconditional={"y": torch.full((1, 1), -1.0), "text": torch.full((1, 3, 2), -1.0)},
        **more,
    )


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def same(one, other):
    first, second = one.tensors(), other.tensors()
    return sorted(first) == sorted(second) and all(
        torch.equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first
    )


# --- buckets ---------------------------------------------------------------------------------------------------------


def test_every_sample_of_every_bucket_is_as_likely_as_every_other():
    data = Buckets([numbered(6, 4, 4), numbered(2, 4, 6, start=6), numbered(4, 6, 4, start=8)])
    generator = rng()
    seen = torch.zeros(12)
    for _ in range(3000):
        batch = data.batch(4, generator=generator)
        own = batch.x0.flatten(1)[:, 0]
        assert torch.equal(own, batch.condition["y"][:, 0])
        assert batch.x0.shape[1:] == ((4, 4) if own[0] < 6 else (4, 6) if own[0] < 8 else (6, 4)), "one bucket a batch"
        seen += torch.bincount(own.long(), minlength=12)
    share, deviation = seen / seen.sum(), (1 / 12) * 12**0.5 / math.sqrt(3000)
    assert (share - 1 / 12).abs().max() < 5 * deviation
    for share, expected in zip((seen[:6], seen[6:8], seen[8:]), (6 / 12, 2 / 12, 4 / 12), strict=True):
        assert abs(float(share.sum() / seen.sum()) - expected) < 4 * math.sqrt(expected * (1 - expected) / 3000)


def test_how_many_of_a_batch_are_different_samples():
    """As counted over many batches, of buckets of 1, 2 and 30 samples."""
    data = Buckets([numbered(1, 4, 4), numbered(2, 4, 6), numbered(30, 6, 4)])
    drawn = [data.batch(8, generator=rng(seed)).x0.flatten(1)[:, 0] for seed in range(2000)]
    assert data.distinct(8) == pytest.approx(sum(len(x0.unique()) for x0 in drawn) / len(drawn), rel=0.02)


def test_one_bucket_draws_what_it_draws_alone():
    alone, bucket = numbered(50, 2), Buckets([numbered(50, 2)])
    for dropout in (0.0, 0.3):
        one, other = (data.batch(9, generator=rng(3), caption_dropout=dropout) for data in (alone, bucket))
        assert torch.equal(one.x0, other.x0)
        assert torch.equal(one.condition["y"], other.condition["y"])


def test_without_dropout_a_batch_is_drawn_as_ever():
    """Nothing else comes from the generator, so that what methods draw after it stays the same."""
    generator, reference = rng(5), rng(5)
    index = torch.randint(50, (9,), generator=reference)
    assert torch.equal(numbered(50, 2).batch(9, generator=generator).x0[:, 0], index.float())
    assert torch.equal(generator.get_state(), reference.get_state())


@pytest.mark.parametrize(
    ("buckets", "named"),
    [
        ([], "no buckets"),
        ([numbered(2, 4), numbered(3, 4)], "the same shape"),
        ([numbered(2, 4), numbered(2, 5, noise=torch.zeros(2, 5))], "some buckets have noise"),
        ([numbered(2, 4), TensorData(x0=torch.zeros(1, 5), condition={})], "some buckets have unconditional"),
    ],
)
def test_buckets_that_do_not_belong_together_are_refused(buckets, named):
    with pytest.raises(ValueError, match=named):
        Buckets(buckets)


def test_each_bucket_brings_its_own_empty_prompt():
    wide = numbered(1, 4, 6)
    wide.unconditional["y"].fill_(-2.0)
    data = Buckets([numbered(1, 4, 4), wide])
    generator = rng()
    for _ in range(20):
        batch = data.batch(2, generator=generator)
        assert batch.unconditional["y"].item() == (-1.0 if batch.x0.shape[-1] == 4 else -2.0)


def test_the_first_samples_are_those_of_the_first_bucket():
    assert Buckets([numbered(3, 4), numbered(5, 6)]).first(10).x0[:, 0].tolist() == [0, 1, 2]


def test_a_sample_of_repeats_is_as_likely_as_so_many(tmp_path):
    """1, 3 and 2 in one bucket and 4 in another: shares of 1/10, 3/10, 2/10 and 4/10, from files too."""
    wide = numbered(1, 4, 6, start=3, repeats=torch.tensor([4]))
    write_data(tmp_path, Buckets([numbered(3, 4, 4, repeats=torch.tensor([1, 3, 2])), wide]))
    data = read_data(tmp_path)
    generator, seen = rng(), torch.zeros(4)
    for _ in range(4000):
        seen += torch.bincount(data.batch(5, generator=generator).x0.flatten(1)[:, 0].long(), minlength=4)
    expected = torch.tensor([0.1, 0.3, 0.2, 0.4])
    assert ((seen / seen.sum() - expected).abs() < 5 * (expected * (1 - expected) / 4000) ** 0.5).all()
    with pytest.raises(ValueError, match="repeats must be a whole number from 1"):
        numbered(2, 4, repeats=torch.tensor([1, 0]))


# --- caption dropout -------------------------------------------------------------------------------------------------


def test_a_dropped_caption_is_exactly_the_empty_prompt_and_as_many_are_dropped_as_asked_for():
    batch = numbered(100, 2).batch(20000, generator=rng(1), caption_dropout=0.3)
    label, text = batch.condition["y"][:, 0], batch.condition["text"].flatten(1)
    dropped = label == -1.0
    assert torch.equal(text, label[:, None].expand_as(text)), "the whole condition or nothing of it"
    assert torch.equal(label[~dropped], batch.x0[~dropped][:, 0]), "the others keep theirs"
    assert torch.equal(batch.x0, numbered(100, 2).batch(20000, generator=rng(1)).x0), "pictures stay"
    assert abs(float(dropped.double().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20000)


def test_a_shared_caption_is_dropped_too():
    data = TensorData(x0=torch.zeros(4, 1), condition={"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)})
    labels = data.batch(1000, generator=rng(), caption_dropout=0.5).condition["y"]
    assert 400 < labels.sum() < 600


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, math.nan])
def test_a_share_that_is_none_is_named(share):
    with pytest.raises(ValueError, match="caption_dropout is"):
        TrainOptions(caption_dropout=share)


def test_captions_without_an_empty_prompt_cannot_be_dropped():
    data = TensorData(x0=torch.zeros(3, 1), condition={"y": torch.ones(3, 1)})
    for kind in (data, Buckets([data])):
        with pytest.raises(ValueError, match="needs the empty prompt"):
            kind.require_droppable()


@pytest.mark.parametrize(
    "empty", [{"text": torch.zeros(1, 2, 2)}, {"text": torch.zeros(1, 3, 2), "tokens=2": torch.empty(1, 0)}]
)
def test_an_empty_prompt_of_another_shape_stands_in_whole_batches(empty):
    """Of its own length, or with a constant that the prompts lack: no batch holds both, and the share is as asked for."""
    data = dataclasses.replace(numbered(10, 2), condition={"text": torch.ones(10, 3, 2)}, unconditional=empty)
    data.require_droppable()
    generator, dropped = rng(2), 0
    for _ in range(2000):
        batch = data.batch(4, generator=generator, caption_dropout=0.3)
        assert all(len(value) == 4 for value in batch.condition.values())
        if batch.condition.keys() == empty.keys() and batch.condition["text"].shape[1:] == empty["text"].shape[1:]:
            dropped += 1
            assert torch.equal(batch.condition["text"], torch.zeros(4, *empty["text"].shape[1:]))
        else:
            assert torch.equal(batch.condition["text"], torch.ones(4, 3, 2))
    assert abs(dropped / 2000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_the_loop_refuses_and_hands_on_the_dropout(tmp_path):
    """And whether prompts may be of several lengths. The run of test_run, whose data have no empty prompt; then one that has."""
    training = TrainOptions(batch_size=8, log_every=5, seed=4, caption_dropout=0.5, mixed_prompts=True)
    refused = distillation(tmp_path / "a", training=training)
    with pytest.raises(ValueError, match="needs the empty prompt"):
        execute(refused)
    asked, inner = [], refused.data

    class Watched:
        device, unconditional = inner.device, None
        first, tensors, sha256 = inner.first, inner.tensors, inner.sha256

        def batch(self, size, *, generator, caption_dropout=0.0, mixed=False):
            asked.append((caption_dropout, mixed))
            return inner.batch(size, generator=generator)

        def require_droppable(self):
            pass

    execute(dataclasses.replace(refused, data=Watched()))
    assert set(asked) == {(0.5, True)}
    assert json.loads((refused.run.path / "run.json").read_text())["run"]["training.caption_dropout"] == 0.5


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_a_pair_stays_together():
    x0 = torch.randn(20, 3, generator=rng())
    batch = TensorData(x0=x0, condition={}, noise=10.0 * x0).batch(50, generator=rng(2))
    assert torch.equal(batch.noise, 10.0 * batch.x0)
    assert numbered(2, 3).batch(4, generator=rng()).noise is None


def test_noise_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"the noise is \(2, 4\) but the latents are \(2, 3\)"):
        numbered(2, 3, noise=torch.zeros(2, 4))


# --- in the run folder -----------------------------------------------------------------------------------------------

MANY = 2 * SHARD_SAMPLES + 1
KINDS = {
    "plain": numbered(5, 4),
    "several shards": numbered(MANY, 2),
    "pairs": numbered(3, 4, noise=torch.randn(3, 4)),
    "buckets": Buckets([numbered(MANY, 2), numbered(1, 3), numbered(4, 3, 3)]),
    "shared": TensorData(x0=torch.randn(MANY, 2), condition={"y": torch.ones(1, 3)}, unconditional=None),
    "half": TensorData(
        x0=torch.randn(3, 2).half(),
        condition={"y": torch.randn(3, 2).bfloat16(), "ids": torch.arange(3)},
        unconditional={"y": torch.zeros(1, 2).bfloat16(), "ids": torch.zeros(1, dtype=torch.long)},
    ),
    "one": TensorData(x0=torch.randn(1, 2), condition={"a.b": torch.ones(1, 3)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written(kind, tmp_path):
    write_data(tmp_path, KINDS[kind])
    read = read_data(tmp_path)
    assert same(read, KINDS[kind])
    assert tensors_sha256(read.tensors()) == tensors_sha256(KINDS[kind].tensors())
    assert type(read) is type(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_sample_is_read_alone(kind, tmp_path):
    write_data(tmp_path, KINDS[kind])
    first, *others = sorted(tmp_path.glob("*.safetensors"))
    for other in others:
        other.unlink()
    found, wanted = read_first(tmp_path), KINDS[kind].first(1)
    assert torch.equal(found.x0, wanted.x0)
    assert found.condition.keys() == wanted.condition.keys()
    assert all(torch.equal(value, wanted.condition[name]) for name, value in found.condition.items())
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot be read"):
        read_first(tmp_path)


def test_an_empty_folder_holds_no_data(tmp_path):
    assert read_data(tmp_path / "nothing") is None
    assert read_first(tmp_path / "nothing") is None


def test_data_that_are_there_are_not_written_again(tmp_path):
    write_data(tmp_path, KINDS["buckets"])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_data(tmp_path, KINDS["buckets"])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


class Maker:
    """A source of four shards that counts what it makes, and stops before the one with the number `until`."""

    def __init__(self, until=None):
        self.made, self.planned, self.until = [], 0, until

    def plan(self):
        self.planned += 1
        return [Shard(lambda number=number: self._make(number)) for number in range(4)]

    def _make(self, number):
        if number == self.until:
            raise KeyboardInterrupt
        self.made.append(number)
        parts = [numbered(2, 3, start=10 * number)]
        return [*parts, numbered(1, 5, start=10 * number + 5)] if number % 2 else parts

    def data(self, folder, source=None, **how):
        given = {"kind": "counted", "option": 1} if source is None else source
        return cached_data(folder, source=given, plan=self.plan, **{"replace": False, **how})


def test_what_a_stopped_process_has_made_is_not_made_again(tmp_path):
    whole, first = Maker(), Maker(until=2)
    expected = whole.data(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        first.data(tmp_path / "part")
    assert read_data(tmp_path / "part") is None, "not whole, so nobody reads it"
    second, third = Maker(), Maker()
    assert same(second.data(tmp_path / "part"), expected)
    assert (first.made, second.made) == ([0, 1], [2, 3])
    assert same(third.data(tmp_path / "part"), expected)
    assert (third.made, third.planned) == ([], 0), "whole data need no plan"
    assert [len(bucket.x0) for bucket in expected.buckets] == [8, 2]
    assert expected.buckets[0].x0[:, 0].tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another"])
def test_a_damaged_shard_is_named_and_made_again_when_it_is_deleted(damage, tmp_path):
    expected = Maker().data(tmp_path)
    file = tmp_path / "00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    changed = {"truncated": content[:50], "flipped": content, "another": (tmp_path / "00001.safetensors").read_bytes()}
    file.write_bytes(changed[damage])
    again = Maker()
    with pytest.raises(ValueError, match=r"00002\.safetensors .*Delete .*00002\.safetensors to have it made again"):
        again.data(tmp_path)
    assert again.made == []
    file.unlink()
    assert same(again.data(tmp_path), expected)
    assert again.made == [2]


def test_a_damaged_index_is_named(tmp_path):
    Maker().data(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        Maker().data(tmp_path)


def test_another_source_is_named_or_replaces_what_is_there(tmp_path):
    Maker().data(tmp_path)
    other = {"kind": "counted", "option": 2, "pictures": {f"{i}.png": "0" for i in range(9)}}
    with pytest.raises(ValueError, match=r"option: there 1, here 2; pictures\.0\.png: there null, here .*and 5 more"):
        Maker().data(tmp_path, other)
    assert same(Maker().data(tmp_path), Maker().data(tmp_path / "new")), "and it is still there"
    replacing = Maker()
    replacing.data(tmp_path, other, replace=True)
    assert replacing.made == [0, 1, 2, 3]
    assert json.loads((tmp_path / "source.json").read_text()) == other


def test_shards_of_another_source_are_not_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Maker(until=3).data(tmp_path)
    replacing = Maker()
    replacing.data(tmp_path, {"kind": "another"}, replace=True)
    assert replacing.made == [0, 1, 2, 3]


def test_shards_of_other_files_are_made_again(tmp_path):
    """What could be read has changed between two starts, so what was second is first: nothing is kept twice, nothing left out."""
    made = []

    def plan(names, *, until=None):
        def make(some):
            if until in some:
                raise KeyboardInterrupt
            made.append(some)
            x0 = torch.cat([numbered(1, 3, start=ord(name)).x0 for name in some])
            return [TensorData(x0=x0, condition={"y": torch.ones(1, 1)})]

        together = [tuple(names[i : i + 2]) for i in range(0, len(names), 2)]
        return [Shard(lambda some=some: make(some), of=some) for some in together]

    source = {"files": "abcdef"}
    with pytest.raises(KeyboardInterrupt):
        cached_data(tmp_path, source=source, plan=lambda: plan("acdef", until="f"), replace=True)
    assert made == [("a", "c"), ("d", "e")]
    data = cached_data(tmp_path, source=source, plan=lambda: plan("abcdef"), replace=True)
    assert data.x0[:, 0].tolist() == [float(ord(name)) for name in "abcdef"]
    del made[:]
    (tmp_path / "index.json").unlink()
    cached_data(tmp_path, source=source, plan=lambda: plan("abcdef"), replace=True)
    assert made == [], "the same names are the same shards"


def test_what_is_not_known_this_time_is_not_compared(tmp_path):
    Maker().data(tmp_path, {"option": 1, "vae": "abc"})
    unconnected = Maker()
    unconnected.data(tmp_path, {"option": 1, "vae": None})
    assert unconnected.made == []
    with pytest.raises(ValueError, match=r"vae: there .*abc.*, here .*def"):
        Maker().data(tmp_path, {"option": 1, "vae": "def"})


def test_a_source_that_cannot_be_made_leaves_nothing(tmp_path):
    def refuse():
        raise ValueError("connect the vae")

    with pytest.raises(ValueError, match="connect the vae"):
        cached_data(tmp_path / "data", source={"vae": None}, plan=refuse, replace=True)
    assert not (tmp_path / "data").exists()


def test_batches_go_where_the_device_is(tmp_path):
    """On the meta device, which every machine has: the samples themselves stay in the CPU's memory."""
    write_data(tmp_path, KINDS["pairs"])
    data = read_data(tmp_path, device=torch.device("meta"))
    batch = data.batch(4, generator=rng(), caption_dropout=0.5)
    assert data.device.type == "meta"
    assert data.x0.device.type == "cpu"
    tensors = [batch.x0, batch.noise, *batch.condition.values(), *batch.unconditional.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
