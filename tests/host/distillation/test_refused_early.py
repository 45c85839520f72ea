"""What no run could use is refused before anything is encoded or drawn, which may take hours."""

import sys

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from encoders import Counting
from making_data import distil, images, prompts, run_folder
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


def patched(factor):
    """A MODEL whose attention is another by a factor, for the prompt alone if that is 0."""
    model = tiny("sd15")
    model.set_model_attn1_output_patch(
        lambda out, options: out * (factor or 1.0 + options["cond_or_uncond"].count(0) / len(options["cond_or_uncond"]))
    )
    return model


@pytest.mark.parametrize(
    ("factor", "student", "said"),
    [
        (
            0.0,
            None,
            "attn1_output_patch .* it acts on prompt and negative prompt together, which training cannot follow",
        ),
        (1.5, students.FullWeights(), "attn1_output_patch .*, which full weights cannot take over"),
    ],
    ids=["a LoRA", "full weights"],
)
def test_patches_that_training_cannot_follow_are_refused_before_the_teacher_draws(
    factor, student, said, output, clip, monkeypatch
):
    drawn, draw = [], host.data.draw
    monkeypatch.setattr(host.data, "draw", lambda *given, **named: drawn.append(1) or draw(*given, **named))
    given = {} if student is None else {"student": student}
    with pytest.raises(ValueError, match=said):
        distil(patched(factor), name="refused", data=prompts(clip), **given)
    assert drawn == []
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
