"""The kept part of a workflow: what is in it, and that executing it again gives what the host's nodes give."""

import json

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.host import graph

CLASSES = {}


def node(name, function, menu=None, **attributes):
    """A class in the V1 schema whose only function is `function`."""
    declared = {"required": {"value": (menu or "INT",)}}
    made = {"INPUT_TYPES": classmethod(lambda cls: declared), "FUNCTION": "go", "go": staticmethod(function)}
    CLASSES[name] = type(name, (), {**made, **attributes})


async def _later(value):
    return (value + 7,)


class V3Output:
    def __init__(self, *args):
        self.result = args


class Either:
    """As the host's switches: of two inputs it asks for one."""

    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        lazy = ("INT", {"lazy": True})
        return {"required": {"first": ("BOOLEAN",), "one": lazy}, "optional": {"other": lazy}}

    def check_lazy_status(self, first, one=None, other=None):
        return [name for name, value in (("one", one), ("other", other)) if first == (name == "one") and value is None]

    def go(self, first, one=None, other=None):
        return ((one, other),)


CLASSES["Either"] = Either
calls = []
node("Count", lambda value: (calls.append(value) or len(calls), value))
node("Add", lambda value, other=0: (value + other,))
node("File", lambda value: (value,), menu=["here.safetensors", "there.safetensors"])
node("Shown", lambda value: {"ui": {"text": ["x"]}, "result": (value * 2,)})
node("V3", lambda value: V3Output(value * 3))
node("Later", _later)
node("Listed", lambda value: (value,), OUTPUT_IS_LIST=(True,))
node("Takes", lambda value: (sum(value) + len(value),), INPUT_IS_LIST=True)
node("OnlyShown", lambda value: {"ui": {"text": ["x"]}})


