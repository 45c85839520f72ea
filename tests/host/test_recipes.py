"""Each preset gives the levels, the reading and the sampler that its source names."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host, recipes  # noqa: E402
from comfyui_fewstep.samplers.presets import PRESETS  # noqa: E402
from test_sampling import draw, model_of  # noqa: E402

TIMESTEPS = {
    "LCM or LCM-LoRA, 4 steps": [999, 759, 499, 259],
    "LCM or LCM-LoRA, 8 steps": [999, 879, 759, 639, 499, 379, 259, 139],
    "SDXL-Lightning, 1 step": [999],
    "SDXL-Lightning, 2 steps": [999, 499],
    "SDXL-Lightning, 4 steps": [999, 749, 499, 249],
    "SDXL-Lightning, 8 steps": [999, 874, 749, 624, 499, 374, 249, 124],
    "SD- or SDXL-Turbo, 1 step": [999],
    "Hyper-SD LoRA, 2 steps": [999, 499],
    "Hyper-SD LoRA, 4 steps": [999, 749, 499, 249],
    "Hyper-SD LoRA, 8 steps": [999, 874, 749, 624, 499, 374, 249, 124],
    "Hyper-SD unified LoRA, 1 step": [999],
    "Hyper-SD UNet, 1 step": [800],
    "DMD2, 4 steps": [999, 749, 499, 249],
    "DMD2, 1 step": [399],
    "TCD-LoRA, 4 steps": [999, 759, 499, 259],
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_is_complete_and_runs(name):
    model, sampler, sigmas, cfg = recipes.ApplyRecipe().apply(model_of("EPS"), name)
    table = host.noise_levels(host.model_sampling_of(model))
    assert torch.equal(sigmas[:-1], table[TIMESTEPS[name]])
    assert cfg == 1.0
    assert PRESETS[name].source
    assert host.prediction_type(host.model_sampling_of(model)) == ("x0" if name == "SDXL-Lightning, 1 step" else "eps")
    assert torch.isfinite(draw(model, sampler, sigmas)).all()


def test_one_step_lightning_is_the_networks_output():
    model, sampler, sigmas, _ = recipes.ApplyRecipe().apply(model_of("EPS"), "SDXL-Lightning, 1 step")
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
    with pytest.raises(ValueError, match="no recipe 'PCM'; known are: LCM or LCM-LoRA"):
        recipes.ApplyRecipe().apply(model_of("EPS"), "PCM")


def test_a_flow_model_is_refused():
    with pytest.raises(ValueError, match="flow"):
        recipes.ApplyRecipe().apply(model_of("FLOW"), "LCM or LCM-LoRA, 4 steps")
