"""The pack in a running ComfyUI: it loads, its workflows run from start to finish, cancel and resume work."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.commands.server import ServerError
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors
from hosting import ROOT, WORKFLOWS, Failed, api_twin, demo, lacking, ui_to_api
from PIL import Image

import_host()

from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

OWN_FILES = ("my", "consistency_model")
"""How templates call files that only their user has."""
FOLDERS = {"checkpoints", "diffusion_models", "loras", "text_encoders", "vae", "latent_upscale_models"}


@pytest.fixture(scope="session")
def object_info(server):
    return server.get("/object_info")


def own(object_info):
    return {name: info for name, info in object_info.items() if name.startswith("FewStep")}


def test_the_pack_loads_whole(object_info, server):
    assert len(own(object_info)) == 43
    assert "IMPORT FAILED" not in "\n".join(
        line for line in server.tail(10**6).splitlines() if "comfyui_fewstep" in line.lower()
    )


def test_every_input_and_output_has_a_tooltip(object_info):
    for name, info in own(object_info).items():
        assert len(info["description"]) > 40, name
        assert info["category"].startswith("few-step/")
        for kind in ("required", "optional"):
            for label, declared in info["input"].get(kind, {}).items():
                assert declared[1].get("tooltip"), f"{name}.{label}"
        if "output_tooltips" in info:  # hosts since late 2024
            assert len(info["output_tooltips"]) == len(info["output"]), name


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("lcm", {"FewStepLCMSampler", "FewStepApplyRecipe", "FewStepSchedule", "FewStepConsistencyDistillation"}),
        ("turbo", {"FewStepApplyRecipe", "FewStepSchedule"}),
        ("lightning", {"FewStepLightningSampler", "FewStepApplyRecipe", "FewStepProgressiveDistillation"}),
        ("hyper", {"FewStepTCDSampler", "FewStepApplyRecipe"}),
        ("distil", {"FewStepDistill", "FewStepLoadStudent", "FewStepProgressiveDistillation"}),
        ("few step", {"FewStepDistill", "FewStepLCMSampler"}),
        ("train lora", {"FewStepDistill", "FewStepLoRAStudent", "FewStepImageFolder"}),
        ("dataset", {"FewStepImageFolder", "FewStepTeacherPictures", "FewStepTrainingPrompts"}),
        ("dmd", {"FewStepDistributionMatching", "FewStepTrainingPrompts"}),
        ("multi gpu", {"FewStepWriteRun", "FewStepWatchRun"}),
        ("wan", {"FewStepTwoExperts", "FewStepApplyRecipe", "FewStepExpertsPart"}),
        ("merge", {"FewStepSaveStudent"}),
        ("cfg", {"FewStepGuidanceDistillation", "FewStepGuidanceEmbedding"}),
        ("benchmark", {"FewStepCompare", "FewStepEvaluateDigits"}),
    ],
)
def test_newcomers_find_nodes_by_their_own_words(typed, found, object_info):
    """In names, display names, and the aliases that hosts since 2026 search."""
    words = {
        name: [name, NODE_DISPLAY_NAME_MAPPINGS[name], *node.SEARCH_ALIASES]
        for name, node in NODE_CLASS_MAPPINGS.items()
    }
    assert found <= {name for name, said in words.items() if any(typed in word.lower() for word in said)}
    for name, info in own(object_info).items():
        if "search_aliases" in info:
            assert info["search_aliases"] == NODE_CLASS_MAPPINGS[name].SEARCH_ALIASES


def test_aliases_say_what_the_name_does_not():
    for name, node in NODE_CLASS_MAPPINGS.items():
        aliases = vars(node)["SEARCH_ALIASES"]  # its own, not those of a node that it is made of
        assert len(set(aliases)) == len(aliases) >= 3, name
        shown = NODE_DISPLAY_NAME_MAPPINGS[name].lower()
        assert [alias for alias in aliases if alias != alias.lower() or alias in shown] == [], name


def test_every_node_is_used_by_a_workflow_or_documented(object_info):
    for name in own(object_info):
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), name


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.stem)
def test_every_file_of_a_template_can_be_fetched_by_the_editor(workflow):
    """Known ones: the editor lists those that are missing by name, folder and link. One's own have none."""
    for node in json.loads(workflow.read_text())["nodes"]:
        if not node["type"].startswith("FewStep"):
            models = {model["name"]: model for model in node.get("properties", {}).get("models", [])}
            named = {v for v in node.get("widgets_values") or [] if str(v).endswith((".safetensors", ".gguf", ".ckpt"))}
            assert {name for name in named if not name.startswith(OWN_FILES)} <= models.keys() <= named
            for model in models.values():
                assert re.fullmatch(r"https://huggingface\.co/[^?]+/resolve/main/[^?]+\.safetensors", model["url"])
                assert model["directory"] in FOLDERS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.stem)
