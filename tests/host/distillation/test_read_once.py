"""A file whose content was hashed is not read once more before it is encoded, and what is encoded is what was hashed."""

import os
from pathlib import Path

import numpy as np
import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.benchmarks.architectures.command import ARCHITECTURES
from comfyui_fewstep.nodes.distillation.data import folder_data
from comfyui_fewstep.trainers.data.listing import captioned
from encoders import MeanVAE, RandomCLIP
from making_clips import needs_av, write_clip
from making_data import images
from PIL import Image
from test_clip_folder import CLIP, CLIPS, FrameVAE, needs

COUNTER = Path("/proc/self/io")
counts_reading = pytest.mark.skipif(not COUNTER.exists(), reason="this system does not count what a process reads")


def bytes_read():
    return int(COUNTER.read_text().split()[1])


def read_while_encoded(model, source):
    """Bytes, and the data. The encoder is made, and each shape known, before."""
    (file,) = captioned(source.listing().files, caption="")
    make, shape = source.encoder(model, told_of=1), source.look_at(file).shape
    before = bytes_read()
    made = make(shape, [file])
    return bytes_read() - before, made


@counts_reading
def test_a_picture_is_read_once(output):
    folder = output.with_name("input") / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.bmp")
    read, _ = read_while_encoded(tiny("sd15"), images(MeanVAE(), RandomCLIP(768, 768)))
    size = (folder / "a.bmp").stat().st_size
    assert size < read < 1.5 * size


@needs_av
@needs("wan")
@counts_reading
def test_of_a_film_no_more_is_read_than_its_first_piece(output):
    folder = output.with_name("input") / "clips"
    folder.mkdir()
    film = write_clip(folder / "a.mkv", count=11, rate=8, size=(128, 64))
    with film.open("ab") as file:
        file.write(bytes(2**26))
    (source,) = folder_data.ClipFolderNode().describe(**{**CLIPS, "vae": FrameVAE(), "clip": CLIP})["result"]
    read, _ = read_while_encoded(ARCHITECTURES["wan"].model(seed=0), source)
    assert read < 2**25


@needs_av
@needs("wan")
def test_a_clip_that_becomes_another_is_named(output):
    """One byte of it, its size and time as before."""
    folder = output.with_name("input") / "clips"
    folder.mkdir()
    film = write_clip(folder / "a.mkv", count=11, rate=8, size=(128, 64))
    (source,) = folder_data.ClipFolderNode().describe(**{**CLIPS, "vae": FrameVAE(), "clip": CLIP})["result"]
    (file,) = captioned(source.listing().files, caption="")
    make, shape = source.encoder(ARCHITECTURES["wan"].model(seed=0), told_of=1), source.look_at(file).shape
    whole, known = make(shape, [file]), film.stat()
    content = bytearray(film.read_bytes())
    for place in range(len(content) // 2, len(content), 97):
        content[place] ^= 1
    film.write_bytes(content)
    os.utime(film, ns=(known.st_atime_ns, known.st_mtime_ns))
    with pytest.raises(
        ValueError, match=r"^a\.mkv became another file while the clips were encoded: its content is not"
    ):
        make(shape, [file])
    assert whole
