"""Every workflow of the pack runs, the demo models in place of the checkpoints that a user would load."""

import copy
import os
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
import torch
from comfyui_fewstep.launch import HOME
from comfyui_fewstep.trainers.measures.digits import load_pictures
from hosting import ROOT, WORKFLOWS, api_twin, demo
from PIL import Image
from safetensors.torch import save_file

OF_THEIR_OWN = {
    "Distil digits to 4 steps": "tested in many places",
    "Distil my checkpoint on several GPUs": "waits for another process, see below",
    "A style and a student in one LoRA": "of LoRAs, see test_combining.py",
    "Make my Wan 2.1 fast (folder of clips)": "of a model of video, see test_clip_folder.py",
    "Make my Wan 2.2 I2V fast (folder of clips)": "of two models of video, see test_first_frames.py",
    **dict.fromkeys(
        ("Make my Qwen-Image-Edit fast (folder of pairs)", "Make my LTX-2 fast (folder of clips with sound)"),
        "of models of today, see test_pairs_and_sound_templates.py",
    ),
    "Make my Wan 2.1 fast from prompts alone": "of a model of video, see test_clips_from_prompts.py",
    "Distil my sound model on a folder of sounds": "of a model of sound, see test_clip_folder.py",
    "Distil my two experts (Wan 2.2)": "of two models of video, see test_experts_part.py",
    "Save a distilled student as a checkpoint": "of a real text encoder and VAE, see test_save_student.py",
    **dict.fromkeys(
        (
            "FLUX.2 klein in 4 steps",
            "Krea 2 Turbo in 8 steps",
            "LTX-2.3 distilled (two stages)",
            "Qwen-Image-Edit Lightning in 4 steps",
            "Wan 2.2 lightx2v in 4 steps (two experts)",
            "Z-Image-Turbo in 8 steps",
        ),
        "of tiny models of the families' own classes, see test_family_workflows.py",
    ),
}
OF_ANOTHER = {
    "Draw with a distilled student": "Distil digits to 4 steps",
    "Teacher against student (same noise)": "Distil my checkpoint to 4 steps (LoRA)",
}
"""Templates that load the student which another one made."""
TEMPLATES = [workflow for workflow in WORKFLOWS if workflow.stem not in OF_THEIR_OWN]
GUIDANCE = "demo_cond_proj.safetensors"


@pytest.fixture(scope="module")
def guidance_file(base):
    """A guidance embedding that fits the demo teacher, where the host looks for checkpoints."""
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    cond_proj = 0.1 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    save_file({"time_embedding.cond_proj.weight": cond_proj}, folder / GUIDANCE)


@pytest.fixture(scope="module")
def pictures(base):
    """A folder of two digits and their labels, where the template looks for pictures."""
    folder = base / "input" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    digits, labels = load_pictures()
    for i in range(2):
        grey = Image.fromarray((digits[i, 0] * 255).byte().numpy())
        grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(str(int(labels[i])))


SMALL_DATA = {
    "FewStepMakeItFast": {"prompts": "7\n3", "side": 32, "pictures": 4, "iterations": 3},
    "FewStepEvaluateDigits": {"teacher_steps": "8, 4", "count": 100},
    "FewStepImageFolder": {"resolution": 32, "bucket_step": 8, "caption": "7"},
    "FewStepTrainingPrompts": {"prompts": "7\n3", "width": 32, "height": 32},
    "FewStepPreviewPrompts": {"prompts": "7\n3"},
    "FewStepTeacherPictures": {"prompts": "7\n3", "width": 32, "height": 32, "pictures_per_prompt": 2, "steps": 4},
}

PARTS = {"UNETLoader": ["flow", 0], "CLIPLoader": ["teacher", 2], "VAELoader": ["teacher", 1]}
"""What stands for the loaders of models that come in parts."""

OTHER_METHODS = {
    "FewStepGuidanceDistillation": {"iterations": 3},
    "FewStepConsistencyDistillation": {"iterations": 3},
    "FewStepConsistencyTraining": {"iterations": 3},
    "FewStepScoreDistillation": {"iterations": 3},
    "FewStepDistributionMatching": {"iterations": 2, "companion_first": 1, "companion_updates": 1},
}


def demo_node(node):
    """The demo's counterpart of a host node: texts become digits, latents small, a guidance file the one above."""
    kind, inputs = node["class_type"], node["inputs"]
    if kind == "CLIPTextEncode":
        return {"class_type": "FewStepDigitPrompt", "inputs": {"digits": "7" if inputs["text"] else ""}}
    if kind.startswith("Empty"):
        return {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}}
    if kind == "FewStepProgressiveDistillation":
        return {**node, "inputs": {**inputs, "start_steps": 8, "iterations": 3}}
    if kind in OTHER_METHODS:
        return {**node, "inputs": {**inputs, **OTHER_METHODS[kind]}}
    if kind in SMALL_DATA:
        return {**node, "inputs": {**inputs, **SMALL_DATA[kind]}}
    if kind == "FewStepGuidanceEmbedding":
        return {**node, "inputs": {**inputs, "file": GUIDANCE}}
    return node


