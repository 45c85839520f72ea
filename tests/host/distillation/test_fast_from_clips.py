"""Make It Fast with a folder and a model of video: clips with captions, as Training Clips (Folder) gives them."""

import current_architectures
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.trainers.data.cache import read_data
from encoders import RandomCLIP
from making_clips import needs_av
from making_data import distil, run_folder
from test_clip_folder import clip_folder, clips  # noqa: F401 (a fixture)
from test_clips_from_prompts import Video, make, quick  # noqa: F401 (a fixture)
from test_first_frames import WAN21, Another, Colours, Eyes, looking, of
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)
from todays_inputs import CHANNELS, WIDTH, Stills, stand_in

CLIP = RandomCLIP(WIDTH, 24)
RATES = {"wan": 16.0, "wan22_5b": 24.0, "hunyuan_video": 24.0, "ltxv": 25.0, "kandinsky5": 24.0, "cogvideox": 0.0}
GIVEN = {"clip": CLIP, "folder": "clips", "side": 64, "frames": 5}


def wished(model, folder, **changed):
    given = {**GIVEN, "folder": str(folder), "steps": 2, "goal": choosing.CLOSEST, "vae": Colours()}
    return choosing.Wishes(model=model, **{**given, **changed})


@needs_av
@pytest.mark.parametrize("goal", [choosing.CLOSEST, choosing.SHARPEST])
def test_a_folder_of_clips_is_planned_and_trained_on_as_by_its_node(goal, output, clip_folder, quick):  # noqa: F811
    told = make(stand_in(Video), make_it_fast.PLAN, **GIVEN, vae=Colours(), goal=goal)["ui"]["text"][0]
    place = f"data: 2 clips of {clip_folder}, at about 64 x 64, the first 5 frames of each as fast as they are"
    assert f"{place}; 1 have no caption and count as clips of the empty prompt" in told
    assert ("only captions and sizes count" in told) == (goal == choosing.SHARPEST)
    assert "encoding 2 clips" in told
    make(stand_in(Video), make_it_fast.TRAIN, **GIVEN, vae=Colours(), goal=goal)
    assert (run_folder(output, "run") / "student.safetensors").exists()
    by_node = clips(Colours(), CLIP, caption="", frame_rate=0.0, bucket_step=64)
    distil(stand_in(Video), name="by node", data=by_node)
    ours, theirs = (read_data(run_folder(output, name) / "data") for name in ("run", "by node"))
    assert ours.x0.shape == (2, CHANNELS, 2, 8, 8)
    assert torch.equal(ours.x0, theirs.x0)
    assert ours.condition.keys() == theirs.condition.keys()
    assert all(torch.equal(value, theirs.condition[name]) for name, value in ours.condition.items())


@needs_av
@pytest.mark.parametrize("do", [make_it_fast.PLAN, make_it_fast.TRAIN])
def test_a_clips_first_frame_is_the_picture_where_the_model_wants_one(do, output, clip_folder, quick):  # noqa: F811
    made = make(of(WAN21, Video), do, **GIVEN, vae=Colours())
    assert "data: 2 clips" in made["ui"]["text"][0]
    if do == make_it_fast.TRAIN:
        told = read_data(run_folder(output, "run") / "data").first(1).condition["image_cond"]
        assert told[:, -1].mean(dim=(-2, -1)).tolist() == [[0.0, 1.0]], "the first is given"


@needs_av
def test_clip_vision_looks_at_the_first_frames_too(output, clip_folder, quick):  # noqa: F811
    make(looking(Video), make_it_fast.TRAIN, **GIVEN, vae=Colours(), clip_vision=Eyes())
    assert "clip_fea" in read_data(run_folder(output, "run") / "data").first(1).condition


@needs_av
def test_clip_vision_that_nobody_looks_by_is_refused_before_anything_is_tried(clip_folder):  # noqa: F811
    with pytest.raises(ValueError, match="clip_vision is connected, but this model"):
        wished(stand_in(Video), clip_folder, clip_vision=Eyes())


@needs_av
def test_another_model_that_wants_a_picture_is_refused_before_anything_is_tried(clip_folder):  # noqa: F811
    with pytest.raises(ValueError, match="goes on from a picture, which prompts alone and folders do not give it"):
        wished(of(Another), clip_folder)


@needs_av
@pytest.mark.parametrize("kind", current_architectures.kinds(*RATES))
def test_clips_are_read_at_the_rate_that_the_family_draws_for(kind, clip_folder):  # noqa: F811
    source = wished(current_architectures.tiny(kind)[0], clip_folder).data()["data"]
    assert (source.frame_rate, source.frames, source.resolution) == (RATES[kind], 5, 64)
    at = "as fast as they are" if kind == "cogvideox" else f"at {RATES[kind]:g} a second"
    assert any(
        f"the first 5 frames of each {at}" in said
        for said in wished(current_architectures.tiny(kind)[0], clip_folder).told()
    )


@needs_av
def test_the_plan_says_that_clip_vision_is_not_connected(clip_folder):  # noqa: F811
    """The training says so as it begins, which may be a night later."""
    words = "looks at its picture by CLIP vision, too, and clip_vision is not connected"
    for clip_vision in (None, Eyes()):
        said = " ".join(wished(looking(Video), clip_folder, clip_vision=clip_vision).told())
        assert (words in said) == (clip_vision is None)


@needs_av
def test_clips_without_any_caption_are_refused_before_anything_is_tried(clip_folder):  # noqa: F811
    (clip_folder / "a.txt").unlink()
    said = r"of whose 2 clips none has a caption beside it: .* fox.txt for fox.mp4, .* take Training Clips \(Folder\)"
    with pytest.raises(ValueError, match=said):
        wished(stand_in(Video), clip_folder)


@pytest.mark.parametrize(
    ("latent_format", "given", "said"),
    [
        (Video, {"frames": 0}, "Set frames, of each clip in folder, or of those that the model draws"),
        (Stills, {}, "frames is 5, but this model draws still pictures; set frames to 0"),
        (Video, {"side": 32}, "side is 32; what is in a folder wants 64 or more"),
    ],
    ids=["no frames", "of stills", "small"],
)
def test_what_a_folder_of_clips_cannot_be_is_named(latent_format, given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        wished(stand_in(latent_format), tmp_path, **given)
