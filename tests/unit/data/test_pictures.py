"""Pictures: their sizes, their pixels, and what cannot be read."""

import io
import itertools
import struct
import sys
import types

import numpy as np
import pytest
import torch
from comfyui_fewstep.trainers.data import pictures
from comfyui_fewstep.trainers.data.files import BrokenFile
from comfyui_fewstep.trainers.data.pictures import bucket_for, bucket_sizes, fitted, picture_size, pixels
from PIL import Image, ImageFile, features
from torch.nn.functional import interpolate


def ramp(height, width):
    """(H, W, 3): grows by 1 / width a pixel from left to right, as a picture of a continuous ramp is sampled."""
    across = (torch.arange(width) + 0.5) / width
    return across.expand(height, width)[..., None].repeat(1, 1, 3)


# --- buckets ---------------------------------------------------------------------------------------------------------


def test_the_buckets_of_512():
    """By hand: for each width from 512 to 1024 in steps of 64 the largest height with width * height <= 512^2."""
    wide = [(512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    assert set(bucket_sizes(512, 64)) == {*wide, *((h, w) for w, h in wide)}


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (500, 64), (768, 8), (64, 64), (1000, 128)])
def test_buckets_are_as_large_as_they_may_be(resolution, step):
    sizes = bucket_sizes(resolution, step)
    square = resolution // step * step
    assert (square, square) in sizes
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert max(width, height) * min(width, height) + step * max(width, height) > resolution**2 or width == height
        assert (height, width) in sizes


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((4000, 4100), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((3000, 2000), (640, 384)),
        ((100, 90), (512, 512)),
        ((9000, 100), (1024, 256)),
    ],
)
def test_a_picture_goes_to_the_nearest_aspect_ratio(size, bucket):
    """log ratios: 1.778 lies between 1.667 (640 x 384) and 2.2; 1.5 between 1.286 and 1.667; 1.111 between 1 and 1.286."""
    assert bucket_for(size, bucket_sizes(512, 64)) == bucket


def test_upright_and_lying_pictures_are_treated_alike():
    buckets = bucket_sizes(512, 64)
    for width in range(500, 2200, 37):
        assert bucket_for((500, width), buckets) == bucket_for((width, 500), buckets)[::-1]


def test_of_two_sizes_alike_the_larger_one_is_taken():
    assert bucket_for((200, 100), [(64, 32), (128, 64), (32, 16)]) == (128, 64)


