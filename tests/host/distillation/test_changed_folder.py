"""A folder of pictures, how often it is listed, and what changes between the first look and the encoding of its last picture."""

import contextlib
import dataclasses
import os

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import folder_data, folder_sources
from comfyui_fewstep.nodes.distillation.fast import make_it_fast
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.trainers.data import looked
from comfyui_fewstep.trainers.data.files import Hashed
from encoders import MeanVAE
from making_data import distil, images, picture, run_folder


class Meanwhile(MeanVAE):
    """As the first picture is encoded, something happens."""

    def __init__(self, happens):
        self.happens = [happens]

    def encode(self, pixels):
        while self.happens:
            self.happens.pop()()
        return super().encode(pixels)


@pytest.mark.parametrize(("change", "said"), [("gone", "No such file"), ("edited", "is not what it was")])
def test_a_picture_that_becomes_another_is_named(change, said, output, folder, clip):
    """What is kept of it is called by the content that was seen first: another run would take it for that picture's."""
    last = folder / "4.png"
    happens = last.unlink if change == "gone" else lambda: picture(last, 64, 64, seed=9)
    with pytest.raises(ValueError, match=rf"^4\.png became another file while the pictures were encoded: .*{said}"):
        distil(tiny("sd15"), name="run", data=images(Meanwhile(happens), clip))
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))


def test_a_folder_is_listed_once_to_be_described(output, folder, vae, clip, monkeypatch):
    seen, listed = [], folder_sources.listed
    monkeypatch.setattr(folder_sources, "listed", lambda *args, **kw: seen.append(args) or listed(*args, **kw))
    images(vae, clip)
    assert len(seen) == 1


def test_a_folder_is_not_listed_to_be_checked(output, folder, monkeypatch):
    monkeypatch.setattr(folder_sources, "listed", lambda *args, **kw: pytest.fail("while the server answers nobody"))
    assert folder_data.ImageFolder.VALIDATE_INPUTS(folder="pictures") is True
    assert make_it_fast.MakeItFast.VALIDATE_INPUTS(run_name="run", folder="pictures") is True


@pytest.mark.parametrize("broken", ["stop", "skip"])
def test_what_is_said_of_many_broken_files_is_short_and_the_log_names_all(
    broken, output, folder, clip, caplog, monkeypatch
):
    said = []
    monkeypatch.setattr(host.signals, "say", lambda text, **_: said.append(text))
    for number in range(100):
        (folder / f"broken {number}.png").write_bytes(b"no picture")
    with contextlib.nullcontext() if broken == "skip" else pytest.raises(ValueError, match="100 of 105") as refused:
        distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip, broken=broken))
    text = str(refused.value) if refused else next(text for text in said if "skipped" in text)
    assert "and 80 more, which the log names" in text
    assert text.count(".png") == 20
    assert "broken 99.png (it is of no known picture format" in caplog.text


# --- at a later start ------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """The names of what was read whole, of files that count as written long ago."""
    monkeypatch.setattr(looked, "_LONGEST_TICK", -3600.0)
    seen, hashing = [], Hashed.of
    monkeypatch.setattr(Hashed, "of", lambda path: seen.append(path.name) or hashing(path))
    return seen


def test_a_later_start_reads_no_picture_of_data_that_are_there(output, folder, clip, read):
    """Thousands of photographs are tens of gigabytes."""
    for _ in range(2):
        distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    assert sorted(read) == [f"{i}.png" for i in range(5)]
    (folder / "2.png").touch()
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    assert read[5:] == ["2.png"]


def test_a_picture_of_the_same_size_and_time_is_another(output, folder, clip, read):
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    last = folder / "4.png"
    told = last.stat()
    last.write_bytes(last.read_bytes()[::-1])
    os.utime(last, ns=(told.st_atime_ns, told.st_mtime_ns))
    with pytest.raises(ValueError, match=r"has begun on other training data.*4\.png"):
        distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))


def test_where_something_is_made_of_the_pictures_all_are_read(output, folder, clip, read):
    """A shard that went is made of what lies there now, and of nothing that was only known by its times."""
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    (run_folder(output, "run") / "data" / "00000.safetensors").unlink()
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    assert len(read) == 10
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip))
    assert len(read) == 10


def test_data_that_give_way_are_made_of_pictures_that_were_read(output, folder, clip, read):
    data = images(MeanVAE(), clip)
    run = folders.run_named("run")
    with torch.inference_mode(False):
        for given in (data, dataclasses.replace(data, flip=True)):
            given.build(tiny("sd15"), run, teacher_sha256="")
    assert len(read) == 10
