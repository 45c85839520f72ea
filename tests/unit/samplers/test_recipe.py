"""The recipe in a file's metadata: whole it comes back, and damaged in any way it is refused with the file's name."""

import dataclasses
import json

import pytest
from comfyui_fewstep.samplers.recipe import METADATA_KEY, Recipe

WHOLE = Recipe(
    method="progressive_distillation",
    steps=2,
    sigmas=(14.0, 1.6, 0.0),
    schedule="trailing",
    gamma=0.0,
    prediction_type="eps",
    noise_family="variance_exploding",
    guidance_scale=1.0,
)
PART = dataclasses.replace(WHOLE, level_from=0.0, level_to=0.875)
STRANGE = [
    None,
    True,
    -1,
    1e999,
    float("nan"),
    10**400,
    "",
    "four",
    [],
    [1],
    {},
    {"a": 1},
    [None],
    ["4", "2", "0"],
    [4.0, "2", 0.0],
    2.0,
    [[0.0]],
]


def changed(**fields):
    return {METADATA_KEY: json.dumps({**json.loads(WHOLE.to_metadata()[METADATA_KEY]), **fields})}


@pytest.mark.parametrize("recipe", [WHOLE, PART])
def test_it_comes_back(recipe):
    assert Recipe.from_metadata(recipe.to_metadata(), source="file") == recipe


def test_files_are_of_the_format_that_released_packs_read():
    assert json.loads(WHOLE.to_metadata()[METADATA_KEY])["format"] == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "nonsense", "null", "1", "true", '"text"', "[]", "[1, 2]", "{}", '{"format": 1}', '{"format": 2}'),
        *("[" * 100_000, '{"format": ' * 50_000, "NaN", "\0", "{'format': 1}"),
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_text_is_named(text):
    with pytest.raises(ValueError, match="The FewStep recipe in my file cannot be read: "):
        Recipe.from_metadata({METADATA_KEY: text}, source="my file")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_a_damaged_field_is_named(name):
    """Whatever stands there: what is no value of the field's kind, with the field's name."""
    allowed = {"method": ["", "four"], "schedule": ["", "four"], "guidance_scale": [-1, 2.0]}.get(name, [])
    for value in STRANGE:
        if any(value is one or value == one for one in allowed if not isinstance(value, bool)):
            continue
        with pytest.raises(ValueError, match="The FewStep recipe in my file cannot be read: ") as refused:
            Recipe.from_metadata(changed(**{name: value}), source="my file")
        words = (name, "levels") if name in ("sigmas", "level_from", "level_to") else (name,)
        assert any(word in str(refused.value) for word in words), (value, refused.value)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Recipe) if not field.name.startswith("level_")]
)
def test_a_field_that_is_not_there_is_named(name):
    fields = json.loads(WHOLE.to_metadata()[METADATA_KEY])
    del fields[name]
    with pytest.raises(ValueError, match=f"my file cannot be read: it has no {name}"):
        Recipe.from_metadata({METADATA_KEY: json.dumps(fields)}, source="my file")


def test_a_field_that_no_recipe_has_is_named():
    with pytest.raises(ValueError, match="it has evil, which no recipe has"):
        Recipe.from_metadata(changed(evil=1), source="my file")


@pytest.mark.parametrize(("low", "high", "boundary"), [(0.0, 1.0, None), (0.875, 1.0, 0.875), (0.0, 0.875, 0.875)])
def test_an_experts_boundary_is_where_its_levels_end_inside(low, high, boundary):
    assert dataclasses.replace(WHOLE, level_from=low, level_to=high).boundary == boundary


@pytest.mark.parametrize("wrong", [{"sigmas": (14.0, 14.0, 0.0)}, {"level_from": 0.5, "level_to": 0.5}])
def test_no_recipe_repeats_a_level_or_is_for_none(wrong):
    with pytest.raises(ValueError, match=r"sigmas must fall|rising"):
        dataclasses.replace(WHOLE, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigmas": (14.0, 1.6, 0.5)},
        {"sigmas": (float("inf"), 1.6, 0.0)},
        {"steps": 0, "sigmas": (0.0,)},
        {"gamma": 1.5},
        {"level_to": 1.5},
    ],
    ids=str,
)
def test_no_recipe_is_for_what_no_sampler_could_do(wrong):
    """End above 0, begin at infinity, take no step, draw more than all noise afresh, or reach beyond the model's time."""
    with pytest.raises(ValueError, match=r"must fall to 0|names 0 steps|gamma is 1\.5|to 1\.5; allowed"):
        dataclasses.replace(WHOLE, **wrong)


def test_a_file_without_a_recipe_is_named():
    for metadata in (None, {}, {"format": "pt"}):
        with pytest.raises(ValueError, match="my file carries no FewStep recipe"):
            Recipe.from_metadata(metadata, source="my file")
