"""What a student's file must hold, and how a copy of it is told from somebody else's file."""

import dataclasses
import shutil

import pytest
import torch
from comfyui_fewstep.samplers.recipe import Recipe
from comfyui_fewstep.trainers.storage.export import (
    CHECKSUM_KEY,
    LORA,
    about_merged,
    is_one_of,
    read_student,
    require_finite_weights,
    same_tensors,
    write_student,
)
from comfyui_fewstep.trainers.storage.files import read_tensors, write_tensors
from safetensors.torch import save_file

RECIPE = Recipe(
    prediction_type="eps",
    noise_family="variance_exploding",
    steps=1,
    sigmas=(14.6, 0.0),
    gamma=0.0,
    schedule="trailing",
    method="m",
    guidance_scale=1.0,
)


def student(path, value=1.0, dtype=torch.float32):
    tensors = {
        "whole": torch.ones(3, dtype=torch.int64),
        "bad": torch.full((2, 2), value).to(dtype),
        "good": torch.ones(2),
    }
    write_student(path, tensors, kind=LORA, recipe=RECIPE, teacher_sha256="ab", title="t", provenance={})
    return path


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_finite_weights_of_every_type_are_written(dtype, tmp_path):
    assert read_tensors(student(tmp_path / "a.safetensors", 2.0, dtype))[0]["bad"].dtype is dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_no_numbers_are_refused(value, dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"a\.safetensors is not written or used: 1 of its 3 tensors .* bad for one"):
        student(path, value, dtype)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_finite_where_nothing_is_written():
    require_finite_weights({"a": torch.zeros(0), "b": torch.ones(2, dtype=torch.bool)}, what="the student")


def test_a_copy_of_a_students_file_is_known(tmp_path):
    one, other = student(tmp_path / "1", 1.0), student(tmp_path / "2", 2.0)
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    linked.hardlink_to(one)
    shutil.copy(one, copied)
    for file in (linked, copied):
        assert is_one_of(file, [one, other])
        assert not is_one_of(file, [other])
        assert same_tensors(file, one)
        assert not same_tensors(file, other)


def test_what_only_says_so_is_none(tmp_path):
    """A file whose weights somebody changed with a tool that keeps the metadata, a cut one, a link, one without a checksum."""
    one = student(tmp_path / "1")
    tensors, metadata = read_tensors(one)
    save_file({**tensors, "good": tensors["good"] * 2}, tmp_path / "changed", metadata=metadata)
    (tmp_path / "cut").write_bytes(one.read_bytes()[:-1])
    (tmp_path / "link").symlink_to(one)
    save_file(tensors, tmp_path / "plain")
    write_tensors(tmp_path / "merged", tensors | {"more": torch.ones(1)}, metadata=metadata)
    for name in ("changed", "cut", "link", "plain", "merged", "absent"):
        assert not is_one_of(tmp_path / name, [one]), name


def test_a_merged_file_says_nothing_of_the_students_own_tensors():
    said = about_merged({CHECKSUM_KEY: "x", "fewstep.seed": "1"}, kind=LORA, title="t")
    assert CHECKSUM_KEY not in said
    assert said["fewstep.seed"] == "1"


@pytest.mark.parametrize(("own", "theirs"), [("eps", "epsilon"), ("v_prediction", "v"), ("x0", "x0")])
def test_predictions_are_told_in_modelspecs_words(own, theirs, tmp_path):
    path, recipe = tmp_path / "a.safetensors", dataclasses.replace(RECIPE, prediction_type=own)
    write_student(path, {"w": torch.ones(1)}, kind=LORA, recipe=recipe, teacher_sha256="ab", title="t", provenance={})
    _, _, said = read_student(path)
    assert said["modelspec.prediction_type"] == theirs
