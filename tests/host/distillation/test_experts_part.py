"""Two experts, distilled each in a run of its own, and sampled as one."""

import types

import pytest
import torch
from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes.distillation import distillation, observing
from comfyui_fewstep.nodes.distillation.learning import experts_part, methods, students
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.nodes.sampling import experts, recipes
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from test_lora import TRAINING
from test_methods import CONSISTENCY, file_of, output  # noqa: F401 (a fixture)

PROGRESSIVE = {
    "start_steps": 8,
    "target_steps": 2,
    "iterations": 6,
    "weighting": "constant",
    "learning_rate": 1e-3,
    "guidance_scale": 1.0,
}
PARTS = {"high": (0.8, 1.0), "low": (0.0, 0.8)}


@torch.inference_mode()
def distilled(model, part):
    (method,) = methods.ProgressiveDistillation().make(**PROGRESSIVE)
    (method,) = experts_part.ExpertsPart().make(method, *PARTS[part])
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear")
    return distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=8)},
        positive=conditioning("sd3", seed=2),
        method=method,
        run_name=part,
        student=lora,
        **TRAINING,
    )


def test_two_students_of_two_runs_are_sampled_as_one(output):  # noqa: F811
    """By what their files say: one schedule, one boundary; each is asked at its own levels alone."""
    model = tiny("sd3")
    made = {part: distilled(model, part)[0] for part in PARTS}
    folders.list_own_models()
    applied = {}
    for part in PARTS:
        _, recipe, metadata = read_student(file_of(output, part))
        assert (recipe.level_from, recipe.level_to) == PARTS[part]
        assert metadata["modelspec.title"] == f"{part}, 2 steps, {recipe.part}"
        with torch.inference_mode():
            applied[part] = recipes.ApplyRecipe().apply(model, recipes.FROM_FILE, file=f"{part} (run)")
    assert torch.equal(applied["high"][2], applied["low"][2])
    assert applied["high"][5] == applied["low"][5] == 0.8
    _, sampler, sigmas, *_, boundary = applied["high"]
    noise, prompt = noise_for(model), conditioning("sd3", seed=2)

    def drawn(high, low):
        (guider,) = experts.TwoExperts().make(high, low, prompt, boundary, 1.0)
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)

    pair = drawn(made["high"], made["low"])
    assert torch.isfinite(pair).all()
    for other in (drawn(made["low"], made["low"]), drawn(made["high"], made["high"]), drawn(model, model)):
        assert not torch.equal(pair, other), "both students have learnt, each where it is asked"


def test_a_preview_shows_what_an_expert_sees_at_the_end_of_its_part(tmp_path):
    """Of low noise from the data in noise; the last level goes to 0, at which there is a picture."""
    (method,) = methods.ProgressiveDistillation().make(**PROGRESSIVE)
    asked = []

    def denoiser(x, sigma):
        asked.append((float(sigma[0]), x))
        return torch.zeros_like(x)

    kind = TeacherKind(family=NoiseFamily.FLOW, table=torch.arange(1, 1001) / 1000)
    (part,) = experts_part.ExpertsPart().make(method, 0.0, 0.6)
    sample = Batch(x0=torch.full((2, 1, 2, 2), 5.0), condition={})
    run = types.SimpleNamespace(
        method=part.on(kind),
        data=types.SimpleNamespace(varied=lambda _: sample),
        run=RunFolder(tmp_path, "run"),
        at_once=2,
    )
    preview = observing.Preview(run, None, model=None, vae=None)
    preview._draw(denoiser, sample, run.method.stages()[0], gamma=0.0)
    assert [sigma for sigma, _ in asked] == [0.5, 0.25]
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(asked[0][1], 0.5 * noise + 2.5)


def test_methods_that_learn_from_below_are_refused():
    (method,) = methods.ConsistencyDistillation().make(**CONSISTENCY)
    with pytest.raises(ValueError, match="method is Consistency, whose students learn from all levels below"):
        experts_part.ExpertsPart().make(method, 0.0, 0.6)
    assert "level_from is 0.6" in experts_part.ExpertsPart.VALIDATE_INPUTS(level_from=0.6, level_to=0.2)
