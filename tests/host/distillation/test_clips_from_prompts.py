"""Clips from prompts alone: what the teacher draws of so many frames, with sound too, and prompts whose clips nobody draws."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

import current_architectures
from architectures import ALL
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, host
from comfyui_fewstep.nodes.distillation.data import preview_prompts, training_data
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.learning import matching_method
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from comfyui_fewstep.trainers.data.cache import read_data
from encoders import RandomCLIP
from hosting import ROOT, api_twin, stand_in_node
from making_data import distil, prompts, run_folder
from PIL import Image
from test_frames import Counts, Film, Sound, previews
from test_make_it_fast import halvings_of, timed_once  # noqa: F401 (a fixture)
from todays_inputs import CHANNELS, Frames, Stills, stand_in


class Video(Frames):
    temporal_downscale_ratio = 4


class Unsaid(Frames):
    temporal_downscale_ratio = None


class FilmAV(Video):
    """Of pictures with sound whose length nothing says."""

    def fix_empty_latent(self, latent):
        return latent


def refused(latent_format, said, output, **changed):
    with pytest.raises(ValueError, match=said):
        distil(stand_in(latent_format), name="run", data=prompts(Counts(), **changed))
    assert not (run_folder(output, "run") / "data").exists()


@pytest.mark.parametrize("frames", [5, 9])
def test_the_teacher_draws_clips_of_so_many_frames(frames, output):
    """Of one latent frame first, then of one for each four more; each from noise of its own."""
    distil(stand_in(Video), name="run", data=prompts(Counts(), text="one two three", frames=frames))
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape == data.noise.shape == (3, CHANNELS, 1 + frames // 4, 4, 6)
    assert len({float(frame.sum()) for noise in data.noise for frame in noise.unbind(1)}) == 3 * (1 + frames // 4)


@pytest.mark.parametrize(
    ("latent_format", "frames", "said"),
    [
        (Video, 8, "frames is 8; this model wants 1 more than a multiple of 4: 41, for example"),
        (Video, 0, "frames is 0"),
        (Stills, 5, "frames is 5, but this model draws still pictures; set it to 1"),
        (Sound, 5, r"latents \(StableAudio1\) are no pictures"),
        (Unsaid, 5, "frames is 5, but this ComfyUI does not say how many of them a latent of this model holds"),
        (FilmAV, 5, r"does not say how long the sound of this model's clips is \(FilmAV\); connect latents of clips"),
    ],
    ids=["between", "none", "of stills", "of sound", "unsaid", "with sound"],
)
def test_frames_that_the_model_does_not_draw_are_refused_before_work(latent_format, frames, said, output):
    refused(latent_format, said, output, frames=frames)


@pytest.mark.parametrize(("latent_format", "frames", "said"), [(Video, 1, True), (Video, 5, False), (Stills, 1, False)])
def test_stills_of_a_model_of_video_are_said(latent_format, frames, said, output, caplog):
    distil(stand_in(latent_format), name="run", data=prompts(Counts(), frames=frames))
    assert ("this is a model of video, and frames is 1" in caplog.text) == said


def test_clips_of_another_length_are_other_data_and_pictures_are_those_of_before(output):
    assert "frames" not in prompts(Counts()).described(), "of a run from before clips it says what it said"
    distil(stand_in(Video), name="run", data=prompts(Counts(), frames=5))
    with pytest.raises(ValueError, match=r"begun on other training data.*frames: there 5, here 9"):
        distil(stand_in(Video), name="run", data=prompts(Counts(), frames=9))


# --- Make It Fast ----------------------------------------------------------------------------------------------------

WISHES = {"steps": "2", "goal": choosing.CLOSEST, "run_name": "run", "prompt": {}, "unique_id": "1"}


def make(model, do, **wishes):
    return make_it_fast.MakeItFast().make(model, **{**WISHES, "do": do, **wishes})


@pytest.fixture
def quick(monkeypatch, timed_once):  # noqa: F811
    for goal in (choosing.CLOSEST, choosing.SHARPEST):
        monkeypatch.setitem(choosing.GOALS, goal, halvings_of(choosing.GOALS[goal]))
    monkeypatch.setattr(choosing, "BATCH", 2)


@pytest.mark.parametrize(("goal", "drawn"), [(choosing.CLOSEST, 2), (choosing.SHARPEST, 0)])
def test_make_it_fast_takes_a_model_of_video_with_frames(goal, drawn, output, quick):
    model, clip = stand_in(Video), Counts()
    given = {"clip": clip, "prompts": "a fox\na cat", "side": 32, "pictures": 2, "frames": 9, "goal": goal}
    told = make(model, make_it_fast.PLAN, **given)["ui"]["text"][0]
    if drawn:
        assert "data: 2 clips of 9 frames of 32 x 32 that your model draws from 2 prompts" in told
        assert "drawing 2 clips" in told
    else:
        assert "data: 2 prompts, for clips of 9 frames of 32 x 32" in told
    make(model, make_it_fast.TRAIN, **given)
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape == (2, CHANNELS, 3, 4, 4)
    assert bool(data.x0.any()) == bool(drawn)
    assert (run_folder(output, "run") / "student.safetensors").exists()


def test_usual_clips_are_smaller_than_pictures():
    wanted = choosing.Wishes(
        model=stand_in(Video), steps=2, goal=choosing.CLOSEST, clip=Counts(), prompts="a", frames=5
    )
    source = wanted.data()["data"]
    assert (source.width, source.height, source.frames, source.batch_size) == (480, 480, 5, 1)


@pytest.mark.parametrize(
    ("latent_format", "given", "said"),
    [
        (Video, {}, "a model of video, whose training data are clips. Set frames"),
        (Video, {"frames": 8}, "frames is 8; this model wants 1 more than a multiple of 4"),
        (Stills, {"frames": 5}, "frames is 5, but this model draws still pictures"),
        (
            Stills,
            {"frames": 5, "folder": "pictures", "vae": object()},
            "frames is 5, but this model draws still pictures; set frames to 0",
        ),
        (Video, {"frames": 5, "latents": {}}, "latents or positive is connected, and frames is given too"),
    ],
    ids=["none", "between", "of stills", "a folder", "latents"],
)
def test_make_it_fast_names_frames_of_no_use(latent_format, given, said, output):
    with pytest.raises(ValueError, match=said):
        make(stand_in(latent_format), make_it_fast.PLAN, clip=Counts(), side=32, **given)


def test_a_model_that_goes_on_from_a_picture_has_none_in_prompts():
    model = stand_in(Video)
    model.model.image_to_video = True
    with pytest.raises(ValueError, match="this model goes on from a picture, which prompts alone"):
        make(model, make_it_fast.PLAN, clip=Counts(), side=32, frames=5)


@pytest.mark.parametrize(
    "kind",
    current_architectures.kinds(
        *("wan", "wan_i2v", "wan22_5b", "svd", "cosmos_predict2", "hunyuan_video", "hunyuan_video_i2v", "ltxv")
    ),
)
def test_which_models_want_a_picture(kind):
    """Wan 2.2's of 5 billion weights is told apart: it goes on from a picture, or draws from a text."""
    assert host.data.wants_a_picture(ALL[kind].model()) == (kind in ("wan_i2v", "svd", "hunyuan_video_i2v"))


