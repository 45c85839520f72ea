"""What is read of a run's data is in memory once, and in no file."""

import pytest
import torch
from comfyui_fewstep.trainers.data import joining
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.data.cache import (
    SHARD_SAMPLES,
    Shard,
    cached_data,
    made_so_far,
    read_data,
    read_first,
    write_data,
)
from test_data import rng

COUNT = 2 * SHARD_SAMPLES + 1


def data(*, prompts, empty, count=COUNT):
    """prompts, empty: how many there are of them, one for all or one for each."""
    return TensorData(
        x0=torch.randn(count, 64, generator=rng(1)),
        condition={"text": torch.randn(prompts, 64, generator=rng(2))},
        unconditional={"text": torch.randn(empty, 64, generator=rng(3))},
        noise=torch.randn(count, 64, generator=rng(4)),
        repeats=torch.arange(1, count + 1),
    )


def wiped(folder):
    """Whatever is still a view of a file becomes zero."""
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as written:
            written.write(bytes(file.stat().st_size))


CASES = [(COUNT, COUNT, COUNT), (1, COUNT, COUNT), (COUNT, 1, COUNT), (1, 1, COUNT), (1, 1, 1)]


@pytest.mark.parametrize(("prompts", "empty", "count"), CASES)
def test_nothing_that_was_read_is_a_view_of_a_file(prompts, empty, count, tmp_path):
    """Its run may be deleted and made anew under it."""
    kept = data(prompts=prompts, empty=empty, count=count)
    write_data(tmp_path, kept)
    read, first = read_data(tmp_path), read_first(tmp_path)
    wiped(tmp_path)
    assert read.sha256() == kept.sha256()
    expected = kept.first(1)
    assert torch.equal(first.x0, expected.x0)
    assert torch.equal(first.noise, expected.noise)
    assert torch.equal(first.condition["text"], expected.condition["text"])
    assert torch.equal(first.unconditional["text"], expected.unconditional["text"])


def test_data_lie_in_memory_once_while_they_are_put_together(tmp_path, monkeypatch):
    """What is handed to be joined is no copy of a file yet: a second one of all the data, and it goes only afterwards."""
    write_data(tmp_path, data(prompts=COUNT, empty=COUNT))
    joined, seen = joining.joined, []

    def watched(parts, device=None):
        whole = joined(parts, device)
        wiped(tmp_path)
        seen.extend(value for part in parts for value in part.tensors().values())
        return whole

    monkeypatch.setattr(joining, "joined", watched)
    read_data(tmp_path)
    assert seen
    assert not any(value.any() for value in seen)


@pytest.mark.parametrize("content", ["{}", '{"shards": ["00000.safetensors"]}', '{"shards": {"00000.safetensors": 1}}'])
def test_a_damaged_index_is_named(content, tmp_path):
    write_data(tmp_path, data(prompts=1, empty=1, count=1))
    (tmp_path / "index.json").write_text(content)
    for read in (read_data, read_first):
        with pytest.raises(
            ValueError, match=r"index\.json is damaged .*shards.* Delete .* to have the data made again"
        ):
            read(tmp_path)


def test_a_start_that_is_refused_leaves_the_data_that_would_give_way(tmp_path):
    """They may have taken hours, and what was changed may be put back: a VAE that is not connected, a broken picture."""
    write_data(tmp_path, data(prompts=1, empty=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse():
        raise ValueError("1 of 5 pictures cannot be used")

    with pytest.raises(ValueError, match="1 of 5 pictures"):
        cached_data(tmp_path, source={"kind": "another"}, plan=refuse, replace=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_data(tmp_path) is not None


# --- whatever others do in the folder meanwhile ----------------------------------------------------------------------


def test_data_whose_folder_goes_while_they_are_made_make_no_other(tmp_path):
    """What was made after that lay in a folder of its own, in the way of who put the run back."""
    folder = tmp_path / "run" / "data"

    def made():
        folder.parent.rename(tmp_path / "elsewhere")
        return [data(prompts=1, empty=1, count=1)]

    with pytest.raises(ValueError, match="data was moved or deleted while the training data in it were made"):
        cached_data(folder, source={}, plan=lambda: [Shard(made)], replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_what_tools_that_keep_folders_in_step_leave_is_no_data(tmp_path):
    plan = [Shard(lambda: [data(prompts=1, empty=1, count=1)], of=("a.png",))]
    cached_data(tmp_path, source={"kind": "pictures"}, plan=lambda: plan, replace=True)
    for name in ("._00000.safetensors", "00000 (conflicted copy).safetensors", "00000.sync-conflict-7.safetensors"):
        (tmp_path / name).write_bytes(b"of another machine")
    assert made_so_far(tmp_path, of={"kind": "pictures"}) == [("a.png",)]
    assert len(read_data(tmp_path).x0) == 1
