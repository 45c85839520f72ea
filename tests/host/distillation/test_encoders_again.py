"""A VAE and a CLIP connected again: a run whose data are whole wants neither, whichever they are and whatever they are in."""

import json
import logging

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import training_data
from encoders import Counting, tiny_clip, tiny_vae
from making_data import distil, images, prompts, run_folder, same_tensors, student_of


def in_bfloat16(vae=None, clip=None):
    """As another card or --bf16-vae has it."""
    with torch.inference_mode():
        (vae.first_stage_model if vae else clip.cond_stage_model).bfloat16()
    if vae:
        vae.vae_dtype = torch.bfloat16
    return vae or clip


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (lambda: (in_bfloat16(vae=tiny_vae()), tiny_clip()), ["vae", "float32", "bfloat16"]),
        (lambda: (tiny_vae(), in_bfloat16(clip=tiny_clip())), ["clip", "float32", "bfloat16"]),
        (lambda: (tiny_vae(seed=1), tiny_clip()), ["vae"]),
    ],
    ids=["vae in another dtype", "clip in another dtype", "another vae"],
)
def test_a_run_whose_data_are_whole_goes_on_and_says_that_another_made_them(
    others, said, output, folder, vae, clip, caplog
):
    model = tiny("sd15")
    distil(model, name="run", data=images(vae, clip))
    finished, counted = student_of(output, "run"), [Counting(each) for each in others()]
    with caplog.at_level(logging.WARNING):
        *_, lora = distil(model, name="run", data=images(*counted))
    assert same_tensors(lora, finished)
    assert [len(each.seen) for each in counted] == [0, 0]
    (told,) = [text for text in warnings_of(caplog) if "goes on with" in text]
    assert all(word in told for word in said)
    caplog.clear()
    distil(model, name="run", data=images(vae, clip))
    assert not [text for text in warnings_of(caplog) if "goes on with" in text]


def test_of_prompts_too(output, clip):
    model = tiny("sd15")
    distil(model, name="drawn", data=prompts(clip))
    distil(model, name="drawn", data=prompts(in_bfloat16(clip=tiny_clip())))
    options = {"prompts": "a red fox", "negative": "", "width": 48, "height": 32}
    run = host.folders.run_named("alone")
    for encoder in (clip, in_bfloat16(clip=tiny_clip())):
        (alone,) = training_data.TrainingPrompts().describe(**options, clip=encoder)
        with torch.inference_mode(False):
            alone.build(model, run, teacher_sha256="0")
        run.place("checkpoints").mkdir(exist_ok=True)
        run.place("checkpoints", "00000001.safetensors").touch()
        run.place("run.json").write_text(json.dumps({"run": {"method": "x", "teacher_sha256": "0"}}))


def test_what_is_missing_wants_the_same_in_the_same_dtype(output, folder, vae, clip):
    """The error says what it was in, what it is in now, and what to do."""
    model = tiny("sd15")
    distil(model, name="run", data=images(vae, clip))
    data = run_folder(output, "run") / "data"
    (data / "00000.safetensors").unlink()
    said = r"begun on other training data.*vae: there .* in float32, here .* in bfloat16.*other dtype.*--fp32-vae"
    with pytest.raises(ValueError, match=said):
        distil(model, name="run", data=images(in_bfloat16(vae=tiny_vae()), clip))
    source = json.loads((data / "source.json").read_text())
    del source["made_in"]  # as older versions wrote it
    (data / "source.json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match=r"vae: there \"\w+\", here \"\w+\" in bfloat16"):
        distil(model, name="run", data=images(in_bfloat16(vae=tiny_vae()), clip))
    distil(model, name="run", data=images(vae, clip))


def test_data_that_give_way_to_others_are_said(output, folder, vae, clip, caplog, monkeypatch):
    """Before a run has begun: encoding them may have taken hours."""
    model, run = tiny("sd15"), host.folders.run_named("run")
    with torch.inference_mode(False), caplog.at_level(logging.WARNING):
        images(vae, clip).build(model, run, teacher_sha256="0")
        assert not [text for text in warnings_of(caplog) if "made anew" in text]
        images(in_bfloat16(vae=tiny_vae()), clip).build(model, run, teacher_sha256="0")
    (told,) = [text for text in warnings_of(caplog) if "made anew" in text]
    assert "in float32" in told
    assert "in bfloat16" in told
