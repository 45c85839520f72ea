"""Each preset gives the levels, the reading, the sampler and the guidance that its source names; files speak for themselves."""

import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from safetensors.torch import save_file

import_host()

import comfy.model_base
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import folder_paths
from comfyui_fewstep.nodes import host, previews
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.sampling import recipes
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.presets import PRESETS
from comfyui_fewstep.samplers.recipe import Recipe
from test_guidance_distilled import advanced, guided_model
from test_sampling import draw, model_of, schedule
from test_schedules_of_kinds import sampling

PROMPT = digits_model.prompt("1234")
SPACED = {n: [round(1000 - 1000 * k / n) - 1 for k in range(n)] for n in (1, 2, 4, 8)}
LCM = {
    2: [999, 499],
    4: [999, 759, 499, 259],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
    16: [999, 939, 879, 819, 759, 699, 639, 579, 499, 439, 379, 319, 259, 199, 139, 79],
}
TIMESTEPS = {
    "LCM or LCM-LoRA, 4 steps": LCM[4],
    "LCM or LCM-LoRA, 8 steps": LCM[8],
    "SDXL-Lightning, 1 step": [999],
    "SDXL-Lightning, 2 steps": [999, 499],
    "SDXL-Lightning, 4 steps": [999, 749, 499, 249],
    "SDXL-Lightning, 8 steps": [999, 874, 749, 624, 499, 374, 249, 124],
    "SD- or SDXL-Turbo, 1 step": [999],
    "SD- or SDXL-Turbo, 2 steps": [999, 899],
    "SD- or SDXL-Turbo, 4 steps": [999, 899, 799, 699],
    "Hyper-SD LoRA, 2 steps": SPACED[2],
    "Hyper-SD LoRA, 4 steps": SPACED[4],
    "Hyper-SD LoRA, 8 steps": SPACED[8],
    "Hyper-SD CFG LoRA, 8 steps": SPACED[8],
    "Hyper-SD CFG LoRA, 12 steps": [999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82],
    "Hyper-SD unified LoRA, 1 step": [999],
    "Hyper-SD UNet, 1 step": [800],
    "DMD2, 4 steps": [999, 749, 499, 249],
    "DMD2, 1 step": [399],
    "TCD-LoRA, 4 steps": LCM[4],
    **{f"PCM small-CFG LoRA, {n} steps": LCM[n] for n in (2, 4, 8, 16)},
    **{f"PCM normal-CFG LoRA, {n} steps": LCM[n] for n in (4, 8, 16)},
    "PCM LCM-like LoRA, 4 steps": LCM[4],
    **{f"{kind}-Turbo, {n} steps (model card's list)": SPACED[n] for kind in ("SD", "SDXL") for n in (2, 4)},
}
# The demo model's own shift is 1. Flow lists as diffusers' FlowMatchEulerDiscreteScheduler and the sources compute them.
SIGMAS = {
    "FLUX.1 schnell, 1 step": [1.0],
    "FLUX.1 schnell, 4 steps": [1.0, 0.75, 0.5, 0.25],
    "Hyper-FLUX LoRA, 8 steps": [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    "Hyper-FLUX LoRA, 16 steps": [1 - k / 16 for k in range(16)],
    "Qwen-Image-Lightning, 4 steps": [1.0, 0.9, 0.75, 0.5],
    "Qwen-Image-Lightning, 8 steps": [1.0, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3],
    **{
        name: [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
        for name in (
            "LTX-Video distilled, 8 steps",
            "LTX-2 or 2.3 distilled, stage 1, 8 steps",
            "LTX-2.5 distilled, stage 1, 8 steps",
        )
    },
    "LTX-2 or 2.3 distilled, stage 2, 3 steps": [0.909375, 0.725, 0.421875],
    "LTX-2.5 distilled, stage 2, 3 steps": [0.909375, 0.725, 0.421875],
    "MiniMax H3 Turbo LoRA, 4 steps": [1.0, 0.947368, 0.857143, 0.666667],
    "MiniMax H3 Turbo LoRA, 8 steps": [1.0, 0.976744, 0.947368, 0.909091, 0.857143, 0.782609, 0.666667, 0.461538],
    "MiniMax H3 Turbo LoRA, 8 steps (shift 12, ComfyUI's templates)": [
        *(1.0, 0.988235, 0.972973, 0.952381, 0.923077, 0.878049, 0.8, 0.631579)
    ],
    "Z-Image-Turbo, 8 steps": [1.0, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3],
    "ACE-Step 1.5 turbo, 8 steps": [1.0, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3],
    "Wan 2.1 or 2.2 lightx2v, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "Wan 2.2 lightx2v, image to video, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "FastWan, 3 steps": [1.0, 0.757, 0.522],
    "Krea 2 Turbo, 8 steps": [1.0, 0.956724, 0.904531, 0.840349, 0.759511, 0.654567, 0.512844, 0.310901],
    "Qwen-Image-Lightning, 4 steps (shift 3.1, ComfyUI's templates)": [1.0, 0.902913, 0.756098, 0.508197],
    "Qwen-Image-Lightning, 8 steps (shift 3.1, ComfyUI's templates)": [
        *(1.0, 0.955947, 0.902913, 0.837838, 0.756098, 0.650350, 0.508197, 0.306931)
    ],
    "Qwen-Image 2.1 Turbo, 8 steps": [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568],
    "FLUX.2 klein, 4 steps": [1.0, 0.967384, 0.908144, 0.7672],
    "FLUX.2 dev Turbo LoRA, 8 steps": [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031],
    "Stable Audio 3, 8 steps": [1.0, 0.994376, 0.98448, 0.957912, 0.890903, 0.745547, 0.512497, 0.273885],
    "SD3.5-Large-Turbo, 4 steps": [1.0, 0.857692, 0.602151, 0.008929],
}
WITH_CFG = {"Hyper-SD CFG": 5.0, "PCM normal-CFG": 7.5}


def model_for(name):
    if PRESETS[name].audio_shift is not None:
        if not hasattr(comfy.model_sampling, "ModelSamplingAV"):
            pytest.skip("this host has no models of pictures and sound")
        model = model_of("FLOW")
        model.add_object_patch("model_sampling", sampling("ModelSamplingAV", "CONST"))
        return model
    if PRESETS[name].family is NoiseFamily.FLOW:
        return guided_model(kind="FLOW") if PRESETS[name].guidance_scale else model_of("FLOW")
    return model_of("EPS")


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_is_complete_and_runs(name):
    model, sampler, sigmas, cfg, guider, _ = recipes.ApplyRecipe().apply(
        model_for(name), name, positive=PROMPT, negative=digits_model.prompt("")
    )
    if name in SIGMAS:
        torch.testing.assert_close(sigmas[:-1], torch.tensor(SIGMAS[name]), atol=1e-6, rtol=0.0)
    else:
        table = host.models.noise_levels(host.models.model_sampling_of(model))
        assert torch.equal(sigmas[:-1], table[TIMESTEPS[name]])
        wanted = "x0" if name == "SDXL-Lightning, 1 step" else "eps"
        assert host.models.prediction_type(host.models.model_sampling_of(model)) == wanted
    assert cfg == next((scale for family, scale in WITH_CFG.items() if name.startswith(family)), 1.0)
    assert PRESETS[name].source
    drawn = advanced(guider, sampler, sigmas)
    assert torch.isfinite(drawn).all()
    if cfg == 1.0 and PRESETS[name].guidance_scale is None:
        assert torch.equal(drawn, draw(model, sampler, sigmas, seed=3)), (
            "the guider is what SamplerCustom does at cfg 1"
        )


OF_CLASS = {
    "Flux": ("Flux", "ModelSamplingFlux"),
    "Flux2": ("Flux2", "ModelSamplingFlux"),
    "QwenImage": ("QwenImage", "ModelSamplingFlux"),
    "Krea2": ("Krea2", "ModelSamplingFlux"),
    "LTXV": ("LTXV", "ModelSamplingFlux"),
    "LTXAV": ("LTXAV", "ModelSamplingFlux"),
    "MiniMaxH3": ("MiniMaxH3", "ModelSamplingAV"),
    "Lumina2": ("ZImage", "ModelSamplingDiscreteFlow"),
    "WAN21": ("WAN21_T2V", "ModelSamplingDiscreteFlow"),
    "ACEStep15": ("ACEStep15", "ModelSamplingDiscreteFlow"),
    "StableAudio3": ("StableAudio3", "ModelSamplingDiscreteFlow"),
    "SD3": ("SD3", "ModelSamplingDiscreteFlow"),
}
"""The host's configuration of a family, and the kind of noise levels that it gives its models."""


@pytest.mark.parametrize("name", [name for name in SIGMAS if PRESETS[name].models])
def test_the_list_is_published_on_the_familys_own_levels(name):
    """Whatever shift, multiplier and length of table the host gives the family."""
    own = PRESETS[name].models[0]
    config, kind = OF_CLASS[own]
    if not hasattr(comfy.model_base, own) or not hasattr(comfy.supported_models, config):
        pytest.skip("this host has no such models")
    settings = types.SimpleNamespace(sampling_settings=getattr(comfy.supported_models, config).sampling_settings)
    made = type("ModelSampling", (getattr(comfy.model_sampling, kind), comfy.model_sampling.CONST), {})(settings)
    if own == "Flux":  # schnell's shift, which a checkpoint of dev's does not have
        made.set_parameters(shift=0.0)
    sigmas = recipes.preset_levels(made, PRESETS[name])
    torch.testing.assert_close(sigmas[:-1], torch.tensor(SIGMAS[name]), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "shift"), [("Z-Image-Turbo, 8 steps", 3.0), ("Wan 2.1 or 2.2 lightx2v, 4 steps", 5.0)]
)
def test_a_template_and_its_recipe_draw_the_same(name, shift):
    """The host's shift node, euler and simple."""
    model = model_of("FLOW")
    model.add_object_patch("model_sampling", sampling("ModelSamplingDiscreteFlow", "CONST", shift=shift))
    theirs = comfy.samplers.simple_scheduler(host.models.model_sampling_of(model), PRESETS[name].steps)
    _, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(model_of("FLOW"), name)
    torch.testing.assert_close(sigmas, theirs, atol=1e-6, rtol=0.0)
    drawn = draw(model, comfy.samplers.sampler_object("euler"), theirs)
    torch.testing.assert_close(draw(model, sampler, sigmas), drawn, atol=1e-4, rtol=1e-4)


def test_a_recipe_of_pictures_and_sound_sets_both_shifts():
    name = "MiniMax H3 Turbo LoRA, 4 steps"
    given = model_for(name)
    model, *_ = recipes.ApplyRecipe().apply(given, name)
    patched = host.models.model_sampling_of(model)
    assert (patched.shift, patched.audio_shift) == (6.0, 3.0)
    told = model.model_options["transformer_options"]
    assert (told["minimax_h3_sigma_shift_video"], told["minimax_h3_sigma_shift_audio"]) == (6.0, 3.0)
    assert host.models.model_sampling_of(given) is not patched
    assert "minimax_h3_sigma_shift_video" not in given.model_options["transformer_options"]
    with pytest.raises(ValueError, match="the connected model has none for sound"):
        recipes.ApplyRecipe().apply(model_of("FLOW"), name)


@pytest.mark.parametrize(("own", "said"), [("WAN21", "a WAN21"), ("Flux2", "a Flux2")])
def test_a_recipe_of_another_family_is_refused_by_name(own, said):
    model = model_of("FLOW")
    base = type(own, (type(model.model),), {})
    model.model.__class__ = type("MadeOfIt", (base,), {})
    with pytest.raises(
        ValueError, match=f"'FLUX.1 schnell, 4 steps' is for .*class Flux, but the connected model is {said}"
    ):
        recipes.ApplyRecipe().apply(model, "FLUX.1 schnell, 4 steps")
    mine = {"WAN21": "Wan 2.1 or 2.2 lightx2v, 4 steps", "Flux2": "FLUX.2 klein, 4 steps"}[own]
    recipes.ApplyRecipe().apply(model, mine)


def test_flux2_klein_takes_the_size_of_the_picture():
    model, name = model_of("FLOW"), "FLUX.2 klein, 4 steps"
    _, _, typed, *_ = recipes.ApplyRecipe().apply(model, name, width=512, height=768)
    latent = {"samples": torch.zeros(1, 128, 48, 32)}
    _, _, linked, *_ = recipes.ApplyRecipe().apply(model, name, latent=latent)
    torch.testing.assert_close(typed, schedule(model, "flux2", 4, width=512, height=768))
    assert torch.equal(typed, linked)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Hyper-FLUX LoRA, 8 steps", ["Load the speed LoRA at strength 0.125."]),
        (
            "Wan 2.1 or 2.2 lightx2v, 4 steps",
            ["Two experts: high noise from 0.875 up, low noise below; see Two Experts."],
        ),
        (
            "LTX-2.5 distilled, stage 1, 8 steps",
            ["Then enlarge the latent and go on with 'LTX-2.5 distilled, stage 2, 3 steps'."],
        ),
        ("LTX-2.5 distilled, stage 2, 3 steps", []),
    ],
)
def test_a_recipe_says_what_else_there_is_to_do(name, said):
    assert PRESETS[name].told() == previews.of_recipe({"recipe": name})["told"] == said


