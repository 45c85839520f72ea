"""Help pages and nodes: each input of a node is explained on its page."""

import re
from pathlib import Path

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"


def explained(page):
    """Names at the head of a table's row or of a list's item, and in bold or italics."""
    heads = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    stressed = re.findall(r"\*{1,2}([^*]+)\*{1,2}", page)
    return {name for said in heads + stressed for name in re.findall(r"\w+", said)}


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_every_input_is_explained_on_the_nodes_page(name):
    declared = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    inputs = {key for kind in ("required", "optional") for key in declared.get(kind, {})}
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    known = explained(page)
    if "The inputs are those of *Distill Model*" in page:
        known |= explained((DOCS / "FewStepDistill.md").read_text(encoding="utf-8"))
    assert sorted(inputs - known) == []


def test_what_a_progressive_run_begins_with_suits_no_demo_alone():
    """Nodes set up by hand, on a model of one's own."""
    declared = {
        name: NODE_CLASS_MAPPINGS[f"FewStep{name}"].INPUT_TYPES() for name in ("ProgressiveDistillation", "Distill")
    }
    starts = {
        key: what[1]["default"]
        for key, what in declared["ProgressiveDistillation"]["required"].items()
        if len(what) > 1 and "default" in what[1]
    }
    assert (starts["start_steps"], starts["learning_rate"], starts["guidance_scale"]) == (32, 1e-4, 5.0)
    batch, pieces = declared["Distill"]["required"]["batch_size"][1], declared["Distill"]["optional"]["accumulation"][1]
    assert batch["default"] // pieces["default"] <= 4
