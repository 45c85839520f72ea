"""Lists of latents and prompts, as the host's data set nodes give them: one data set and one training, or refused by name."""

import json

import pytest
import torch
from architectures import conditioning, tiny
from comfyui_fewstep.commands.embedded import import_host
from hosting import demo
from making_data import picture

import_host()

from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.distillation.data.data_in_graph import data_in_graph
from comfyui_fewstep.trainers.data.batches import Buckets
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.storage.files import tensors_sha256


def latents(count, *, width=6, seed=0):
    return {"samples": torch.randn(count, 4, 4, width, generator=torch.Generator().manual_seed(seed))}


def prompts(count):
    """CONDITIONING of one row each."""
    return [conditioning("sdxl", seed=seed) for seed in range(count)]


def in_one(several):
    return [entry for one in several for entry in one]


def made(given, positive, **options):
    return data_in_graph(tiny("sdxl"), given, positive, None, dropout=0.0, **options).data


def same(one, other):
    return tensors_sha256(one.tensors()) == tensors_sha256(other.tensors())


def test_a_list_of_pictures_is_the_data_set_that_a_batch_of_them_is():
    """With a prompt for each of the list, for each picture, or for all."""
    parts = [latents(2, seed=0), latents(1, seed=1), latents(3, seed=2)]
    batch = {"samples": torch.cat([part["samples"] for part in parts])}
    each = prompts(6)
    whole = made(batch, in_one(each))
    assert same(made(parts, each), whole)
    assert same(made(parts, [in_one(each)]), whole)
    assert same(made([batch], each), whole)
    assert same(made([batch], [in_one(each)]), whole)
    of_three = [each[0], each[1], in_one(each[3:6])]
    assert same(made(parts, of_three), made(batch, in_one([each[0], each[0], each[1], *each[3:6]])))
    one = made(batch, each[0])
    assert same(made(parts, each[:1]), one)
    assert same(made(parts, each[0]), one)


def test_pictures_of_several_sizes_are_buckets_with_their_own_prompts():
    """SDXL is told the size, so that each bucket's prompts are its own."""
    each = prompts(3)
    data = made([latents(1, width=6), latents(1, width=8, seed=1), latents(1, width=6, seed=2)], each)
    assert isinstance(data, Buckets)
    assert [tuple(bucket.x0.shape) for bucket in data.buckets] == [(2, 4, 4, 6), (1, 4, 4, 8)]
    narrow = made([latents(1, width=6), latents(1, width=6, seed=2)], [each[0], each[2]])
    assert same(data.buckets[0], narrow)
    assert same(data.buckets[1], made(latents(1, width=8, seed=1), each[1]))
    shared = made([latents(1, width=6), latents(1, width=8)], each[0])
    assert [len(value) for value in shared.buckets[1].condition.values()] == [1] * len(shared.buckets[1].condition)


@pytest.mark.parametrize(
    ("pictures", "texts", "said"),
    [
        ([1, 1, 1], 2, "positive is a list of 2 with 2 prompts, and latents are a list of 3 with 3 pictures"),
        ([2, 2], 3, "positive is a list of 3 with 3 prompts, and latents are a list of 2 with 4 pictures"),
        ([], 1, "latents or positive is empty"),
    ],
)
def test_lists_that_do_not_pair_up_are_refused(pictures, texts, said):
    with pytest.raises(ValueError, match=said):
        made([latents(count, seed=i) for i, count in enumerate(pictures)], prompts(texts))


# --- in a queue ------------------------------------------------------------------------------------------------------


def states(client, prompt):
    told = []
    client.run(prompt, on_event=lambda kind, data: told.append(data["state"]) if kind == "fewstep.state" else None)
    return told


def listed(prompt, kind="FewStepDistill", size=600):
    """The latents as a list, by the host's own node; the digits are 1797."""
    (node,) = [node for node in prompt.values() if node["class_type"] == kind]
    prompt["list"] = {
        "class_type": "RebatchLatents",
        "inputs": {"latents": node["inputs"]["latents"], "batch_size": size},
    }
    node["inputs"]["latents"] = ["list", 0]
    return prompt


def data_of(runs, name):
    return json.loads((runs / name / "run.json").read_text())["run"]["data_sha256"]


def test_a_list_is_trained_on_once_and_whole(client, runs, name):
    assert states(client, listed(demo(name))) == ["begun", "finished"]
    client.run(demo(f"{name} batch"))
    assert data_of(runs, name) == data_of(runs, f"{name} batch")


def test_a_list_is_written_whole(client, runs, name):
    prompt = demo(name)
    (node,) = [node for node in prompt.values() if node["class_type"] == "FewStepDistill"]
    node["class_type"] = "FewStepWriteRun"
    wanted = {"FewStepDemoTeacher", "FewStepDigitsData", "FewStepDigitPrompt", "FewStepProgressiveDistillation"}
    wanted |= {"FewStepFullWeightsStudent", "FewStepWriteRun"}
    kept = {key: node for key, node in prompt.items() if node["class_type"] in wanted}
    client.run(listed(kept, kind="FewStepWriteRun"))
    shards = json.loads((runs / name / "data" / "index.json").read_text())["shards"]
    assert len(shards) == -(-1797 // 256)


def test_a_list_of_anything_else_is_refused_by_name():
    """As the host calls the node: every input a list."""
    node, given = (
        NODE_CLASS_MAPPINGS["FewStepDistill"],
        {"run_name": ["list"], "latents": [latents(1)], "model": [None]},
    )
    with pytest.raises(ValueError, match=r"vae comes as a list of 2, .* latents, positive, negative"):
        node().distil(**given, vae=[None, None])
    assert node.VALIDATE_INPUTS(run_name=["list"]) is True
    assert "no path may be in it" in node.VALIDATE_INPUTS(run_name=["../list"])


def test_a_folder_of_pictures_by_the_hosts_own_node(server, client, base, runs, name):
    """Each is encoded for itself by VAE Encode, and all of them are trained on."""
    if "LoadImageDataSetFromFolder" not in server.get("/object_info"):
        pytest.skip("this host has no data set nodes")
    folder = base / "input" / "three pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        picture(folder / f"{i}.png", 32, 32, seed=i)
    prompt = demo(name)
    (node,) = [node for node in prompt.values() if node["class_type"] == "FewStepDistill"]
    prompt["folder"] = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder.name}}
    prompt["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["folder", 0], "vae": ["1", 1]}}
    node["inputs"] |= {"latents": ["encoded", 0], "positive": ["3", 0]}
    assert states(client, prompt) == ["begun", "finished"]
    assert len(read_data(runs / name / "data").x0) == 3