def test_a_second_stage_is_a_recipe_of_the_same_models():
    stages = [(preset, PRESETS[preset.then]) for preset in PRESETS.values() if preset.then is not None]
    assert len(stages) == 2
    assert all(first.models == second.models for first, second in stages)


def test_every_preset_is_compared_with_its_published_list():
    assert set(PRESETS) == set(TIMESTEPS) | set(SIGMAS)


def test_a_guider_output_without_a_prompt_says_what_to_connect():
    name = "PCM normal-CFG LoRA, 4 steps"
    *_, guider, _ = recipes.ApplyRecipe().apply(model_of("EPS"), name)
    with pytest.raises(ValueError, match="connect positive to Apply Recipe"):
        guider.model_patcher  # noqa: B018 (what SamplerCustomAdvanced asks first)
    *_, guider, _ = recipes.ApplyRecipe().apply(model_of("EPS"), name, positive=PROMPT)
    with pytest.raises(ValueError, match=r"connect negative to Apply Recipe: this recipe samples at cfg 7\.5"):
        guider.model_patcher  # noqa: B018


def test_one_step_lightning_is_the_networks_output():
    model, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(model_of("EPS"), "SDXL-Lightning, 1 step")
    drawn = draw(model, sampler, sigmas)
    noise = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    start = noise * (1.0 + sigmas[0] ** 2) ** 0.5
    network = model.model.diffusion_model
    with torch.inference_mode():
        scaled = start / (1.0 + sigmas[0] ** 2) ** 0.5
        y = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 4]), 10).float()
        output = network(scaled, torch.full((4,), 999.0), context=torch.zeros(4, 1, 1), y=y)
    torch.testing.assert_close(drawn, output, atol=1e-4, rtol=1e-4)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match=r"recipe is 'PCM'; allowed are LCM or LCM-LoRA.*LTX"):
        recipes.ApplyRecipe().apply(model_of("EPS"), "PCM")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("FLOW", "LCM or LCM-LoRA, 4 steps", r"no recipe for this kind of model \(flow\)"),
        ("FLOW", "SDXL-Lightning, 4 steps", r"no recipe for this kind of model \(flow\)"),
        ("EPS", "FLUX.1 schnell, 4 steps", r"no recipe for this kind of model \(eps\)"),
        ("FLOW", "Hyper-FLUX LoRA, 8 steps", "no guidance input"),
    ],
)
def test_a_recipe_for_another_kind_of_model_is_refused(kind, name, said):
    with pytest.raises(ValueError, match=said):
        recipes.ApplyRecipe().apply(model_of(kind), name, positive=PROMPT)


