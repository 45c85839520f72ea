"""What can be said of the workflow files without a host: nothing lies over anything, and no template trains on too little."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from contrast import contrast
from PIL import ImageColor

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "workflows").glob("*.json"))
PROMPTS = (ROOT / "prompts" / "everyday.txt").read_text(encoding="utf-8").strip()
TITLE = 30
"""Pixels of the title above a node."""
START_HERE = [path for path in FILES if path.stem.startswith("Make my ")]
TRAINING = ("FewStepMakeItFast", "FewStepDistill", "FewStepWriteRun")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def box(node):
    """(left, top, right, bottom), with the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def over(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def overlapping(nodes):
    return [(a["type"], b["type"]) for a, b in combinations(nodes, 2) if over(box(a), box(b))]


def named(files):
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


@named(FILES)
def test_no_node_lies_over_another(path):
    """Sizes in the files are the larger of what both of the editor's ways of drawing nodes need."""
    assert overlapping(read(path)["nodes"]) == []


@named(FILES)
def test_groups_hold_nodes_whole_and_do_not_lie_over_each_other(path):
    groups = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in read(path)["groups"])]
    assert not any(over(a, b) for a, b in combinations(groups, 2))
    for node in map(box, read(path)["nodes"]):
        cut = [g for g in groups if over(g, node)]
        assert all(g[0] <= node[0] and g[1] <= node[1] and g[2] >= node[2] and g[3] >= node[3] for g in cut)


@named(FILES)
def test_a_slot_leaves_out_what_it_does_not_say(path):
    """The editor's own check of a file takes null only where nothing is connected; any other fails it."""
    workflow = read(path)
    slots = [slot for node in workflow["nodes"] for side in ("inputs", "outputs") for slot in node.get(side, [])]
    assert {key for slot in slots for key, said in slot.items() if said is None} <= {"link", "links"}
    assert None not in [part for link in workflow["links"] for part in link]


@named(FILES)
def test_it_has_a_thumbnail(path):
    assert path.with_suffix(".jpg").is_file()


def app_of(path):
    """([(node, widget), ...], [node, ...]) that the editor's app mode shows of a template, by the nodes' numbers."""
    app = read(path).get("extra", {}).get("linearData")
    return app and ([tuple(shown) for shown in app["inputs"]], app["outputs"])


APPS = [path for path in FILES if app_of(path)]


def kinds(path):
    return {node["id"]: node["type"] for node in read(path)["nodes"]}


def test_what_draws_or_trains_is_an_app_too():
    """What only writes a file says where, and that an app does not show."""
    shown = {"FewStepDistill", "SaveImage", "PreviewImage", "SaveVideo", "SaveAnimatedWEBP"}
    assert [path for path in FILES if shown & set(kinds(path).values())] == APPS


@named(APPS)
def test_an_app_shows_what_is_set_by_hand_and_what_comes_of_it(path):
    inputs, outputs = app_of(path)
    twin = read(path.parent / "api" / path.name)
    set_by_hand = {
        (int(n), name) for n, node in twin.items() for name, v in node["inputs"].items() if type(v) is not list
    }
    assert set(inputs) - {(number, "training") for number in kinds(path)} <= set_by_hand
    assert len(set(inputs)) == len(inputs) > 0
    assert outputs
    assert {str(number) for number in outputs} <= twin.keys()
    seeds = [name for _, name in inputs if name in ("seed", "noise_seed")]
    assert len(seeds) <= 1, "several that are to be one would be changed apart"


@named(APPS)
def test_an_app_begins_with_how_far_its_training_is(path):
    panels = [
        number
        for number, kind in kinds(path).items()
        if kind in (*TRAINING, "FewStepWatchRun") and kind != "FewStepWriteRun"
    ]
    inputs, _ = app_of(path)
    assert inputs[: len(panels)] == [(number, "training") for number in panels]
    assert "training" not in [name for _, name in inputs[len(panels) :]]


def note_of(path):
    (note,) = [node for node in read(path)["nodes"] if node["type"] == "Note"]
    return note


@named(FILES)
def test_it_says_what_to_put_in_or_change_and_what_comes_of_it(path):
    said = note_of(path)["widgets_values"][0]
    assert said.isascii()
    assert 200 < len(said) < 1200
    assert "Expect: " in said or "Change: " in said


@named([path for path in FILES if path.stem.startswith(("Distil digits", "Distil my checkpoint", "Save a distilled"))])
def test_a_template_to_distil_and_to_save_says_what_to_put_in_and_what_to_expect(path):
    note = note_of(path)
    assert note["title"] == "What to put in, what to expect"
    assert "\n\nExpect: " in note["widgets_values"][0]


@named(START_HERE)
def test_a_first_template_says_what_to_put_in_and_where_the_files_are(path):
    nodes = read(path)["nodes"]
    said = note_of(path)["widgets_values"][0]
    assert "Choose" in said
    assert "Expect: " in said
    for node in nodes:
        if node["type"] in ("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader"):
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")