# --- the host's own --------------------------------------------------------------------------------------------------

LENGTHS = {
    "wan": 9,
    "ltxv": 17,
    "hunyuan_video": 9,
    "mochi": 13,
    "cosmos": 17,
    "cogvideox": 9,
    "minimax_h3": 22,
    "ltxav": 41,
}
"""In frames."""
SHORT = {"wan": 5, "minimax_h3": 5, "ltxav": 9}
"""Of two latent frames."""
EMPTY = {
    "wan": "EmptyHunyuanLatentVideo",
    "ltxv": "EmptyLTXVLatentVideo",
    "hunyuan_video": "EmptyHunyuanLatentVideo",
    "mochi": "EmptyMochiLatentVideo",
    "cosmos": "EmptyCosmosLatentVideo",
    "minimax_h3": "EmptyMiniMaxH3LatentAV",
    "ltxav": "EmptyLTXVLatentVideo",
}
"""The host's own nodes."""
MODULES = ("hunyuan", "lt", "mochi", "cosmos", "minimax_h3")


def known(*kinds):
    return current_architectures.kinds(*(kind for kind in kinds if kind in ALL))


def hosts_own(kind, *, width, height, length):
    import importlib

    for name in MODULES:
        found = getattr(importlib.import_module(f"comfy_extras.nodes_{name}"), EMPTY[kind], None)
        if found is not None:
            return found.execute(width, height, length)[0]["samples"]
    raise LookupError(kind)


