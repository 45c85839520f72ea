"""The run files of docs/examples: nodes and inputs that there are, values that no check refuses, equal to the page's tables."""

import dataclasses
import json
import re

import pytest
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.trainers.methods.progressive import StudentPrediction
from comfyui_fewstep.trainers.training.optimisation.micro_batches import require_equal_parts
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from hosting import ROOT

FILES = sorted((ROOT / "docs" / "examples").glob("*.json"))
OPEN = {"cifar10": {"model"}}
"""Required inputs that the page tells the reader to connect."""


def by_class(file):
    return {node["class_type"]: node["inputs"] for node in json.loads(file.read_text()).values()}


def test_every_example_has_its_file_and_is_marked_as_not_run():
    page = (ROOT / "docs" / "examples.md").read_text()
    assert [file.stem for file in FILES] == ["cifar10", "sd15_lora", "sdxl_lora"]
    assert sorted(re.findall(r"^## .*\(examples/(\w+)\.json\)$", page, flags=re.M)) == [file.stem for file in FILES]
    assert "**None of these has been run by us**" in page


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_nodes_take_what_it_gives_them(file):
    known = {**node_classes(), **NODE_CLASS_MAPPINGS}
    graph = json.loads(file.read_text())
    for node in graph.values():
        kind = known[node["class_type"]]
        declared = kind.INPUT_TYPES()
        required, optional = declared["required"], declared.get("optional", {})
        missing = required.keys() - node["inputs"].keys()
        assert missing == (OPEN.get(file.stem, set()) if node["class_type"] == "FewStepWriteRun" else set())
        for name, value in node["inputs"].items():
            wanted, *options = {**required, **optional}[name]
            if isinstance(value, list):
                source, output = value
                assert known[graph[source]["class_type"]].RETURN_TYPES[output] == wanted, name
            elif isinstance(wanted, list):
                assert value in wanted or name == "ckpt_name", name
            elif options and "min" in options[0]:
                assert options[0]["min"] <= value <= options[0]["max"], name
        typed = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        if node["class_type"] == "FewStepProgressiveDistillation":
            assert kind.VALIDATE_INPUTS(**{name: typed[name] for name in ("start_steps", "target_steps")}) is True


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_options_are_a_run_that_can_be_trained(file):
    inputs = by_class(file)
    (method,) = methods.ProgressiveDistillation().make(**inputs["FewStepProgressiveDistillation"])
    assert method.student_prediction is StudentPrediction.AS_TEACHER
    if "FewStepLoRAStudent" in inputs:
        (student,) = students.LoRAStudentNode().make(**inputs["FewStepLoRAStudent"])
        assert students.read(students.description(student)) == student
    written = inputs["FewStepWriteRun"]
    training = TrainOptions(**{f.name: written[f.name] for f in dataclasses.fields(TrainOptions) if f.name in written})
    assert training.gradient_checkpointing is (file.stem != "cifar10")
    require_equal_parts(training.batch_size, accumulation=training.accumulation, processes=1)


def told(value):
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_says_what_the_file_holds(file):
    """Rows `name, name | value, value` of the file's own section."""
    section = (ROOT / "docs" / "examples.md").read_text().split(f"(examples/{file.name})\n")[1].split("\n## ")[0]
    held = {name: value for inputs in by_class(file).values() for name, value in inputs.items()}
    compared = set()
    for names, values in re.findall(r"^\| ([a-z_, ]+) \| ([^|]+) \|", section, flags=re.M):
        for name, value in zip(names.split(", "), values.strip().split(", "), strict=False):
            if name in held.keys() - {"student", "data"}:
                assert value == told(held[name]) or float(value) == held[name], name
                compared.add(name)
    assert {"start_steps", "target_steps", "iterations", "learning_rate", "guidance_scale", "batch_size"} <= set(
        compared
    )
    for said, layers in re.findall(r"rank (\d+), alpha \d+, (\w+)", section):
        assert (int(said), layers) == (held["rank"], held["layers"])
