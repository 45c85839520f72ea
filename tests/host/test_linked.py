"""Values that come over a link in a real queue, which no host checks: each is refused by its node, and nothing is written."""

import pytest
from hosting import Failed, demo

SOURCES = [
    {str: "PrimitiveString", int: "PrimitiveInt", float: "PrimitiveFloat"},
    {str: "StringRequestParameter", int: "IntRequestParameter", float: "FloatRequestParameter"},
]
"""The host's own nodes that give a typed value: of current hosts, and of the embedded one."""


@pytest.fixture(scope="module")
def sources(server):
    known = server.get("/object_info").keys()
    return next(nodes for nodes in SOURCES if known >= set(nodes.values()))


def linked(prompt, kind, name, value, sources):
    """The prompt with a value over a link in one input of the only node of a kind."""
    prompt["source"] = {"class_type": sources[type(value)], "inputs": {"value": value}}
    (node,) = [node for node in prompt.values() if node["class_type"] == kind]
    node["inputs"][name] = ["source", 0]
    return prompt


@pytest.mark.parametrize("value", ["../../../../evil", "", "CON", "trailing.", "x" * 500])
@pytest.mark.parametrize(("kind", "name"), [("FewStepDistill", "run_name"), ("FewStepSaveStudentLoRA", "name")])
def test_a_name(kind, name, value, client, sources, base):
    prompt = demo("linked")
    if kind == "FewStepSaveStudentLoRA":
        runs = base / "output" / "fewstep" / "runs" / "linked lora"
        runs.mkdir(parents=True, exist_ok=True)
        (runs / "student.safetensors").write_bytes(b"never read")
        prompt = {key: prompt[key] for key in prompt if prompt[key]["class_type"] == "FewStepDemoTeacher"}
        (teacher,) = prompt
        inputs = {"model": [teacher, 0], "student": "linked lora (run)", "rank": 4, "name": ""}
        prompt["save"] = {"class_type": kind, "inputs": inputs}
    with pytest.raises(Failed, match=r"the (run name|name of the file) is .* no path may be in it"):
        client.run(linked(prompt, kind, name, value, sources))
    assert list(base.parents[3].rglob("evil*")) == []


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("FewStepProgressiveDistillation", "start_steps", 2**27),
        ("FewStepProgressiveDistillation", "iterations", 10**9),
        ("FewStepProgressiveDistillation", "learning_rate", float("nan")),
        ("FewStepDistill", "gradient_clip", float("nan")),
        ("FewStepDistill", "batch_size", 10**8),
    ],
)
def test_a_number(kind, name, value, client, sources, runs):
    with pytest.raises(Failed, match=f"{name} is .* allowed is"):
        client.run(linked(demo("linked number"), kind, name, value, sources))
    assert not (runs / "linked number").exists()
