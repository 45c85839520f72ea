"""Workflows of today's families: their files' addresses, their notes, and what they draw on tiny models of their own classes."""

import json

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host("--use-pytorch-cross-attention")

import comfy.supported_models
from architectures import ALL
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.samplers.presets import PRESETS, named_by
from hosting import NOTES, ROOT, api_twin, stand_in_node

FAMILY = {
    "Z-Image-Turbo in 8 steps": "z_image",
    "Wan 2.2 lightx2v in 4 steps (two experts)": "wan",
    "LTX-2.3 distilled (two stages)": "ltxav",
    "Qwen-Image-Edit Lightning in 4 steps": "qwen_image_edit",
    "FLUX.2 klein in 4 steps": "flux2_klein",
    "Krea 2 Turbo in 8 steps": "krea2",
}
"""By workflow, whose tiny model stands in the place of the loaded one."""
OURS = [*FAMILY, "SDXL DMD2 in 4 steps"]
LEARNT = ["Make my Qwen-Image-Edit fast (folder of pairs)", "Make my LTX-2 fast (folder of clips with sound)"]
"""Whose notes are those of the templates that make a model fast."""


def workflow(name):
    return ROOT / "workflows" / f"{name}.json"


@pytest.mark.parametrize("name", [*OURS, *LEARNT])
def test_each_file_has_the_address_that_the_editor_fetches_it_from(name):
    """As the official templates have them: name, directory, and a public address that ends with the name."""
    for node in json.loads(workflow(name).read_text())["nodes"]:
        models = {model["name"]: model for model in node.get("properties", {}).get("models", [])}
        files = {value for value in node.get("widgets_values", []) if str(value).endswith((".safetensors", ".gguf"))}
        assert files == models.keys()
        for file, model in models.items():
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{file}")
            assert model["directory"] in DIRECTORIES, model


DIRECTORIES = ("checkpoints", "diffusion_models", "latent_upscale_models", "loras", "text_encoders", "vae")


@pytest.mark.parametrize("name", OURS)
def test_a_note_says_what_to_change(name):
    (note,) = [node for node in json.loads(workflow(name).read_text())["nodes"] if node["type"] in NOTES]
    (text,) = note["widgets_values"]
    assert "Change: " in text
    assert len(text) < 900


@pytest.mark.parametrize("name", OURS)
def test_its_recipes_are_those_that_its_files_propose(name):
    nodes = api_twin(workflow(name)).values()
    files = [str(value) for node in nodes for value in node["inputs"].values()]
    asked = [node["inputs"]["recipe"] for node in nodes if node["class_type"] == "FewStepApplyRecipe"]
    assert set(asked) <= {recipe for file in files if file.endswith(".safetensors") for recipe in named_by(file)}
    assert asked[1:] == [PRESETS[recipe].then for recipe in asked[:-1]]


def stand_ins(family, seen):
    """Node classes in the place of those that load, encode, decode or save; what is decoded is kept."""
    one = ALL[family]

    def latent(stream):
        def made(_):
            shapes = one.streams or (one.latent,)
            return ({"samples": torch.zeros(1, *shapes[stream])},)

        return stand_in_node(("LATENT",), made)

    def model(inputs):
        return (one.model(seed=len(str(inputs))), "clip", "vae")

    def larger(inputs):
        return ({"samples": torch.nn.functional.interpolate(inputs["samples"]["samples"], scale_factor=(1, 2, 2))},)

    def kept(inputs):
        seen.append(inputs["samples"]["samples"])
        return ("picture",)

    prompt = stand_in_node(("CONDITIONING",), lambda _: (one.conditioning(),))
    loaders = ("UNETLoader", "CheckpointLoaderSimple")
    others = (
        "CLIPLoader",
        "VAELoader",
        "LTXAVTextEncoderLoader",
        "LTXVAudioVAELoader",
        "LatentUpscaleModelLoader",
        "LoadImage",
    )
    empty = ("EmptySD3LatentImage", "EmptyLatentImage", "EmptyFlux2LatentImage", "EmptyHunyuanLatentVideo", "VAEEncode")
    return {
        **dict.fromkeys(loaders, stand_in_node(("MODEL", "CLIP", "VAE"), model)),
        **dict.fromkeys((*others, "FluxKontextImageScale"), stand_in_node(("ANY",), lambda _: ("loaded",))),
        "LoraLoaderModelOnly": stand_in_node(("MODEL",), lambda inputs: (inputs["model"],)),
        **dict.fromkeys((*empty, "EmptyLTXVLatentVideo"), latent(0)),
        "LTXVEmptyLatentAudio": latent(1),
        "LTXVLatentUpsampler": stand_in_node(("LATENT",), larger),
        **dict.fromkeys(("CLIPTextEncode", "TextEncodeQwenImageEditPlus"), prompt),
        **dict.fromkeys(("VAEDecode", "LTXVAudioVAEDecode"), stand_in_node(("IMAGE",), kept)),
        "CreateVideo": stand_in_node(("VIDEO",), lambda _: ("video",)),
        **dict.fromkeys(("SaveImage", "SaveVideo"), stand_in_node((), lambda _: ())),
    }


@pytest.mark.skipif(not hasattr(comfy.supported_models, "Krea2"), reason="not of this host")
@pytest.mark.parametrize("name", FAMILY)
@torch.inference_mode()
def test_it_draws(name):
    """All of its nodes run, in the right places: every latent that is decoded is whole, and no two stages are the same."""
    seen, graph = [], api_twin(workflow(name))
    ends = [number for number, node in graph.items() if node["class_type"] in ("VAEDecode", "LTXVAudioVAEDecode")]
    run = Execution(graph, classes={**node_classes(), **NODE_CLASS_MAPPINGS, **stand_ins(FAMILY[name], seen)})
    for end in ends:
        run.output((end, 0))
    shapes = ALL[FAMILY[name]].streams or (ALL[FAMILY[name]].latent,)
    assert len(seen) == len(shapes)
    for latent, shape in zip(seen, shapes, strict=True):
        assert latent.shape[:2] == (1, shape[0])
        assert torch.isfinite(latent).all()
        assert latent.std() > 0.1
    if "two stages" in name:
        assert seen[0].shape[-2:] == (2 * shapes[0][-2], 2 * shapes[0][-1])
