"""A folder of pictures, how often it is listed, and what changes between the first look and the encoding of its last picture."""

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes.distillation.data import folder_sources
from encoders import MeanVAE
from making_data import distil, images, picture


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
