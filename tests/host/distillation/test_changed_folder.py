"""A folder of pictures that changes between the first look at it and the encoding of its last picture, hours later."""

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
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
