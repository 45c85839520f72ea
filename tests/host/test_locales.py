"""The texts that an editor shows in each language: English is what the nodes declare, others are whole where they begin."""

import json

import pytest
from comfyui_fewstep.commands.embedded import import_host
from hosting import ROOT

import_host()

from comfyui_fewstep.commands import locales

LANGUAGES = sorted(path.parent for path in (ROOT / "locales").glob("*/nodeDefs.json"))
MOST_USED = (
    *("FewStepMakeItFast", "FewStepDistill", "FewStepLoRAStudent", "FewStepLoadStudent", "FewStepApplyRecipe"),
)
"""Of which every language has every text."""


def texts(folder, name="nodeDefs.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def places(values, before=()):
    """Where the texts are: ("FewStepDistill", "inputs", "seed", "tooltip") and so on."""
    if not isinstance(values, dict):
        return {before}
    return set().union(*(places(value, (*before, name)) for name, value in values.items()))


def at(values, place):
    for name in place:
        values = values[name]
    return values


def test_english_is_what_the_nodes_declare():
    """Otherwise: python launch.py locales."""
    assert locales.ENGLISH.read_text(encoding="utf-8") == locales.written(locales.english())


@pytest.mark.parametrize("folder", LANGUAGES, ids=lambda path: path.name)
def test_a_language_has_every_name_and_the_most_used_nodes_whole(folder):
    whole = places(locales.english())
    found = places(texts(folder))
    assert found <= whole, "of nodes and inputs that there are no more"
    wanted = {place for place in whole if place[1] == "display_name" or place[0] in MOST_USED}
    assert wanted <= found
    assert all(text.strip() for node in texts(folder).values() for text in [node["display_name"]])


def test_chinese_has_every_text_that_english_has():
    """Otherwise: write what is missing into locales/zh/nodeDefs.json, in the words that the rest of it uses."""
    chinese = texts(ROOT / "locales" / "zh")
    assert places(locales.english()) - places(chinese) == set()
    assert [place for place in places(chinese) if not at(chinese, place).strip()] == []


@pytest.mark.parametrize("folder", LANGUAGES, ids=lambda path: path.name)
def test_the_template_browser_calls_the_pack_by_its_name(folder):
    assert set(texts(folder, "main.json")["templateWorkflows"]["category"]) == {
        *("comfyui_fewstep", "ComfyUI-FewStep", "fewstep")
    }
