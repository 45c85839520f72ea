"""The preview of a schedule is what the node makes: compared on real models of the host."""

import json
import math
import urllib.parse

import pytest
import torch
from architectures import ALL, on_levels, tiny
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, host, previews
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation import running
from comfyui_fewstep.nodes.sampling import recipes
from comfyui_fewstep.nodes.sampling.schedules import Schedule
from comfyui_fewstep.samplers.presets import PRESETS

INPUTS = [
    {"schedule": "trailing", "steps": 4},
    {"schedule": "lcm", "steps": 4},
    {"schedule": "lcm", "steps": 3, "original_steps": 40, "strength": 0.5},
    {"schedule": "tcd", "steps": 5},
    {"schedule": "turbo", "steps": 2},
    {"schedule": "dmd2", "steps": 4},
    {"schedule": "timesteps", "steps": 9, "values": "800, 20"},
    {"schedule": "sigmas", "steps": 1, "values": "3.5, 1"},
    {"schedule": "trailing", "steps": 3, "strength": 0.4},
]
FLOW_INPUTS = [
    {"schedule": "trailing", "steps": 6, "absolute_shift": 5.0},
    {"schedule": "timesteps", "steps": 9, "values": "1000, 757, 522"},
    {"schedule": "flux2", "steps": 4, "width": 1536, "height": 1024},
    {"schedule": "twice_shifted", "steps": 4, "shift": 2.0},
    {"schedule": "log_snr", "steps": 8, "strength": 0.5},
]


def shown(server, route, **given):
    return server.get(f"/fewstep/{route}?{urllib.parse.urlencode(given)}")


@pytest.mark.parametrize("inputs", INPUTS, ids=json.dumps)
def test_what_is_shown_is_what_the_node_makes(inputs, server):
    (made,) = Schedule().make(digits_model.load_teacher(), **inputs)
    assert shown(server, "schedule", **inputs)["sigmas"] == made.tolist()


@pytest.mark.parametrize("inputs", FLOW_INPUTS, ids=json.dumps)
def test_what_is_shown_for_flow_models_is_what_the_node_makes(inputs, server):
    (made,) = Schedule().make(tiny("sd3"), **inputs)
    assert shown(server, "schedule", model="flow3", **inputs)["sigmas"] == made.tolist()


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        *[("sd", "sdxl"), ("flow3", "sd3"), ("flow3", "z_image"), ("flow8", "wan")],
        *[("flux", "flux"), ("flux", "qwen_image"), ("flux2", "flux2")],
    ],
)
def test_a_kind_is_shown_at_the_levels_of_the_models_that_it_names(kind, model):
    """At which the host samples them as they are loaded."""
    if not ALL[model].known():
        pytest.skip(f"this host has no {model}")
    (made,) = Schedule().make(ALL[model].model(), "trailing", 6)
    told = previews.of_schedule({"schedule": "trailing", "steps": "6", "model": kind})
    assert told["sigmas"] == pytest.approx(made.tolist(), rel=1e-3)


def test_flow_models_too(server):
    model = tiny("sd3")
    own_shift = host.models.model_sampling_of(model).shift
    assert own_shift == 3.0, "as Stable Diffusion 3 has it"
    (made,) = Schedule().make(model, "trailing", 4, shift=2.0)
    told = shown(server, "schedule", model="flow3", schedule="trailing", steps=4, shift=2.0)
    assert told["sigmas"] == pytest.approx(made.tolist(), abs=1e-6)
    assert told["timesteps"] == pytest.approx([1000 * sigma for sigma in made[:-1].tolist()], abs=1e-3)


def test_any_shift_that_a_node_sets_can_be_shown():
    """As Wan's from a picture have it; what is none is refused with what is allowed."""
    model = on_levels("ModelSamplingSD3", tiny("sd3"), 5.0)
    (made,) = Schedule().make(model, "trailing", 4)
    told = previews.of_schedule({"schedule": "trailing", "steps": "4", "model": "flow at 5"})
    assert told["sigmas"] == pytest.approx(made.tolist(), abs=1e-6)
    assert told["models"]["flow at 5"] == "a flow model of shift 5, as set before it"
    for kind in ("flow at", "flow at 0", "flow at nan", "flow at 1e9", "flow5"):
        with pytest.raises(
            ValueError, match=f"model is '{kind}'; allowed are sd, flow, .* and flow at 5, say: any shift"
        ):
            previews.of_schedule({"schedule": "trailing", "steps": "4", "model": kind})


def test_timesteps_are_those_of_the_papers(server):
    """Table 2 of Lin et al. for trailing, LCM's list, and Song et al.'s levels."""
    for schedule, timesteps in {"trailing": [999, 749, 499, 249], "lcm": [999, 759, 499, 259]}.items():
        assert shown(server, "schedule", schedule=schedule, steps=4)["timesteps"] == timesteps
    told = shown(server, "schedule", schedule="consistency", steps=2, model="consistency")
    assert told["timesteps"] is None
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    assert told["sigmas"] == pytest.approx([80.0, (high + 20 / 39 * (low - high)) ** 7, 0.0], rel=1e-5)


