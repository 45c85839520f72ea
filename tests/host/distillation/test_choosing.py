"""What Make It Fast chooses by a model's family and says of the data, and the folder that it does not take."""

import sys

import current_architectures
import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.learning.families import family_of
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from encoders import RandomCLIP
from PIL import Image
from test_lora import output  # noqa: F401 (a fixture)
from test_make_it_fast import make, timed_once  # noqa: F401 (a fixture)

FAMILIES = [
    ("sd15", "Stable Diffusion 1 or 2", 512, 7.0),
    ("sd2_v", "Stable Diffusion 1 or 2", 768, 7.0),
    ("sdxl", "SDXL", 1024, 7.0),
    ("sd3", "Stable Diffusion 3", 1024, 4.5),
]
PICTURES_IN_FRAMES = ("anima", "cosmos_predict2", "joy_image", "krea2", "qwen_image")
TODAYS_FAMILIES = {
    "flux": ("Flux", 1.0),
    "flux2": ("FLUX.2", 1.0),
    "flux2_klein": ("FLUX.2", 5.0),
    "cascade_c": ("Stable Cascade", 4.0),
    "hunyuan_video": ("HunyuanVideo", 1.0),
    "hunyuan_video15": ("HunyuanVideo", 6.0),
    "cogvideox": ("CogVideoX", 6.0),
    "wan": ("Wan", 5.0),
    "wan_i2v": ("Wan", 5.0),
    "wan22_5b": ("Wan 2.2 5B", 5.0),
    "ltxv": ("LTX-Video", 3.0),
    "ltxav": ("LTX-2", 4.0),
    "mochi": ("Mochi", 4.5),
    "kandinsky5": ("Kandinsky 5", 5.0),
    "kandinsky5_image": ("Kandinsky 5 of pictures", 3.5),
    "svd": ("Stable Video Diffusion", 2.5),
    "minimax_h3": ("MiniMax H3", 1.0),
    "cosmos_predict2": ("Cosmos Predict2", 4.0),
    "cosmos_predict2_i2v": ("Cosmos Predict2", 4.0),
}


STILLS = ("flux", "flux2", "flux2_klein", "cascade_c", "cosmos_predict2", "kandinsky5_image")


@pytest.mark.parametrize(("kind", "name", "side", "guidance"), FAMILIES)
def test_families(kind, name, side, guidance):
    found = family_of(tiny(kind))
    assert (found.name, found.side, found.guidance) == (name, side, guidance)


@pytest.mark.parametrize("kind", current_architectures.kinds(*TODAYS_FAMILIES))
def test_families_of_today(kind):
    """A network that is told its guidance was distilled from a guided one, and is drawn with at cfg 1; its base is guided."""
    found = family_of(current_architectures.tiny(kind)[0])
    assert (found.name, found.guidance) == TODAYS_FAMILIES[kind]
    assert found.video == (kind not in STILLS)


@pytest.mark.parametrize("kind", current_architectures.kinds(*PICTURES_IN_FRAMES))
def test_a_model_of_pictures_in_a_videos_form_is_no_model_of_video(kind):
    assert not family_of(current_architectures.tiny(kind)[0]).video


@pytest.mark.parametrize("kind", current_architectures.kinds("cascade_c", "hunyuan_image", "chroma_radiance"))
@pytest.mark.parametrize("goal", choosing.GOALS)
def test_a_usual_side_is_one_that_the_model_takes(kind, goal):
    """42 pixels of Stable Cascade are one latent."""
    model = current_architectures.tiny(kind)[0]
    wishes = choosing.Wishes(model=model, steps=4, goal=goal, clip=object())
    width = wishes.data()["data"].width
    host.data.require_sides(model, width=width)
    assert 1000 <= width <= 1024


def wished(tmp_path, captions, **changed):
    """Of a folder of three pictures, those named with captions."""
    for number in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    for number in captions:
        (tmp_path / f"{number}.txt").write_text("a fox")
    given = {"model": tiny("sd15"), "steps": 4, "goal": choosing.CLOSEST, "clip": RandomCLIP(768, 768), "vae": object()}
    return choosing.Wishes(**{**given, "folder": str(tmp_path), "side": 64, **changed})


def test_a_folder_without_any_caption_is_refused_before_anything_is_tried(tmp_path):
    """Its student would learn no prompts, and guidance between two empty ones is none."""
    with pytest.raises(ValueError, match=r"folder is '.*', of whose 3 pictures none has a caption beside it"):
        wished(tmp_path, ())


