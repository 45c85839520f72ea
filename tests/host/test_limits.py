"""What nodes declare of their inputs holds wherever they are called, for linked values as for typed ones."""

import inspect
import math

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from hosting import inputs_of


def not_allowed(kind, options):
    """Values that an input declared so does not take."""
    if isinstance(kind, list):
        return ["no such choice", 7, math.nan]
    if kind in ("INT", "FLOAT"):
        return [options["min"] - 1, options["max"] + 1, 10**30, -(10**30), math.nan, math.inf, "4", 4j]
    return {"STRING": [7, b"text", ["text"]], "BOOLEAN": ["false", 2, math.nan]}.get(kind, [])


def cases(node):
    """(input, a value that its declaration does not allow)"""
    for name, (kind, *rest) in inputs_of(NODE_CLASS_MAPPINGS[node]).items():
        for value in not_allowed(kind, rest[0] if rest else {}):
            yield name, value


def as_the_host_gives(node, value):
    """To a node that takes lists, every value in one."""
    return [value] if getattr(node, "INPUT_IS_LIST", False) else value


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)
def test_a_value_that_is_not_allowed_is_named_wherever_it_comes_from(node):
    made = NODE_CLASS_MAPPINGS[node]
    for name, value in cases(node):
        with pytest.raises(ValueError, match=f"^{name} is "):
            getattr(made(), made.FUNCTION)(**{name: as_the_host_gives(made, value)})


@pytest.mark.parametrize(
    "node", [name for name, made in NODE_CLASS_MAPPINGS.items() if hasattr(made, "VALIDATE_INPUTS")]
)
def test_it_is_refused_before_anything_runs_where_the_host_leaves_that_to_the_node(node):
    validate = NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS
    named = inspect.getfullargspec(validate).args[1:]  # as hosts ask for whom they leave alone
    assert named
    for name, value in cases(node):
        if name in named:
            given = as_the_host_gives(NODE_CLASS_MAPPINGS[node], value)
            assert str(validate(**{name: given})).startswith(f"{name} is ")


TOGETHER = {
    "FewStepProgressiveDistillation": {"start_steps", "target_steps", "merged_steps"},
    "FewStepGuidanceDistillation": {"guidance_scale", "guidance_scale_max"},
    "FewStepConsistencyDistillation": {"steps", "levels"},
    "FewStepConsistencyTraining": {"first_levels", "last_levels", "steps"},
    "FewStepDistributionMatching": {"steps", "fewest_steps"},
    "FewStepScoreDistillation": {"level_from", "level_to", "last_level_to"},
    "FewStepExpertsPart": {"level_from", "level_to"},
    **{f"FewStep{kind}Folder": {"folder", "subfolders"} for kind in ("Clip", "Sound")},
    "FewStepImageFolder": {"folder", "subfolders", "references"},
    "FewStepMakeItFast": {"run_name", "folder", "references"},  # a name alone, and yet before a model is loaded
    "FewStepApplyRecipe": {"recipe", "file"},
    "FewStepEvaluateDigits": {"teacher_steps", "student_steps"},  # after the training, so both before it
}
"""Inputs that are right or wrong together. Hosts mark all that VALIDATE_INPUTS names, and look at the limits of none of them, so
one that is outside its own limits is marked with them; what is said names it alone.
"""


def test_one_wrong_value_is_reported_on_the_one_input_that_has_it():
    """Hosts report what VALIDATE_INPUTS says on every input that it names."""
    for name, made in NODE_CLASS_MAPPINGS.items():
        named = inspect.getfullargspec(made.VALIDATE_INPUTS).args[1:] if hasattr(made, "VALIDATE_INPUTS") else []
        named = [one for one in named if one != "input_types"]  # by which a host asks for links alone
        assert len(named) <= 1 or set(named) == TOGETHER[name], name


def test_a_whole_number_does_where_a_fraction_is_wanted():
    (method,) = NODE_CLASS_MAPPINGS["FewStepGuidanceDistillation"]().make(
        guidance_scale=7, iterations=1, learning_rate=0.5, steps=4, gamma=0, distance="squared"
    )
    assert method.guidance_scale == 7


def test_every_seed_starts_fixed():
    """Editors put a control beside each, which draws another number at every start unless it is told so."""
    seeds = [inputs_of(node)["seed"][1] for node in NODE_CLASS_MAPPINGS.values() if "seed" in inputs_of(node)]
    assert len(seeds) >= 6
    assert {options["control_after_generate"] for options in seeds} == {"fixed"}
