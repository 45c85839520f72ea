"""A negative prompt for each sample, as editing models want: guidance and dropped captions keep to the sample's own picture."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.data import cache
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.data.cache import read_data, write_data
from comfyui_fewstep.trainers.data.joining import in_buckets, joined
from comfyui_fewstep.trainers.storage.files import tensors_sha256

SCALE = 5.0


def editing(count, *, negatives=None):
    """Pictures 1, 2, ..., each to be edited by a text that says 1; the empty prompt says 0 of the same picture."""
    picture = torch.arange(1.0, count + 1).unsqueeze(1)
    own = negatives is None
    empty = {"text": torch.zeros(count if own else 1, 1), "picture": picture if own else torch.tensor([[negatives]])}
    return TensorData(
        x0=torch.zeros(count, 1), condition={"text": torch.ones(count, 1), "picture": picture}, unconditional=empty
    )


def teacher(x, sigma, *, text, picture):
    return picture + text


def taught(batch):
    denoise = guided(teacher, guidance_scale=SCALE, unconditional=batch.empty_prompt())
    return denoise(batch.x0, torch.ones(len(batch.x0)), **batch.condition)


def test_guidance_leads_away_from_the_sample_without_its_text():
    """And not from another's picture."""
    batch = editing(4).batch(6, generator=torch.Generator().manual_seed(0))
    assert len(batch.condition["picture"].unique()) > 1
    torch.testing.assert_close(taught(batch), batch.condition["picture"] + SCALE)
    shared = editing(4, negatives=1.0).take(torch.tensor([3]))
    assert taught(shared).item() == 1.0 + SCALE * (4.0 + 1.0 - 1.0)


def test_a_dropped_caption_leaves_the_sample_its_picture():
    batch = editing(4).batch(64, generator=torch.Generator().manual_seed(0), caption_dropout=0.5)
    assert 10 < int(batch.condition["text"].sum()) < 54
    plain = editing(4).batch(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.condition["picture"], plain.condition["picture"])


def test_as_many_are_given_as_there_are_samples():
    one = editing(4)
    with pytest.raises(ValueError, match=r"negative conditioning holds 3 entries \(text\) but there are 4 latents"):
        TensorData(x0=one.x0, condition=one.condition, unconditional={"text": torch.zeros(3, 1)})


def test_each_keeps_its_own_in_files(tmp_path, monkeypatch):
    """Of shards of several samples, and a last one of a single."""
    monkeypatch.setattr(cache, "SHARD_SAMPLES", 2)
    data = editing(5)
    write_data(tmp_path, data)
    read = read_data(tmp_path)
    assert tensors_sha256(read.tensors()) == tensors_sha256(data.tensors())
    assert torch.equal(read.take(torch.tensor([4, 1])).empty_prompt()["picture"], torch.tensor([[5.0], [2.0]]))


def test_parts_of_one_shape_are_joined_with_their_own():
    parts = [editing(2), editing(1, negatives=7.0)]
    assert joined(parts).unconditional["picture"].flatten().tolist() == [1.0, 2.0, 7.0]
    alike = in_buckets([editing(2, negatives=7.0), editing(3, negatives=7.0)])
    assert alike.unconditional["picture"].tolist() == [[7.0]]