def with_sound_of_ltx(video, frames):
    """By the host's own node, of a VAE of sound that is what LTX-2's says of itself: 16 kHz, a mel of 64 for each 160 samples."""
    from comfy.ldm.lightricks.vae.audio_vae import LATENT_DOWNSAMPLE_FACTOR, AudioVAE
    from comfy.nested_tensor import NestedTensor
    from comfy_extras.nodes_lt_audio import LTXVEmptyLatentAudio

    own = SimpleNamespace(latents_per_second=16000 / 160 / LATENT_DOWNSAMPLE_FACTOR)
    own.num_of_latents_from_frames = functools.partial(AudioVAE.num_of_latents_from_frames, own)
    own.latent_frequency_bins, own.output_sample_rate, own.sample_rate = 64 // LATENT_DOWNSAMPLE_FACTOR, 24000, 16000
    sound = LTXVEmptyLatentAudio.execute(frames, 25.0, 1, SimpleNamespace(latent_channels=8, first_stage_model=own))
    return NestedTensor([video, sound[0]["samples"]])


@pytest.mark.parametrize("kind", known(*EMPTY))
def test_a_clip_is_as_long_as_the_hosts_own_empty_latent(kind):
    size = {"width": 64, "height": 96}
    made = host.data.empty(ALL[kind].model(), **size, frames=LENGTHS[kind]).latent["samples"]
    theirs = hosts_own(kind, **size, length=LENGTHS[kind])
    theirs = with_sound_of_ltx(theirs, LENGTHS[kind]) if kind == "ltxav" else theirs
    streams = [one.unbind() if getattr(one, "is_nested", False) else [one] for one in (made, theirs)]
    assert [stream.shape for stream in streams[0]] == [stream.shape for stream in streams[1]]


@pytest.mark.parametrize("frames", [1, 4, 6, 23])
@pytest.mark.parametrize("kind", known("minimax_h3"))
def test_h3_wants_clips_of_its_own_lengths(kind, frames):
    with pytest.raises(ValueError, match=rf"frames is {frames}; this model wants 5, or multiples of 17 more: 124"):
        host.data.empty(ALL[kind].model(), width=64, height=64, frames=frames)