def with_demo_models(prompt):
    """Checkpoints become the demo teacher, read as a flow model where the recipe is for one or the file holds a DiT alone."""
    kinds = {node["class_type"] for node in prompt.values()}
    flow = "UNETLoader" in kinds or any("FLUX" in str(node["inputs"].get("recipe")) for node in prompt.values())
    instead = {}
    for number, node in prompt.items():
        if node["class_type"] in PARTS:
            instead[number, 0] = PARTS[node["class_type"]]
        if node["class_type"] == "CheckpointLoaderSimple":
            instead |= {(number, 0): ["flow" if flow else "teacher", 0], (number, 1): ["teacher", 2]}
            instead[number, 2] = ["teacher", 1]
        elif node["class_type"] == "LoraLoaderModelOnly":
            instead[number, 0] = instead[tuple(node["inputs"]["model"])]
    kept = {
        "teacher": {"class_type": "FewStepDemoTeacher", "inputs": {}},
        "flow": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["teacher", 0], "shift": 1.0}},
    }
    for number in prompt.keys() - {number for number, _ in instead}:
        node = kept[number] = demo_node(copy.deepcopy(prompt[number]))
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = instead.get(tuple(value), value)
    return kept


@pytest.mark.parametrize("workflow", TEMPLATES, ids=lambda p: p.stem)
def test_a_template_runs(workflow, client, base, guidance_file, pictures):
    if before := OF_ANOTHER.get(workflow.stem):
        small = demo("digits") if "digits" in before else with_demo_models(api_twin(workflow.with_stem(before)))
        client.run(small)
    prompt = api_twin(workflow)
    history = client.run(with_demo_models(prompt))
    shown = [number for number, node in prompt.items() if node["class_type"] in ("SaveImage", "PreviewImage")]
    assert shown
    for number in shown:
        images = history["outputs"][number]["images"]
        for image in images:
            folder = base / ("output" if image["type"] == "output" else "temp") / image["subfolder"]
            low, high = Image.open(folder / image["filename"]).convert("L").getextrema()
            assert high > low, "a picture, not one colour"


def test_the_template_for_several_gpus(client, base, runs, pictures):
    """Write Run comes before Watch Run, which waits for the process that this test starts in the user's place."""
    prompt = with_demo_models(api_twin(ROOT / "workflows" / "Distil my checkpoint on several GPUs.json"))
    started = []

    def start(kind, data):
        if kind == "executed" and data["node"] == "5":
            environment = {**os.environ, "PYTHONPATH": str(HOME / "packages")}
            run = runs / "my checkpoint on GPUs"
            command = [sys.executable, "-m", "comfyui_fewstep.trainers", str(run)]
            started.append(subprocess.Popen(command, env=environment))

    history = client.run(prompt, on_event=start)
    assert started[0].wait(60) == 0
    assert history["outputs"]["16"]["images"]
    assert "launch.py train " in history["outputs"]["5"]["text"][0]


def test_the_comparison_says_how_near_the_student_is(client):
    """Its figures are those of the pictures: few steps of the teacher differ from many, as the student does."""
    client.run(with_demo_models(api_twin(ROOT / "workflows" / "Distil my checkpoint to 4 steps (LoRA).json")))
    prompt = with_demo_models(api_twin(ROOT / "workflows" / "Teacher against student (same noise).json"))
    outputs = client.run(prompt)["outputs"]
    compared = [number for number, node in prompt.items() if node["class_type"] == "FewStepCompare"]
    said = [outputs[number]["text"][0] for number in compared]
    assert all(text.endswith("dB over 1 picture of 32x32") for text in said)
    assert all(5 < float(text.split()[1]) < 60 for text in said)
    for number in compared:
        (shown,) = outputs[number]["comparison"]
        address = f"{client.server.address}/view?{urllib.parse.urlencode(shown)}"
        with urllib.request.urlopen(address) as answer:  # noqa: S310 (this machine)
            assert Image.open(answer).size == (32, 64)


def test_every_node_is_in_a_workflow():
    used = {node["class_type"] for workflow in WORKFLOWS for node in api_twin(workflow).values()}
    documented = {path.stem for path in (ROOT / "web" / "docs").glob("FewStep*.md")}
    assert documented <= used
