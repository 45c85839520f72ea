"""Tensors in files: what is written is what the format's own library reads and would have written."""

import errno
import functools
import json
import os
import stat
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.trainers.storage import files
from comfyui_fewstep.trainers.storage.files import (
    _TYPES,
    copy_atomically,
    read_metadata,
    read_tensors,
    tensors_sha256,
    write_atomically,
    write_tensors,
    writing,
)
from safetensors.torch import load_file, save_file


def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {f"{kind}".split(".")[1]: torch.randn(3, 5, generator=generator).mul(50).to(kind) for kind in _TYPES}
    return made | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(9.0)[3:7],
        "learns": torch.ones(2, requires_grad=True),
        '\u00fcml"aut': torch.ones(1, dtype=torch.uint8),
    }


@pytest.mark.parametrize("links", [True, False])
def test_what_is_in_place_is_on_the_disk(links, tmp_path, monkeypatch):
    """Also what was copied, where the disk has no second names: a power cut leaves no empty student."""
    synced, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))

    def replaced(unfinished, path):
        assert unfinished.stat().st_ino in synced
        return replace(unfinished, path)

    def no_link(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "replace", replaced)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    write_atomically(tmp_path / "one", b"content")
    copy_atomically(tmp_path / "one", tmp_path / "two")
    write_tensors(tmp_path / "three", {"a": torch.ones(2)}, metadata={})
    assert (tmp_path / "two").read_bytes() == b"content"
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("one_file", [True, False])
def test_what_is_given_away_is_a_file_of_its_own(one_file, tmp_path):
    """Whoever writes into it in place must not write into the run."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"mine")
    copy_atomically(one, two, one_file=one_file)
    assert two.read_bytes() == b"mine"
    assert one.samefile(two) is one_file
    with two.open("r+b") as file:
        file.write(b"your")
    assert (one.read_bytes() == b"mine") is not one_file


def test_two_processes_that_copy_to_one_file_do_not_meet(tmp_path, monkeypatch):
    """The one that trained and the one that watched it put one student among the models."""
    source, target = tmp_path / "student", tmp_path / "published"
    source.write_bytes(b"content")

    def other():
        with monkeypatch.context() as at_once:
            at_once.setattr(os, "getpid", lambda: 1)
            copy_atomically(source, target, one_file=False)

    copy_atomically(source, target, one_file=False, heed=other)
    assert target.read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published", "student"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_others_place(links, tmp_path, monkeypatch):
    """Who looked for one before it began to write, for minutes, finds the one that came meanwhile."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    path = tmp_path / "student"
    with (
        pytest.raises(FileExistsError, match="student could not be written: there is a file by now; choose another"),
        writing(path, new=True) as unfinished,
    ):
        unfinished.write_bytes(b"mine")
        path.write_bytes(b"yours")
    assert path.read_bytes() == b"yours"
    path.unlink()
    write_tensors(path, {"a": torch.ones(2)}, metadata={}, new=True)
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_what_a_killed_process_left_of_a_copy_goes_with_the_next(tmp_path):
    source, target = tmp_path / "student", tmp_path / "published [1]"
    source.write_bytes(b"content")
    old, new, anothers = (tmp_path / f".{name}.7-7.part" for name in (target.name, f"{target.name}.8-8", "published"))
    for file, age in ((old, 3700), (new, 3500), (anothers, 3700)):
        file.write_bytes(b"con")
        os.utime(file, times=(then := time.time() - age, then))
    os.utime(source, times=(0, 0))
    copy_atomically(source, target, one_file=False)
    assert sorted(tmp_path.iterdir()) == sorted([source, target, new, anothers])


