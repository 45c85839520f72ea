"""What encoders made is kept for every run: found again, made again when damaged, and never more than there is room for."""

import errno
import logging
import os
import pathlib

import pytest
import torch
from comfyui_fewstep.trainers.data.encodings import Encodings


class Maker:
    """Gives the numbers 0, 1, 2, ... as tensors, and counts."""

    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        return torch.full((1000,), self.made - 1.0)


def get(kept, decided_by, maker):
    return kept.get(
        decided_by, maker, written=lambda made: ({"x": made}, {"said": "so"}), read=lambda file: file[0]["x"]
    )


def test_the_same_is_made_once(tmp_path):
    maker = Maker()
    first = get(Encodings(tmp_path), {"a": 1, "b": [1, 2]}, maker)
    again = get(Encodings(tmp_path), {"b": (1, 2), "a": 1}, maker)
    assert torch.equal(first, again)
    assert maker.made == 1
    assert get(Encodings(tmp_path), {"a": 2, "b": [1, 2]}, maker)[0] == 1.0
    assert get(Encodings(tmp_path), None, maker)[0] == 2.0
    assert get(Encodings(tmp_path), None, maker)[0] == 3.0, "of what is not known nothing is kept"
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_what_no_file_should_hold_is_not_kept(tmp_path):
    maker = Maker()
    for _ in range(2):
        Encodings(tmp_path).get({"a": 1}, maker, written=lambda _: None, read=lambda file: file[0]["x"])
    assert maker.made == 2


def test_a_damaged_file_is_made_again_and_named(tmp_path, caplog):
    maker, kept = Maker(), Encodings(tmp_path)
    get(kept, {"a": 1}, maker)
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    with caplog.at_level(logging.WARNING):
        assert get(kept, {"a": 1}, maker)[0] == 1.0
    assert f"{file} is made again" in caplog.text
    assert get(kept, {"a": 1}, maker)[0] == 1.0


def test_what_was_used_longest_ago_gives_way(tmp_path):
    """Files of about 4,150 bytes: three have room."""
    maker, kept = Maker(), Encodings(tmp_path, most_bytes=13000)
    for i in range(3):
        get(kept, {"a": i}, maker)
    for age, file in enumerate(sorted(tmp_path.glob("*/*"), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, ns=(0, 10**9 * (age + 1)))
    get(kept, {"a": 0}, maker)
    get(kept, {"a": 3}, maker)
    assert maker.made == 4
    get(kept, {"a": 0}, maker)
    get(kept, {"a": 2}, maker)
    assert maker.made == 4, "those stay"
    get(kept, {"a": 1}, maker)
    assert maker.made == 5, "this one was used longest ago"
    assert sum(file.stat().st_size for file in tmp_path.glob("*/*")) <= 13000


def test_a_file_that_goes_while_they_are_counted_is_not_counted(tmp_path):
    """Another process in want of room took it; a link to nothing is listed and not there, too."""
    kept = Encodings(tmp_path, most_bytes=1)
    place = tmp_path / "aa" / "aa.safetensors"
    place.parent.mkdir()
    place.symlink_to(tmp_path / "gone")
    maker = Maker()
    get(kept, {"a": 1}, maker)
    assert maker.made == 1


def test_a_link_among_the_files_is_not_followed(tmp_path):
    kept = Encodings(tmp_path / "encoded")
    get(kept, {"a": 1}, Maker())
    (file,) = (tmp_path / "encoded").glob("*/*")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        get(kept, {"a": 1}, Maker())


def test_what_others_wrote_counts_too(tmp_path):
    """Each run has an object of its own, which writes less than would make it look."""
    for i in range(30):
        get(Encodings(tmp_path, most_bytes=100_000), {"a": i}, Maker())
    assert 90_000 < sum(file.stat().st_size for file in tmp_path.glob("*/*")) <= 100_000


def test_what_another_process_reads_on_windows_stays_for_the_next_time(tmp_path, monkeypatch):
    """It ended the making of the data, whose files were written already."""

    def refuse(*_, **__):
        raise PermissionError("another process reads it")

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    maker = Maker()
    for number in range(3):
        get(Encodings(tmp_path, most_bytes=1), {"a": number}, maker)
    assert len(list(tmp_path.glob("*/*"))) == 3


def test_what_a_killed_process_left_half_written_gives_way_too(tmp_path):
    """It stayed for good, and counted for nothing."""
    left = tmp_path / "ab" / ".abcd.safetensors.1-1.part"
    left.parent.mkdir()
    left.write_bytes(bytes(5000))
    os.utime(left, times=(1, 1))
    get(Encodings(tmp_path, most_bytes=6000), {"a": 1}, Maker())
    assert not left.exists()
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_disk_that_refuses_to_keep_it_ends_nothing_and_it_is_said(tmp_path, monkeypatch, caplog):
    """A report of a folder that may only be read, or beside the last bytes of a disk."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", refuse)
    maker = Maker()
    get(Encodings(tmp_path), {"a": 1}, maker)
    assert maker.made == 1
    assert "an encoding is not kept" in caplog.text
    assert "could not be written: Read-only file system" in caplog.text
    assert not list(tmp_path.glob("*/*"))
