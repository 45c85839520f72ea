"""Runs are named with their teacher's file, until the user names them; a saved graph keeps its own."""

import pytest
from comfyui_fewstep.trainers.storage.places import is_name

FILE = "models/dreamy v3.safetensors"


@pytest.fixture
def behind(editor):
    """Makes a node of a kind with a loader of FILE before it. Returns its id."""

    def make(kind):
        return editor.page.evaluate(
            "([kind, file]) => { const [loader, node] = ['CheckpointLoaderSimple', kind].map(k => LiteGraph.createNode(k));"
            " app.graph.add(loader); app.graph.add(node); loader.widgets[0].value = file;"
            " loader.connect(0, node, node.findInputSlot('model')); return node.id }",
            [kind, FILE],
        )

    return make


def wait_for_name(editor, node, name):
    value = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === 'run_name').value === name"
    editor.page.wait_for_function(value, arg=[node, name])


def test_a_run_is_named_with_the_file_and_what_is_made_of_it(editor, behind):
    node = behind("FewStepMakeItFast")
    wait_for_name(editor, node, "dreamy v3 in 4 steps")
    editor.set(node, steps="2", goal="sharpest")
    wait_for_name(editor, node, "dreamy v3 in 2 steps sharpest")
    wait_for_name(editor, behind("FewStepDistill"), "dreamy v3 student")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("aux.v2.safetensors", "aux-v2 in 4 steps"),
        ("\u5b66" * 60 + ".safetensors", "\u5b66" * 50 + " in 4 steps"),
        ("\U00020000" * 60 + ".safetensors", "\U00020000" * 37 + " in 4 steps"),
    ],
    ids=["a device of Windows", "many bytes", "letters of two halves"],
)
def test_a_proposal_is_a_name_that_is_allowed(editor, behind, file, name):
    node = behind("FewStepMakeItFast")
    editor.page.evaluate(
        "file => { app.graph._nodes.find(n => n.type === 'CheckpointLoaderSimple').widgets[0].value = file }", file
    )
    wait_for_name(editor, node, name)
    assert is_name(name)


def test_a_name_that_was_typed_or_saved_stays(editor, behind):
    node = behind("FewStepMakeItFast")
    wait_for_name(editor, node, "dreamy v3 in 4 steps")
    editor.set(node, run_name="mine", steps="8")
    editor.page.wait_for_timeout(700)
    wait_for_name(editor, node, "mine")
    editor.set(node, run_name="my fast model")
    saved = editor.page.evaluate("() => app.graph.serialize()")
    for one in saved["nodes"]:
        one["properties"].pop("FewStep run name proposed", None)  # of before
    editor.load(saved)
    editor.page.wait_for_timeout(700)
    wait_for_name(editor, editor.find("FewStepMakeItFast"), "my fast model")


def test_a_run_is_named_with_a_method_behind_a_reroute(editor, behind):
    node = behind("FewStepDistill")
    wait_for_name(editor, node, "dreamy v3 student")
    editor.page.evaluate(
        "(id) => { const [reroute, method] = ['Reroute', 'FewStepGuidanceDistillation'].map(k => LiteGraph.createNode(k));"
        " app.graph.add(reroute); app.graph.add(method); const node = app.graph.getNodeById(id);"
        " method.connect(0, reroute, 0); reroute.connect(0, node, node.findInputSlot('method'));"
        " app.graph._nodes.find(n => n.type === 'CheckpointLoaderSimple').widgets[0].value = 'another.safetensors' }",
        node,
    )
    wait_for_name(editor, node, "another guidance distillation")


def test_a_part_of_the_levels_is_named_with_the_method_that_it_is_of(editor, behind):
    """It was "dreamy v3 experts part", whatever the method."""
    node = behind("FewStepDistill")
    editor.page.evaluate(
        "(id) => { const [method, part] = ['FewStepGuidanceDistillation', 'FewStepExpertsPart']"
        ".map(k => { const made = LiteGraph.createNode(k); app.graph.add(made); return made });"
        " method.connect(0, part, part.findInputSlot('method')); const node = app.graph.getNodeById(id);"
        " part.connect(0, node, node.findInputSlot('method')) }",
        node,
    )
    wait_for_name(editor, node, "dreamy v3 guidance distillation")
