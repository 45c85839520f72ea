"""Models of video that go on from a picture: a clip's first frame is it, as the host's own node tells it, or they are refused."""

import dataclasses
import importlib

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

import comfy.clip_vision
import comfy.conds
from architectures import ALL
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, host
from comfyui_fewstep.nodes.distillation.data import preview_prompts, training_data
from comfyui_fewstep.nodes.distillation.learning import matching_method
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from encoders import RandomCLIP, tiny_clip_vision, wan_vae
from hosting import ROOT, api_twin, stand_in_node
from making_clips import needs_av
from making_data import distil, images, picture, prompts, run_folder
from test_clip_folder import FrameVAE, clip_folder, clips  # noqa: F401 (a fixture)
from test_frames import Film
from todays_inputs import CHANNELS, WIDTH, Frames, Model, stand_in

CLIP = RandomCLIP(WIDTH, 24)


class Colours(FrameVAE, Film):
    """The mean colour of each latent's pixels."""

    def encode(self, frames):
        return super().encode(frames)[:, :CHANNELS]


class WAN21(Model):
    """A stand-in of the host's contract, by the name of its class: told what a latent goes on from, and how much is given."""

    image_to_video = True

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        latents, mask = kwargs.get("concat_latent_image"), kwargs.get("concat_mask")
        latents = torch.zeros_like(kwargs["noise"]) if latents is None else latents
        mask = torch.ones_like(latents[:, :1]) if mask is None else mask
        out["image_cond"] = comfy.conds.CONDRegular(torch.cat([latents, mask], dim=1))
        return out


class Looking(WAN21):
    """By CLIP vision, too."""

    def extra_conds(self, **kwargs):
        seen = kwargs.get("clip_vision_output")
        told = {} if seen is None else {"clip_fea": comfy.conds.CONDRegular(seen.penultimate_hidden_states)}
        return super().extra_conds(**kwargs) | told


Looking.__name__ = "WAN21"


class Eyes:
    """A stand-in of the host's contract for CLIP vision: the colours of a picture, all of it, in one token."""

    def encode_image(self, picture, crop=True):
        assert not crop, "as ComfyUI's templates for Wan"
        seen = comfy.clip_vision.Output()
        seen["penultimate_hidden_states"] = picture.mean(dim=(1, 2))[:, None]
        return seen


def looking(*latent_format):
    model = of(Looking, *latent_format)
    model.model.diffusion_model.img_emb = torch.nn.Identity()
    return model


def of(kind, latent_format=Frames):
    model = stand_in(latent_format)
    model.model.__class__ = kind
    return model


@needs_av
def test_each_piece_of_a_clip_goes_on_from_its_first_frame(output, clip_folder):  # noqa: F811
    """By hand: of the wide clip black, and 50 of 255, each before grey; with the prompt and with the negative one."""
    distil(of(WAN21), name="run", data=clips(Colours(), CLIP, pieces="all"))
    data = read_data(run_folder(output, "run") / "data")
    wide = max(data.buckets, key=lambda bucket: len(bucket.x0))
    first = torch.tensor([[0.0, 0.5], [50.0 / 255.0, 0.5]])
    for told in (wide.condition["image_cond"], wide.unconditional["image_cond"]):
        assert told.shape == (2, CHANNELS + 1, 2, *wide.x0.shape[-2:])
        torch.testing.assert_close(told[:, 0].mean(dim=(-2, -1)), first, atol=2e-3, rtol=0.0)
        assert told[:, -1].mean(dim=(-2, -1)).tolist() == [[0.0, 1.0]] * 2, "the first is given"


@needs_av
def test_a_model_that_looks_by_clip_vision_is_told_what_that_sees_in_each_first_frame(output, clip_folder, caplog):  # noqa: F811
    """By hand: black, and 50 of 255, with the prompt and with the negative one; a later start needs it as little as the VAE."""
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "a fox")
    given = {"name": "run", "vae": Colours(), "previews": previews}
    distil(looking(), data=clips(Colours(), CLIP, pieces="all", clip_vision=Eyes()), **given)
    data = read_data(run_folder(output, "run") / "data")
    wide = max(data.buckets, key=lambda bucket: len(bucket.x0))
    for told in (wide.condition["clip_fea"], wide.unconditional["clip_fea"]):
        expected = torch.tensor([0.0, 50.0 / 255.0])[:, None, None].expand(2, 1, 3)
        torch.testing.assert_close(told, expected, atol=1e-6, rtol=0.0)
    kept = read_tensors(run_folder(output, "run") / "previews.safetensors")[0]
    assert torch.equal(kept["00.clip_fea"], data.first(1).condition["clip_fea"]), "with the first clip's picture"
    assert "clip_vision" not in caplog.text
    distil(looking(), data=clips(None, None, pieces="all"), **given)


