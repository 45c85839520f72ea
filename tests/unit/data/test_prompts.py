"""A prompt that several samples have is held once, in memory and in files, and nothing else changes."""

import json

import pytest
import torch
from comfyui_fewstep.trainers.data import cache
from comfyui_fewstep.trainers.data.batches import Buckets, TensorData
from comfyui_fewstep.trainers.data.cache import Shard, cached_data, read_data, write_data
from comfyui_fewstep.trainers.data.joining import in_buckets
from comfyui_fewstep.trainers.storage.files import (
    CHECKSUM_KEY,
    read_metadata,
    read_tensors,
    tensors_sha256,
    write_tensors,
)
from test_data import numbered, rng, same


def one_by_one(prompts):
    """Samples of one each, with the prompt of that number; sample i is full of i."""
    return [
        TensorData(
            x0=torch.full((1, 2), float(i)),
            condition={"text": torch.full((1, 3), float(prompt)), "tokens=2": torch.empty(1, 0)},
            unconditional={"text": torch.zeros(1, 3), "tokens=2": torch.empty(1, 0)},
        )
        for i, prompt in enumerate(prompts)
    ]


PROMPTS = [5, 5, 7, 5, 9, 7]


def whole(prompts):
    """The same with every prompt as often as it has samples, as data were held before."""
    text = torch.tensor(prompts).float()[:, None].expand(-1, 3).contiguous()
    condition = {"text": text, "tokens=2": torch.empty(len(prompts), 0)}
    x0 = torch.arange(len(prompts)).float()[:, None].repeat(1, 2)
    empty = {"text": torch.zeros(1, 3), "tokens=2": torch.empty(1, 0)}
    return TensorData(x0=x0, condition=condition, unconditional=empty)


@pytest.mark.parametrize("prompts", [PROMPTS, [5, 5, 5], [5, 7], [5]])
def test_a_prompt_is_held_once_and_nothing_else_changes(prompts, tmp_path):
    """Hash, batches and streams as of data that hold it for every sample; in memory, and from files in shards of two."""
    parts, expected = one_by_one(prompts), whole(prompts)
    shards = [parts[i : i + 2] for i in range(0, len(parts), 2)]
    plan = [Shard(lambda shard=shard: [in_buckets(shard)]) for shard in shards]
    kept = cached_data(tmp_path, source={}, plan=lambda: plan, replace=True)
    for data in (in_buckets(parts), kept):
        assert len(data.condition["text"]) == len(set(prompts))
        assert same(data, expected)
        assert data.sha256() == tensors_sha256(expected.tensors()) == expected.sha256()
        for dropout in (0.0, 0.5):
            one, other = (each.batch(50, generator=rng(4), caption_dropout=dropout) for each in (data, expected))
            assert torch.equal(one.x0, other.x0)
            assert torch.equal(one.condition["text"], other.condition["text"])
            assert one.condition["tokens=2"].shape == (50, 0)
        assert torch.equal(data.first(4).condition["text"], expected.first(4).condition["text"])


def test_data_of_before_are_read_and_are_the_same(tmp_path):
    """A file that holds a prompt for every sample."""
    write_tensors(
        tmp_path / "00000.safetensors",
        {f"0.{name}": value.contiguous() for name, value in whole(PROMPTS).tensors().items()},
        metadata={},
    )
    index = {"format": 1, "shards": {"00000.safetensors": read_metadata(tmp_path / "00000.safetensors")[CHECKSUM_KEY]}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    data = read_data(tmp_path)
    assert data.sha256() == whole(PROMPTS).sha256()
    assert len(data.condition["text"]) == 3


def test_prompts_are_held_once_by_a_file_too_where_the_data_were_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_SAMPLES", 4)
    data = Buckets([in_buckets(one_by_one(PROMPTS)), numbered(3, 4)])
    write_data(tmp_path, data)
    assert read_data(tmp_path).sha256() == data.sha256()
    first, second = (read_tensors(tmp_path / f"0000{i}.safetensors")[0] for i in (0, 1))
    assert [len(each["0.condition.text"]) for each in (first, second)] == [2, 2]
    assert (first["0.prompts"].tolist(), second["0.prompts"].tolist()) == ([0, 0, 1, 0], [1, 0])


def test_prompts_that_are_nearly_alike_are_two():
    """They differ in one value, which is none of those that are looked at first."""
    long = torch.zeros(1, 1000)
    other = long.clone()
    other[0, 999] = 1.0
    parts = [TensorData(x0=torch.zeros(1, 1), condition={"text": text}) for text in (long, other, long)]
    assert in_buckets(parts).prompts.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("prompts", "count"), [([0, 2, 1], 2), ([0, 1], 2), ([0, 0, 1], 3)])
def test_prompts_that_are_not_those_of_the_samples_are_refused(prompts, count):
    with pytest.raises(ValueError, match=f"say of {len(prompts)} latents .* hold 3 latents and .{count}. prompts"):
        TensorData(x0=torch.zeros(3, 1), condition={"y": torch.zeros(count, 1)}, prompts=torch.tensor(prompts))


def test_a_begun_run_keeps_data_of_before_its_source_knew_a_name(tmp_path):
    def made(source, *, replace):
        plan = [Shard(lambda: [numbered(2, 2, start=len(source))])]
        return cached_data(tmp_path, source=source, plan=lambda: plan, replace=replace, newer=("syntax",))

    old = made({"a": 1}, replace=True)
    assert same(made({"a": 1, "syntax": "literal"}, replace=False), old)
    with pytest.raises(ValueError, match="a: there 1, here 2"):
        made({"a": 2, "syntax": "literal"}, replace=False)
    assert not same(made({"a": 1, "syntax": "literal"}, replace=True), old), "what has not begun is made anew"
    with pytest.raises(ValueError, match=r"syntax: there .literal., here .other."):
        made({"a": 1, "syntax": "other"}, replace=False)


@pytest.mark.parametrize(("count", "taken"), [(1, [0]), (3, [0, 2, 4]), (5, [0, 2, 4, 1, 3]), (9, [0, 2, 4, 1, 3, 5])])
def test_the_first_of_each_prompt_come_before_others(count, taken):
    """The teacher draws all pictures of one prompt before those of the next."""
    data = in_buckets(one_by_one(PROMPTS))
    assert data.varied(count).x0[:, 0].tolist() == taken


def test_samples_of_one_prompt_or_of_none_that_is_shared_come_in_their_order():
    assert in_buckets(one_by_one([5, 5, 5])).varied(2).x0[:, 0].tolist() == [0, 1]
    assert numbered(7, 4).varied(3).x0[:, 0].tolist() == [0, 1, 2]
