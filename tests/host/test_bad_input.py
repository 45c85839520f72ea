"""Every bad input is named on its node, before any work starts, and leaves no run behind."""

import json
import urllib.error
import urllib.request

import pytest
import torch
from comfyui_fewstep.commands.server import ServerError
from hosting import Failed, demo
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"FewStepProgressiveDistillation": {"start_steps": 12, "target_steps": 5}}, "start_steps is 12"),
        ({"FewStepProgressiveDistillation": {"iterations": 0}}, "iterations"),
        ({"FewStepProgressiveDistillation": {"weighting": "best"}}, "weighting"),
        ({"FewStepDistill": {"run_name": "../../elsewhere"}}, "no path may be in it"),
        ({"FewStepDistill": {"run_name": ""}}, "the run name is"),
        ({"FewStepDistill": {"batch_size": 0}}, "batch_size"),
        ({"FewStepDistill": {"optimiser": "sgd"}}, "optimiser"),
        ({"FewStepDigitPrompt": {"digits": "seven"}}, "the digits are 'seven'"),
    ],
)
def test_refused_before_anything_runs(inputs, said, server, runs, name):
    with pytest.raises(ServerError, match=said):
        server.queue(demo(name, **inputs), client="test")
    assert not (runs / name).exists()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"FewStepEvaluateDigits": {"teacher_steps": "64; 8"}}, "teacher_steps is '64; 8'"),
        ({"FewStepEvaluateDigits": {"student_steps": "0"}}, "student_steps is '0'"),
        ({"FewStepSchedule": {"schedule": "karras"}}, "schedule"),
    ],
)
def test_what_comes_after_the_training_is_refused_with_it(inputs, said, server, client, name):
    """ComfyUI begins with the outputs that do not depend on the refused node; the queue is empty all the same."""
    with pytest.raises(ServerError, match=said):
        server.queue(demo(name, **inputs), client="test")
    client.wait_until_idle()


def without(prompt, kind, name):
    for node in prompt.values():
        if node["class_type"] == kind:
            node["inputs"].pop(name)
    return prompt


def test_a_missing_connection_is_refused(client, runs, name):
    with pytest.raises(Failed, match="latents is connected; connect latents and positive, or data"):
        client.run(without(demo(name), "FewStepDistill", "positive"))
    assert not (runs / name).exists()


@pytest.mark.parametrize(
    ("kind", "inputs", "named"),
    [
        ("FewStepDistill", {"run_name": "../elsewhere"}, {"run_name"}),
        ("FewStepDistill", {"batch_size": 0}, {"batch_size"}),
        ("FewStepProgressiveDistillation", {"iterations": 0}, {"iterations"}),
        ("FewStepProgressiveDistillation", {"start_steps": 12}, {"start_steps", "target_steps", "merged_steps"}),
    ],
)
def test_a_wrong_value_is_reported_where_it_is(kind, inputs, named, server, name):
    body = json.dumps({"prompt": demo(name, **{kind: inputs}), "client_id": "test"}).encode()
    asked = urllib.request.Request(f"{server.address}/prompt", data=body, headers={"Content-Type": "application/json"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=60)  # noqa: S310 (our own http address)
    errors = json.loads(refused.value.read())["node_errors"].values()
    assert {error["extra_info"]["input_name"] for node in errors for error in node["errors"]} == named


def test_distill_model_alone_can_be_queued(client, runs, name):
    """Nothing is connected to what it gives."""
    prompt = demo(name)
    wanted = {"FewStepDemoTeacher", "FewStepDigitsData", "FewStepDigitPrompt", "FewStepProgressiveDistillation"}
    wanted |= {"FewStepFullWeightsStudent", "FewStepDistill"}
    client.run({key: node for key, node in prompt.items() if node["class_type"] in wanted})
    assert (runs / name / "student.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("FewStepImageFolder", {"folder": "no such folder"}, "which is no folder"),
        ("FewStepImageFolder", {"broken": "ignore"}, "broken"),
        ("FewStepTeacherPictures", {"prompts": " \n "}, "prompts is empty"),
        ("FewStepTeacherPictures", {"width": 100}, "width is 100"),
        ("FewStepTeacherPictures", {"sampler": "euler_ancestral"}, "sampler"),
        ("FewStepTrainingPrompts", {"prompts": ""}, "prompts is empty"),
        ("FewStepTrainingPrompts", {}, "progressive distillation learns from pictures; connect Training Prompts"),
    ],
)
def test_data_of_no_use_are_refused_before_a_run_begins(kind, inputs, said, client, runs, name):
    """By the queue on current hosts; on those of mid-2024, which do not look behind optional inputs, by the node."""
    given = {
        "FewStepImageFolder": {"folder": ".", "resolution": 32, "bucket_step": 8, "caption": "", "negative": ""}
        | {"without_caption": "use caption", "flip": False, "broken": "stop"},
        "FewStepTeacherPictures": {"prompts": "7", "negative": "", "width": 32, "height": 32, "pictures_per_prompt": 1}
        | {"steps": 4, "cfg": 1.0, "sampler": "euler", "seed": 0, "batch_size": 1, "pairs": False},
        "FewStepTrainingPrompts": {"prompts": "7", "negative": "", "width": 32, "height": 32},
    }
    prompt = demo(name)
    for connected in ("latents", "positive", "negative"):
        without(prompt, "FewStepDistill", connected)
    prompt["5"]["inputs"]["data"] = ["30", 0]
    prompt["30"] = {"class_type": kind, "inputs": given[kind] | inputs}
    with pytest.raises((ServerError, Failed), match=said):
        client.run(prompt)
    assert not (runs / name).exists()


