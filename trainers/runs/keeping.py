"""What whoever looks after runs does with one: another name, a note, a new run of the same settings."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..storage import reading
from ..storage.files import copy_atomically, write_atomically
from ..storage.places import is_link, is_regular, require_no_links
from ..storage.run_folder import RunFolder

LONGEST_NOTE = 4000
"""Characters."""
NAMING = {"FewStepDistill": 0, "FewStepWriteRun": 0, "FewStepWatchRun": 0, "FewStepMakeItFast": 2}
"""Nodes whose run_name is a widget, and which of theirs it is."""
_NAME, _INTO_SUBGRAPH = "run_name", -10
"""The input of theirs; what the editor calls the place in a subgraph that its inputs come out of."""
Widget = tuple[int, str]
"""Its place among a node's, and its name."""
_PROPOSED = "FewStep run name proposed"
"""Of a node in the editor's graph, while its name is not one that somebody chose: see web/fewstep_naming.js."""


def note(run: RunFolder) -> str:
    """What somebody wrote of the run; empty where nobody did. ValueError where note.txt is a link, or no text."""
    file = run.place("note.txt")
    return reading.read_text(file).strip() if is_regular(file) else ""


def keep_note(run: RunFolder, text: Any) -> None:
    """An empty one is none. ValueError for what is no text, or longer than LONGEST_NOTE, and where there is no run."""
    if not isinstance(text, str) or len(text) > LONGEST_NOTE:
        raise ValueError(f"the note is no text of at most {LONGEST_NOTE} characters.")
    try:
        content = text.strip().encode()
    except UnicodeEncodeError as error:  # where something cut it within an emoji
        raise ValueError(
            f"the note holds half of a character ({error.object[error.start]!a}), which no file can; write it anew."
        ) from error
    _require_run(run)
    write_atomically(run.place("note.txt"), content)


def renamed(run: RunFolder, name: Any) -> RunFolder:
    """The run under its new name, with what its workflow calls it. What was published of it keeps its file's name.

    ValueError while a process trains it, and for a name that is taken or could lead elsewhere.
    """
    _require_run(run)
    to = RunFolder(run.path.parent, name)
    _require_free(run, to)
    lock = run.lock
    with lock.held():
        workflow = _workflow_calling(run, name=to.name)  # whose error leaves all as it is
        lock.let_go_to_move()
        try:
            run.path.rename(to.path)
        except OSError:
            _require_free(run, to)  # by now it may be taken
            raise
        if workflow:
            to.keep_workflow(workflow)
    return to


def cloned(run: RunFolder, name: Any) -> RunFolder:
    """A run that is not begun yet, with this one's settings, data and workflow. ValueError as of `renamed`.

    This one may be trained meanwhile; nobody else comes to the new one before it is whole. ValueError where it is deleted, or its
    data are made anew of something else, before that.
    """
    _require_run(run)
    to = RunFolder(run.path.parent, name)
    run.description()  # whose error says what is wrong with it
    workflow = _workflow_calling(run, name=to.name)
    try:
        to.path.mkdir()
    except FileExistsError as error:
        raise _taken(to) from error
    with to.locked(), to.gone_if_refused(keep_data=False), _staying(run):  # half of a run is none
        if to.contents():  # of a start that came to the folder first
            raise _taken(to)
        if run.data_folder.is_dir():
            shutil.copytree(run.data_folder, to.data_folder, ignore=shutil.ignore_patterns(".*.part"))
        if workflow:
            to.keep_workflow(workflow)
        for file in ("previews.safetensors", "run.json"):
            if is_regular(run.place(file)):
                copy_atomically(run.place(file), to.place(file), one_file=False)
    return to


@contextlib.contextmanager
def _staying(run: RunFolder) -> Iterator[None]:
    """ValueError where what is copied of the run inside is not of one and the same: some files are of before, others of now."""
    before = _source_of(run)
    try:
        yield
    except OSError as error:
        if _source_of(run) == before:
            raise
        raise _another(run) from error
    if _source_of(run) != before:
        raise _another(run)


def _source_of(run: RunFolder) -> tuple[bool, bytes | None]:
    """Whether it says what it is, and of what its data are made."""
    try:
        made_from = run.place("data", "source.json").read_bytes()
    except FileNotFoundError:
        made_from = None
    return is_regular(run.place("run.json")), made_from


def _another(run: RunFolder) -> ValueError:
    return ValueError(
        f"the run {run.name!r} was deleted or begun anew while it was cloned; look for it, and clone it again."
    )


def _require_free(run: RunFolder, to: RunFolder) -> None:
    if os.path.lexists(to.path) and not _in_another_case(run, to):
        raise _taken(to)


