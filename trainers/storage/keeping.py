"""What whoever looks after runs does with one: another name, a note, a new run of the same settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from . import reading
from .files import write_atomically
from .places import is_link, is_regular, require_no_links
from .run_folder import RunFolder

LONGEST_NOTE = 4000
"""Characters."""
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
    _require_run(run)
    write_atomically(run.place("note.txt"), text.strip().encode())


def renamed(run: RunFolder, name: Any) -> RunFolder:
    """The run under its new name, with what its workflow calls it. What was published of it keeps its file's name.

    ValueError while a process trains it, and for a name that is taken or could lead elsewhere.
    """
    _require_run(run)
    to = RunFolder(run.path.parent, name)
    if os.path.lexists(to.path):
        raise _taken(to)
    lock = run.lock
    with lock.held():
        workflow = _workflow_calling(run, name=to.name)  # whose error leaves all as it is
        lock.let_go_to_move()
        run.path.rename(to.path)
        if workflow:
            to.keep_workflow(workflow)
    return to


def cloned(run: RunFolder, name: Any) -> RunFolder:
    """A run that is not begun yet, with this one's settings, data and workflow. ValueError as of `renamed`.

    This one may be trained meanwhile; nobody else comes to the new one before it is whole.
    """
    _require_run(run)
    to = RunFolder(run.path.parent, name)
    run.description()  # whose error says what is wrong with it
    workflow = _workflow_calling(run, name=to.name)
    try:
        to.path.mkdir()
    except FileExistsError as error:
        raise _taken(to) from error
    with to.gone_if_refused(keep_data=False), to.locked():  # half of a run is none
        if run.data_folder.is_dir():
            shutil.copytree(run.data_folder, to.data_folder)
        if workflow:
            to.keep_workflow(workflow)
        for file in ("previews.safetensors", "run.json"):
            if is_regular(run.place(file)):
                shutil.copyfile(run.place(file), to.place(file))
    return to


def _taken(to: RunFolder) -> ValueError:
    return ValueError(f"there is a run {to.name!r} already; choose another name.")


def _require_run(run: RunFolder) -> None:
    if is_link(run.path) or not run.path.is_dir():
        raise ValueError(f"there is no run {run.name!r}.")
    require_no_links(run.path)


def _workflow_calling(run: RunFolder, *, name: str) -> dict[str, Any]:
    """Its workflow, in which nodes of ours that name the run name it so; empty where it has none."""
    if not is_regular(run.place("workflow.json")):
        return {}
    workflow = run.workflow()
    now = {run.name: name, f"{run.name} (run)": f"{name} (run)"}
    for node in _nodes(workflow):
        values = node.get("widgets_values")
        if str(node.get("type")).startswith("FewStep") and isinstance(values, list):
            node["widgets_values"] = [now.get(value, value) if isinstance(value, str) else value for value in values]
            _object(node.get("properties")).pop(_PROPOSED, None)
    return workflow


def _nodes(workflow: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of an editor's graph and of the subgraphs in it; of one that is something else, none."""
    subgraphs = _object(workflow.get("definitions")).get("subgraphs")
    for graph in [workflow, *(subgraphs if isinstance(subgraphs, list) else [])]:
        nodes = _object(graph).get("nodes")
        yield from (node for node in nodes if isinstance(node, dict)) if isinstance(nodes, list) else ()


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
