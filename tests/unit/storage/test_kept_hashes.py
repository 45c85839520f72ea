"""Hashes that outlive the process: kept by all they depend on, bounded, and made again when their file is damaged."""

import errno
import json
import os

import pytest
from comfyui_fewstep.trainers.storage import kept_hashes
from comfyui_fewstep.trainers.storage.kept_hashes import kept

A, B = "a" * 64, "b" * 64


def never():
    raise AssertionError("it is known")


def test_a_hash_is_made_once(tmp_path):
    file = tmp_path / "fewstep" / "known.json"
    assert kept(file, "one", lambda: A) == A
    assert kept(file, "other", lambda: B) == B
    assert [kept(file, key, never) for key in ("one", "other")] == [A, B]
    assert [path.name for path in file.parent.iterdir()] == ["known.json"]


def test_what_others_make_meanwhile_is_kept(tmp_path):
    file = tmp_path / "known.json"
    assert kept(file, "one", lambda: kept(file, "others", lambda: B).replace("b", "a")) == A
    assert [kept(file, key, never) for key in ("one", "others")] == [A, B]


def test_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_hashes, "MOST", 3)
    file = tmp_path / "known.json"
    for key in "abcde":
        kept(file, key, lambda: A)
    assert list(json.loads(file.read_text())["hashes"]) == ["c", "d", "e"]
    assert kept(file, "a", lambda: B) == B


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "{}", '{"hashes": []}', '{"hashes": {"one": 3}}', '{"hashes": {"one": "short"}}', "\x00\xff"],
)
def test_a_damaged_file_is_made_anew_and_it_is_said(tmp_path, damage, caplog):
    file = tmp_path / "known.json"
    file.write_bytes(damage.encode("latin-1"))
    assert kept(file, "one", lambda: A) == A
    assert "known.json" in caplog.text
    assert "made anew" in caplog.text
    assert kept(file, "one", never) == A


def test_what_fails_to_be_made_is_not_kept(tmp_path):
    with pytest.raises(RuntimeError):
        kept(tmp_path / "known.json", "one", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_to_keep_it_ends_nothing_and_it_is_said(tmp_path, monkeypatch, caplog):
    """Load Distilled Student and Apply Recipe hash what they load: neither drew anything beside such an output folder."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", refuse)
    assert kept(tmp_path / "known.json", "one", lambda: A) == A
    assert "a hash is not kept" in caplog.text
    assert "known.json could not be written: Read-only file system" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_read_ends_nothing_and_it_is_said(tmp_path, monkeypatch, caplog):
    """Of another user, whose files are nobody else's."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "known.json")

    (tmp_path / "known.json").write_text("{}")
    monkeypatch.setattr(kept_hashes, "read_json", refuse)
    assert kept(tmp_path / "known.json", "one", lambda: A) == A
    assert "Permission denied: 'known.json'" in caplog.text