# --- recipes in files ------------------------------------------------------------------------------------------------


@pytest.fixture
def lora(tmp_path):
    """Writes a LoRA file with metadata where the host looks for LoRAs; returns its name in the node."""
    folder_paths.add_model_folder_path("loras", str(tmp_path))

    def write(metadata):
        save_file({"a": torch.ones(1)}, tmp_path / f"{tmp_path.name}.safetensors", metadata=metadata)
        return f"loras/{tmp_path.name}.safetensors"

    return write


def recipe_of(**changed):
    fields = {
        "method": "progressive_distillation",
        "steps": 2,
        "sigmas": (14.0, 1.6, 0.0),
        "schedule": "trailing",
        "gamma": 0.0,
        "prediction_type": "eps",
        "noise_family": "variance_exploding",
        "guidance_scale": 1.0,
    }
    return Recipe(**{**fields, **changed}).to_metadata()


@pytest.mark.parametrize(("gamma", "node"), [(0.0, "euler"), (1.0, "LCMSampler")])
def test_a_files_own_recipe_is_followed(gamma, node, lora):
    file = lora(recipe_of(gamma=gamma))
    model, sampler, sigmas, cfg, guider, _ = recipes.ApplyRecipe().apply(
        model_of("EPS"), recipes.FROM_FILE, file, positive=PROMPT
    )
    assert (sigmas.tolist(), cfg) == (pytest.approx([14.0, 1.6, 0.0]), 1.0)
    theirs = (
        comfy.samplers.sampler_object("euler")
        if node == "euler"
        else recipes.host.models.sampler(recipes.sample_few_step, gamma=1.0)
    )
    assert torch.equal(draw(model, sampler, sigmas), draw(model, theirs, sigmas))
    assert torch.equal(advanced(guider, sampler, sigmas), draw(model, theirs, sigmas, seed=3))