def entry(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


WORKFLOW = {
    "1": entry("Count", value=5),
    "2": entry("Add", value=["1", 0], other=["1", 1]),
    "3": entry("Distill", model=["2", 0], vae=["1", 1], positive=["4", 0], seed=3, size=["a", "b"]),
    "4": entry("Add", value=9),
    "12:7": entry("Shown", value=["2", 0]),
}


def test_what_an_input_is_made_from_is_kept_and_nothing_else():
    kept = graph.upstream(WORKFLOW, "3", ("model", "vae", "clip"))
    assert kept == {
        "nodes": {"1": WORKFLOW["1"], "2": WORKFLOW["2"]},
        "outputs": {"model": ["2", 0], "vae": ["1", 1]},
    }
    assert json.loads(json.dumps(kept)) == kept


@pytest.mark.parametrize(
    "workflow, number", [({}, "3"), (WORKFLOW, "99"), ({"3": entry("Distill", model=["2", 0])}, "3")]
)
def test_a_graph_that_does_not_hold_all_is_none(workflow, number):
    assert graph.upstream(workflow, number, ("model",)) is None


def test_each_node_runs_once():
    calls.clear()
    execution = graph.Execution({number: WORKFLOW[number] for number in ("1", "2", "12:7")}, classes=CLASSES)
    assert execution.output(["2", 0]) == 1 + 5
    assert execution.output(["1", 1]) == 5
    assert execution.output(["12:7", 0]) == 12
    assert calls == [5]


@pytest.mark.parametrize("kind, expected", [("Add", 4), ("Shown", 8), ("V3", 12), ("Later", 11), ("Takes", 5)])
def test_results_of_every_schema(kind, expected):
    assert graph.Execution({"1": entry(kind, value=4)}, classes=CLASSES).output(["1", 0]) == expected


@pytest.mark.parametrize(
    "kind, value, message",
    [
        ("Unheard", 1, "node 'Unheard', which this ComfyUI does not have"),
        ("File", "gone.safetensors", "File, value 'gone.safetensors', which is not here; known here: here.safetensors"),
        ("Listed", 1, "Listed, which gives lists"),
    ],
)
def test_what_cannot_be_made_is_named_before_anything_runs(kind, value, message):
    calls.clear()
    with pytest.raises(ValueError, match=message):
        graph.Execution({"1": entry("Count", value=1), "2": entry(kind, value=value)}, classes=CLASSES)
    assert not calls


def test_what_a_switch_does_not_ask_for_is_neither_run_nor_required():
    """Also what is behind that; of what it does ask for, all that is missing is named."""
    calls.clear()
    kept = {
        "1": entry("Count", value=5),
        "2": entry("Unheard", value=1),
        "3": entry("Add", value=["2", 0]),
        "4": entry("Either", first=True, one=["1", 1], other=["3", 0]),
    }
    assert graph.Execution(kept, classes=CLASSES).output(["4", 0]) == (5, None)
    kept["4"]["inputs"]["first"] = False
    execution = graph.Execution(kept, classes=CLASSES)
    with pytest.raises(ValueError, match="node 'Unheard', which this ComfyUI does not have"):
        execution.output(["4", 0])
    assert calls == [5]


@pytest.mark.skipif("ComfySwitchNode" not in node_classes(), reason="this host has no such nodes")
def test_todays_nodes_whose_inputs_come_and_go():
    """The host's own formula and switch."""
    kept = {
        "1": entry("ComfyMathExpression", expression="a * 2 + b", **{"values.a": 0.25, "values.b": 1.0}),
        "2": entry("Unheard", value=1),
        "3": entry("ComfySwitchNode", switch=False, on_false=["1", 0], on_true=["2", 0]),
    }
    assert graph.Execution(kept, classes=node_classes()).output(["3", 0]) == 1.5


def test_a_node_without_values_is_named():
    with pytest.raises(ValueError, match=r"OnlyShown \(node 1\), which gave no plain values"):
        graph.Execution({"1": entry("OnlyShown", value=1)}, classes=CLASSES).output(["1", 0])


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (["9", 0], "made by the node '9', which its graph does not hold"),
        (["1", 2], "output 2 of the node '1', which has none of that number"),
        (["1", -1], "output -1 of the node '1'"),
        (["2", 0], "output 0 of the node '2'"),
    ],
)
def test_links_to_nothing_and_in_a_circle_are_named(link, message):
    circle = {"1": entry("Count", value=1), "2": entry("Add", value=["2", 0])}
    with pytest.raises(ValueError, match=message):
        graph.Execution(circle, classes=CLASSES).output(link)


def test_the_hosts_own_nodes():
    """Latents by EmptyLatentImage, of its own menu-less inputs, and added by an extra node."""
    kept = {
        "1": entry("EmptyLatentImage", width=64, height=32, batch_size=2),
        "2": entry("LatentAdd", samples1=["1", 0], samples2=["1", 0]),
    }
    with torch.inference_mode():
        latent = graph.Execution(kept, classes=node_classes()).output(["2", 0])
    assert latent["samples"].shape == (2, 4, 4, 8)


def test_what_a_loader_says_of_a_damaged_file_names_node_and_file():
    """Each loader has an error of its own kind for that, with neither."""

    def damaged(value):
        raise RuntimeError("Error while deserializing header")

    node("Damaged", damaged, menu=["here.safetensors"])
    kept = {"4": entry("Damaged", value="here.safetensors")}
    said = (
        r"cannot be made: Damaged \(node 4\) with \{'value': 'here\.safetensors'\} ends with RuntimeError: Error while"
    )
    with pytest.raises(ValueError, match=said):
        graph.Execution(kept, classes=CLASSES).output(["4", 0])


@pytest.mark.parametrize("error", [host.signals.Cancelled(), torch.cuda.OutOfMemoryError("no room"), MemoryError()])
def test_a_cancel_and_a_lack_of_memory_stay_what_they_are(error):
    def ended(value):
        raise error

    node("Ended", ended)
    with pytest.raises(type(error)):
        graph.Execution({"4": entry("Ended", value=1)}, classes=CLASSES).output(["4", 0])
