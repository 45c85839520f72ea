"""Prompts of another model's text encoder are refused in words that name it, wherever a network gets them first."""

import pytest
import torch
from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.host.teachers import refusals


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sdxl"), ("sdxl", "sd15")])
def test_a_training_step_and_a_drawing_name_the_text_encoder(kind, other):
    """It was "mat1 and mat2 shapes cannot be multiplied"."""
    model, x = tiny(kind), noise_for(tiny(kind))
    ((text, said),) = conditioning(other)
    prompt = [[text, {**said, "pooled_output": said.get("pooled_output", torch.zeros(1, 1280))}]]
    sigmas = host.models.noise_levels(host.models.model_sampling_of(model))[[-1, 0]]
    with pytest.raises(ValueError, match="Connect the CLIP that belongs to the model"):
        host.data.draw(model, "euler", sigmas, noise=x, positive=prompt, negative=prompt, cfg=2.0)
    denoise = host.training.as_denoiser(host.training.loaded(model))
    with torch.no_grad(), pytest.raises(ValueError, match="Connect the CLIP that belongs to the model"):
        labels = {"y": torch.zeros(2, 2816)} if kind == "sdxl" else {}
        denoise(x, torch.tensor([1.0, 1.0]), c_crossattn=text.expand(2, -1, -1), **labels)


@pytest.mark.parametrize(
    "error", [RuntimeError("Sizes of tensors must match"), ValueError("shapes cannot be multiplied")]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, refusals.of_prompts():
        raise error
    assert raised.value is error