def test_kinds_of_models_are_the_hosts_own():
    """The demo teacher is a real MODEL on the timesteps of Stable Diffusion."""
    real = host.models.noise_levels(host.models.model_sampling_of(digits_model.load_teacher()))
    assert torch.equal(host.models.noise_levels(previews._sampling("sd")), real)
    flux = host.models.noise_levels(previews._sampling("flux"))
    half = math.exp(1.15) * 0.5 / (1.0 + (math.exp(1.15) - 1.0) * 0.5)
    assert float(flux[499]) == pytest.approx(half, abs=1e-6)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_recipe_is_shown(name, server):
    told = shown(server, "recipe", recipe=name)
    preset = PRESETS[name]
    assert len(told["sigmas"]) == preset.steps + 1
    sampling = previews._sampling(told["model"])
    assert host.models.noise_family(sampling) is preset.family
    assert told["sigmas"] == recipes.preset_levels(sampling, preset).tolist()
    assert told["source"] == preset.source


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": "lcm", "steps": 60}, "steps is 60"),
        ({"schedule": "lcm", "steps": 4, "model": "flow"}, "this is a flow model"),
        ({"schedule": "karras", "steps": 4}, "schedule is 'karras'"),
        ({"schedule": "trailing", "steps": 4, "model": "sdxl"}, "model is 'sdxl'"),
        ({"schedule": "trailing", "steps": 4, "shift": 2.0}, "only flow models have one"),
        ({"schedule": "trailing", "steps": 100000000000}, "steps is 100000000000; allowed is 1 to 1000"),
        ({"schedule": "trailing", "steps": "four"}, "steps is 'four'"),
        ({"schedule": "lcm", "steps": 4, "strength": "nan"}, "strength is nan"),
        ({"schedule": "sigmas", "steps": 1, "values": "1, 2"}, "values is '1, 2'"),
        ({"schedule": "trailing", "steps": 4, "model": "flow", "absolute_shift": 1e-320}, "absolute_shift is 1e-320"),
        ({"schedule": "flux2", "steps": 4, "model": "flow", "latent": "x"}, "latent is 'x'; it is a connection"),
    ],
)
def test_what_the_node_refuses_is_refused_in_the_same_words(given, said, server):
    assert said in shown(server, "schedule", **given)["error"]


METHODS = {
    "FewStepProgressiveDistillation": {
        "start_steps": 32,
        "target_steps": 2,
        "iterations": 5,
        "last_stages_iterations": 7,
    },
    "FewStepGuidanceDistillation": {"guidance_scale": 3.0, "iterations": 9, "steps": 6, "grid": "edm"},
    "FewStepConsistencyDistillation": {"steps": 3, "iterations": 4, "levels": 40, "guidance_scale": 7.5},
    "FewStepConsistencyTraining": {"steps": 2, "iterations": 4, "last_levels": 80, "grid": "edm"},
    "FewStepDistributionMatching": {"steps": 3, "iterations": 4, "companion_first": 7, "guidance_scale": 5.0},
}


@pytest.mark.parametrize("node", METHODS)
def test_the_steps_of_a_method_are_those_of_its_student(node, server):
    """By the method itself on a real MODEL."""
    inputs = {"weighting": "constant"} if "Progressive" in node else {}
    inputs |= {"learning_rate": 1e-4, **METHODS[node]}
    if "Progressive" in node:
        inputs["guidance_scale"] = 2.0
    (options,) = NODE_CLASS_MAPPINGS[node]().make(**inputs)
    stages = running.method_on(digits_model.load_teacher(), options, empty_prompt=True).stages()
    told = shown(server, "method", node=node, **inputs)
    assert told["sigmas"] == stages[-1].sigmas.tolist()
    assert told["stages"] == [{"name": stage.name, "iterations": stage.iterations} for stage in stages]


def test_every_method_has_a_preview():
    """But One Expert's Part, which makes a method of another."""
    made = {name for name, node in NODE_CLASS_MAPPINGS.items() if node.RETURN_TYPES == ("FEWSTEP_METHOD",)}
    changing = {name for name in made if "method" in NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]}
    assert made - changing == set(previews.METHODS)


def test_halvings_and_what_they_come_to(server):
    inputs = {"start_steps": 16, "target_steps": 4, "iterations": 10, "weighting": "constant", "learning_rate": 1e-4}
    told = shown(server, "method", node="FewStepProgressiveDistillation", guidance_scale=1.0, **inputs)
    assert [stage["name"] for stage in told["stages"]] == ["16 to 8 steps", "8 to 4 steps"]
    assert told["timesteps"] == [999, 749, 499, 249]
    grid = {"grid": "cosine", "model": "flow"}
    refused = shown(server, "method", node="FewStepProgressiveDistillation", guidance_scale=1.0, **inputs, **grid)
    assert "grid is cosine, but this is a flow model" in refused["error"]
    odd = shown(
        server, "method", node="FewStepProgressiveDistillation", guidance_scale=1.0, **inputs | {"start_steps": 12}
    )
    assert "start_steps is 12" in odd["error"]
    assert "node is 'FewStepDistill'" in shown(server, "method", node="FewStepDistill")["error"]


def test_recipes_that_are_none(server):
    assert "there is no recipe 'mine'" in shown(server, "recipe", recipe="mine")["error"]
    assert "Choose a student or LoRA" in shown(server, "recipe", recipe=recipes.FROM_FILE, file="none")["error"]
