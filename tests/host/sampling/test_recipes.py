"""Each preset gives the levels, the reading, the sampler and the guidance that its source names; files speak for themselves."""

import pytest
import torch
from comfyui_fewstep.benchmarks.templates.judge import sampling_of_family
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
from comfyui_fewstep.nodes.sampling import recipes, samplers
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.samplers.presets import OURS, PRESETS
from comfyui_fewstep.samplers.recipe import Recipe
from published import SIGMAS, TIMESTEPS
from test_guidance_distilled import advanced, guided_model
from test_sampling import draw, model_of, noise_of, schedule
from test_schedules_of_kinds import sampling

PROMPT = digits_model.prompt("1234")
WITH_CFG = {
    "Hyper-SD CFG": 5.0,
    "PCM normal-CFG": 7.5,
    "Hyper-SD3 LoRA, 4": 3.0,
    "Hyper-SD3 LoRA, 8": 5.0,
    "Hyper-SD3 LoRA, 16": 7.0,
}


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


def wants(preset, model):
    """Words of what a recipe needs of the host and this one lacks; None where nothing does."""
    if preset.sampler not in (*OURS, *comfy.samplers.KSampler.SAMPLERS):
        return f"this ComfyUI has no sampler '{preset.sampler}'"
    if preset.noise_scale is not None and not hasattr(host.models.model_sampling_of(model), "set_noise_scale"):
        return "this recipe sets the scale of the model's noise"
    return None


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_is_complete_and_runs(name):
    given, applied = model_for(name), recipes.ApplyRecipe().apply
    if lacking := wants(PRESETS[name], given):
        with pytest.raises(ValueError, match=lacking):
            applied(given, name, positive=PROMPT)
        return
    model, sampler, sigmas, cfg, guider, _ = applied(given, name, positive=PROMPT, negative=digits_model.prompt(""))
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


@pytest.mark.parametrize("name", [name for name in SIGMAS if PRESETS[name].models])
def test_the_list_is_published_on_the_familys_own_levels(name):
    """Whatever shift, multiplier and length of table the host gives the family."""
    made = sampling_of_family(PRESETS[name].models[0])
    if made is None:
        pytest.skip("this host has no such models")
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


@pytest.mark.skipif(not hasattr(comfy.model_sampling.ModelSamplingDiscreteFlow, "set_noise_scale"), reason="not here")
def test_a_recipe_of_scaled_noise_sets_its_scale():
    """HiDream-O1 dev: as the host's ModelNoiseScale, on the shift that the model has; the given model stays."""
    given = model_of("FLOW")
    before = host.models.model_sampling_of(given)
    before.set_parameters(shift=3.0)
    model, *_ = recipes.ApplyRecipe().apply(given, "HiDream-O1 dev, 28 steps")
    patched = host.models.model_sampling_of(model)
    assert (patched.noise_scale, patched.shift, before.noise_scale) == (7.6, 3.0, 1.0)


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
        ("Z-Image-Turbo, 8 steps (res_multistep, ComfyUI's templates)", ["Sampled by ComfyUI's res_multistep."]),
        (
            "Marigold v2, 1 step",
            ["Begins from the picture without noise: connect DisableNoise and the encoded picture."],
        ),
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


@pytest.mark.parametrize("name", TIMESTEPS)
def test_recipes_of_lcm_and_no_others_put_its_boundary_on_the_model(name):
    """Where noise ends it gives back the picture that it is given, whatever the network says; others hear the network."""
    model, *_ = recipes.ApplyRecipe().apply(model_of("EPS"), name)
    made, x_vp, output = host.models.model_sampling_of(model), noise_of(seed=1), noise_of(seed=2)
    sigma = host.models.noise_levels(made)[0]
    x0 = made.calculate_denoised(sigma.expand(4), output, x_vp * (1.0 + sigma**2) ** 0.5)
    assert torch.allclose(x0, x_vp, atol=1e-5) == ("LCM" in name)


@pytest.mark.parametrize(
    ("name", "node", "settings"),
    [
        ("PCM small-CFG LoRA, 4 steps", "TCDSampler", {"eta": 0.0}),
        ("TCD-LoRA, 4 steps", "TCDSampler", {"eta": 0.3}),
        ("SD- or SDXL-Turbo, 4 steps", "AncestralSampler", {"eta": 1.0, "s_noise": 1.0}),
        ("LCM or LCM-LoRA, 4 steps", "LCMSampler", {}),
        ("SDXL-Lightning, 4 steps", "LightningSampler", {}),
        ("Hyper-SD UNet, 1 step", "ConsistencySampler", {"gamma": 1.0, "s_noise": 1.0, "unit_variance_start": True}),
        ("HiDream-O1 dev, 28 steps", "ConsistencySampler", {"gamma": 1.0, "s_noise": 1.0, "noise_clip": 2.5}),
    ],
)
def test_a_recipes_sampler_is_the_node_at_what_its_source_sets(name, node, settings):
    given = model_for(name)
    if lacking := wants(PRESETS[name], given):
        pytest.skip(lacking)
    model, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(given, name)
    (by_hand,) = getattr(samplers, node)().make(**settings)
    assert torch.equal(draw(model, sampler, sigmas), draw(model, by_hand, sigmas))


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match=r"recipe is 'PCM'; allowed are LCM or LCM-LoRA.*Z-Image-Turbo.* and \d+ more"):
        recipes.ApplyRecipe().apply(model_of("EPS"), "PCM")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("FLOW", "LCM or LCM-LoRA, 4 steps", r"no recipe for this kind of model \(flow\)"),
        ("FLOW", "SDXL-Lightning, 4 steps", r"no recipe for this kind of model \(flow\)"),
        ("EPS", "FLUX.1 schnell, 4 steps", r"no recipe for this kind of model \(eps\)"),
        ("FLOW", "Hyper-FLUX LoRA, 8 steps", "no guidance input"),
        ("EDM", "Hyper-SD unified LoRA, 1 step", r"'Hyper-SD .*' names training timesteps, .* continuous \(edm\)"),
        ("V_PREDICTION_EDM", "LCM or LCM-LoRA, 4 steps", r"'LCM .*' names training timesteps, .* \(v_prediction\)"),
        ("EDM", "SDXL-Lightning, 1 step", "'SDXL-Lightning, 1 step' reads the network's output as x0, .* is edm"),
        ("STABLE_CASCADE", "LCM or LCM-LoRA, 4 steps", "'LCM .*' counts training timesteps .* from 0 to 1"),
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
        ("EPS", {}, "carries no FewStep recipe.*Known families have recipes of their own in the menu"),
        ("EPS", {"fewstep.recipe": "nonsense"}, "cannot be read"),
        (
            "FLOW",
            recipe_of(),
            "is for a model of Stable Diffusion's kind that predicts eps, but the connected model is a flow model.",
        ),
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
