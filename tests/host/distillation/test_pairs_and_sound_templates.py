"""The templates that learn edits and clips with their sound: all of their nodes run in a host that has the models."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.trainers.data.cache import read_data
from encoders import RandomCLIP, ltx_audio_vae
from hosting import ROOT, api_twin, stand_in_node
from making_clips import needs_av, write_clip
from making_data import run_folder, student_of
from test_clips_from_prompts import quick  # noqa: F401 (a fixture)
from test_clips_with_sound import THEIRS
from test_edits import Pictures, Words, edits  # noqa: F401 (a fixture)
from test_frames import Film
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)

PAIRS, WITH_SOUND = "Make my Qwen-Image-Edit fast (folder of pairs)", "Make my LTX-2 fast (folder of clips with sound)"
QWEN, LTX = ALL["qwen_image_edit"], ALL["ltxav"]
SECONDS = 9 / 25
"""Of nine frames at the rate of LTX-2."""


def execution(name, stand_ins, **small):
    """Of a template with small settings by kind of node. stand_ins: what each kind gives, in the place of the host's."""
    graph = api_twin(ROOT / "workflows" / f"{name}.json")
    for node in graph.values():
        node["inputs"] |= small.get(node["class_type"], {})
    own = {
        kind: stand_in_node(("ANY",) * len(given), lambda _, given=given: given) for kind, given in stand_ins.items()
    }
    places = {node["class_type"]: number for number, node in graph.items()}
    return Execution(graph, classes={**node_classes(), **NODE_CLASS_MAPPINGS, **own}), places


class Colours(Pictures, Film):
    """Of one frame."""


@pytest.mark.skipif(not QWEN.known(), reason="this host has no Qwen-Image")
def test_pairs_are_learnt_and_another_picture_is_edited_otherwise(output, edits, quick):  # noqa: F811
    """As the template is: at the host's own shift, with its CFGNorm, from input/after and input/before."""
    model, clip, vae = QWEN.model(), Words(QWEN.width, 24, padded=False), Colours()
    drawn = []
    for seed in range(2):
        shown = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
        given = {"UNETLoader": (model,), "CLIPLoader": (clip,), "VAELoader": (vae,)}
        given |= {"LoadImage": (shown, None), "FluxKontextImageScale": (shown,)}
        run, places = execution(PAIRS, given, FewStepMakeItFast={"side": 64, "run_name": "run", "steps": "2"})
        with torch.inference_mode():  # as a host runs a prompt
            drawn.append(run.output((places["SamplerCustom"], 0))["samples"])
    assert all(each.shape == (1, 16, 1, 8, 8) and each.isfinite().all() for each in drawn)
    assert not torch.allclose(drawn[0], drawn[1])
    buckets = read_data(run_folder(output, "run") / "data").buckets
    assert sum(len(bucket.x0) for bucket in buckets) == 2
    assert all("ref_latents[0]" in bucket.condition for bucket in buckets)
    assert student_of(output, "run")


@needs_av
@pytest.mark.skipif(not LTX.known(), reason="this host has no LTX-2")
def test_clips_are_learnt_and_drawn_with_their_sound(output, tmp_path, quick):  # noqa: F811
    (tmp_path / "input" / "clips").mkdir(parents=True)
    for name in "ab":
        clip = tmp_path / "input" / "clips" / f"{name}.mkv"
        write_clip(clip, count=10, rate=25, size=(128, 64), heard={"seconds": 1.0})
        clip.with_suffix(".txt").write_text("it grows light")
    clip, sounds = RandomCLIP(LTX.width, 8), ltx_audio_vae()
    given = {"CheckpointLoaderSimple": (LTX.model(), clip, THEIRS["ltxav"][0])}
    given |= {
        "LTXAVTextEncoderLoader": (clip,),
        "LTXVAudioVAELoader": (sounds,),
        "CLIPTextEncode": (LTX.conditioning(),),
    }
    run, places = execution(
        WITH_SOUND,
        given,
        FewStepMakeItFast={"side": 64, "frames": 9, "run_name": "run"},
        EmptyLTXVLatentVideo={"width": 128, "height": 64, "length": 9},
        LTXVEmptyLatentAudio={"frames_number": 9},
    )
    with torch.inference_mode():
        drawn = run.output((places["LTXVSeparateAVLatent"], 0))["samples"]
        heard = run.output((places["LTXVAudioVAEDecode"], 0))
    assert drawn.shape == (1, 128, 2, 2, 4)
    assert drawn.isfinite().all() and drawn.std() > 0.1
    assert heard["waveform"].isfinite().all()
    assert heard["waveform"].shape[-1] / heard["sample_rate"] == pytest.approx(SECONDS, abs=0.05)
    assert "frame_rate" in str(read_data(run_folder(output, "run") / "data").first(1).condition.keys())
    assert student_of(output, "run")
