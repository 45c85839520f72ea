"""What no run could use is refused before anything is encoded or drawn, which may take hours."""

import sys

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from encoders import Counting
from making_data import distil, images, run_folder
from test_starting_lora import LoRALayers, speed_lora, student


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup": 99}, "warmup is 99, but the stage"),
        ({"start_from": "nobody's"}, "nobody's"),
        ({"optimiser": "adamw8bit"}, "needs the Python package bitsandbytes"),
    ],
)
def test_what_no_run_could_use_is_refused_before_anything_is_encoded(
    given, said, output, folder, vae, clip, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    counted = Counting(vae), Counting(clip)
    with pytest.raises(ValueError, match=said):
        distil(tiny("sd15"), name="refused", data=images(*counted), **given)
    assert [len(each.seen) for each in counted] == [0, 0]
    assert not run_folder(output, "refused").exists()


@pytest.mark.parametrize(
    ("architecture", "layers", "said"),
    [
        ("sd3", LoRALayers.LINEAR, r"of the \d+ layers of speed .* are not in this model"),
        ("sd15", LoRALayers.LINEAR_AND_CONV, "has no adapter; set layers to linear_and_conv"),
    ],
)
def test_a_lora_of_which_no_run_could_begin_is_refused_before_anything_is_encoded(
    architecture, layers, said, output, folder, vae, clip
):
    file, _ = speed_lora(tiny(architecture), layers=layers)
    counted = Counting(vae), Counting(clip)
    with pytest.raises(ValueError, match=rf"start_lora is {file}: .*{said}"):
        distil(tiny("sd15"), name="refused", data=images(*counted), student=student(start_lora=file))
    assert [len(each.seen) for each in counted] == [0, 0]
    assert not run_folder(output, "refused").exists()
