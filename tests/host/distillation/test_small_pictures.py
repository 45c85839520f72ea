"""Pictures and clips that are smaller than what they are trained at, and sides that a VAE does not take: said, or refused."""

import logging

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes.distillation.data import folder_sources
from comfyui_fewstep.nodes.distillation.fast.choosing import CHEAPEST, Wishes
from encoders import MeanVAE
from making_data import distil, images, picture, prompts, run_folder


def said_of(caplog):
    return [record.getMessage() for record in caplog.records if "enlarged" in record.getMessage()]


def test_what_is_enlarged_is_counted_before_anything_is_encoded(output, folder, vae, clip, caplog):
    """80 x 80 is at 96 x 96 enlarged by 1.2; of two thirds of a bucket's height by 1.5."""
    model = tiny("sd15")
    with caplog.at_level(logging.WARNING):
        distil(model, name="fits", data=images(vae, clip))
        assert said_of(caplog) == []
        distil(model, name="run", data=images(vae, clip, resolution=96, bucket_step=96))
    (told,) = said_of(caplog)
    assert told.startswith(f"5 of 5 pictures in {folder} are smaller than what they are trained at and are enlarged")
    assert "1.png (2 times), 3.png (1.6 times), 0.png (1.5 times), 4.png (1.4 times), 2.png (1.2 times)" in told
    caplog.clear()
    picture(folder / "5.png", 40, 40)
    with caplog.at_level(logging.WARNING):
        distil(model, name="more", data=images(vae, clip))
    (told,) = said_of(caplog)
    assert told.startswith("1 of 6 pictures")
    assert "5.png (1.6 times)" in told


def test_the_plan_counts_them_too(output, folder, vae, clip):
    """By what the files' headers say; what is no picture the start names."""
    for name in ("1.png", "2.png", "3.png", "4.png"):
        (folder / name).unlink()
    wishes = Wishes(model=tiny("sd15"), steps=4, goal=CHEAPEST, vae=vae, clip=clip, folder="pictures", side=64)
    assert not [line for line in wishes.told() if "enlarged" in line]
    picture(folder / "6.png", 32, 48)
    (folder / "7.png").write_text("none")
    wishes = Wishes(model=tiny("sd15"), steps=4, goal=CHEAPEST, vae=vae, clip=clip, folder="pictures", side=64)
    (line,) = [line for line in wishes.told() if line.startswith("data: ")]
    assert "; 1 smaller than that and enlarged, 2 times at most" in line


def test_a_plan_opens_each_picture_once(output, folder, vae, clip, monkeypatch):
    """To say which are no pictures and which are small; there may be ten thousand, on a disk elsewhere."""
    opened, stated = [], folder_sources.stated_size
    monkeypatch.setattr(folder_sources, "stated_size", lambda path: opened.append(path.name) or stated(path))
    source = images(vae, clip)
    source.glance()
    source.small()
    source.glance()
    assert sorted(opened) == [f"{i}.png" for i in range(5)]


class Coarse(MeanVAE):
    """16 pixels a side to a latent, as the VAEs of Wan 2.2 5B, HunyuanImage and FLUX.2."""

    downscale_ratio = 16

    def encode(self, pixels):
        height, width = (side // 16 * 16 for side in pixels.shape[1:3])
        return torch.nn.functional.avg_pool2d(super().encode(pixels[:, :height, :width]), 2)


@pytest.mark.parametrize("ratio", [16, (lambda frames: frames, 16, 16)], ids=["pictures", "frames"])
def test_a_step_that_the_vae_does_not_take_is_refused(ratio, output, folder, clip, monkeypatch):
    """Hosts cut what is too much off without a word: 72 x 56 pixels become 64 x 48."""
    monkeypatch.setattr(Coarse, "downscale_ratio", ratio)
    with pytest.raises(ValueError, match="bucket_step is 8; this VAE wants multiples of 16"):
        distil(tiny("sd15"), name="run", data=images(Coarse(), clip, bucket_step=8))
    distil(tiny("sd15"), name="run", data=images(Coarse(), clip, bucket_step=32))


def test_sides_that_a_network_does_not_pad_are_refused_before_work(output, folder, vae, clip):
    """HiDream-O1 cuts pictures into patches of 32 pixels, and ended after all were encoded."""
    model = tiny("sd15")
    model.model.PATCH_SIZE = 32
    for given, said in (
        (images(vae, clip, bucket_step=48), "bucket_step is 48"),
        (prompts(clip, width=48, height=32), "width is 48"),
    ):
        with pytest.raises(ValueError, match=f"{said}; this model wants multiples of 32: 1024, for example"):
            distil(model, name="run", data=given)
        assert not list((run_folder(output, "run") / "data").glob("*.safetensors"))
    distil(model, name="run", data=images(vae, clip, bucket_step=32))


def test_a_vae_of_sound_is_refused_for_pictures(output, folder, clip):
    class SoundVAE:
        latent_dim, downscale_ratio = 1, 2048

    with pytest.raises(ValueError, match="the VAE encodes sounds, no pictures"):
        distil(tiny("sd15"), name="run", data=images(SoundVAE(), clip))
