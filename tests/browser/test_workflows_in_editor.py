"""Every workflow of the pack opens in the editor as it is, and every node can be added to the graph."""

from itertools import combinations

import pytest
from editing import read, strip
from hosting import WORKFLOWS, api_twin, lacking


def loaded(editor, workflow):
    editor.load(workflow)
    return strip(editor.prompt())


def test_a_node_that_is_not_there_would_be_noticed(editor):
    workflow = read(WORKFLOWS[0])
    workflow["nodes"][0]["type"] = "FewStepNoSuchNode"
    editor.load(workflow)
    assert editor.missing_nodes() == ["FewStepNoSuchNode"]
    editor.errors.clear()


def overlapping(editor):
    """Pairs of nodes that lie on each other, each with the title above it."""
    boxes = editor.page.evaluate(
        "() => app.graph._nodes.map(({ title, pos, size }) => [title, pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]])"
    )
    return [
        (one[0], other[0])
        for one, other in combinations(boxes, 2)
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]


def boxes_beside_links(editor, known):
    """Widgets, by node, of inputs that take links alone: the editor of 2024 has one for each, which it hides by its slot."""
    only = {}
    for kind in filter(lambda kind: kind.startswith("FewStep"), known):
        declared = {**known[kind]["input"].get("required", {}), **known[kind]["input"].get("optional", {})}
        only[kind] = [name for name, of in declared.items() if of[1:] and of[1].get("forceInput")]
    return editor.page.evaluate(
        "(only) => app.graph._nodes.flatMap(({ type, widgets }) => (widgets ?? []).filter(widget =>"
        " widget.type !== 'converted-widget' && only[type]?.includes(widget.name)).map(widget => [type, widget.name]))",
        only,
    )


def test_workflows_open_whole_and_queue_what_is_committed(editor):
    """One tab for all: opening a tab takes longer than the rest. Those whose nodes this host lacks are left out."""
    known = editor.server.get("/object_info")
    here = [path for path in WORKFLOWS if not lacking(api_twin(path), known)]
    assert len(here) > 20
    for path in here:
        assert loaded(editor, read(path)) == strip(api_twin(path)), path.stem
        assert editor.missing_nodes() == [], path.stem
        assert editor.errors == [], path.stem
        assert overlapping(editor) == [], path.stem
        assert boxes_beside_links(editor, known) == [], path.stem


def test_what_is_saved_opens_again(editor):
    path = next(path for path in WORKFLOWS if path.stem == "Distil digits to 4 steps")
    first = loaded(editor, read(path))
    saved = editor.page.evaluate("() => app.graph.serialize()")
    editor.clear()
    assert loaded(editor, saved) == first


def test_every_node_can_be_added_and_removed(editor):
    own = editor.page.evaluate(
        "() => Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('FewStep'))"
    )
    assert set(own) == {name for name in editor.server.get("/object_info") if name.startswith("FewStep")}
    editor.clear()
    for kind in own:
        editor.remove(editor.add(kind))
        assert editor.errors == [], kind
    assert editor.page.evaluate("() => app.graph._nodes.length") == 0


@pytest.mark.parametrize(
    "kind", ["FewStepDistill", "FewStepWriteRun", "FewStepTeacherPictures", "FewStepEvaluateDigits"]
)
def test_a_fresh_nodes_seed_stays_after_a_start(kind, editor):
    """Editors put a widget beside every seed that draws another one after each start, unless it is fixed."""
    node = editor.add(kind)
    controls = "(w) => w.options?.values?.includes?.('randomize')"
    seen = f"(id) => app.graph.getNodeById(id).widgets.filter({controls}).map(w => [w.label, w.value])"
    assert editor.page.evaluate(seen, node) == [["control after generate", "fixed"]]
    queued = "(id) => app.graph.getNodeById(id).widgets.forEach(w => { w.beforeQueued?.(); w.afterQueued?.() })"
    editor.page.evaluate(queued, node)
    seed = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'seed').value"
    assert editor.page.evaluate(seed, node) == 0
