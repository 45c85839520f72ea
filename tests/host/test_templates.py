"""Every workflow of the pack runs, the demo models in place of the checkpoints that a user would load."""

import copy

import pytest
import torch
from hosting import ROOT, WORKFLOWS, api_twin, demo
from PIL import Image
from safetensors.torch import save_file

TEMPLATES = [workflow for workflow in WORKFLOWS if "FewStepDistill" not in workflow.read_text()]
GUIDANCE = "demo_cond_proj.safetensors"
TEACHER, FLOW_TEACHER = ["teacher", 0], ["flow", 0]


@pytest.fixture(scope="module")
def guidance_file(base):
    """A guidance embedding that fits the demo teacher, where the host looks for checkpoints."""
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    cond_proj = 0.1 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    save_file({"time_embedding.cond_proj.weight": cond_proj}, folder / GUIDANCE)


def with_demo_models(prompt):
    """Checkpoints become the demo teacher, read as a flow model where the recipe is for one; texts become digits."""
    prompt = copy.deepcopy(prompt)
    flow = any("FLUX" in str(node["inputs"].get("recipe")) for node in prompt.values())
    replaced = {}
    for number, node in prompt.items():
        if node["class_type"] in ("CheckpointLoaderSimple", "UNETLoader"):
            replaced |= {(number, 0): FLOW_TEACHER if flow else TEACHER, (number, 2): ["teacher", 1]}
        elif node["class_type"] == "CLIPTextEncode":
            digits = "7" if node["inputs"]["text"] else ""
            prompt[number] = {"class_type": "FewStepDigitPrompt", "inputs": {"digits": digits}}
        elif node["class_type"].startswith("Empty"):
            prompt[number] = {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}}
        elif node["class_type"] == "FewStepGuidanceEmbedding":
            node["inputs"]["file"] = GUIDANCE
    for number, node in prompt.items():
        if node["class_type"] == "LoraLoaderModelOnly":
            replaced[number, 0] = replaced[tuple(node["inputs"]["model"])]
    gone = {number for number, _ in replaced}
    kept = {number: node for number, node in prompt.items() if number not in gone}
    for node in kept.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and tuple(value) in replaced:
                node["inputs"][name] = replaced[tuple(value)]
    kept["teacher"] = {"class_type": "FewStepDemoTeacher", "inputs": {}}
    kept["flow"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": TEACHER, "shift": 1.0}}
    return kept


@pytest.mark.parametrize("workflow", TEMPLATES, ids=lambda p: p.stem)
def test_a_template_runs(workflow, client, base, guidance_file):
    if workflow.stem == "Draw with a distilled student":
        client.run(demo("digits"))
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


def test_every_node_is_in_a_workflow():
    used = {node["class_type"] for workflow in WORKFLOWS for node in api_twin(workflow).values()}
    documented = {path.stem for path in (ROOT / "web" / "docs").glob("FewStep*.md")}
    assert documented <= used
