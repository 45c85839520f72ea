"""Prompts of the graph for models that go on from a picture: refused without one, or with one of another size or length."""

import logging

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes.distillation.data.data_in_graph import data_in_graph
from test_videos import KINDS as VIDEOS

SVD, WAN = ALL["svd"], ALL["wan_i2v"]
needs_wan = pytest.mark.skipif(not WAN.known(), reason="this host has no Wan")
KINDS = {
    "svd": (SVD, "SVD_img2vid_Conditioning", (3, 4, 4, 6)),
    "sv3d": (VIDEOS["SV3D_u"], "SV3D_Conditioning", (3, 4, 4, 6)),
    "wan": (WAN, "WanImageToVideo", (1, 16, 3, 4, 6)),
}
either = pytest.mark.parametrize("kind", ["svd", "sv3d", pytest.param("wan", marks=needs_wan)])


def pictured(one, picture, *, seed=0):
    """A prompt that goes on from a picture of that shape; None for none."""
    ((embedding, options),) = one.conditioning(seed=seed)
    kept = {key: value for key, value in options.items() if not key.startswith("concat_")}
    told = {} if picture is None else {"concat_latent_image": torch.randn(picture)}
    return [[embedding[:, :1], kept | told]]


def given(kind, picture, without=None):
    one, _, shape = KINDS[kind]
    latents = {"samples": torch.randn(shape)}
    return data_in_graph(one.model(), latents, pictured(one, picture), without and without(one), dropout=0.0)


def picture_of(kind, *, sides=(4, 6), frames=3):
    return (1, 16, frames, *sides) if kind == "wan" else (1, 4, *sides)


@either
def test_a_positive_without_a_picture_is_refused(kind):
    node = KINDS[kind][1]
    with pytest.raises(ValueError, match=f"positive has no picture, and this model goes on from one.*of {node}, with"):
        given(kind, None)


@either
def test_a_picture_of_another_size_is_refused_and_not_stretched(kind):
    said = f"positive goes on from a picture of 64 x 32 pixels, but the latents are of 48 x 32; set width .* of {KINDS[kind][1]}"
    with pytest.raises(ValueError, match=said):
        given(kind, picture_of(kind, sides=(4, 8)))


@either
def test_a_negative_may_have_none_but_none_of_another_size(kind):
    without = given(kind, picture_of(kind), without=lambda one: pictured(one, None)).data.unconditional
    assert without["c_concat"].abs().max() == 0.0
    with pytest.raises(ValueError, match="negative goes on from a picture of 64 x 32 pixels"):
        given(kind, picture_of(kind), without=lambda one: pictured(one, picture_of(kind, sides=(4, 8))))


@needs_wan
@pytest.mark.parametrize(("frames", "pixels"), [(2, 5), (4, 13)])
def test_a_clip_of_another_length_is_refused_by_name(frames, pixels):
    said = f"positive is for a clip of {pixels} frames, but the latents are of 9; set length of WanImageToVideo to 9"
    with pytest.raises(ValueError, match=said):
        given("wan", picture_of("wan", frames=frames))


@needs_wan
def test_a_model_of_text_says_that_it_does_not_look_at_the_picture(caplog):
    one = ALL["wan"]
    latents, said = {"samples": torch.randn(1, 16, 3, 4, 6)}, "positive carries a picture, which this model (WAN21)"
    for picture, heard in ((None, False), ((1, 16, 3, 4, 6), True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data_in_graph(one.model(), latents, pictured(one, picture), None, dropout=0.0)
        assert (said in caplog.text) == heard
