"""A workflow in the editor's format, read: subgraphs entered, reroutes and switches followed, widgets by their names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[int, ...]
"""Ids of the subgraphs around a node, the outermost first, and its own."""
Switches = dict[Path, bool]
Node = dict[str, Any]

WIDGETS = {
    "KSampler": "seed control steps cfg sampler_name scheduler denoise",
    "KSamplerAdvanced": "add_noise noise_seed control steps cfg sampler_name scheduler start_at_step end_at_step leftover",
    "SamplerCustom": "add_noise noise_seed control cfg",
    "KSamplerSelect": "sampler_name",
    "SamplerEulerAncestral": "eta s_noise",
    "SamplerLCM": "s_noise s_noise_end noise_clip",
    "BasicScheduler": "scheduler steps denoise",
    "ManualSigmas": "sigmas",
    "Flux2Scheduler": "steps width height",
    "LTXVScheduler": "steps",
    "SDTurboScheduler": "steps denoise",
    "SplitSigmas": "step",
    "CFGGuider": "cfg",
    "DualCFGGuider": "cfg cfg_conds2_negative",
    "LTXVDualCFGGuider": "video_cfg audio_cfg",
    "FluxGuidance": "guidance",
    "ModelSamplingAuraFlow": "shift",
    "ModelSamplingSD3": "shift",
    "ModelSamplingFlux": "max_shift base_shift width height",
    "MiniMaxH3SigmaShift": "shift audio_shift",
    "ModelNoiseScale": "noise_scale",
    "UNETLoader": "file",
    "UnetLoaderGGUF": "file",
    "CheckpointLoaderSimple": "file",
    "LoraLoader": "file strength",
    "LoraLoaderModelOnly": "file strength",
    "ComfySwitchNode": "switch",
}
"""Of the nodes that decide how a model is sampled: the names of their widgets, in their order."""
_OFF = (2, 4)
"""Modes of a node that is muted or bypassed."""


@dataclass
class _Level:
    """The whole graph or the inside of one subgraph. links: where each comes from, (node id, slot)."""

    graph: dict[str, Any]
    links: dict[int, tuple[int, int]]


class Graph:
    """Nodes by their paths."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.nodes: dict[Path, Node] = {}
        self._levels: dict[Path, _Level] = {}
        self._subgraphs = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
        self._enter(workflow, ())

    def _enter(self, graph: dict[str, Any], path: Path) -> None:
        self._levels[path] = _Level(graph, dict(map(_link, filter(None, graph.get("links", [])))))
        for node in graph.get("nodes", []):
            here = (*path, node["id"])
            self.nodes[here] = node
            if node["type"] in self._subgraphs:
                self._enter(self._subgraphs[node["type"]], here)

    def running(self, *kinds: str) -> Iterator[Path]:
        """Nodes of these kinds that are neither muted nor bypassed, nor in a subgraph that is."""
        for path, node in self.nodes.items():
            around = [self.nodes[path[:depth]].get("mode") for depth in range(1, len(path) + 1)]
            if node["type"] in kinds and not any(mode in _OFF for mode in around):
                yield path

    def positions(self) -> list[Switches]:
        """Every combination of the positions of the graph's switches, the one that it is saved with first."""
        saved = {self._lever(path): False for path, node in self.nodes.items() if node["type"] == "ComfySwitchNode"}
        saved = {lever: bool(self.widget(lever, "switch", {}) or False) for lever in saved}
        levers = list(saved)[:6]
        changed = (
            dict(zip(levers, turned, strict=True)) for turned in itertools.product((False, True), repeat=len(levers))
        )
        return [saved, *({**saved, **turned} for turned in changed if {**saved, **turned} != saved)]

    def _lever(self, path: Path) -> Path:
        """What a switch is turned by: a node of its own, or the switch."""
        source = self.source(path, "switch", {})
        return source[0] if source else path

    def source(self, path: Path, name: str, switches: Switches) -> tuple[Path, int] | None:
        """The node and slot that an input comes from, through reroutes, bypassed nodes, subgraphs and switches."""
        slot = next((one for one in self.nodes[path].get("inputs", []) if one["name"] == name), None)
        return None if slot is None else self._behind(path[:-1], slot.get("link"), switches)

    def _behind(self, level: Path, link: int | None, switches: Switches) -> tuple[Path, int] | None:
        here = self._levels[level]
        if link not in here.links:
            return None
        origin, slot = here.links[link]
        if int(origin) == -10:  # the inside of a subgraph's own input
            outside = self.nodes[level].get("inputs", [])
            name = here.graph["inputs"][slot]["name"]
            found = next((one for one in outside if one["name"] == name), None)
            return self._behind(level[:-1], found.get("link"), switches) if found else None
        path = (*level, origin)
        return self._through(path, slot, switches) if path in self.nodes else None

    def _through(self, path: Path, slot: int, switches: Switches) -> tuple[Path, int] | None:
        """Further up where a node only hands on what it gets."""
        node = self.nodes[path]
        if path in self._levels:
            inside = self._levels[path].graph["outputs"][slot].get("linkIds") or [None]
            return self._behind(path, inside[0], switches)
        if node["type"] == "ComfySwitchNode":
            turned = switches.get(self._lever(path), bool(self.widget(path, "switch", switches)))
            return self.source(path, "on_true" if turned else "on_false", switches)
        if node["type"] == "Reroute" or node.get("mode") in _OFF:
            kind = node["outputs"][slot]["type"]
            same = [one for one in node.get("inputs", []) if node["type"] == "Reroute" or one["type"] == kind]
            return self._behind(path[:-1], same[0].get("link"), switches) if same else None
        return path, slot

    def widget(self, path: Path, name: str, switches: Switches) -> Any:
        """The value of a widget, its own or a primitive's that is linked to it; None for one that is computed."""
        source = self.source(path, name, switches)
        if source is not None:
            kind = self.nodes[source[0]]["type"]
            return self._own(source[0], "value") if kind.startswith("Primitive") else None
        return self._own(path, name)

    def _own(self, path: Path, name: str) -> Any:
        node = self.nodes[path]
        values = node.get("widgets_values")
        if isinstance(values, dict):
            return values.get(name)
        names = WIDGETS.get(node["type"], name).split()
        if not values or name not in names:
            return values[0] if values and node["type"].startswith("Primitive") else None
        return values[names.index(name)] if names.index(name) < len(values) else None

    def upstream(self, path: Path, *kinds: str, switches: Switches) -> Iterator[Path]:
        """The nodes behind the first input of one of these types, and behind theirs, the nearest first."""
        while True:
            slots = (one["name"] for one in self.nodes[path].get("inputs", []) if one["type"] in kinds)
            sources = (self.source(path, name, switches) for name in slots)
            found = next((source for source in sources if source is not None), None)
            if found is None:
                return
            path = found[0]
            yield path


def _link(link: Any) -> tuple[int, tuple[int, int]]:
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])
