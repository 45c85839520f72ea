"""Pictures before edits that nobody has drawn: what a method that draws its own samples learns from, and no other."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes.distillation.data import folder_data
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.learning import matching_method
from encoders import MeanVAE
from making_data import FOLDER, distil, picture, same_tensors, student_of
from test_clips_from_prompts import make, quick  # noqa: F401 (a fixture)
from test_edits import CLIP, GIVEN, Draws, Flux, before, data_of, edited, of
from test_edits import edits as pairs  # noqa: F401 (a fixture)
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)

ALONE = {**GIVEN, "folder": "", "goal": choosing.SHARPEST}


@pytest.fixture
def edits(pairs):  # noqa: F811
    """What is asked for stands beside the pictures before the edit; there are no others."""
    for file in (pairs / "after").iterdir():
        if file.suffix == ".txt":
            file.rename(pairs / "before" / file.name)
        else:
            file.unlink()
    (pairs / "after").rmdir()
    return pairs


def alone(vae, **changed):
    return edited(vae, folder="before", **changed)


def matching():
    given = {"steps": 2, "iterations": 2, "learning_rate": 1e-3, "guidance_scale": 1.5}
    declared = matching_method.DistributionMatching.INPUT_TYPES()
    usual = {
        name: kind[1].get("default", kind[0][0] if isinstance(kind[0], list) else None)
        for name, kind in (declared["required"] | declared.get("optional", {})).items()
    }
    return matching_method.DistributionMatching().make(**{**usual, **given})[0]


def test_each_is_told_its_own_picture_and_what_is_asked_for(output, edits):
    distil(of(Flux), name="run", method=matching(), data=alone(MeanVAE()))
    square, _ = sorted(data_of(output).buckets, key=lambda bucket: bucket.condition["ref_latents[0]"].shape[-2])
    for told in (square.condition, square.unconditional):
        torch.testing.assert_close(told["ref_latents[0]"], before(edits, "a", (64, 64)))
    assert "student.safetensors" in {file.name for file in (output / "fewstep" / "runs" / "run").iterdir()}


def test_what_is_learnt_hangs_on_the_pictures(output, edits):
    students = []
    for seed in (0, 50):
        picture(edits / "before" / "a.webp", 64, 64, seed=seed)
        distil(of(Flux), name=f"run {seed}", method=matching(), data=alone(MeanVAE()))
        students.append(student_of(output, f"run {seed}"))
    assert any(not torch.equal(students[0][key], students[1][key]) for key in students[0])


def test_methods_that_want_pictures_after_the_edit_are_refused(output, edits):
    said = (
        r"references is the folder itself, of pictures before an edit that nobody has drawn, but progressive distillation "
        r"learns from pictures; connect Training Prompts"
    )
    with pytest.raises(ValueError, match=said):
        distil(of(Flux), name="run", data=alone(MeanVAE()))


def test_the_node_says_so(output, edits):
    given = {**FOLDER, "folder": "before", "references": "before", "vae": MeanVAE(), "clip": CLIP}
    (said,) = folder_data.ImageFolder().describe(**given)["ui"]["text"]
    assert said.endswith("2 with a caption file. Each is the picture before an edit that nobody has drawn.")
    assert folder_data.ImageFolder.VALIDATE_INPUTS(folder="before", references="before") is True


def test_make_it_fast_takes_them_for_the_goal_that_wants_no_others(output, edits, quick):  # noqa: F811
    told = make(of(Flux), make_it_fast.PLAN, **ALONE)["ui"]["text"][0]
    assert (
        f"2 pictures of {edits / 'before'}, at about 64 x 64, each the picture before an edit that nobody has" in told
    )
    make(of(Flux), make_it_fast.TRAIN, **ALONE)
    wished = choosing.Wishes(model=of(Flux), steps=2, **ALONE)
    sizes = {"resolution": 64, "bucket_step": 64, "without_caption": "use caption"}
    distil(of(Flux), name="by node", method=matching(), data=alone(Draws(), **sizes))
    assert same_tensors(data_of(output).tensors(), data_of(output, "by node").tensors())
    assert wished._sample().condition["ref_latents[0]"].shape == wished._sample().x0.shape


@pytest.mark.parametrize("goal", [choosing.CLOSEST, choosing.CHEAPEST])
def test_make_it_fast_says_which_goal_needs_none(goal, output, edits):
    with pytest.raises(ValueError, match="; give it, too, or set goal to sharpest, which needs none"):
        choosing.Wishes(model=of(Flux), steps=2, **{**ALONE, "goal": goal})


def test_a_folder_of_no_use_is_named_before_a_model_is_loaded(output, edits):
    asked = make_it_fast.MakeItFast.VALIDATE_INPUTS
    assert asked(run_name="run", folder="", references="before") is True
    assert "elsewhere', which is no folder" in asked(run_name="run", folder="", references="elsewhere")
    for file in (edits / "before").glob("*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match="references is 'before', of whose 2 pictures none has a caption beside it"):
        choosing.Wishes(model=of(Flux), steps=2, **ALONE)