def test_a_disk_that_cannot_sync_a_folder_is_written_to(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_alone(handle, number=errno.EINVAL):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    write_atomically(tmp_path / "one", b"content")
    assert (tmp_path / "one").read_bytes() == b"content"
    monkeypatch.setattr(os, "fsync", functools.partial(files_alone, number=errno.EIO))
    with pytest.raises(OSError, match="two could not be written"):
        write_atomically(tmp_path / "two", b"content")


@pytest.mark.parametrize("windows", [True, False])
def test_a_file_that_somebody_reads_on_windows_is_replaced_when_that_ends(windows, tmp_path, monkeypatch):
    """Elsewhere it is no hindrance, and missing rights are told of at once."""
    replace, tried = Path.replace, []

    def read_meanwhile(unfinished, path):
        tried.append(path.name)
        if len(tried) < 3:
            raise PermissionError(errno.EACCES, "somebody reads it")
        return replace(unfinished, path)

    monkeypatch.setattr(files, "_WINDOWS", windows)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "replace", read_meanwhile)
    if windows:
        write_atomically(tmp_path / "one", b"content")
        assert (tmp_path / "one").read_bytes() == b"content"
    else:
        with pytest.raises(PermissionError, match="one could not be written"):
            write_atomically(tmp_path / "one", b"content")
    assert len(tried) == (3 if windows else 1)
    assert [path.name for path in tmp_path.iterdir()] == (["one"] if windows else [])


def test_two_threads_that_write_one_file_do_not_meet(tmp_path):
    """Two tabs that save one note, say: one of both is there afterwards, whole, and neither was refused."""
    together, refused = threading.Barrier(2), []

    def write(content):
        for _ in range(50):
            together.wait()
            try:
                write_atomically(tmp_path / "note.txt", content)
            except OSError as error:
                refused.append(error)

    threads = [threading.Thread(target=write, args=(letter * 10**5,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    assert (tmp_path / "note.txt").read_bytes() in (b"a" * 10**5, b"b" * 10**5)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def test_every_type_and_shape_comes_back(tmp_path):
    path, written = tmp_path / "a.safetensors", tensors()
    write_tensors(path, written, metadata={"a": '\u00e4 "b"'})
    library, (own, metadata) = load_file(path), read_tensors(path)
    for read in (library, own):
        assert read.keys() == written.keys()
        for name, value in written.items():
            assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
            assert bits(read[name]) == bits(value), name
    assert metadata == {"a": '\u00e4 "b"', "fewstep.sha256": tensors_sha256(written)}


def test_a_type_that_the_format_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"table holds torch\.complex128 values, of which safetensors files have none"):
        write_tensors(tmp_path / "a", {"table": torch.ones(2, dtype=torch.complex128)}, metadata={})
    assert not list(tmp_path.iterdir())


def test_the_file_is_laid_out_as_the_formats_library_does(tmp_path):
    plain = {name: value.detach().contiguous() for name, value in tensors().items()}
    write_tensors(tmp_path / "ours", plain, metadata={})
    save_file(plain, tmp_path / "theirs", metadata={"a": "b"})
    ours, theirs = (_read(tmp_path / name) for name in ("ours", "theirs"))
    assert len(ours[2]) == len(theirs[2])
    assert ours[0] % 8 == theirs[0] % 8 == 0
    for name, entry in theirs[1].items():
        if name != "__metadata__":
            assert {key: ours[1][name][key] for key in ("dtype", "shape")} == {
                key: entry[key] for key in ("dtype", "shape")
            }
            assert ours[1][name]["data_offsets"][0] % plain[name].element_size() == 0


def _read(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return length, json.loads(content[8 : 8 + length]), content[8 + length :]


def test_writing_holds_no_second_copy(tmp_path, monkeypatch):
    """Not even of tensors that are not contiguous, more than two at a time: the last one and the next. Each is copied once."""
    arrays, alive, original = [], [], torch.Tensor.numpy

    def watched(tensor):
        array = original(tensor)
        arrays.append(weakref.ref(array))
        alive.append(sum(one() is not None for one in arrays))
        return array

    monkeypatch.setattr(torch.Tensor, "numpy", watched)
    write_tensors(tmp_path / "a", {str(i): torch.zeros(300, 200).T for i in range(8)}, metadata={})
    assert len(alive) == 8
    assert max(alive) <= 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_said_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder", "nothing"):
        for read in (read_metadata, read_tensors):
            with pytest.raises(ValueError, match=f"{name}.safetensors is no file"):
                read(tmp_path / f"{name}.safetensors")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is told by Linux alone")
def test_what_was_read_does_not_hold_the_file(tmp_path):
    """Else the blocks of a checkpoint that is deleted stay on the disk, and Windows would not delete it."""
    path = tmp_path / "held.safetensors"
    write_tensors(path, {"a": torch.ones(2**18)}, metadata={})
    read, _ = read_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert float(read["a"].sum()) == 2**18