def test_both_forms_of_a_workflow_agree(workflow, object_info):
    if needed := lacking(api_twin(workflow), object_info):
        pytest.skip(f"this host has no {', '.join(needed)}")
    queued = ui_to_api(json.loads(workflow.read_text()), object_info)
    twin = {k: {"class_type": v["class_type"], "inputs": v["inputs"]} for k, v in api_twin(workflow).items()}
    assert queued == twin


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.stem)
def test_a_slot_that_is_filled_by_links_alone_has_no_text_box(workflow, object_info):
    """The editor of 2024 makes one for each such text, and hides what the slot calls its widget."""
    for node in json.loads(workflow.read_text())["nodes"]:
        for declared in own(object_info).get(node["type"], {"input": {}})["input"].values():
            for slot in node.get("inputs", []):
                kind, options, *_ = [*declared.get(slot["name"], [None]), {}]
                if kind == "STRING" and options.get("forceInput"):
                    assert slot.get("widget") == {"name": slot["name"]}, node["type"]


def test_the_current_template_browser_lists_the_workflows(server):
    try:
        listed = server.get("/workflow_templates")
    except (ServerError, ValueError):
        pytest.skip("this host has no template browser")
    assert sorted(listed["comfyui_fewstep"]) == sorted(workflow.stem for workflow in WORKFLOWS)


def test_the_demo_runs_from_start_to_finish(client, base, runs, name):
    events = {"fewstep.metrics": [], "progress": [], "preview": []}
    history = client.run(demo(name), on_event=lambda kind, data: events.get(kind, []).append(data))
    run = runs / name
    assert {path.name for path in run.iterdir()} >= {
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "previews",
        "student.safetensors",
        "report.json",
    }
    _, recipe, metadata = read_student(run / "student.safetensors")
    assert (recipe.steps, recipe.prediction_type, recipe.guidance_scale) == (4, "v_prediction", 1.5)
    assert metadata["fewstep.iterations"] == "6"
    report = json.loads((run / "report.json").read_text())
    assert [(s["model"], s["steps"], s["nfe"]) for s in report["scores"]] == [
        ("teacher", 8, 16),
        ("teacher", 4, 8),
        ("student", 4, 4),
    ]
    assert report["scores"][0]["accuracy"] > 0.9, "the shipped teacher draws what it is asked for"
    last = events["fewstep.metrics"][-1]
    assert (last["iteration"], last["iterations"], last["run"]) == (6, 6, name)
    assert events["progress"], "the host's own progress bar moved"
    assert events["preview"], "a preview picture was shown"
    images = [image for node in history["outputs"].values() for image in node.get("images", [])]
    assert len(images) == 3 + 10
    for image in images:
        folder = base / ("output" if image["type"] == "output" else "temp")
        if image["type"] == "output":
            assert Image.open(folder / image["subfolder"] / image["filename"]).size[0] > 100


def test_a_finished_run_is_loaded_not_trained_again(client, runs, name):
    """Another checkpoint interval makes ComfyUI run the node again; it is still the same run."""
    client.run(demo(name))
    before = (runs / name / "student.safetensors").stat().st_mtime_ns
    seen = []
    client.run(demo(name, FewStepDistill={"checkpoint_every": 2}), on_event=lambda kind, data: seen.append(kind))
    assert "fewstep.metrics" not in seen
    assert (runs / name / "student.safetensors").stat().st_mtime_ns == before


def test_cancel_saves_and_the_next_start_goes_on(client, server, runs, name):
    """The student of a run that was cancelled halfway equals the one of an unbroken run, bit for bit."""
    whole, part = f"{name} whole", f"{name} part"
    client.run(demo(whole, FewStepProgressiveDistillation={"iterations": 60}))
    broken = demo(part, FewStepProgressiveDistillation={"iterations": 60})
    cancelled = []

    def cancel(kind, data):
        if kind == "fewstep.metrics" and not cancelled:
            cancelled.append(data["iteration"])
            server.post("/interrupt", {})

    with pytest.raises(Failed, match="interrupted"):
        client.run(broken, on_event=cancel)
    saved = sorted((runs / part / "checkpoints").glob("*.safetensors"))[-1]
    assert cancelled[0] <= int(saved.stem) < 60
    assert not (runs / part / "student.safetensors").exists()
    iterations = []
    client.run(broken, on_event=lambda k, d: iterations.append(d["iteration"]) if k == "fewstep.metrics" else None)
    assert iterations[0] > int(saved.stem)
    one, other = (read_tensors(runs / run / "student.safetensors")[0] for run in (whole, part))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_finished_student_loads_and_draws_the_same(client, base, name):
    """The MODEL of the training node and the file of the loading node give equal pictures."""
    prompt = demo(name)
    prompt["17"] = {"class_type": "SaveImage", "inputs": {"images": ["16", 0], "filename_prefix": "trained"}}
    client.run(prompt)
    loaded = {k: copy.deepcopy(prompt[k]) for k in ("1", "3", "11", "12", "15", "16")}
    loaded["20"] = {"class_type": "FewStepLoadStudent", "inputs": {"model": ["1", 0], "student": f"{name} (run)"}}
    loaded["15"]["inputs"].update({"model": ["20", 0], "sampler": ["20", 1], "sigmas": ["20", 2]})
    loaded["17"] = {"class_type": "SaveImage", "inputs": {"images": ["16", 0], "filename_prefix": "loaded"}}
    client.run(loaded)
    output = base / "output"
    for i in range(1, 11):
        one, other = (Image.open(output / f"{name}_{i:05d}_.png") for name in ("trained", "loaded"))
        assert one.tobytes() == other.tobytes()


