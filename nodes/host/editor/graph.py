"""The part of a workflow that made a value, kept as it was queued, and executed again in another process.

So a run folder says where its teacher came from: the checkpoint's file, LoRAs, patches, as the user wired them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .signals import Cancelled

Graph = dict[str, dict[str, Any]]
"""Nodes by id in the API format: {"class_type": ..., "inputs": {name: value or [node id, output slot]}}."""


def upstream(graph: Mapping[str, Any], node: str, inputs: Iterable[str]) -> dict[str, Any] | None:
    """{"nodes": what the named inputs of a node are made from, "outputs": {input name: [node id, slot]}}, JSON values.

    Inputs that nothing is connected to are left out. None when the graph does not hold the node or one of its sources,
    as with nodes that ComfyUI made while it ran.
    """
    if node not in graph:
        return None
    given = graph[node]["inputs"]
    outputs = {name: given[name] for name in inputs if _is_link(given.get(name))}
    kept: Graph = {}
    waiting = [source for source, _ in outputs.values()]
    while waiting:
        name = waiting.pop()
        if name in kept:
            continue
        if name not in graph:
            return None
        kept[name] = {"class_type": graph[name]["class_type"], "inputs": dict(graph[name]["inputs"])}
        waiting += [value[0] for value in kept[name]["inputs"].values() if _is_link(value)]
    return {"nodes": {name: kept[name] for name in sorted(kept)}, "outputs": outputs}


FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
"""How the names of model files end."""


def files_behind(graph: Mapping[str, Any], node: str, name: str) -> dict[str, float | None]:
    """The model files that the nodes behind an input name, the nearest first, and the strength of each that is a LoRA's.

    A LoRA at strength 0 is left out.
    """
    found: dict[str, float | None] = {}
    waiting, seen = [graph.get(node, {}).get("inputs", {}).get(name)], set()
    while waiting:
        link = waiting.pop(0)
        if not _is_link(link) or link[0] in seen or link[0] not in graph:
            continue
        seen.add(link[0])
        inputs = graph[link[0]]["inputs"]
        for row in _rows(inputs):
            strength = row.get("strength_model")
            files = [value for value in row.values() if isinstance(value, str) and value.lower().endswith(FILES)]
            if strength != 0:
                found |= {
                    file: strength if isinstance(strength, int | float) else None for file in files if file not in found
                }
        waiting += inputs.values()
    return found


def _rows(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A node's inputs, and apart from them those of each row that its user adds.

    As loras.0.lora_name and loras.0.strength, or as one value of a row, {"on": true, "lora": ..., "strength": ...}, as the
    widely used Power Lora Loader has it.
    """
    rows: dict[str, dict[str, Any]] = {"": {}}
    for name, value in inputs.items():
        row, _, field = name.rpartition(".")
        if isinstance(value, Mapping):
            rows[name] = {**value, "strength_model": value.get("strength") if value.get("on", True) else 0}
        else:
            rows.setdefault(row, {})["strength_model" if row and field == "strength" else field] = value
    return list(rows.values())


def nothing_yet(reason: str) -> Any:
    """For an output without a value: what hangs on it is not run, or fails with the reason in hosts before August 2024."""
    try:
        from comfy_execution.graph_utils import ExecutionBlocker
    except ImportError:
        return _Nothing(reason)
    return ExecutionBlocker(None)