@pytest.mark.parametrize(("resolution", "step"), [(32, 64), (0, 64), (512, 0)])
def test_sizes_of_no_use_are_named(resolution, step):
    with pytest.raises(ValueError, match=f"resolution is {resolution} and bucket_step is {step}"):
        bucket_sizes(resolution, step)


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128), (24, 40), (8, 8), (200, 100)])
def test_one_colour_stays_itself(size):
    colour = torch.tensor([0.25, 0.5, 0.75])
    resized = fitted(colour.expand(61, 83, 3), size)
    assert resized.shape == (size[1], size[0], 3)
    torch.testing.assert_close(resized, colour.expand_as(resized), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(("width", "target"), [(64, 128), (128, 64), (96, 24), (300, 100)])
def test_a_ramp_stays_the_ramp(width, target):
    """Away from the borders, where there is nothing beyond: the same slope, and no shift of half a pixel.

    To a twentieth of a pixel of the source: torch's cubic has a = -0.75, which is exact on a ramp only where it reduces.
    """
    resized = fitted(ramp(width, width), (target, target))
    inner = slice(target // 4, -target // 4)
    torch.testing.assert_close(resized[inner, inner], ramp(target, target)[inner, inner], atol=0.05 / width, rtol=0.0)


def test_fine_stripes_become_grey_and_not_coarse_stripes():
    """Antialiasing: one pixel black, one white, seven to one."""
    stripes = (torch.arange(350) % 2).float().expand(350, 350)[..., None].repeat(1, 1, 3)
    assert (fitted(stripes, (50, 50))[5:-5, 5:-5] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("target", [640, 400, 250, 97])
def test_pixels_are_those_that_pillow_makes(target):
    """Its bicubic filter, the oracle, for each colour; reduced a little, 500 pixels would keep stripes that 400 cannot hold."""
    picture = torch.rand(500, 500, 3, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    colours = [Image.fromarray(colour.numpy()) for colour in picture.unbind(-1)]
    expected = [np.array(colour.resize((target, target), Image.Resampling.BICUBIC)) for colour in colours]
    torch.testing.assert_close(
        fitted(picture, (target, target)), torch.from_numpy(np.stack(expected, -1)), atol=1e-4, rtol=0
    )


def test_what_is_too_wide_is_cut_alike_on_both_sides():
    cut = fitted(ramp(100, 300), (100, 100))
    torch.testing.assert_close(cut, ramp(100, 300)[:, 100:200], atol=1e-6, rtol=0.0)
    torch.testing.assert_close(fitted(ramp(300, 100), (100, 100)), ramp(100, 100), atol=1e-6, rtol=0.0)


# --- files -----------------------------------------------------------------------------------------------------------

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize(("width", "height"), [(4000, 8), (8, 4000)])
def test_a_strip_is_cut_before_it_is_enlarged(width, height, monkeypatch):
    """Its middle comes out; enlarged whole it would take 64 times as much memory as the picture that is kept."""
    sizes = []
    monkeypatch.setattr(
        pictures, "interpolate", lambda *given, **how: sizes.append(given[1]) or interpolate(*given, **how)
    )
    bright = torch.zeros(height, width, 3)
    middle = (height // 2, width // 2)
    bright[max(middle[0] - 16, 0) : middle[0] + 16, max(middle[1] - 16, 0) : middle[1] + 16] = 1.0
    cut = fitted(bright, (64, 64))
    assert cut.shape == (64, 64, 3)
    assert cut.min() > 0.9999
    assert max(sizes[0]) <= 8 * 64 + 64


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def halves(height=16, width=16):
    """Red on the left, green on the right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = RED, GREEN
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation, tmp_path):
    """The eight orientations undo what turned the picture: the stored pixels differ, what is seen does not."""
    seen = Image.fromarray(halves(16, 32))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = seen.transpose(undo[orientation]) if orientation in undo else seen
    stored.save(tmp_path / "a.png", exif=exif)
    assert picture_size(tmp_path / "a.png") == (32, 16)
    assert torch.equal(pixels(tmp_path / "a.png", (32, 16)), torch.from_numpy(np.array(seen)).float() / 255)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x102, 4, (70000).to_bytes(4, "little")),
        (0x11A, 9, (-5).to_bytes(4, "little", signed=True)),
        (0x132, 11, bytes(4)),
    ],
    ids=["too large", "below 0", "no text"],
)
def test_what_else_exif_says_is_no_hindrance(tag, kind, value, tmp_path):
    """A tag of an odd type, as some tools write it: the picture is whole, and turned as it says."""
    entries = [(0x112, 3, (6).to_bytes(4, "little")), (tag, kind, value)]
    exif = b"Exif\0\0II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for number, form, content in sorted(entries):
        exif += struct.pack("<HHI", number, form, 1) + content
    Image.fromarray(halves(16, 32)).save(tmp_path / "a.jpg", exif=exif + bytes(4))
    assert picture_size(tmp_path / "a.jpg") == (16, 32)


@pytest.mark.parametrize("error", [TypeError("Missing dimensions"), struct.error("argument out of range")])
def test_whatever_a_broken_picture_raises_is_of_that_file_alone(error, tmp_path, monkeypatch):
    saved(tmp_path / "a.png", halves(16, 32))

    def load(picture):
        raise error

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(BrokenFile, match=str(error)):
        picture_size(tmp_path / "a.png")


def test_grey_of_any_depth_becomes_colour(tmp_path):
    eight = saved(tmp_path / "8.png", np.full((8, 8), 51, np.uint8))
    sixteen = saved(tmp_path / "16.png", np.full((8, 8), 13107 + 40, np.uint16))
    assert torch.equal(pixels(eight, (8, 8)), torch.full((8, 8, 3), 0.2))
    torch.testing.assert_close(pixels(sixteen, (8, 8)), torch.full((8, 8, 3), (13107 + 40) / 65535), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(kind, tmp_path):
    """A quarter opaque: 0.25 * colour + 0.75, whatever colour is hidden beneath."""
    layered = np.zeros((8, 8, 4), np.uint8)
    layered[..., 3] = 51
    picture = Image.fromarray(layered).convert(kind) if kind != "P" else Image.fromarray(layered).quantize(4)
    picture.save(tmp_path / "a.png")
    torch.testing.assert_close(pixels(tmp_path / "a.png", (8, 8)), torch.full((8, 8, 3), 0.8), atol=1e-6, rtol=0)


def linear_profile(kind=b"RGB "):
    """An ICC profile (version 2, ICC.1:2001-04) of sRGB's primaries whose values are linear light."""
    light = [(0.9642, 1, 0.8249), (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
    parts = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in xyz)) for xyz in light]
    tags = list(zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), parts, strict=True))
    tags += [(name, b"curv" + bytes(8)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    ends = list(itertools.accumulate((len(part) for _, part in tags), initial=132 + 12 * len(tags)))
    table = b"".join(name + struct.pack(">II", at, len(part)) for (name, part), at in zip(tags, ends, strict=False))
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x", ends[-1], 2 << 24, b"mntr", kind, b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return head + struct.pack(">I", len(tags)) + table + b"".join(part for _, part in tags)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_those_that_the_profile_means(mode, tmp_path):
    """Linear light in sRGB, by its definition (IEC 61966-2-1); what is transparent keeps its share of white."""
    light = np.array([200, 60, 40]) / 255
    Image.new(mode, (8, 8), (200, 60, 40, 102)[: len(mode)]).save(tmp_path / "a.png", icc_profile=linear_profile())
    seen = 1.055 * light ** (1 / 2.4) - 0.055
    expected = torch.tensor(seen if mode == "RGB" else 0.4 * seen + 0.6, dtype=torch.float32)
    torch.testing.assert_close(pixels(tmp_path / "a.png", (8, 8))[4, 4], expected, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("profile", [b"none", linear_profile(b"GRAY")])
def test_a_profile_of_no_use_leaves_the_colours(profile, tmp_path):
    Image.new("RGB", (8, 8), (200, 60, 40)).save(tmp_path / "a.png", icc_profile=profile)
    expected = torch.tensor([200, 60, 40]) / 255
    torch.testing.assert_close(pixels(tmp_path / "a.png", (8, 8))[4, 4], expected, atol=1e-4, rtol=0)


def broken_files(folder):
    """One of each kind, by name: what is said of it."""
    good = io.BytesIO()
    Image.fromarray(halves(64, 64)).save(good, "PNG")
    (folder / "cut.png").write_bytes(good.getvalue()[:-30])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    frames = [Image.fromarray(halves()), Image.fromarray(255 - halves())]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    saved(folder / "float.tiff", np.zeros((4, 4), np.float32))
    return {
        "cut.png": "truncated|broken|unrecognized",
        "empty.png": "no known picture format",
        "text.jpg": "no known picture format",
        "moving.gif": "2 pictures, not one",
        "float.tiff": "floating-point",
    }


@pytest.mark.parametrize("forgiving", [False, True])
def test_what_is_no_single_picture_says_why(forgiving, tmp_path, monkeypatch):
    """forgiving: as other node packs have Pillow when they are loaded, for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", forgiving)
    for name, said in broken_files(tmp_path).items():
        with pytest.raises(BrokenFile, match=said):
            picture_size(tmp_path / name)
    assert forgiving == ImageFile.LOAD_TRUNCATED_IMAGES, "which is theirs"


def test_the_first_frame_of_a_cameras_file_is_the_picture(tmp_path):
    """MPO, a JPEG with other views or a gain map behind it: as the host's own loader reads it."""
    first, second = Image.fromarray(halves(32, 64)), Image.fromarray(255 - halves(16, 16))
    first.save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    with Image.open(tmp_path / "camera.jpg") as read:
        assert (read.format, read.n_frames) == ("MPO", 2)
    assert picture_size(tmp_path / "camera.jpg") == (64, 32)
    seen, stored = pixels(tmp_path / "camera.jpg", (64, 32)), torch.from_numpy(halves(32, 64)).float() / 255
    assert (seen - stored).abs()[:, [*range(24), *range(40, 64)]].max() < 0.03


def test_a_photo_is_read_up_to_pillows_own_limit(tmp_path, monkeypatch):
    """Pillow warns above 89 million pixels, of which phones take 200, and refuses twice as many."""
    saved(tmp_path / "a.png", halves(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert picture_size(tmp_path / "a.png") == (64, 64)
    assert pixels(tmp_path / "a.png", (64, 64)).shape == (64, 64, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(BrokenFile, match="4096 pixels"):
        picture_size(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["jfif", "JFIF", "avif"])
def test_formats_that_pillow_reads(ending, tmp_path):
    if ending == "avif" and "avif" not in features.get_supported():
        pytest.skip("this Pillow reads no AVIF")
    saved(tmp_path / f"a.{ending}", halves(16, 16), format={"avif": "AVIF"}.get(ending, "JPEG"), quality=100)
    assert picture_size(tmp_path / f"a.{ending}") == (16, 16)


def test_a_reader_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BrokenFile, match="HEIC is read with pillow-heif: python -m pip install pillow-heif"):
        picture_size(tmp_path / "a.heic")
    monkeypatch.setattr(features, "get_supported", list)
    with pytest.raises(BrokenFile, match=r"this Pillow reads no AVIF, 11\.3 does"):
        picture_size(tmp_path / "a.avif")


def test_heic_is_read_where_its_reader_is(tmp_path, monkeypatch):
    """A stand-in of pillow-heif's one call, which teaches Pillow the format; the picture itself is a PNG."""
    taught = []
    reader = types.ModuleType("pillow_heif")
    reader.register_heif_opener = lambda: taught.append(1)
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    saved(tmp_path / "a.heic", halves(16, 32), format="PNG")
    assert picture_size(tmp_path / "a.heic") == (32, 16)
    assert taught
