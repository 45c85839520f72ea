"""What is read of a file that was hashed is what was hashed, in whatever order; or the file is broken."""

import hashlib
import io
import random

import pytest
from comfyui_fewstep.trainers.data import files
from comfyui_fewstep.trainers.data.files import BrokenFile, Hashed, HashedFile, content, hashed_content

CONTENT = bytes(range(256)) * 3 + b"end"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 64)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "a.bin"
    made.write_bytes(CONTENT)
    return made


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, len(CONTENT)])
def test_the_hash_is_that_of_the_content_however_long(size, path):
    path.write_bytes(CONTENT[:size])
    known = Hashed.of(path)
    assert (known.sha256, known.size) == (hashlib.sha256(CONTENT[:size]).hexdigest(), size)
    assert hashed_content(path, known) == CONTENT[:size] == content(path)
    with HashedFile(path, known) as file:
        assert file.read() == CONTENT[:size]


def test_it_is_read_in_any_order_as_any_other_file(path):
    rng = random.Random(0)
    with HashedFile(path, Hashed.of(path)) as ours, io.BytesIO(CONTENT) as plain:
        for _ in range(500):
            whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            begin = {io.SEEK_SET: 0, io.SEEK_CUR: plain.tell(), io.SEEK_END: len(CONTENT)}[whence]
            offset, count = rng.randrange(900) - begin, rng.randrange(40)
            assert ours.seek(offset, whence) == plain.seek(offset, whence) == ours.tell()
            read = ours.read(count)
            assert read == plain.read(len(read))
            assert read or not count or ours.tell() >= len(CONTENT)


CHANGES = {
    "a byte of what is read": lambda content: content[:70] + b"!" + content[71:],
    "cut at a block's end": lambda content: content[:-3],
    "longer": lambda content: content + b"!",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_became_another_is_broken(change, path):
    known = Hashed.of(path)
    path.write_bytes(change(CONTENT))
    with pytest.raises(BrokenFile, match="is not what it was"):
        hashed_content(path, known)
    with HashedFile(path, known) as file:
        file.seek(64)
        with pytest.raises(BrokenFile, match="is not what it was"):
            file.read(10)
        assert file.read(10) == b"", "who went on all the same"
        with pytest.raises(BrokenFile, match="is not what it was"):
            file.require_read()


def test_what_is_not_read_is_not_asked_for(path):
    known = Hashed.of(path)
    path.write_bytes(b"!" + CONTENT[1:])
    with HashedFile(path, known) as file:
        file.seek(64)
        assert file.read(10) == CONTENT[64:74]
        file.require_read()