def test_a_student_that_predicts_otherwise_is_read_so(lora):
    """A v-student's LoRA on an eps checkpoint: the network's output is v now."""
    file = lora(recipe_of(prediction_type="v_prediction"))
    model, *_ = recipes.ApplyRecipe().apply(model_of("EPS"), recipes.FROM_FILE, file)
    assert host.models.prediction_type(host.models.model_sampling_of(model)) == "v_prediction"


@pytest.mark.parametrize(
    ("kind", "metadata", "said"),
    [
        ("EPS", {}, "carries no FewStep recipe.*Recipes of known families are: LCM or LCM-LoRA"),
        ("EPS", {"fewstep.recipe": "nonsense"}, "cannot be read"),
        ("FLOW", recipe_of(), "is for variance_exploding models, but the connected model is flow"),
        (
            "EPS",
            recipe_of(sigmas=(80.0, 1.6, 0.0)),
            "starts at noise level 80, but the connected model's largest is 14.6",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named(kind, metadata, said, lora):
    file = lora(metadata)
    with pytest.raises(ValueError, match=f"{file} .*{said}|in {file} {said}"):
        recipes.ApplyRecipe().apply(model_of(kind), recipes.FROM_FILE, file)


def test_no_file_is_named():
    with pytest.raises(ValueError, match=r"file is 'none'.*Choose a student or LoRA"):
        recipes.ApplyRecipe().apply(model_of("EPS"), recipes.FROM_FILE)
    assert "file is 'gone'" in recipes.ApplyRecipe.VALIDATE_INPUTS(recipes.FROM_FILE, "gone")
