"""An LCM-LoRA made here draws the same by Apply Recipe, by the host's own lcm sampler, and in diffusers."""

import pytest
import torch
from architectures import grid, on_levels
from test_guidance import SHAPES, diffusers_unet, host_model, labels_for
from test_lora import TRAINING

import diffusers.schedulers.scheduling_lcm as diffusers_lcm  # isort: skip  # test_guidance made these importable
import comfy.k_diffusion.sampling  # isort: skip
import comfy.sample  # isort: skip
import comfy.samplers  # isort: skip
import comfy.sd  # isort: skip
import folder_paths  # isort: skip
from diffusers import LCMScheduler, StableDiffusionPipeline  # isort: skip
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.nodes.sampling import recipes
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.trainers.storage.files import read_tensors


def distilled(model, prompt, negative, *, steps, generator):
    (method,) = methods.ConsistencyDistillation().make(
        steps=steps, iterations=8, learning_rate=3e-3, guidance_scale=3.0, distance="pseudo_huber"
    )
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=2.0, layers="linear_and_conv")
    distillation.Distill().distil(
        model,
        method=method,
        latents={"samples": torch.randn(2, 4, 8, 8, generator=generator)},
        positive=prompt,
        negative=negative,
        student=lora,
        run_name="lcm",
        **{**TRAINING, "batch_size": 2},
    )


def drawn(model, sampler, noise, sigmas, prompt):
    inputs = (model, noise, 1.0, sampler, sigmas, prompt, prompt, torch.zeros_like(noise))
    return comfy.sample.sample_custom(*inputs, disable_pbar=True, seed=0)


@pytest.mark.parametrize(
    ("shape", "steps"), grid(SHAPES, [1, 4], gate=lambda *given: given in {("SDXL", 1), ("SD1.5", 4)})
)
def test_it_draws_the_same_everywhere(shape, steps, tmp_path, monkeypatch):
    """To 1e-4, at the steps of its recipe, with the same noise."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    linear, generator = bool(SHAPES[shape]), torch.Generator().manual_seed(2)
    theirs = diffusers_unet(linear)
    model = host.models.with_model_sampling(host_model(dict(theirs.state_dict()), linear), prediction="eps")
    labels, given = labels_for(theirs, linear, generator)
    monkeypatch.setattr(
        type(model.model), "encode_adm", lambda _, **inputs: inputs["pooled_output"] if linear else None
    )
    context, pooled = torch.randn(2, 5, 8, generator=generator), given.get("y", torch.zeros(2, 1))
    prompt = [[context, {"pooled_output": pooled}]]
    negative = [[torch.zeros(1, 5, 8), {"pooled_output": torch.zeros_like(pooled[:1])}]]
    noise, *fresh = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(5))
    with torch.inference_mode():
        distilled(model, prompt, negative, steps=steps, generator=generator)
        file = read_tensors(tmp_path / "loras" / "fewstep" / "lcm.safetensors")[0]
        loaded, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
        applied, _, sigmas, *_ = recipes.ApplyRecipe().apply(loaded, recipes.FROM_FILE, file="lcm (run)")
        draws = [iter(fresh) for _ in range(3)]
        ours = host.models.sampler(sample_few_step, gamma=1.0, noise_sampler=lambda *_: next(draws[0]))
        stock = comfy.samplers.KSAMPLER(
            comfy.k_diffusion.sampling.sample_lcm, extra_options={"noise_sampler": lambda *_: next(draws[1])}
        )
        by_recipe = drawn(applied, ours, noise, sigmas, prompt)
        by_host = drawn(on_levels("ModelSamplingDiscrete", loaded, "lcm", False), stock, noise, sigmas, prompt)
        lcm = on_levels("ModelSamplingDiscrete", model, "lcm", False)
        bare = drawn(lcm, stock, noise, sigmas[:1].repeat(2) * torch.tensor([1.0, 0.0]), prompt)
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=theirs, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    monkeypatch.setattr(diffusers_lcm, "randn_tensor", lambda *_, **__: next(draws[2]))
    with torch.no_grad():
        pipeline.load_lora_weights(tmp_path / "loras" / "fewstep", weight_name="lcm.safetensors")
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(theirs(x, t, context, **labels).sample, t, x).prev_sample
    torch.testing.assert_close(by_recipe, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_host, x, atol=1e-4, rtol=1e-4)
    assert steps > 1 or (by_host - bare).abs().max() > 0.01, "the LoRA does something"