def test_the_plan_says_what_counts_of_a_folder(tmp_path):
    place = f"data: 3 pictures of {tmp_path}, at about 64 x 64"
    assert f"{place}; 2 have no caption and count as pictures of the empty prompt" in wished(tmp_path, (1,)).told()
    assert place in wished(tmp_path, range(3)).told()
    sharpest = wished(tmp_path, range(3), goal=choosing.SHARPEST)
    assert f"{place}; of them only captions and sizes count for this goal" in sharpest.told()


def test_guidance_that_is_chosen_is_taken_and_what_is_usual_is_capped_for_matching():
    given = {"model": tiny("sdxl"), "steps": 4, "clip": RandomCLIP(2048, 1280), "goal": choosing.SHARPEST}
    found = [choosing.Wishes(**given, guidance=guidance).method.guidance_scale for guidance in (0.0, 7.5, 2.0)]
    assert found == [5.0, 7.5, 2.0]
    assert choosing.Wishes(**{**given, "goal": choosing.CLOSEST}).method.guidance_scale == 7.0


@pytest.mark.parametrize("prompts", ["", " \n \n"])
def test_prompts_of_nothing_are_the_everyday_ones(prompts):
    wishes = choosing.Wishes(
        model=tiny("sd15"), steps=4, goal=choosing.SHARPEST, clip=RandomCLIP(768, 768), prompts=prompts, side=32
    )
    assert len(wishes.data()["data"].prompts) == 240


@pytest.mark.parametrize("goal", choosing.GOALS)
def test_of_the_demo_nothing_has_to_be_given(goal):
    """Its text encoder knows digits alone, and of 512 pixels a side it would draw 256 of them."""
    teacher, vae, clip = digits.DemoTeacher().load()
    wishes = choosing.Wishes(model=teacher, vae=vae, clip=clip, steps=4, goal=goal)
    made = wishes.data()["data"]
    assert made.prompts == tuple("0123456789")
    assert (made.width, made.height, wishes.method.guidance_scale) == (32, 32, 1.5)
    assert "your model: the demo's digits" in wishes.told()


def test_a_folder_of_digits_is_taken_at_the_least_size_that_a_folder_has(tmp_path):
    """The digits' own is smaller."""
    Image.new("L", (64, 64)).save(tmp_path / "7.png")
    (tmp_path / "7.txt").write_text("7")
    teacher, vae, clip = digits.DemoTeacher().load()
    wishes = choosing.Wishes(model=teacher, vae=vae, clip=clip, steps=4, goal=choosing.CLOSEST, folder=str(tmp_path))
    assert wishes.data()["data"].resolution == 64


def test_the_demo_is_made_fast_where_nothing_is_given_and_no_library_of_ours_installed(output, monkeypatch):  # noqa: F811
    """The template Make digits fast says so."""
    for library in ("matplotlib", "sklearn", "kornia"):
        monkeypatch.setitem(sys.modules, library, None)
    teacher, vae, clip = digits.DemoTeacher().load()
    made = make(teacher, steps="8", name="digits", vae=vae, clip=clip, pictures=10, iterations=2)
    assert "your model: the demo's digits" in made["ui"]["text"][0]
    run = RunFolder(output / "fewstep" / "runs", "digits")
    assert run.finished
    assert len(list((run.path / "previews").glob("*.png"))) == 3, "one for each halving"


def test_a_folder_of_no_use_is_named_before_anything_is_loaded(tmp_path):
    """The model, its text encoder and VAE were, for minutes."""
    asked = make_it_fast.MakeItFast.VALIDATE_INPUTS
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a fox")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    gone, texts, clips = (str(tmp_path / name) for name in ("gone", "texts", "clips"))
    assert "gone', which is no folder" in asked(run_name="run", folder=gone, references="")
    assert "texts' holds no pictures or clips; looked for are .png" in asked(
        run_name="run", folder=texts, references=""
    )
    linked = {"folder": gone, "references": None}, {"folder": None, "references": ""}
    for given in ({"folder": clips, "references": ""}, {"folder": " ", "references": ""}, *linked):
        assert asked(run_name="run", **given) is True
    assert "run name" in asked(run_name="a/b", folder=clips, references="")


def test_the_plan_says_what_is_connected_for_nothing():
    """Of clips that the model draws itself nothing is encoded."""
    given = {
        "model": tiny("sd15"),
        "steps": 4,
        "goal": choosing.CLOSEST,
        "clip": RandomCLIP(8, 8),
        "prompts": "a fox",
        "side": 64,
    }
    said = choosing.Wishes(**given, audio_vae=object()).told()
    assert "audio_vae is not used: it encodes clips in a folder, and folder is empty" in said
    assert not [line for line in said if "clip_vision" in line]
    assert not [line for line in choosing.Wishes(**given).told() if "is not used" in line]
