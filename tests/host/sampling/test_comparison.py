"""Compare Teacher and Student: what it says, what it shows, what it refuses."""

import math

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from PIL import Image

import_host()

from comfyui_fewstep.nodes.sampling.comparison import MOST_SHOWN, Compare, stacked


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The host's temporary folder, for this test alone; it does not exist yet."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return tmp_path / "temp"


@pytest.mark.parametrize(("error", "said"), [(0.1, "20.0"), (0.01, "40.0"), (0.0, "100.0")])
def test_psnr_is_twenty_decibels_for_each_tenth(error, said, kept):
    teacher = torch.full((2, 8, 12, 3), 0.5)
    (text,) = Compare().compare(teacher, teacher + error)["ui"]["text"]
    assert text == f"PSNR {said} dB over 2 pictures of 12x8"


def test_psnr_is_of_all_pictures_together(kept):
    teacher = torch.zeros(2, 8, 8, 3)
    student = torch.stack([torch.zeros(8, 8, 3), torch.full((8, 8, 3), 0.2)])
    (text,) = Compare().compare(teacher, student)["ui"]["text"]
    assert float(text.split()[1]) == pytest.approx(-10 * math.log10(0.2**2 / 2), abs=0.05)


def test_the_picture_has_the_teacher_above_and_the_student_below(kept):
    teacher = torch.linspace(0.0, 0.4, 10)[:, None, None, None].expand(10, 8, 6, 3)
    made = Compare().compare(teacher, teacher + 0.5)
    (shown,) = made["ui"]["comparison"]
    assert (shown["type"], shown["subfolder"]) == ("temp", "")
    (output,) = made["result"]
    assert output.shape == (1, 16, 6 * MOST_SHOWN, 3)
    assert torch.equal(output[0, :8, 6:12], teacher[1])
    assert torch.equal(output[0, 8:, 6:12], teacher[1] + 0.5)
    written = np.asarray(Image.open(kept / shown["filename"])) / 255
    assert np.abs(written - output[0].numpy()).max() <= 1 / 255


def test_pictures_of_other_sizes_or_numbers_are_refused(kept):
    with pytest.raises(ValueError, match="teacher is 2 pictures of 8x8 and student is 1 picture of 8x8"):
        Compare().compare(torch.zeros(2, 8, 8, 3), torch.zeros(1, 8, 8, 3))
    assert not kept.exists()


def test_what_is_transparent_is_no_part_of_the_comparison(kept):
    """It is not shown either, and a student that was saved without it is of the same size."""
    teacher = torch.cat([torch.full((1, 8, 8, 3), 0.5), torch.ones(1, 8, 8, 1)], dim=-1)
    (text,) = Compare().compare(teacher, torch.full((1, 8, 8, 3), 0.6))["ui"]["text"]
    assert text == "PSNR 20.0 dB over 1 picture of 8x8"


def test_rows_are_stacked_in_order():
    rows = [torch.tensor([[[[1.0]]], [[[2.0]]]]), torch.tensor([[[[3.0]]], [[[4.0]]]])]
    assert stacked(rows)[..., 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