def test_two_kinds_of_data_are_refused(client, name):
    prompt = demo(name)
    prompt["5"]["inputs"]["data"] = ["30", 0]
    prompt["30"] = {
        "class_type": "FewStepTeacherPictures",
        "inputs": {"prompts": "7", "negative": "", "width": 32, "height": 32, "pictures_per_prompt": 1, "steps": 4}
        | {"cfg": 1.0, "sampler": "euler", "seed": 0, "batch_size": 1, "pairs": False},
    }
    with pytest.raises(Failed, match="connect data alone"):
        client.run(prompt)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["5"]["inputs"].pop("negative"), "connect the negative"),
        (lambda p: p["5"]["inputs"].update(positive=["11", 0]), "10 entries .* but there are 1797 latents"),
        (lambda p: p["5"]["inputs"].update(negative=["11", 0]), "negative conditioning holds 10 entries"),
        (lambda p: p["5"]["inputs"].update(latents=["12", 0], positive=["2", 1]), "1797 entries .* 10 latents"),
        (lambda p: p["14"]["inputs"].update(model=["1", 0], schedule="lcm", steps=51), "steps is 51"),
    ],
    ids=["no negative", "ten prompts", "ten negatives", "ten latents", "too many lcm steps"],
)
def test_named_when_it_arrives(change, said, client, runs, name):
    prompt = demo(name)
    change(prompt)
    with pytest.raises(Failed, match=said):
        client.run(prompt)
    assert not (runs / name).exists() or "steps is 51" in said


def test_nan_in_the_data_is_named(client, base, runs, name):
    (base / "input").mkdir(exist_ok=True)
    latents = torch.zeros(2, 4, 4, 4)
    latents[1, 0, 0, 0] = float("nan")
    save_file({"latent_tensor": latents, "latent_format_version_0": torch.tensor([])}, base / "input" / "bad.latent")
    prompt = demo(name)
    prompt["30"] = {"class_type": "LoadLatent", "inputs": {"latent": "bad.latent"}}
    prompt["5"]["inputs"].update(latents=["30", 0], positive=["3", 0])
    with pytest.raises(Failed, match="training latents hold 1 values that are NaN"):
        client.run(prompt)
    assert not (runs / name).exists()


def test_a_run_folder_of_other_settings_is_named(client, name):
    client.run(demo(name))
    other = demo(name, FewStepDistill={"batch_size": 9})
    with pytest.raises(Failed, match=r"holds another run.*training\.batch_size: there 8, here 9"):
        client.run(other)


def test_a_damaged_checkpoint_is_named(client, server, runs, name):
    prompt = demo(name, FewStepProgressiveDistillation={"iterations": 80})

    def cancel(kind, data):
        if kind == "fewstep.metrics":
            server.post("/interrupt", {})

    with pytest.raises(Failed, match="interrupted"):
        client.run(prompt, on_event=cancel)
    newest = sorted((runs / name / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(Failed, match=rf"cannot be resumed.*{newest.name}"):
        client.run(prompt)


def test_a_damaged_student_is_named(client, runs, name):
    client.run(demo(name))
    file = runs / name / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    prompt = demo(name)
    loading = {k: prompt[k] for k in ("1",)}
    loading["20"] = {"class_type": "FewStepLoadStudent", "inputs": {"model": ["1", 0], "student": f"{name} (run)"}}
    loading["21"] = {
        "class_type": "FewStepSchedule",
        "inputs": {"model": ["20", 0], "schedule": "trailing", "steps": 4},
    }
    loading["22"] = dict(prompt["15"], inputs={**prompt["15"]["inputs"], "model": ["20", 0], "sigmas": ["21", 0]})
    loading |= {k: prompt[k] for k in ("3", "11", "12", "13", "16", "17")}
    loading["16"]["inputs"]["samples"] = ["22", 0]
    with pytest.raises(Failed, match=r"student\.safetensors is damaged"):
        client.run(loading)


def test_an_unknown_student_is_refused(server):
    prompt = {
        "1": {"class_type": "FewStepDemoTeacher", "inputs": {}},
        "2": {"class_type": "FewStepLoadStudent", "inputs": {"model": ["1", 0], "student": "../../secret"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}},
        "4": {"class_type": "FewStepDigitPrompt", "inputs": {"digits": "1"}},
        "5": {
            "class_type": "SamplerCustom",
            "inputs": {
                "model": ["2", 0],
                "add_noise": True,
                "noise_seed": 0,
                "cfg": 1.0,
                "positive": ["4", 0],
                "negative": ["4", 0],
                "sampler": ["2", 1],
                "sigmas": ["2", 2],
                "latent_image": ["3", 0],
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 1]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    with pytest.raises(ServerError, match="student"):
        server.queue(prompt, client="test")
