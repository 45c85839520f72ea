"""A teacher with guidance of its own (RescaleCFG, PAG): what its student learnt, who answers meanwhile, and what goes on."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.storage.export import GUIDED_KEY
from comfyui_fewstep.trainers.storage.files import read_metadata
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from gradients import cosine_of_all
from test_lora import distil, draw, output  # noqa: F401
from todays_inputs import hosts_x0, perturbed


def with_scaled_guidance(factor=2.0, *, of="sd15"):
    """As RescaleCFG: plain guidance, times a number that is in no weight."""
    model = tiny(of)

    def scaled(args):
        return args["uncond"] + factor * args["cond_scale"] * (args["cond"] - args["uncond"])

    model.set_model_sampler_cfg_function(scaled)
    return model


@pytest.mark.parametrize("learns", ["lora", "full"])
def test_the_student_carries_what_it_has_learnt_of_guidance_no_more(learns, output):  # noqa: F811
    model = with_scaled_guidance()
    student, _, name, _ = distil(model, "sd15", student=students.FullWeights() if learns == "full" else None)
    assert not host.carried.guiding(student)
    assert host.carried.guiding(model), "the teacher keeps it"
    file = output / "fewstep" / "runs" / name / "student.safetensors"
    assert "sampler_cfg_function (with_scaled_guidance of test_guided_teacher)" in read_metadata(file)[GUIDED_KEY]
    again, *_ = students.LoadStudent().load(model, f"{name} (run)")
    bare, *_ = students.LoadStudent().load(tiny("sd15"), f"{name} (run)")
    assert torch.equal(draw(again, "sd15"), draw(bare, "sd15")), (
        "as on the bare checkpoint, which is all that others have"
    )


def test_a_student_of_usual_guidance_leaves_what_is_wired_in_to_its_user(output):  # noqa: F811
    _, _, name, _ = distil(tiny("sd15"), "sd15")
    again, *_ = students.LoadStudent().load(with_scaled_guidance(), f"{name} (run)")
    assert host.carried.guiding(again)


def test_the_student_learns_what_the_rule_says(output):  # noqa: F811
    """Of two teachers that differ in nothing else the students differ as they do, on noise that they have not seen."""
    (method,) = methods.GuidanceDistillation().make(
        guidance_scale=3.0, steps=4, iterations=60, learning_rate=3e-3, weighting="constant"
    )
    factors = (0.2, 2.0)
    teachers = [with_scaled_guidance(factor) for factor in factors]
    learnt = [distil(teacher, "sd15", method=method)[0] for teacher in teachers]
    x, prompts = 4.0 * noise_for(teachers[0], seed=77), (conditioning("sd15", seed=2), conditioning("sd15", seed=5))
    few, many = (hosts_x0(student, x, 3.0, prompts[0]) for student in learnt)
    less, more = (hosts_x0(teacher, x, 3.0, *prompts, cfg=3.0) for teacher in teachers)
    assert cosine_of_all([many - few], [more - less]) > 0.5


def test_a_run_goes_on_with_the_same_guidance_alone(output):  # noqa: F811
    given = {"name": "run", "checkpoint_every": 5}
    distil(with_scaled_guidance(), "sd15", **given)
    distil(with_scaled_guidance(), "sd15", **given)
    with pytest.raises(ValueError, match=r"holds another run.*the teacher's answers at noise level"):
        distil(with_scaled_guidance(2.5), "sd15", **given)
    with pytest.raises(ValueError, match=r"holds another run.*sampler_cfg_function of guidance"):
        distil(tiny("sd15"), "sd15", **given)


def test_it_is_the_teacher_who_answers_once_more():
    """The same weights carry the student's LoRA meanwhile."""
    model = tiny("sd15")
    model.set_model_sampler_post_cfg_function(perturbed)
    x, sigma = 2.0 * noise_for(model)[:1], torch.full((1,), 3.0)
    prompts = [
        host.inputs.condition_for_training(model, conditioning("sd15", seed=seed), latents=x, name="positive")
        for seed in (0, 1)
    ]
    options = LoRAOptions(rank=4, alpha=4.0, layers=LoRALayers.LINEAR)
    with students.student_of(model, options, seed=0) as student, torch.no_grad():

        def taught():
            rule = host.guiding.rule_of(model)
            return guided(student.teacher, guidance_scale=3.0, unconditional=prompts[1], rule=rule)(
                x, sigma, **prompts[0]
            )

        before, own = taught(), student.denoiser(x, sigma, **prompts[0])
        for weight in student.parameters():
            weight.add_(0.05)
        assert not torch.allclose(student.denoiser(x, sigma, **prompts[0]), own, atol=1e-2)
        assert torch.equal(taught(), before)
