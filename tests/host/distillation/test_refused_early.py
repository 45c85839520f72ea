"""What no run could use is refused before anything is encoded or drawn, which may take hours."""

import sys

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from encoders import Counting
from making_data import distil, images, run_folder


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
