"""What a template's graph samples: with which files, rule, levels, guidance and shift, as its nodes say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .graph import Graph, Path, Switches

_MODEL, _SIGMAS, _CONDITIONING = ("MODEL", "GUIDER"), ("SIGMAS",), ("CONDITIONING",)
SHIFTS = ("ModelSamplingAuraFlow", "ModelSamplingSD3", "ModelSamplingFlux", "MiniMaxH3SigmaShift")


class Unknown(Exception):
    """A sampling that this reading cannot follow; the message says why."""


@dataclass(frozen=True)
class Sampling:
    """files: of the network and its LoRAs, the nearest to the sampler first. sampler: name and options. schedule: the node, with
    its values. steps: of the whole list. cut: the step that it begins at, of a list that is split. shift: of the nearest node
    that sets one, by its widgets. cfg, guidance: None where nothing sets them. node: which kind samples.
    """

    files: tuple[str, ...]
    sampler: tuple[str, tuple[tuple[str, Any], ...]]
    schedule: tuple[str, tuple[tuple[str, Any], ...]]
    steps: int
    node: str
    cut: int = 0
    shift: tuple[str, tuple[tuple[str, Any], ...]] | None = None
    cfg: float | None = None
    guidance: float | None = None
    denoise: float = 1.0


def samplings(graph: Graph, switches: Switches) -> Iterator[Sampling | str]:
    """Of every sampling node that runs; the reason in words where one cannot be read."""
    for path in graph.running("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"):
        try:
            yield _read(graph, path, switches)
        except Unknown as error:
            yield str(error)


def _read(graph: Graph, path: Path, switches: Switches) -> Sampling:
    kind = graph.nodes[path]["type"]
    made = _stock(graph, path, switches) if kind.startswith("KSampler") else _custom(graph, path, switches)
    behind = list(graph.upstream(path, *_MODEL, switches=switches))
    loaders = [one for one in behind if "oader" in graph.nodes[one]["type"]]
    files = [graph.widget(one, "file", switches) for one in loaders]
    shifting = next((one for one in behind if graph.nodes[one]["type"] in SHIFTS), None)
    made = replace(
        made,
        files=tuple(file for file in files if isinstance(file, str)),
        shift=None if shifting is None else _node(graph, shifting, switches),
        guidance=_guidance(graph, path, switches),
    )
    return made if made.cfg is not None else replace(made, cfg=_cfg(graph, behind, switches))


def _node(graph: Graph, path: Path, switches: Switches) -> tuple[str, tuple[tuple[str, Any], ...]]:
    from .graph import WIDGETS

    kind = graph.nodes[path]["type"]
    names = [name for name in WIDGETS.get(kind, "").split() if name not in ("seed", "noise_seed", "control")]
    return kind, tuple((name, graph.widget(path, name, switches)) for name in names)


def _stock(graph: Graph, path: Path, switches: Switches) -> Sampling:
    kind, values = _node(graph, path, switches)
    given = dict(values)
    return Sampling(
        files=(),
        sampler=("KSamplerSelect", (("sampler_name", given["sampler_name"]),)),
        schedule=("BasicScheduler", (("scheduler", given["scheduler"]), ("steps", given["steps"]))),
        steps=_whole(given["steps"]),
        node=kind,
        cut=int(given.get("start_at_step") or 0),
        cfg=given["cfg"],
        denoise=float(given.get("denoise") or 1.0),
    )


def _custom(graph: Graph, path: Path, switches: Switches) -> Sampling:
    sampler = graph.source(path, "sampler", switches)
    if sampler is None:
        raise Unknown("a sampling node without a sampler")
    chain = [_node(graph, one, switches) for one in graph.upstream(path, *_SIGMAS, switches=switches)]
    if not chain:
        raise Unknown("a sampling node without sigmas")
    cuts = [one for one in chain if one[0] == "SplitSigmas"]
    slot = graph.source(path, "sigmas", switches)
    rest = [one for one in chain if one[0] != "SplitSigmas"]
    if len(rest) != 1 or len(cuts) > 1:
        raise Unknown(f"a list of noise levels made by {' and '.join(kind for kind, _ in chain)}")
    kind, values = rest[0]
    low = bool(cuts) and slot is not None and slot[1] == 1
    return Sampling(
        files=(),
        sampler=_node(graph, sampler[0], switches),
        schedule=rest[0],
        steps=_length(kind, dict(values)),
        node=graph.nodes[path]["type"],
        cut=_whole(dict(cuts[0][1])["step"]) if low else 0,
        cfg=graph.widget(path, "cfg", switches) if graph.nodes[path]["type"] == "SamplerCustom" else None,
        denoise=float(dict(values).get("denoise") or 1.0),
    )


def _length(kind: str, values: dict[str, Any]) -> int:
    if kind == "ManualSigmas":
        return len(str(values["sigmas"]).replace(",", " ").split()) - 1
    if "steps" not in values:
        raise Unknown(f"a list of noise levels made by {kind}")
    return _whole(values["steps"])


def _whole(value: Any) -> int:
    if not isinstance(value, (int, float)):
        raise Unknown("a number of steps that is computed")
    return int(value)


def _cfg(graph: Graph, behind: list[Path], switches: Switches) -> float | None:
    """The largest of a guider's; 1 of one that has none."""
    guider = next((one for one in behind if graph.nodes[one]["type"].endswith("Guider")), None)
    if guider is None:
        return None
    scales = [value for name, value in _node(graph, guider, switches)[1] if "cfg" in name]
    if graph.nodes[guider]["type"] == "BasicGuider":
        return 1.0
    if not scales or not all(isinstance(scale, (int, float)) for scale in scales):
        raise Unknown(f"guidance by {graph.nodes[guider]['type']}")
    return float(max(scales))


def _guidance(graph: Graph, path: Path, switches: Switches) -> float | None:
    """Of the nearest FluxGuidance behind the prompt."""
    guider = graph.source(path, "guider", switches)
    start = guider[0] if guider else path
    if guider and graph.nodes[start]["type"] == "FluxGuidance":
        return graph.widget(start, "guidance", switches)  # type: ignore[no-any-return]
    for one in graph.upstream(start, *_CONDITIONING, switches=switches):
        if graph.nodes[one]["type"] == "FluxGuidance":
            return graph.widget(one, "guidance", switches)  # type: ignore[no-any-return]
    return None