@pytest.mark.parametrize("kind", known("wan", "minimax_h3", "ltxav"))
def test_a_clip_drawn_again_from_its_noise_is_the_stored_one(kind, output):
    """By the host's own sampler; with sound, whose noise is packed behind that of the pictures."""
    model, clip, frames = ALL[kind].model(), RandomCLIP(ALL[kind].width, 8), SHORT[kind]
    size = {"width": 64, "height": 32}
    distil(model, name="run", data=prompts(clip, text="a red fox", pictures_per_prompt=2, frames=frames, **size))
    data = read_data(run_folder(output, "run") / "data")
    empty = host.data.empty(model, **size, frames=frames)
    assert data.x0.shape == data.noise.shape == (2, *empty.x0.shape[1:])
    encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
    sigmas = trailing_sigmas(4, table=host.models.noise_levels(host.models.model_sampling_of(model)))
    for i in range(2):
        with torch.inference_mode():
            latents = host.models.sample(
                model,
                host.data.comfy.samplers.sampler_object("euler"),
                sigmas,
                noise=empty.for_host(data.noise[i : i + 1]),
                positive=encoder.conditioning("a red fox"),
                negative=encoder.conditioning(""),
                cfg=2.0,
                seed=0,
            )
        again = host.inputs.latents_for_training(model, {"samples": latents})
        torch.testing.assert_close(again, data.x0[i : i + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", known("wan", "minimax_h3", "ltxav"))
def test_a_student_learns_clips_from_prompts_that_nobody_draws(kind, output):
    """Distribution matching, with a preview of the pictures in the middle, of one's own prompts too."""
    model, clip = ALL[kind].model(), RandomCLIP(ALL[kind].width, 8)
    (method,) = matching_method.DistributionMatching().make(
        steps=2, iterations=2, learning_rate=1e-3, guidance_scale=2.0
    )
    (source,) = training_data.TrainingPrompts().describe(
        "a fox\na cat", clip=clip, negative="", width=64, height=32, frames=SHORT[kind]
    )
    shown = preview_prompts.Previews(prompts=("a bird",), clip=clip)
    distil(model, name="run", method=method, data=source, vae=Film(), previews=shown, batch_size=2)
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape[1:] == host.data.empty(model, width=64, height=32, frames=SHORT[kind]).x0.shape[1:]
    assert (run_folder(output, "run") / "student.safetensors").exists()
    pictures = [np.asarray(Image.open(file)) for file in previews(output, "run")]
    assert pictures
    assert all((picture == int(255 * 0.1)).mean() > 0.8 for picture in pictures), "the second of two, but for the words"


@pytest.mark.parametrize("kind", known("minimax_h3"))
def test_make_it_fast_plans_and_trains_video_with_sound(kind, output, quick):
    model, clip = ALL[kind].model(), RandomCLIP(ALL[kind].width, 8)
    given = {"clip": clip, "prompts": "a fox\na cat", "side": 32, "pictures": 2, "frames": 5}
    assert "drawing 2 clips" in make(model, make_it_fast.PLAN, **given)["ui"]["text"][0]
    make(model, make_it_fast.TRAIN, **given)
    assert (run_folder(output, "run") / "student.safetensors").exists()


@pytest.mark.parametrize("kind", known("wan"))
def test_the_template_from_prompts_alone_draws_a_clip_with_its_student(kind, output, quick):
    one = ALL[kind]
    graph = api_twin(ROOT / "workflows" / "Make my Wan 2.1 fast from prompts alone.json")
    by_kind = {node["class_type"]: node["inputs"] for node in graph.values()}
    by_kind["FewStepMakeItFast"] |= {"prompts": "a fox\na cat", "side": 32, "frames": 5, "steps": "2"}
    by_kind["EmptyHunyuanLatentVideo"] |= {"width": 32, "height": 32, "length": 5}
    classes = {
        **node_classes(),
        **NODE_CLASS_MAPPINGS,
        "UNETLoader": stand_in_node(("MODEL",), lambda _: (one.model(),)),
        "CLIPLoader": stand_in_node(("CLIP",), lambda _: (RandomCLIP(one.width, 8),)),
        "VAELoader": stand_in_node(("VAE",), lambda _: (Film(),)),
        "CLIPTextEncode": stand_in_node(("CONDITIONING",), lambda _: (one.conditioning(),)),
    }
    (place,) = [number for number, node in graph.items() if node["class_type"] == "SamplerCustom"]
    drawn = Execution(graph, classes=classes).output((place, 0))["samples"]
    assert drawn.shape == (1, 16, 2, 4, 4)
    assert drawn.isfinite().all() and drawn.std() > 0.1
    assert (run_folder(output, by_kind["FewStepMakeItFast"]["run_name"]) / "student.safetensors").exists()