@named(FILES)
def test_prompts_that_are_trained_on_are_the_packs_everyday_ones(path):
    for node in read(path)["nodes"]:
        if node["type"] in ("FewStepTeacherPictures", "FewStepTrainingPrompts"):
            assert node["widgets_values"][0] == PROMPTS


@named(FILES)
def test_no_model_of_ones_own_is_trained_on_pictures_of_one_prompt(path):
    """Nor with what suits the digits alone."""
    workflow = read(path)
    by_id = {node["id"]: node for node in workflow["nodes"]}
    if "FewStepDemoTeacher" in {node["type"] for node in workflow["nodes"]}:
        return
    wired = {(link[3], link[4]): by_id[link[1]]["type"] for link in workflow["links"]}
    for node in workflow["nodes"]:
        if node["type"] in TRAINING:
            slots = {slot["name"]: wired.get((node["id"], i)) for i, slot in enumerate(node["inputs"])}
            assert slots.get("latents") is slots.get("positive") is None
        if node["type"] == "FewStepProgressiveDistillation":
            start, _, _, _, rate, guidance, *_ = node["widgets_values"]
            assert (start <= 32, rate <= 1e-4, guidance >= 3) == (True, True, True)
        if node["type"] == "FewStepDistributionMatching":
            said = dict(zip(MATCHING, node["widgets_values"], strict=False))
            assert said["learning_rate"] <= 1e-5, "more than its help page has for a LoRA"
            assert 2 <= said["companion_learning_rate"] / said["learning_rate"] <= 5, "as its help page has it"


MATCHING = (
    *("steps", "iterations", "learning_rate", "guidance_scale", "guidance", "rollout", "strength"),
    "companion_learning_rate",
)
"""Inputs of Distribution Matching in their order, the first."""


CANVASES = {"light": (214, 214, 214), "dark": (27, 27, 27)}
"""What the editor draws behind a group, by theme."""
TITLE_COVERS = 1 - 0.75**2
"""Of a group's own colour, under its title: two layers of a quarter each."""


def test_a_groups_title_can_be_read_in_both_themes():
    """The editor draws the title in the group's colour on a mix of that with the canvas: no colour reaches 2.2 in both."""
    found = []
    for path in FILES:
        for group in read(path).get("groups", []):
            colour = ImageColor.getrgb(group["color"])
            for theme, canvas in CANVASES.items():
                behind = [TITLE_COVERS * c + (1 - TITLE_COVERS) * b for c, b in zip(colour, canvas, strict=True)]
                if contrast(colour, behind) < 2:
                    found.append((path.stem, group["title"], theme, round(contrast(colour, behind), 2)))
    assert found == []


# --- blueprints ------------------------------------------------------------------------------------------------------

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


def test_there_is_a_blueprint_for_each_main_family():
    families = ("SD1.5", "SDXL", "Z-Image", "Qwen-Image", "Wan 2.1")
    assert all(any(family in path.stem for path in BLUEPRINTS) for family in families)


@named(BLUEPRINTS)
def test_a_blueprint_holds_its_templates_nodes_with_their_settings(path):
    there = {node["id"]: node for node in read(ROOT / "workflows" / path.name)["nodes"]}
    (definition,) = read(path)["definitions"]["subgraphs"]
    assert definition["name"] == path.stem
    assert "FewStepMakeItFast" in [node["type"] for node in definition["nodes"]]
    for node in definition["nodes"]:
        same = there[node["id"]]
        for key in ("type", "widgets_values"):
            assert node[key] == same[key]
        assert node["properties"] == same["properties"], "the names of its files among them"


@named(BLUEPRINTS)
def test_a_blueprints_links_are_known_at_both_ends(path):
    (definition,) = read(path)["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in definition["nodes"]}
    ends = {-10: definition["inputs"], -20: definition["outputs"]}
    assert len({link["id"] for link in definition["links"]}) == len(definition["links"])
    for link in definition["links"]:
        start, end = (link["origin_id"], link["origin_slot"]), (link["target_id"], link["target_slot"])
        given = ends[-10][start[1]]["linkIds"] if start[0] == -10 else nodes[start[0]]["outputs"][start[1]]["links"]
        assert link["id"] in given
        taken = ends[-20][end[1]]["linkIds"] if end[0] == -20 else [nodes[end[0]]["inputs"][end[1]]["link"]]
        assert link["id"] in taken
        assert link["type"] == (ends[-20] if end[0] == -20 else nodes[end[0]]["inputs"])[end[1]]["type"]
    (node,) = read(path)["nodes"]
    assert node["type"] == definition["id"]
    assert [one["name"] for one in node["inputs"]] == [one["name"] for one in definition["inputs"]]
    assert "proxyWidgets" not in node["properties"], (
        "by which editors of early 2026 lose settings that are linked already"
    )