class _Nothing:
    """Whoever uses it is told why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise ValueError(self._reason)


def _is_link(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


class Execution:
    """Executes nodes of a kept graph, each once. classes: the host's node classes by name.

    ValueError, naming the node, for a class that this host does not have or a file that it does not list, before any
    node runs; of nodes that another may not ask for, such as those behind a switch, when it does.
    """

    def __init__(self, graph: Graph, *, classes: Mapping[str, Any]) -> None:
        self._graph, self._classes = graph, classes
        self._done: dict[str, tuple[Any, ...]] = {}
        self._required: set[str] = set()
        linked = {link[0] for entry in graph.values() for link in entry["inputs"].values() if _is_link(link)}
        waiting = [name for name in graph if name not in linked]
        while waiting:
            name = waiting.pop()
            if name in graph and name not in self._required:
                self._require(name)
                waiting += self._surely_behind(name)

    def output(self, link: tuple[str, int] | list[Any]) -> Any:
        """The value of a node's output, (node id, slot). ValueError for one that there is none of."""
        name, slot = link
        if name not in self._graph:
            raise ValueError(f"the run's teacher is made by the node {name!r}, which its graph does not hold.")
        if name not in self._done:
            self._done[name] = ()  # until then, also for whoever asks for it within
            self._done[name] = self._execute(name)
        if not 0 <= slot < len(self._done[name]):
            raise ValueError(
                f"the run's teacher is made with output {slot} of the node {name!r}, which has none of that number."
            )
        return self._done[name][slot]

    def _surely_behind(self, name: str) -> list[str]:
        """The nodes of a node's inputs, without those that it may not ask for."""
        inputs = self._graph[name]["inputs"]
        lazily = _lazy(self._classes[self._graph[name]["class_type"]], inputs)
        return [value[0] for key, value in inputs.items() if _is_link(value) and key not in lazily]

    def _require(self, name: str) -> None:
        self._required.add(name)
        kind, inputs = self._graph[name]["class_type"], self._graph[name]["inputs"]
        if kind not in self._classes:
            raise ValueError(f"the run's teacher was made with a node {kind!r}, which this ComfyUI does not have.")
        made = self._classes[kind]
        if any(getattr(made, "OUTPUT_IS_LIST", None) or ()):
            raise ValueError(f"the run's teacher was made with {kind}, which gives lists; only plain nodes are kept.")
        for input_name, allowed in _choices(made, inputs).items():
            given = inputs.get(input_name)
            if input_name in inputs and not _is_link(given) and given not in allowed:
                shown = ", ".join(map(str, allowed[:10])) or "none"
                raise ValueError(
                    f"the run's teacher was made with {kind}, {input_name} {given!r}, which is not here; known here: {shown}."
                )

    def _execute(self, name: str) -> tuple[Any, ...]:
        if name not in self._required:
            self._require(name)
        made = self._classes[self._graph[name]["class_type"]]
        if _is_v3(made):
            node, hidden = made.PREPARE_CLASS_CLONE({"hidden_inputs": self._hidden_of_v3(name)}), {}
        else:
            node, hidden = made(), self._hidden(name, made)
        inputs = self._asked_for(name, made, node) | hidden
        if getattr(made, "INPUT_IS_LIST", False):
            inputs = {key: [value] for key, value in inputs.items()}
        try:
            result = _awaited(getattr(node, made.FUNCTION)(**_nested(made, inputs)))
        except (ValueError, MemoryError, torch.cuda.OutOfMemoryError, Cancelled):
            raise
        except Exception as error:  # of many kinds: a damaged file is another thing to each loader
            given = {key: value for key, value in self._graph[name]["inputs"].items() if not _is_link(value)}
            raise ValueError(
                f"the run's teacher cannot be made: {made.__name__} (node {name}) with {given} ends with "
                f"{type(error).__name__}: {error}"
            ) from error
        result = getattr(result, "result", result)  # of nodes in ComfyUI's V3 schema
        if isinstance(result, dict):
            result = result.get("result")
        if not isinstance(result, tuple | list):
            raise ValueError(
                f"the run's teacher was made with {made.__name__} (node {name}), which gave no plain values."
            )
        return tuple(result)

    def _asked_for(self, name: str, made: Any, node: Any) -> dict[str, Any]:
        """A node's inputs, of the lazy ones those that it asks for, the others None: as the host has it."""
        given, lazily = self._graph[name]["inputs"], _lazy(made, self._graph[name]["inputs"])
        waits = {key for key, value in given.items() if key in lazily and _is_link(value)}
        inputs = {
            key: None if key in waits else self.output(value) if _is_link(value) else value
            for key, value in given.items()
        }
        while waits and hasattr(node, "check_lazy_status"):
            asked = _awaited(node.check_lazy_status(**_nested(made, inputs, lazily=True))) or []
            wanted = waits.intersection(key for key in asked if isinstance(key, str))
            if not wanted:
                break
            inputs |= {key: self.output(given[key]) for key in wanted}
            waits -= wanted
        return inputs

    def _hidden(self, name: str, made: Any) -> dict[str, Any]:
        known = {"PROMPT": self._graph, "UNIQUE_ID": name}
        return {key: known.get(kind) for key, kind in made.INPUT_TYPES().get("hidden", {}).items()}

    def _hidden_of_v3(self, name: str) -> dict[Any, Any]:
        from comfy_api.latest import io

        return {io.Hidden.prompt: self._graph, io.Hidden.unique_id: name}


def _awaited(result: Any) -> Any:
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _is_v3(made: Any) -> bool:
    return hasattr(made, "PREPARE_CLASS_CLONE")


def _finalised(made: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what a node declares, how V3 nodes of today nest inputs that come and go, by what they are given)"""
    declared = made.INPUT_TYPES()
    if not _is_v3(made):
        return declared, {}
    from comfy_api.latest import _io

    if not hasattr(_io, "get_finalized_class_inputs"):
        return declared, {}
    declared, _, nesting = _io.get_finalized_class_inputs(declared, inputs)
    return declared, nesting


def _nested(made: Any, inputs: dict[str, Any], *, lazily: bool = False) -> dict[str, Any]:
    """As the node's function takes them. lazily: for check_lazy_status, which is told their flat names too."""
    _, nesting = _finalised(made, inputs)
    if not nesting:
        return inputs
    from comfy_api.latest import _io

    return dict(_io.build_nested_inputs(inputs, {**nesting, "create_dynamic_tuple": lazily}))


def _declared(made: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    declared, _ = _finalised(made, inputs)
    return {**declared.get("required", {}), **declared.get("optional", {})}


def _lazy(made: Any, inputs: Mapping[str, Any]) -> set[str]:
    """Inputs that a node may not ask for."""
    return {
        name
        for name, declared in _declared(made, inputs).items()
        if len(declared) > 1 and isinstance(declared[1], dict) and declared[1].get("lazy")
    }


def _choices(made: Any, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The allowed values of a node's menus, by input."""
    menus = {name: menu_of(*kind) for name, kind in _declared(made, inputs).items()}
    return {name: menu for name, menu in menus.items() if menu is not None}


def menu_of(kind: Any, options: Mapping[str, Any] | None = None, *_: Any) -> list[Any] | None:
    """The allowed values of an input declared so; None for one that is no menu.

    In the V1 schema the type is the list itself; in V3 it is an option.
    """
    if isinstance(kind, list | tuple):
        return list(kind)
    return (options or {}).get("options") if kind == "COMBO" else None