@needs_av
def test_without_clip_vision_it_is_said_what_to_do(output, clip_folder, caplog):  # noqa: F811
    distil(looking(), name="run", data=clips(Colours(), CLIP))
    assert "looks at its picture by CLIP vision, too, and clip_vision is not connected" in caplog.text
    assert "clip_fea" not in read_data(run_folder(output, "run") / "data").first(1).condition


@needs_av
def test_clip_vision_beside_a_model_that_does_not_look_is_refused(output, clip_folder):  # noqa: F811
    with pytest.raises(ValueError, match=r"clip_vision is connected, but this model \(WAN21\) does not look"):
        distil(of(WAN21), name="run", data=clips(Colours(), CLIP, clip_vision=Eyes()))


@needs_av
@pytest.mark.skipif(not ALL["wan_i2v"].known(), reason="this host has no Wan")
def test_clip_vision_of_another_width_is_named(output, clip_folder):  # noqa: F811
    """The network's own error was taken for one of the prompts."""
    said = r"clip_vision sees pictures in 3 values a patch, but this model \(WAN21\) reads 1280; connect the CLIP vision model"
    with pytest.raises(ValueError, match=said):
        distil(
            ALL["wan_i2v"].model(),
            name="run",
            data=clips(wan_vae(), RandomCLIP(WAN.width, 24), frames=5, clip_vision=Eyes()),
        )


@needs_av
def test_previews_of_prompts_go_on_from_the_first_clips_picture(output, clip_folder):  # noqa: F811
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "a fox\na cat")
    distil(of(WAN21), name="run", data=clips(Colours(), CLIP), vae=Colours(), previews=previews)
    folder = run_folder(output, "run")
    kept = read_tensors(folder / "previews.safetensors")[0]
    first = read_data(folder / "data").first(1).condition["image_cond"]
    assert first[:, -1].std() > 0.1
    assert all(torch.equal(kept[f"{number:02d}.image_cond"], first) for number in range(2))


class Another(Model):
    image_to_video = True


REFUSED = "goes on from a picture, which prompts alone and folders do not give it"


@needs_av
def test_clips_are_refused_where_another_model_wants_a_picture(output, clip_folder):  # noqa: F811
    with pytest.raises(ValueError, match=REFUSED):
        distil(of(Another), name="run", data=clips(Colours(), CLIP))


def test_pictures_of_a_folder_are_refused(output, tmp_path):
    picture(tmp_path / "a.png", 64, 64)
    with pytest.raises(ValueError, match=REFUSED):
        distil(of(WAN21), name="run", data=images(Colours(), CLIP, folder=str(tmp_path)))


def test_prompts_alone_are_refused(output):
    (alone,) = training_data.TrainingPrompts().describe(prompts="a fox", negative="", width=48, height=32, clip=CLIP)
    (matching,) = matching_method.DistributionMatching().make(
        steps=2, iterations=2, learning_rate=1e-3, guidance_scale=2.0
    )
    for given in ({"data": prompts(CLIP)}, {"data": alone, "method": matching}):
        with pytest.raises(ValueError, match=REFUSED):
            distil(of(WAN21), name="run", **given)


WAN = ALL["wan"]
has_wan = pytest.mark.skipif(not WAN.known(), reason="this host has no Wan")
EXPERT = dataclasses.replace(WAN, network=WAN.network | {"in_dim": 36})
"""One of Wan 2.2's two of image to video as its file has it: without the layers for CLIP vision the host takes it for T2V."""
FOLLOWING = {
    "fun control 2.1": dataclasses.replace(
        WAN, config="WAN21_FunControl2V", network=WAN.network | {"model_type": "i2v", "in_dim": 48}
    ),
    "fun control 2.2": dataclasses.replace(WAN, network=WAN.network | {"in_dim": 52}),
}


@has_wan
@needs_av
@pytest.mark.parametrize("kind", FOLLOWING)
def test_models_that_follow_another_video_are_refused_by_what_they_read(kind, output, clip_folder):  # noqa: F811
    model = FOLLOWING[kind].model()
    with pytest.raises(ValueError, match=r"reads (32|36) channels beside the latents'\) follows another video"):
        distil(model, name="run", data=clips(FrameVAE(), RandomCLIP(WAN.width, 24)))


