"""Files that were hashed at a start before: not read again while size and times are the same, and never taken on trust."""

import os

import pytest
from comfyui_fewstep.trainers.data import looked
from comfyui_fewstep.trainers.data.files import BrokenFile, Hashed
from comfyui_fewstep.trainers.data.looked import Looked


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "a.png"
    made.write_bytes(b"a picture")
    return made


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """As files that were written long ago: nobody can set the time at which a file's place was last changed."""
    monkeypatch.setattr(looked, "_LONGEST_TICK", -3600.0)


@pytest.fixture
def read(monkeypatch):
    seen, hashing = [], Hashed.of
    monkeypatch.setattr(Hashed, "of", lambda path: seen.append(path) or hashing(path))
    return seen


def again(kept):
    known = Looked()
    known.read(kept)
    return known


def keep(file, kept):
    known = Looked()
    found = known.hashed(file)
    known.keep(kept)
    return found


def test_a_file_that_is_as_it_was_is_not_read(file, read, tmp_path):
    first = keep(file, tmp_path / "files.json")
    found = again(tmp_path / "files.json").hashed(file)
    assert (found.sha256, found.size) == (first.sha256, first.size)
    assert read == [file]


@pytest.mark.parametrize("change", ["content", "time", "place"])
def test_another_file_is_read(change, file, read, tmp_path):
    """Also one of the same size, or put there with the time of the one before."""
    keep(file, tmp_path / "files.json")
    told = file.stat()
    if change == "content":
        file.write_bytes(b"longer than before")
    elif change == "time":
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns + 1000))
    else:
        other = tmp_path / "other"
        other.write_bytes(b"b picture")
        os.utime(other, ns=(told.st_atime_ns, told.st_mtime_ns))
        other.replace(file)
    assert again(tmp_path / "files.json").hashed(file).sha256 == Hashed.of(file).sha256
    assert read == [file] * 3


def test_a_file_of_just_now_is_read_again(file, read, tmp_path, monkeypatch):
    """Which may be written once more within a tick of its disk's clock."""
    monkeypatch.undo()
    keep(file, tmp_path / "files.json")
    assert not (tmp_path / "files.json").exists()


def test_what_is_forgotten_is_read(file, read, tmp_path):
    keep(file, tmp_path / "files.json")
    known = again(tmp_path / "files.json")
    known.hashed(file)
    assert known.forget()
    assert known.hashed(file).digests, "of each block, as who decodes it wants"
    assert len(read) == 2
    assert not Looked().forget()


@pytest.mark.parametrize("content", ["", "[]", '{"files": []}', '{"files": {"FILE": 3}}', '{"files": {"FILE": []}}'])
def test_a_damaged_note_costs_the_time_of_reading(content, file, read, tmp_path):
    kept = tmp_path / "files.json"
    kept.write_text(content.replace("FILE", str(file)))
    assert again(kept).hashed(file).size == 9
    assert read == [file]


def test_what_is_no_file_is_broken_as_ever(tmp_path):
    with pytest.raises(BrokenFile):
        Looked().hashed(tmp_path / "none.png")
