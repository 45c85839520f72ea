"""Talking to the server as the editor does, and the workflows of the pack."""

import asyncio
import copy
import json
import time
import uuid
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def api_twin(workflow):
    return json.loads((workflow.parent / "api" / workflow.name).read_text())


def inputs_of(node):
    """What a node class declares, by input."""
    declared = node.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def stand_in_node(outputs, make):
    """A node class that gives make(inputs), whatever it is given."""

    class StandIn:
        RETURN_TYPES, FUNCTION = outputs, "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def run(self, **inputs):
            return make(inputs)

    return StandIn


class Failed(Exception):
    """A node failed; the message is what the user reads on it."""


class Client:
    def __init__(self, server):
        self.server = server

    def run(self, prompt, *, on_event=lambda kind, data: None):
        """The history of a finished prompt. Failed with the node's message, or "interrupted"."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_event), 300))

    def wait_until_idle(self, *, seconds=120):
        """Failed when the host still has something to do after that."""
        end = time.monotonic() + seconds
        while any(self.server.get("/queue").values()):
            if time.monotonic() > end:
                raise Failed("the queue is not empty")
            time.sleep(0.1)

    async def _run(self, prompt, on_event):
        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.server.address}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            number = self.server.queue(prompt, client=client)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    on_event("preview", message.data)
                    continue
                event = message.json()
                kind, data = event["type"], event.get("data") or {}
                on_event(kind, data)
                if kind == "execution_error":
                    raise Failed(data["exception_message"])
                if kind == "execution_interrupted":
                    raise Failed("interrupted")
                if kind == "executing" and data["node"] is None and data.get("prompt_id") == number:
                    return self.server.get(f"/history/{number}")[number]
        raise Failed("the connection closed")


def demo(name, **inputs):
    """The demo workflow at small settings as a run; inputs by kind of node: demo(name, FewStepDistill={"seed": 3})."""
    prompt = copy.deepcopy(api_twin(ROOT / "workflows" / "Distil digits to 4 steps.json"))
    small = {
        "FewStepProgressiveDistillation": {"start_steps": 8, "iterations": 6},
        "FewStepDistill": {"batch_size": 8, "run_name": name, "checkpoint_every": 3},
        "FewStepEvaluateDigits": {"count": 100, "teacher_steps": "8, 4"},
    }
    for kind in small.keys() | inputs.keys():
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"].update({**small.get(kind, {}), **inputs.get(kind, {})})
    return prompt


NOTES = ("Note", "MarkdownNote")
"""Nodes of the editor alone."""


def lacking(workflow, object_info):
    """What a workflow in API format needs and a host has not: node classes, and inputs of those that it has."""
    found = []
    for node in workflow.values():
        info = object_info.get(node["class_type"], {}).get("input")
        declared = {**info.get("required", {}), **info.get("optional", {})} if info else {}
        inputs = [name for name in node["inputs"] if name.partition(".")[0] not in declared]
        found += [f"{node['class_type']}.{name}" for name in inputs] if info else [node["class_type"]]
    return sorted(set(found))


def ui_to_api(workflow, object_info):
    """A UI-format workflow as the editor would queue it: links by slot, widget values by position, links before values."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node.get("widgets_values", []))
        linked = {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot["link"] is not None}
        inputs = _given(object_info[node["type"]]["input"], values, linked)
        assert not list(values), f"{node['type']} has more widget values than widgets"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _given(info, values, linked, before=""):
    """The inputs that are declared so; those of the chosen option of a menu with inputs of its own after it."""
    inputs = {}
    for name, declared in {**info.get("required", {}), **info.get("optional", {})}.items():
        kind, options = declared[0], (declared[1] if len(declared) > 1 else {})
        named = f"{before}{name}"
        widget = isinstance(kind, list) or kind in WIDGETS or options.get("widgetType")
        if widget and not options.get("forceInput"):
            inputs[named] = next(values)
            if name in ("seed", "noise_seed"):
                assert next(values) == "fixed", "a shared workflow must not change its seed by itself"
        if kind == "COMFY_DYNAMICCOMBO_V3":
            (chosen,) = [one for one in options["options"] if one["key"] == inputs[named]]
            inputs |= _given(chosen["inputs"], values, linked, before=f"{named}.")
        if named in linked:
            inputs[named] = linked[named]
    return inputs