def test_a_lora_student_is_a_lora_with_a_recipe(client, base, name):
    """The MODEL of the training node, and the file through the host's LoRA loader and Apply Recipe, draw the same."""
    prompt = demo(name, FewStepProgressiveDistillation={"iterations": 4})
    lora = {"rank": 8, "alpha": 8.0, "layers": "linear_and_conv"}
    prompt["18"] = {"class_type": "FewStepLoRAStudent", "inputs": lora}
    prompt["17"] = {"class_type": "SaveImage", "inputs": {"images": ["16", 0], "filename_prefix": f"{name}trained"}}
    client.run(prompt)
    loaded = {k: copy.deepcopy(prompt[k]) for k in ("1", "3", "11", "12", "15", "16")}
    file = f"fewstep/{name}.safetensors"
    loaded["20"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": file, "strength_model": 1.0},
    }
    loaded["21"] = {
        "class_type": "FewStepApplyRecipe",
        "inputs": {"model": ["20", 0], "recipe": "from the file's own metadata", "file": f"loras/{file}"},
    }
    loaded["15"]["inputs"].update({"model": ["21", 0], "sampler": ["21", 1], "sigmas": ["21", 2], "cfg": ["21", 3]})
    loaded["17"] = {"class_type": "SaveImage", "inputs": {"images": ["16", 0], "filename_prefix": f"{name}loaded"}}
    client.run(loaded)
    for i in range(1, 11):
        one, other = (Image.open(base / "output" / f"{name}{kind}_{i:05d}_.png") for kind in ("trained", "loaded"))
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("sampler", "scheduler", "steps"), [("euler", "simple", 16), ("dpmpp_2m", "karras", 8), ("lcm", "sgm_uniform", 8)]
)
def test_the_stock_ksampler_draws_with_the_demo_teacher(sampler, scheduler, steps, client, base):
    prompt = {
        "1": {"class_type": "FewStepDemoTeacher", "inputs": {}},
        "2": {"class_type": "FewStepDigitPrompt", "inputs": {"digits": "0123456789"}},
        "3": {"class_type": "FewStepDigitPrompt", "inputs": {"digits": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 10}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 1,
                "steps": steps,
                "cfg": 2.0,
                "sampler_name": sampler,
                "scheduler": scheduler,
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 1]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": f"stock_{sampler}"}},
        "8": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["1", 1]}},
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 1]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
    }
    history = client.run(prompt)
    pictures = [Image.open(base / "output" / image["filename"]) for image in history["outputs"]["7"]["images"]]
    assert [picture.size for picture in pictures] == [(32, 32)] * 10
    assert _read_digits(pictures) >= 8


def _read_digits(pictures):
    """How many of ten pictures the shipped classifier reads as 0 to 9, in order."""
    import numpy as np
    from comfyui_fewstep.trainers.measures.digits import DigitClassifier

    tensors, _ = read_tensors(ROOT / "assets" / "digits_classifier.safetensors")
    classifier = DigitClassifier()
    classifier.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("real.")})
    grey = torch.stack([torch.from_numpy(np.array(picture.convert("L"))).float() / 255 for picture in pictures])
    small = torch.nn.functional.interpolate(grey[:, None], size=(8, 8), mode="area")
    said = classifier.eval().classify(classifier.features(small)).argmax(dim=1)
    return int((said == torch.arange(10)).sum())


def test_the_lcm_sampler_and_schedule_run_in_the_host(client, name):
    prompt = demo(name)
    kept = {k: prompt[k] for k in ("1", "3", "11", "12", "15", "16", "17")}
    kept["13"] = {"class_type": "FewStepLCMSampler", "inputs": {}}
    kept["14"] = {"class_type": "FewStepSchedule", "inputs": {"model": ["1", 0], "schedule": "lcm", "steps": 8}}
    kept["15"]["inputs"]["model"] = ["1", 0]
    history = client.run(kept)
    assert len(history["outputs"]["17"]["images"]) == 10


def test_importing_the_nodes_is_quick():
    """Beyond torch and the host, which are loaded before any pack is."""
    code = (
        "import importlib.util, sys, time; begun = time.process_time(); "
        "from comfyui_fewstep.commands.embedded import import_host; import_host(); "
        "import safetensors.torch, PIL.Image, tqdm, numpy, comfy.sd; "
        "[__import__(name) for name in ('execution', 'server') if importlib.util.find_spec(name)]; start = time.process_time(); "
        "import comfyui_fewstep as p; "
        "p.NODE_CLASS_MAPPINGS; ours = (time.process_time() - start) / (start - begun); "
        "print(ours, 'matplotlib' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    share, charts, data = done.stdout.split()[-3:]
    assert float(share) < 0.3, "of what torch and the host take"
    assert (charts, data) == ("False", "False"), "optional libraries are imported where they are used"
