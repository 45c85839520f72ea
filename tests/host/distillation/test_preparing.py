"""What comes before a run's training, as the plan says it: what is there already is not charged again."""

import random
import time

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import teacher
from comfyui_fewstep.nodes.distillation.data import folder_sources
from comfyui_fewstep.nodes.distillation.fast import preparing
from comfyui_fewstep.trainers.training import trial
from encoders import Counting, tiny_vae
from making_data import FOLDER, Cancelled, cancel_at, distil, images, picture, prompts
from test_frames import Counts
from todays_inputs import stand_in


@pytest.fixture(autouse=True)
def worked(monkeypatch):
    """What is timed is done, and takes three seconds; how often."""
    times = []
    monkeypatch.setattr(preparing, "seconds_of", lambda work, device: times.append(work()) or 3.0)
    return times


def planned(model, source, *, name="run"):
    with torch.inference_mode(False):
        return preparing.preparing(model, source, host.folders.run_named(name))


def begun(monkeypatch, model, source, *, call, name="run"):
    """A start that is cancelled while its data are made."""
    with monkeypatch.context() as patched, pytest.raises(Cancelled):
        cancel_at(patched, call)
        distil(model, name=name, data=source)


def test_drawing_counts_the_batches_that_are_left(output, clip, monkeypatch):
    """Six pictures, two at once, in four steps of a second each: three tried steps took three."""
    model = tiny("sd15")
    assert planned(model, prompts(clip)) == [("drawing 6 pictures", 3 * 4 * 1.0)]
    begun(monkeypatch, model, prompts(clip), call=5)
    assert planned(model, prompts(clip)) == [("drawing 2 of 6 pictures, for 4 are there", 1 * 4 * 1.0)]
    for other in ({"seed": 8}, {"cfg": 3.0}, {"batch_size": 3}):
        assert planned(model, prompts(clip, **other))[0][0] == "drawing 6 pictures", "those are drawn anew"
    distil(model, name="run", data=prompts(clip))
    assert planned(model, prompts(clip)) == []


def test_a_drawing_is_tried_as_it_will_be_done(output, monkeypatch):
    """Each picture alone, where the host would count the tokens of all prompts of a batch: six times four steps of a second."""
    model, counted = stand_in(), []
    own = type(model.model.diffusion_model).forward

    def forward(network, x, t, context=None, **given):
        counted.append((len(x), given["num_tokens"]))
        return own(network, x, t, context, **given)

    monkeypatch.setattr(type(model.model.diffusion_model), "forward", forward)
    ((_, seconds),) = planned(model, prompts(Counts(), text="one two", pictures_per_prompt=6, cfg=1.0))
    assert set(counted) == {(1, 2)}
    assert seconds == 6 * 4 * 1.0


def test_encoding_counts_the_files_that_are_left(output, folder, vae, clip, monkeypatch, worked):
    """One file in each file of the cache; two of those left are timed, after another."""
    monkeypatch.setattr(folder_sources.FolderSource, "together", 1)
    model, source = tiny("sd15"), images(vae, clip)
    count = len(source.found.files)
    assert count >= 4
    ((what, seconds),) = planned(model, source)
    assert (what, seconds) == (f"encoding {count} pictures", 3.0 * count)
    assert len(worked) == 3
    assert all(torch.isfinite(part.x0).all() for parts in worked for part in parts), "it is the encoding that is timed"

    begun(monkeypatch, model, source, call=2 * count + 4)
    there = len(list((output / "fewstep" / "runs" / "run" / "data").glob("*.safetensors")))
    assert 0 < there < count
    ((what, seconds),) = planned(model, source)
    assert what == f"encoding {count - there} of {count} pictures, for {there} are there"
    assert seconds == 3.0 * (count - there)
    assert planned(model, images(vae, clip, flip=True))[0][0] == f"encoding {count} pictures"
    distil(model, name="run", data=source)
    assert planned(model, source) == []


def test_what_cannot_be_decoded_is_left_to_the_start(output, folder, vae, clip):
    for file in folder.glob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    source = images(vae, clip)
    assert planned(tiny("sd15"), source) == [(f"encoding {len(source.found.files)} pictures", 0.0)]


def test_what_is_no_picture_is_named_at_once(output, folder, vae, clip):
    (folder / "4.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"1 of 5 pictures in .* cannot be used: 4\.png \("):
        planned(tiny("sd15"), images(vae, clip))


def test_a_caption_that_cannot_be_read_is_left_to_the_start(output, folder, vae, clip):
    """Latin-1 beside the last picture, which is one of those that are timed."""
    (folder / "4.txt").write_bytes(b"M\xfcller")
    source = images(vae, clip)
    assert planned(tiny("sd15"), source) == [("encoding 5 pictures", 5 * 3.0)], "as the other one that is timed takes"
    with pytest.raises(
        ValueError, match=r"1 of 5 pictures in .* cannot be used: 4\.png \(its caption 4\.txt is no UTF-8"
    ):
        distil(tiny("sd15"), name="run", data=source)


def test_an_encoder_that_is_missing_is_named(output, folder, clip):
    assert "vae" not in FOLDER
    with pytest.raises(ValueError, match=r"connect vae to Training Images \(Folder\)"):
        planned(tiny("sd15"), images(None, clip))


def test_data_that_will_give_way_are_none(output, clip):
    """Of a start that ended before its first checkpoint: with another seed, or by another teacher, they are drawn anew."""
    model, run = tiny("sd15"), host.folders.run_named("run")
    with torch.inference_mode(False):
        prompts(clip).build(model, run, teacher_sha256=teacher.hashed(model).sha256)
    assert planned(model, prompts(clip)) == []
    for other, source in ((model, prompts(clip, seed=8)), (tiny("sd15", seed=1), prompts(clip))):
        assert [what for what, _ in planned(other, source)] == ["drawing 6 pictures"]


def test_a_second_plan_times_the_encoding_as_the_first(output, folder, clip, monkeypatch):
    """What the first one tried is kept, and takes no time."""
    monkeypatch.setattr(preparing, "seconds_of", trial.seconds_of)
    for number in range(40):
        picture(folder / f"more {number}.png", 16, 16, seed=number)

    class Slow(Counting):
        def encode(self, pixels):
            time.sleep(0.1)
            return self._inner.encode(pixels)

    model, source = tiny("sd15"), images(Slow(tiny_vae()), clip)
    random.seed(0)
    for _ in range(3):
        ((what, seconds),) = planned(model, source)
        assert what == "encoding 45 pictures"
        assert seconds > 0.1 * 45