@has_wan
def test_wan_22s_experts_are_refused_with_prompts_alone(output):
    with pytest.raises(ValueError, match=REFUSED):
        distil(EXPERT.model(), name="run", data=prompts(RandomCLIP(WAN.width, 24)))


@has_wan
@needs_av
@pytest.mark.parametrize("one", [ALL["wan_i2v"], EXPERT], ids=["2.1", "2.2"])
def test_it_is_told_as_wan_image_to_video_tells_it(one, output, clip_folder, caplog):  # noqa: F811
    node, model = importlib.import_module("comfy_extras.nodes_wan").WanImageToVideo, one.model()
    clip, clip_vision = RandomCLIP(one.width, 24), None if one is EXPERT else tiny_clip_vision()
    distil(model, name="run", data=clips(FrameVAE(), clip, pieces="all", clip_vision=clip_vision))
    data = read_data(run_folder(output, "run") / "data")
    wide = max(data.buckets, key=lambda bucket: len(bucket.x0))
    height, width = (8 * side for side in wide.x0.shape[-2:])
    start = torch.full((1, height, width, 3), 50.0 / 255.0)
    text = host.encoding.TextEncoder(clip, host.folders.encodings()).conditioning("it grows light")
    with torch.inference_mode():
        seen = None if one is EXPERT else node_classes()["CLIPVisionEncode"]().encode(clip_vision, start, "none")[0]
    told = node.execute(text, text, FrameVAE(), width, height, 5, 1, start_image=start, clip_vision_output=seen)
    for given, mine in ((told[0], wide.condition), (told[1], wide.unconditional)):
        wanted = host.inputs.condition_for_training(model, given, latents=wide.x0, name="positive")
        assert mine.keys() == wanted.keys()
        assert ("clip_fea" in mine) == (one is not EXPERT), "which has no layers for it"
        for key in {"c_concat", "clip_fea"} & mine.keys():
            torch.testing.assert_close(mine[key][1:2], wanted[key], atol=5e-3, rtol=0.0)
            assert wanted[key].std() > 0.1
    assert "clip_vision" not in caplog.text


@has_wan
@needs_av
def test_the_template_trains_both_experts_and_draws_with_them_from_a_picture(output, clip_folder):  # noqa: F811
    """From the clips alone; each learns its own levels, at the shift that is set before it."""
    graph = api_twin(ROOT / "workflows" / "Make my Wan 2.2 I2V fast (folder of clips).json")
    for node in graph.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    classes = {
        **node_classes(),
        **NODE_CLASS_MAPPINGS,
        "UNETLoader": stand_in_node(("MODEL",), lambda given: (EXPERT.model(seed=int("low" in given["unet_name"])),)),
        "CLIPLoader": stand_in_node(("CLIP",), lambda _: (RandomCLIP(WAN.width, 24),)),
        "VAELoader": stand_in_node(("VAE",), lambda _: (wan_vae(),)),
        "CLIPTextEncode": stand_in_node(("CONDITIONING",), lambda _: (WAN.conditioning(),)),
        "LoadImage": stand_in_node(("IMAGE", "MASK"), lambda _: (torch.rand(1, 64, 96, 3), None)),
    }
    (place,) = [number for number, node in graph.items() if node["class_type"] == "SamplerCustomAdvanced"]
    with torch.inference_mode():  # as a host runs a prompt
        drawn = Execution(graph, classes=classes).output((place, 0))["samples"]
    assert drawn.shape == (1, 16, 3, 8, 12)
    assert drawn.isfinite().all() and drawn.std() > 0.1
    names = [node["inputs"]["run_name"] for node in graph.values() if node["class_type"] == "FewStepDistill"]
    parts = []
    for name in names:
        _, recipe, _ = read_student(run_folder(output, name) / "student.safetensors")
        parts.append((recipe.level_from, recipe.level_to))
        torch.testing.assert_close(list(recipe.sigmas[:4]), [1.0, 0.9375, 5 / 6, 0.625], atol=1e-3, rtol=0.0)
        assert read_data(run_folder(output, name) / "data").first(1).condition["c_concat"].std() > 0.1
    assert parts == [(0.9, 1.0), (0.0, 0.9)]


SMALL = {
    "FewStepClipFolder": {"frames": 5, "frame_rate": 8.0, "resolution": 64},
    "FewStepProgressiveDistillation": {"start_steps": 8, "iterations": 2},
    "FewStepLoRAStudent": {"rank": 4},
    "FewStepDistill": {"batch_size": 1, "accumulation": 1},
    "WanImageToVideo": {"width": 96, "height": 64, "length": 9},
}
"""What is made smaller of the template."""