def _in_another_case(run: RunFolder, to: RunFolder) -> bool:
    """Whether that is the same folder, on systems where names may be written in either case."""
    return run.name != to.name and not is_link(to.path) and to.path.samefile(run.path)


def _taken(to: RunFolder) -> ValueError:
    """Also by what no list of runs shows: somebody's own folder, or a clone whose process was killed."""
    if to.path.is_dir() and not is_link(to.path) and not is_regular(to.place("run.json")):
        return ValueError(
            f"there is a folder {to.path} already, without a run.json; choose another name, or move it away."
        )
    return ValueError(f"there is a run {to.name!r} already; choose another name.")


def _require_run(run: RunFolder) -> None:
    if is_link(run.path) or not run.path.is_dir():
        raise ValueError(f"there is no run {run.name!r}.")
    require_no_links(run.path)


def _workflow_calling(run: RunFolder, *, name: str) -> dict[str, Any]:
    """Its workflow, in which what names the run names it so; empty where it has none.

    That is a node's own widget, the primitive or subgraph that it comes from, and the run in a menu of students. Other texts
    may be the same by chance.
    """
    if not is_regular(run.place("workflow.json")):
        return {}
    workflow = run.workflow()
    graphs = list(_graphs(workflow))
    for graph in graphs:
        for node in _nodes(graph):
            kind = str(node.get("type"))
            if kind in NAMING:
                _replace(node, run.name, name, widget=(NAMING[kind], _NAME))
                _object(node.get("properties")).pop(_PROPOSED, None)
            if _is_ours(node):
                for listed in _students_in(node, run.name):
                    _replace(node, listed, f"{name}{listed.removeprefix(run.name)}")
                for source, widget in _sources(node, graph, graphs):
                    _replace(source, run.name, name, widget=widget)
    return workflow


def _students_in(node: Mapping[str, Any], name: str) -> set[str]:
    """What the node's widgets hold of a menu of students, as the run's: "name (run)", "name, 4 steps (run)"."""
    kept, named = node.get("widgets_values"), _object(node.get("widgets_values_named"))
    texts = [value for value in [*(kept if isinstance(kept, list) else []), *named.values()] if isinstance(value, str)]
    return {text for text in texts if text.endswith(" (run)") and text.startswith((f"{name} (", f"{name}, "))}


def _replace(node: Mapping[str, Any], value: str, by: str, *, widget: Widget | None = None) -> None:
    """In the node's widgets, or in that one of them, which editors keep by place and some by name too."""
    kept = node.get("widgets_values")
    values: list[Any] = kept if isinstance(kept, list) else []
    for i, found in enumerate(values):
        if found == value and (widget is None or widget[0] == i):
            values[i] = by
    named = _object(node.get("widgets_values_named"))
    for key, found in named.items():
        if found == value and (widget is None or widget[1] == key):
            named[key] = by


def _sources(
    node: Mapping[str, Any], graph: Mapping[str, Any], graphs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Widget]]:
    """(a node, one of its widgets) that the node's run_name comes from over a link: a primitive, or a subgraph around it."""
    for link in (slot.get("link") for slot in _dicts(node.get("inputs")) if slot.get("name") == _NAME):
        for origin, place in _origins(graph, link):
            for other in _nodes(graph):
                if other.get("id") == origin and not _is_ours(other):
                    yield other, (0, "value")
            if origin == _INTO_SUBGRAPH:
                around = (other for whole in graphs for other in _nodes(whole) if other.get("type") == graph.get("id"))
                yield from ((other, _widget_of(other, place)) for other in around)


def _is_ours(node: Mapping[str, Any]) -> bool:
    return str(node.get("type")).startswith("FewStep")


def _origins(graph: Mapping[str, Any], link: Any) -> Iterator[tuple[Any, Any]]:
    """(node, output) of a link, which the whole graph has as a list and subgraphs as an object."""
    links = graph.get("links")
    for each in links if isinstance(links, list) and link is not None else []:
        if isinstance(each, dict) and each.get("id") == link:
            yield each.get("origin_id"), each.get("origin_slot")
        if isinstance(each, list) and len(each) > 2 and each[0] == link:
            yield each[1], each[2]


def _widget_of(node: Mapping[str, Any], place: Any) -> Widget:
    """Which of a subgraph's widgets is that input's."""
    slots = _dicts(node.get("inputs"))
    if not isinstance(place, int) or not 0 <= place < len(slots):
        return -1, ""
    return sum("widget" in slot for slot in slots[:place]), str(slots[place].get("name"))


def _graphs(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An editor's graph and the subgraphs in it."""
    yield workflow
    yield from _dicts(_object(workflow.get("definitions")).get("subgraphs"))


def _nodes(graph: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a graph; of what is something else, none."""
    return _dicts(graph.get("nodes"))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
